# %% [markdown]
# # 14. DeepSeek-V3: latent attention and a mixture of experts
#
# **Aim.** Understand the two parts in which DeepSeek-V3 differs from a Llama, by their bytes and their
# loads.
#
# Slides: *Training Hacks* (latent attention, mixture of experts), *DeepSeekV3*, *Notebook Walkthrough*.
#
# **Latent attention** keeps one small vector a token in the cache, the *latent*, from which keys and
# values of all heads are made again, and beside it a short *rotary key*, which all heads share and which
# alone carries the position (notebook 10). A **mixture of experts** has many feed-forward parts, the
# *experts*; a **router** chooses a few for each token and weighs what they give by numbers called gates.
# A shared expert works for every token.

# %%
import torch

from llamaseek.herd import config_from_sizes
from llamaseek.herd.published import ENTRIES
from llamaseek.models import build_model
from llamaseek.models.attention import LatentAttention
from llamaseek.models.latent import LatentHeads
from llamaseek.models.moe import Router
from notebooks.kit import curve, pick, plt, source, trained

source(LatentAttention._expanded)

# %%
source(LatentHeads.absorbed)

# %% [markdown]
# ## Bytes of cache for each token

# %%
names = ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "deepseek-v3")
from llamaseek.herd.tensors import cache_numbers_per_token

cache = {name: 2 * cache_numbers_per_token(ENTRIES[name].config) for name in names}
plt.barh(list(cache), list(cache.values()))
plt.xlabel("bytes a token in bf16")
plt.show()
print(cache)

# %% [markdown]
# ## Absorbed equals expanded
#
# Training expands the latent vector into keys and values. Decoding moves that product into the query
# and the output, and reads the latent vectors alone. The same logits either way, here through the
# engine's cache and without one:

# %%
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "max_position_embeddings": 128, "num_nextn_predict_layers": 0,
}  # fmt: skip
torch.manual_seed(0)
network = build_model(config_from_sizes("deepseek_v3", SIZES)).eval()
from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Request, SamplingParams

prompt = list(range(40, 60))
engine = Engine(network)
(output,) = engine.generate([Request(prompt=prompt, params=SamplingParams(max_tokens=12, ignore_eos=True, logprobs=0))])
absorbed = torch.tensor([each.logprob for each in output.answers[0].logprobs])
row = [*prompt, *output.answers[0].tokens]
with torch.no_grad():
    hidden = network(torch.tensor([row]), torch.arange(len(row))[None])
    logprobs = network.logits(hidden)[0, len(prompt) - 1 : -1].log_softmax(-1)
expanded = logprobs.gather(1, torch.tensor(output.answers[0].tokens)[:, None])[:, 0]
print(f"largest difference of log-probabilities: {(absorbed - expanded).abs().max():.2g}")
assert torch.allclose(absorbed, expanded, atol=1e-4)

# %% [markdown]
# ## The router, and how it stays balanced
#
# Each expert has a score for each token; the best few are chosen. If some experts get all the tokens,
# the others learn nothing. DeepSeek-V3 adds a **bias** to the scores for the choice alone, and after
# each step raises it for experts with too few tokens and lowers it for those with too many.

# %%
source(Router)

# %%
found = trained("pretrain", "deepseek_v3")
keys = [key for key in found.metrics[0] if "load" in key or "expert" in key]
print("watched:", keys)
figure, axis = plt.subplots()
for key in keys[:2]:
    axis.plot(*curve(found, key), label=key)
axis.set(xlabel="step"), axis.legend()
plt.show()

# %% [markdown]
# ## Where the tokens of a sentence go
#
# `model.internals(text)` watches the course's DeepSeek while it reads (the chat page shows the same:
# [a look inside](../docs/chat-page.md)). Each row is a token, each column an expert, the color its gate:

# %%
model = found.model(dtype="fp32")
inside = model.internals("The red fox chased the blue bird, and the bird flew away.")
layer, (chosen, gates) = next(iter(inside.experts.items()))
picture = torch.zeros(len(inside.tokens), inside.num_experts).scatter(1, chosen, gates)
plt.figure(figsize=(5, 4))
plt.imshow(picture, cmap="Blues", aspect="auto")
words = [model.tokenizer.token_text(token) for token in inside.tokens]
plt.yticks(range(len(words)), words, fontsize=7), plt.xlabel(f"expert of layer {layer}")
plt.show()
print("tokens for each expert:", inside.expert_load[layer].tolist())
print(f"cache: {inside.cache_bytes} bytes a token, {inside.full_cache_bytes} with keys and values of every head")

# %% [markdown]
# ## Experiment: what the bias does
#
# A router with uneven scores, its bias moved by 0.01 a step:

# %%
torch.manual_seed(1)
router = Router(config_from_sizes("deepseek_v3", SIZES))
torch.nn.init.normal_(router.weight, std=0.3)
tokens = torch.randn(512, 64) + 0.5
loads = []
for _ in range(pick(200, 40)):
    scores = router.scores(tokens)
    chosen, _ = router.choose(scores)
    load = torch.bincount(chosen.flatten(), minlength=8).float()
    loads.append(load / load.mean())
    router.e_score_correction_bias += 0.01 * torch.sign(load.mean() - load)
plt.plot(torch.stack(loads))
plt.xlabel("step"), plt.ylabel("load of each expert / mean")
plt.show()

# %% [markdown]
# ## Exercise
#
# Write the bytes of cache a token needs in bf16, from a configuration: for a Llama keys and values of
# every key-value head in every layer; for DeepSeek-V3 the latent vector and the shared rotary key in
# every layer.

# %% tags=["solution"]
def cache_bytes(config) -> int:
    """Bytes of cache a token in bf16."""
    if hasattr(config, "kv_lora_rank"):
        numbers = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        numbers = 2 * config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * numbers

# %% tags=["check"]
assert cache_bytes(ENTRIES["llama-3.1-8b"].config) == 131_072
assert cache_bytes(ENTRIES["deepseek-v3"].config) == 70_272
assert cache_bytes(ENTRIES["llama-3.1-405b"].config) == cache["llama-3.1-405b"]

# %% [markdown]
# ## Read next
#
# - DeepSeek-V2 (2024), §2.1; DeepSeek-V3 technical report, §2.1 and §2.1.2.
# - [The questions of the lecture](../docs/questions.md), all with answers.
