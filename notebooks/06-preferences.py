# %% [markdown]
# # 6. Learning from preferences: DPO and reinforcement learning
#
# **Aim.** Understand how a model learns which of two answers is better, with and without a reward
# model, and write DPO's loss.
#
# Slides: *Types of LLM training*: Reinforcement Learning with Human Feedback (RLHF) / Direct
# Preference Optimization (DPO).
#
# A **preference pair** is a prompt with a *chosen* and a *rejected* answer. RLHF trains a **reward
# model** on pairs, which gives an answer a number, and then lets the model raise the reward of its own
# answers (the *policy* of reinforcement learning). DPO skips the reward model: the policy's own
# probabilities, compared with those of the model it started from (the **reference**), are the reward.

# %%
import json
from random import Random

import torch
from torch.nn import functional as F

from llamaseek.data.builtin.preferences import preference_item
from llamaseek.train.objectives.dpo import DPO
from notebooks.kit import FOLDER, curve, pick, plt, run, source, trained

item = preference_item(Random(2), "train")
print(item)

# %% [markdown]
# ## DPO
#
# $\pi(y)$ is the probability that the policy gives to an answer $y$, the product over its tokens, and
# $\pi_{ref}(y)$ the reference's. With $x = \log \pi(y) - \log \pi_{ref}(y)$ for each answer the loss of a
# pair is $-\log \sigma(\beta (x_{chosen} - x_{rejected}))$, where $\sigma$ is the sigmoid and $\beta$ says
# how far the policy may move from the reference. Llama 3 leaves header and end-of-turn tokens out of
# the sums and adds the chosen answer's loss per token.

# %%
source(DPO)

# %% [markdown]
# The course's DPO run starts from the instruct model. Its **margin** is the mean of
# $\beta (x_{chosen} - x_{rejected})$:

# %%
dpo = trained("dpo")
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for axis, key in zip(axes, ("margin", "accuracy"), strict=True):
    axis.plot(*curve(dpo, key))
    axis.set(xlabel="step", title=key)
plt.show()

# %% [markdown]
# ## Reinforcement learning with a checked answer: GRPO
#
# DeepSeek's GRPO (group relative policy optimization) needs no reward model where a program can check
# the answer. Several answers are sampled for each prompt; an answer's **advantage** is its reward minus
# the mean of its group. The training makes the tokens of an answer more probable in proportion to its
# advantage, less probable where that is negative, in small steps. Here the model learns to add numbers:
# first a few steps of fine-tuning on right sums (notebook 4), so that some answers are right, then GRPO.

# %%
from llamaseek.train.rollouts.assess import GroupRelative

source(GroupRelative)

# %%
start = run(
    "arithmetic-llama3",
    {"train.steps": pick(400, 3), "train.warmup": 2, "data.mix_bytes": pick(600_000, 150_000), **pick({}, {"train.batch": 4})},
    "arithmetic",
)
taught = run(
    "arithmetic-sft",
    {"model.init_from": str(start.model_folder), "train.steps": pick(250, 3), "train.warmup": 2,
     **pick({}, {"train.batch": 4, "data.rows": {"arithmetic": 80}})},
    "arithmetic-sft",
)
grpo = run(
    "arithmetic-grpo",
    {"model.init_from": str(taught.model_folder), "train.steps": pick(20, 2), "train.warmup": 2,
     "rollout.eval_prompts": pick(100, 4), **pick({}, {"train.batch": 16, "train.micro_batch": 16, "data.rows": {"arithmetic": 80}})},
    "arithmetic-grpo",
)
plt.plot(*curve(grpo, "reward"))
plt.xlabel("step"), plt.ylabel("mean reward of sampled answers")
plt.show()

# %% [markdown]
# ## Exercise
#
# Write Llama 3's form of the DPO loss for one pair. `policy` and `reference` hold log-probabilities of
# the tokens of both answers (2, T), chosen first; `counts` (2, T) is False at header, end-of-turn and
# padding tokens; `answer` (2, T) is False at padding alone. The negative log-likelihood of the chosen
# answer is its mean per token, ends included, times 0.2.
#
# The check compares with the trainer's own loss, and with what TRL's `DPOTrainer` gave for three pairs
# (`notebooks/trl_dpo.json`, written by `python -m notebooks.trl_dpo`). TRL counts every token of an
# answer, so `counts` equals `answer` there.

# %% tags=["solution"]
def dpo_loss(
    policy: torch.Tensor, reference: torch.Tensor, counts: torch.Tensor, answer: torch.Tensor
) -> torch.Tensor:
    """-log sigmoid(0.1 (x_chosen - x_rejected)) + 0.2 NLL(chosen)."""
    x = ((policy - reference) * counts).sum(1)
    nll = -policy[0][answer[0]].mean()
    return -F.logsigmoid(0.1 * (x[0] - x[1])) + 0.2 * nll

# %% tags=["check"]
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.recipe.load import load_recipe
from llamaseek.models.loss import target_log_probs

job = build_job(load_recipe(dpo.folder / "recipe.yaml", []))
batch = job.source.step(0, 1)
network = dpo.model(dtype="fp32").network
objective = DPO(beta=0.1, nll_weight=0.2)
with torch.no_grad():
    log_p = target_log_probs(network, batch)
    batch.extra["reference"] = torch.zeros(1, batch.extra["pairs"].shape[1] * 2)
    terms = {term.name: term for term in objective.terms(network, batch)}
sequence = batch.extra["sequence"][0]
T = max(int((sequence == s).sum()) for s in (0, 1))
rows = [torch.zeros(2, T) for _ in range(3)]
for s in (0, 1):
    at = sequence == s
    n = int(at.sum())
    rows[0][s, :n], rows[1][s, :n], rows[2][s, :n] = log_p[0][at], batch.extra["counts_for_preference"][0][at], (batch.targets[0][at] != -100).float()
mine = dpo_loss(rows[0], torch.zeros_like(rows[0]), rows[1] > 0, rows[2] > 0)
x = torch.stack([(rows[0][s] * rows[1][s]).sum() for s in (0, 1)])
theirs = -F.logsigmoid(0.1 * (x[0] - x[1])) - 0.2 * rows[0][0].sum() / rows[2][0].sum()
assert torch.allclose(mine, theirs, atol=1e-6)
if int(batch.extra["pairs"].sum()) == 1:  # the row holds this pair alone: the trainer's own terms
    trainer = terms["dpo"].sum + 0.2 * terms["nll"].sum / objective.counts(batch)["nll"]
    assert torch.allclose(mine, trainer, atol=1e-5)

    print(f"mine {mine:.6f}, the trainer's {trainer:.6f}")

given = json.loads((FOLDER / "trl_dpo.json").read_text())
for pair in given["pairs"]:
    longest = max(map(len, pair["policy"]))
    policy, reference, answer = (torch.zeros(2, longest) for _ in range(3))
    for side in (0, 1):
        length = len(pair["policy"][side])
        policy[side, :length] = torch.tensor(pair["policy"][side])
        reference[side, :length] = torch.tensor(pair["reference"][side])
        answer[side, :length] = 1
    found = float(dpo_loss(policy, reference, answer > 0, answer > 0))
    assert abs(found - pair["loss"]) < 1e-5, (found, pair["loss"])
    print(f"mine {found:.6f}, TRL's {pair['loss']:.6f}")

# %% [markdown]
# ## Read next
#
# - [DPO](../docs/post-training/dpo.md), [GRPO](../docs/post-training/grpo.md),
#   [PPO](../docs/post-training/ppo.md), [reward models](../docs/post-training/reward.md).
# - Rafailov et al. 2023 (DPO); Shao et al. 2024 (GRPO); Grattafiori et al. 2024, §4.1.4.
