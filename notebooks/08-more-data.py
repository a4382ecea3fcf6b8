# %% [markdown]
# # 8. More data, larger models
#
# **Aim.** Measure how the loss falls with the amount of data, fit a line to it, and predict the next
# doubling.
#
# Slides: *Llama2 vs Llama3* (both): seven times more data, 15 trillion tokens; larger models are
# better (8B vs 70B); more data is better and avoids overfitting; log-linear improvement from 200B to
# 15T tokens.
#
# **Overfitting** is memorizing the training text: the training loss falls while the loss on
# text that was **held out** does not.

# %%
import math

from llamaseek.study.data_scaling import log_line
from notebooks.kit import curve, pick, plt, run, source

source(log_line)

# %% [markdown]
# ## Experiment: one model, more and more text
#
# Each run reads its text once, so twice the text is twice the steps. The loss is in *nats*: $-\log p$
# with the natural logarithm.

# %%
BASE = pick(20, 2)
runs, tokens, losses = [], [], []
for doubling in range(pick(4, 3)):
    steps = BASE * 2**doubling
    found = run(
        "quickstart-llama3",
        {"train.steps": steps, "train.warmup": 2, "train.batch": 16, "train.eval_every": steps,
         "data.mix_bytes": pick(3_000_000, 150_000), "data.length": 128, "tokenizer.vocab_size": 400},
        f"scaling-{doubling}",
    )
    runs.append(found)
    tokens.append(steps * 16 * 128)
    losses.append(curve(found, "val_loss")[1][-1])
slope, start, explained = log_line(tokens, losses)
plt.semilogx(tokens, losses, "o", label="held-out loss")
plt.semilogx(tokens, [start + slope * math.log(count) for count in tokens], label=f"{slope * math.log(2):.2f} nats a doubling")
plt.xlabel("training tokens"), plt.ylabel("loss"), plt.legend()
plt.show()
print(f"the line explains {explained:.0%}")

# %% [markdown]
# At this size the model has hardly begun to learn, so the first doublings give more than the last;
# `llamaseek study data-scaling` reads up to 1.9 million tokens. Llama 3's own figures run from 200
# billion to 15 trillion tokens.
#
# ## A larger model on little data
#
# The same few documents read many times by two sizes: the larger one memorizes them sooner.
# (`llamaseek study size` does this properly.)

# %%
gaps = {}
for width in (64, 128):
    found = run(
        "quickstart-llama3",
        {"train.steps": pick(150, 6), "train.warmup": 2, "train.batch": 8, "train.eval_every": pick(150, 6),
         "data.mix_bytes": 150_000, "data.length": 128, "tokenizer.vocab_size": 400,
         "model.config": {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 2,
                          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
                          "tie_word_embeddings": True}},
        f"width-{width}",
    )  # fmt: skip
    gaps[f"width {width}"] = curve(found, "val_loss")[1][-1] - curve(found, "loss")[1][-1]
plt.bar(gaps.keys(), gaps.values())
plt.ylabel("held-out minus training loss")
plt.show()

# %% [markdown]
# ## Exercise
#
# Fit the line yourself, by least squares over $\log_2$ of the tokens, and predict the loss after one
# more doubling of the last count.

# %% tags=["solution"]
def predict_next(tokens: list[int], losses: list[float]) -> float:
    """The loss that a straight line over log2(tokens) predicts for twice the last count."""
    x = [math.log2(count) for count in tokens]
    mean_x, mean_y = sum(x) / len(x), sum(losses) / len(losses)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, losses, strict=True))
    slope /= sum((a - mean_x) ** 2 for a in x)
    return mean_y + slope * (x[-1] + 1 - mean_x)

# %% tags=["check"]
assert abs(predict_next([1, 2, 4], [3.0, 2.0, 1.0]) - 0.0) < 1e-9
assert abs(predict_next(tokens, losses) - (start + slope * math.log(2 * tokens[-1]))) < 1e-6
print(f"predicted after {2 * tokens[-1]:,} tokens: {predict_next(tokens, losses):.2f} nats")

# %% [markdown]
# ## Read next
#
# - [Experiments](../docs/studies.md): both studies, with two seeds.
# - Grattafiori et al. 2024, §3.2.1: scaling laws of Llama 3. Hoffmann et al. 2022 (Chinchilla).
