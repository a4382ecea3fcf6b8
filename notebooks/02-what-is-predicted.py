# %% [markdown]
# # 2. What is predicted: next token, several tokens, masked tokens
#
# **Aim.** Know the three objectives of pre-training by which positions have a loss and which
# positions each one may see.
#
# Slides: *Pre-Trained vs Instruct Model* (both), *Pre-Trained vs Instruct Fine-tuned Model* (the red
# fox), class question 2.
#
# A text is a row of tokens $t_0, t_1, \dots$. At each position the model gives a probability to every
# token of its **vocabulary**, the list of all tokens it knows. The **objective** says which token
# should have been probable there: the *target*. The loss is the **cross-entropy**, the mean of
# $-\log p(\text{target})$.

# %%
import torch

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.multi_token import shift
from llamaseek.train.objectives.next_token import NextToken
from notebooks.kit import curve, pick, plt, run, source, trained

model = trained("pretrain").model(dtype="fp32")
tokenizer = model.tokenizer
ids = tokenizer.encode("The red fox chased the blue bird.")
print([tokenizer.token_text(i) for i in ids])

# %% [markdown]
# ## Next-token prediction
#
# A **causal** language model sees only what came before. Its target at each position is the token
# that follows. This is what Llama 3 is pre-trained with.

# %%
source(NextToken)

# %% [markdown]
# The slide's example, one word at a time, from our small model:

# %%
for start in ("The red fox", "The red fox chased the", "The red fox chased the blue"):
    print(f"{start!r} -> {model.generate(start, max_tokens=1)!r}")

# %% [markdown]
# ## Multi-token prediction
#
# DeepSeek-V3 also predicts the token after the next one, with a small module on top of the model.
# The targets are those of next-token prediction, moved one place on:

# %%
tokens = torch.tensor([ids])
positions = torch.arange(len(ids))[None]
targets = torch.cat([tokens[:, 1:], torch.full((1, 1), IGNORE)], 1)
_, second = shift(tokens, targets, positions, 1)


def words(row: torch.Tensor) -> list[str]:
    """The tokens of a row of targets; a dot where there is no loss."""
    return ["·" if i == IGNORE else tokenizer.token_text(int(i)) for i in row]


print("tokens     ", words(tokens[0]))
print("next       ", words(targets[0]))
print("after next ", words(second[0]))

# %% [markdown]
# ## Masked language modeling
#
# BERT hides some tokens and predicts them from both sides. The model is **bidirectional**: every
# position sees every other one.

# %%
source(Masked.prepare)

# %% [markdown]
# ## Which positions see which, and which have a loss

# %%
length = len(ids)
masked = Masked(seed=3, mask_id=tokenizer.mask_id, ordinary_ids=256, balance_weight=0.0)
batch = masked.prepare(Batch(tokens.clamp(max=255), positions, targets), step=1)
sees = {"next token (causal)": torch.ones(length, length).tril(), "masked (both sides)": torch.ones(length, length)}
loss_at = {"next token (causal)": targets[0] != IGNORE, "masked (both sides)": batch.targets[0] != IGNORE}
figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for axis, (name, seen) in zip(axes, sees.items(), strict=True):
    axis.imshow(seen, cmap="Blues", vmin=0, vmax=1.5)
    axis.scatter(torch.arange(length), [length + 0.2] * length, c=loss_at[name].float(), cmap="Reds", vmin=0, vmax=1)
    axis.set(title=name, xlabel="position seen; red: has a loss", ylabel="position")
plt.show()

# %% [markdown]
# ## Experiment: three objectives, the same text
#
# The same small architecture and text, one run for each objective. The losses are different
# quantities: a masked model predicts a few tokens knowing both sides, so its number cannot be
# compared with that of next-token prediction.

# %%
steps = pick(60, 4)
small = {"train.steps": steps, "train.warmup": 2, "train.batch": 8, "data.mix_bytes": pick(600_000, 150_000),
         "tokenizer.vocab_size": 400}
found = {
    "next_token": run("quickstart-llama3", small, "next-token"),
    "masked": run("quickstart-llama3", {**small, "train.objective": "masked"}, "masked"),
    "multi_token": run("quickstart-deepseek_v3", small, "multi-token"),
}
for name, one in found.items():
    plt.plot(*curve(one, "loss"), label=name)
plt.xlabel("step"), plt.ylabel("training loss"), plt.legend()
plt.show()

# %% [markdown]
# ## Class question 2
#
# *Which statements are true?* (1) BERT training uses the masked language model objective. (2) Llama 3
# pre-training uses the causal LM objective. (3) Llama 3 pre-training uses next-token prediction.
# (4) Llama 3 pre-training uses masked LM. (5) BERT training uses the causal LM objective.
#
# **1, 2 and 3.** Causal language modeling and next-token prediction are two names of one objective.
#
# ## Exercise
#
# Write the targets yourself: `causal_targets` for next-token prediction, and `masked_targets` for
# masked positions that are given as a list.

# %% tags=["solution"]
def causal_targets(ids: list[int]) -> list[int]:
    """The target at each position of `ids`; IGNORE where there is none."""
    return [*ids[1:], IGNORE]


def masked_targets(ids: list[int], hidden: list[int]) -> list[int]:
    """The target at each position when the tokens at the positions `hidden` are masked."""
    return [token if place in hidden else IGNORE for place, token in enumerate(ids)]

# %% tags=["check"]
assert causal_targets(ids) == targets[0].tolist()
assert masked_targets(ids, [1, 3]) == [IGNORE, ids[1], IGNORE, ids[3], *[IGNORE] * (length - 4)]
chosen = [i for i, target in enumerate(batch.targets[0].tolist()) if target != IGNORE]
assert masked_targets(tokens[0].clamp(max=255).tolist(), chosen) == batch.targets[0].tolist()

# %% [markdown]
# ## Read next
#
# - Devlin et al. 2018, *BERT*, §3.1: masking.
# - DeepSeek-V3 technical report, §2.2: multi-token prediction.
