# %% [markdown]
# # 12. From the head to text: decoding
#
# **Aim.** Know what the head computes, how the next token is chosen, and why a cache makes it fast.
#
# Slides: *ICE #5* (class question 5: the number of classes of the LM head).
#
# The **head** gives every token of the vocabulary a score, its **logit**; softmax makes probabilities
# of them. **Greedy decoding** takes the most probable token, **sampling** draws one. The chosen token
# is appended, and the model runs again: **auto-regressive** decoding.

# %%
import time

import torch

import llamaseek
from llamaseek.models.head import Head
from notebooks.kit import SMOLLM2, pick, plt, source, trained

model = llamaseek.load(SMOLLM2, dtype="fp32") if SMOLLM2 else trained("pretrain").model(dtype="fp32")
network, tokenizer = model.network, model.tokenizer
source(Head)

# %% [markdown]
# ## The distribution of the next token

# %%
def next_logits(ids: list[int]) -> torch.Tensor:
    """The logits (V) after a row of tokens."""
    with torch.no_grad():
        hidden = network(torch.tensor([ids]), torch.arange(len(ids))[None])
        return network.logits(hidden[0, -1])


prompt = tokenizer.encode("The red fox chased the")
logits = next_logits(prompt)
best = logits.softmax(-1).topk(12)
plt.bar(range(12), best.values)
plt.xticks(range(12), [repr(tokenizer.token_text(int(i))) for i in best.indices], rotation=60, fontsize=8)
plt.ylabel("probability")
plt.show()

# %% [markdown]
# ## Sampling settings
#
# The **temperature** divides the logits: below 1 the likely tokens gain, above 1 the unlikely ones.
# `top_p` keeps the most probable tokens up to that total.

# %%
for temperature, top_p in ((0.0, 1.0), (0.7, 0.9), (1.0, 1.0), (1.5, 1.0)):
    text = model.generate("The red fox chased the", max_tokens=10, temperature=temperature, top_p=top_p, seed=1)
    print(f"temperature {temperature}, top_p {top_p}: {text!r}")

# %% [markdown]
# ## Why a cache
#
# Without a cache every step computes the keys and values of all earlier tokens again. With one, a
# step computes the new token's alone. The project's *engine*, which answers all requests, keeps the
# cache in blocks of a few tokens each (a *paged* cache), so that many answers share one memory. The same
# tokens, the time for each length:

# %%
lengths = pick((8, 16, 32, 64), (4, 8))
without, with_cache = [], []
for length in lengths:
    ids = list(prompt)
    started = time.perf_counter()
    for _ in range(length):
        ids.append(int(next_logits(ids).argmax()))
    without.append(time.perf_counter() - started)
    started = time.perf_counter()
    model.generate("The red fox chased the", max_tokens=length, ignore_eos=True)
    with_cache.append(time.perf_counter() - started)
plt.plot(lengths, without, "o-", label="computed again")
plt.plot(lengths, with_cache, "o-", label="engine with a paged cache")
plt.xlabel("tokens generated"), plt.ylabel("seconds"), plt.legend()
plt.show()

# %% [markdown]
# ## Speculative decoding
#
# A cheap guess of several tokens can be checked in one step of the model: those that agree are kept.
# The answer does not change, only its speed. Here tokens that followed the same words earlier in the
# text are guessed (`llamaseek generate --speculate lookup`).

# %%
from llamaseek.engine.drafts.lookup import Lookup

source(Lookup)

# %% [markdown]
# ## Class question 5
#
# *Llama 4 is trained on 40T tokens, with a context window of 256k, a vocabulary of 108k and an
# embedding size of 4096. How many classes does the classifier of the LM head have?*
#
# **c) 108k**: one class for each token of the vocabulary. Change the context, the width or the number
# of tokens read, and the head's rows stay as many:

# %%
for width in (64, 128):
    print(Head(width, 108_000).weight.shape)

# %% [markdown]
# ## Exercise
#
# Write greedy decoding with `next_logits`: `count` tokens after `ids`.

# %% tags=["solution"]
def greedy(ids: list[int], count: int) -> list[int]:
    """The `count` tokens that are the most probable one after the other."""
    row = list(ids)
    for _ in range(count):
        row.append(int(next_logits(row).argmax()))
    return row[len(ids) :]

# %% tags=["check"]
from llamaseek.engine.request import Request, SamplingParams

request = Request(prompt=prompt, params=SamplingParams(max_tokens=8, ignore_eos=True))
(output,) = model.engine.generate([request])
assert greedy(prompt, 8) == output.answers[0].tokens
print(tokenizer.decode(greedy(prompt, 8)))

# %% [markdown]
# ## Read next
#
# - [The engine](../docs/engine.md): paged cache, batching, speculation.
# - Holtzman et al. 2019 (top-p); Kwon et al. 2023 (paged attention); Leviathan et al. 2022
#   (speculative decoding).
