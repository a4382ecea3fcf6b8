# %% [markdown]
# # 10. Llama 3's architecture
#
# **Aim.** Read the whole model from top to bottom, and write its norm and its rotary positions.
#
# Slides: *Llama3 Architecture*.
#
# A Llama turns each token into a vector (the **embedding**), passes the vectors through **layers**,
# and turns the last ones into scores of all tokens (the **head**; notebook 12). A layer has two parts:
# **attention**, in which a position reads from earlier ones, and a **feed-forward** part, which works
# on each position alone. Each part's result is added to what came in.

# %%
import torch

import llamaseek
from llamaseek.engine.internals import read_internals
from llamaseek.herd import config_from_sizes
from llamaseek.herd.published import ENTRIES
from llamaseek.models import build_model
from llamaseek.models.attention import GroupedQueryAttention
from llamaseek.models.layers import RMSNorm
from llamaseek.models.llama3 import Llama3Layer
from llamaseek.models.rope import inverse_frequencies, rotate_halves
from notebooks.kit import SMOLLM2, plt, source, trained

source(Llama3Layer)

# %% [markdown]
# ## The norm
#
# **RMSNorm** divides a vector by the root of its mean square, and multiplies by learned weights.

# %%
source(RMSNorm)

# %% [markdown]
# ## Rotary positions
#
# Attention compares a **query**, a vector of the position that reads, with the **keys** of the positions
# up to it. The softmax of the comparisons gives weights, and the result is the mean of those positions'
# **values** under these weights. Query, key and value are three matrix products of the position's
# vector. Rotary embeddings turn pairs of numbers of query and key by an angle that grows with the
# position, each pair at its own speed, so that the comparison depends on the distance. Llama 3.1 slows
# the slow pairs further, for longer texts.

# %%
plain = inverse_frequencies(128, 500000.0, None)
scaled = inverse_frequencies(128, 500000.0, ENTRIES["llama-3.1-8b"].config.rope_scaling)
plt.semilogy(2 * torch.pi / plain, label="Llama 3")
plt.semilogy(2 * torch.pi / scaled, label="Llama 3.1")
plt.xlabel("pair"), plt.ylabel("positions for a full turn"), plt.legend()
plt.show()

# %% [markdown]
# ## Grouped heads
#
# Attention runs in several **heads** side by side, each with smaller queries, keys and values of its own
# (the head at the model's end has only the name in common). In Llama 3 four (8B) to sixteen (405B)
# query heads share one key and value head, which makes the cache of notebook 12 that much smaller.

# %%
source(GroupedQueryAttention)

# %% [markdown]
# ## An attention map
#
# Whom does each position of a sentence read from? The weights of one head of the second layer, of
# SmolLM2 if it is on this machine, else of the course's model:

# %%
model = llamaseek.load(SMOLLM2, dtype="fp32") if SMOLLM2 else trained("pretrain").model(dtype="fp32")
inside = model.internals("The red fox chased the blue bird, and the bird flew away.")
weights = inside.attention[1][0]  # the second layer, its first head
assert torch.allclose(weights.sum(-1), torch.ones(len(weights)), atol=1e-5)
words = [model.tokenizer.token_text(token) for token in inside.tokens]
plt.figure(figsize=(5, 4))
plt.imshow(weights, cmap="Blues")
plt.xticks(range(len(words)), words, rotation=90, fontsize=7), plt.yticks(range(len(words)), words, fontsize=7)
plt.show()

# %% [markdown]
# What would the model say if it stopped after a layer? The head applied to each layer's output, at
# the last token:

# %%
for layer, (ids, shares) in enumerate(zip(inside.layers[:, -1], inside.probabilities[:, -1], strict=True)):
    if layer % max(1, len(inside.layers) // 8) == 0 or layer == len(inside.layers) - 1:
        print(f"layer {layer:2}", [f"{model.tokenizer.token_text(int(i))!r} {float(p):.0%}" for i, p in zip(ids[:4], shares[:4], strict=True)])

# %% [markdown]
# ## Experiment: the same numbers as transformers
#
# A model of random weights, in our code and in Hugging Face's (if transformers is installed): its
# logits (notebook 12), its rotary angles, and the attention weights of every head.

# %%
config = config_from_sizes("llama3", {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
})  # fmt: skip
torch.manual_seed(0)
ours = build_model(config).eval()
tokens = torch.randint(0, 300, (2, 20))
with torch.no_grad():
    logits = ours.logits(ours(tokens, torch.arange(20).expand(2, 20)))
try:
    import transformers
except ImportError:
    print("transformers is not installed: pip install transformers")
else:
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, attn_implementation="eager",
    )).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        wanted = theirs(tokens, output_attentions=True)
        cos, sin = theirs.model.rotary_emb(logits, torch.arange(20)[None])
    angles = torch.arange(20)[:, None] * inverse_frequencies(16, config.rope_theta, None)
    attention = read_internals(ours, tokens[0].tolist()).attention
    differences = {
        "logits": (wanted.logits - logits).abs().max(),
        "cosines of the angles": (cos[0, :, :8] - angles.cos()).abs().max(),
        "sines": (sin[0, :, :8] - angles.sin()).abs().max(),
        "attention": max((a - b[0]).abs().max() for a, b in zip(attention, wanted.attentions, strict=True)),
    }
    for name, difference in differences.items():
        print(f"largest difference of {name}: {difference:.2g}")
        assert difference < 1e-4, name

# %% [markdown]
# ## Exercise
#
# Write RMSNorm and the rotation of one head's vectors. `rotate` turns pairs $(i, i + R/2)$ of
# `x` (T, R) at positions 0 to T - 1, with the frequencies (R / 2).

# %% tags=["solution"]
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., D) divided by the root of its mean square plus eps, times weight (D)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """x (T, R) turned by position times frequency, pairs (i, i + R/2)."""
    angles = torch.arange(len(x))[:, None] * frequencies
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

# %% tags=["check"]
x, weight = torch.randn(5, 16), torch.randn(16)
norm = torch.nn.RMSNorm(16, eps=1e-5)  # PyTorch's own
norm.weight.data = weight
assert torch.allclose(rms_norm(x, weight, 1e-5), norm(x), atol=1e-6)
frequencies = inverse_frequencies(16, 10000.0, None)
angles = torch.arange(5)[:, None] * frequencies
wanted = rotate_halves(x[None, :, None], angles.cos()[None, :, None], angles.sin()[None, :, None])
assert torch.allclose(rotate(x, frequencies), wanted[0, :, 0], atol=1e-6)
a, b = torch.randn(16), torch.randn(16)
turned = rotate(torch.stack([a, b, a, b]), frequencies)
assert torch.allclose(turned[0] @ turned[1], turned[2] @ turned[3], atol=1e-4), "the distance alone counts"

# %% [markdown]
# ## Read next
#
# - [The code's rooms](../docs/architecture.md); `llamaseek herd show llama-3.1-8b` draws the model.
# - Zhang and Sennrich 2019 (RMSNorm); Su et al. 2021 (RoPE); Ainslie et al. 2023 (grouped queries);
#   Shazeer 2020 (SwiGLU).
