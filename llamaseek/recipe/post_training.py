"""Sections of a recipe beyond plain training: adapters, rewards, rollouts, distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llamaseek.recipe.reading import Section

NEEDS = {"regex": "pattern", "model": "model"}
"""The field that a kind of reward requires."""


class LoraRecipe(Section):
    """LoRA adapters are trained instead of all weights; base `nf4` keeps the frozen base in 4 bits
    (QLoRA)."""

    rank: int = Field(default=8, ge=1)
    """Rank r of the two low-rank matrices."""
    alpha: float = Field(default=16.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    use_rslora: bool = False
    """Scale by alpha / √rank instead (rsLoRA)."""
    use_dora: bool = False
    """Train the norm of each row of an adapted matrix as well (DoRA); on one process."""
    targets: list[str] = Field(default_factory=list)
    """Last names of the linear layers that get adapters; empty: every linear layer of the
    trunk."""
    base: Literal["float", "nf4"] = "float"
    """Precision of the frozen base weights; `nf4` is 4-bit NormalFloat (QLoRA)."""


class BenchmarkRecipe(Section):
    """Benchmarks of the model in training, as `llamaseek eval` runs them."""

    tasks: list[str] = Field(min_length=1)
    """Names of docs/eval.md or of lm-eval."""
    data: list[str] = Field(default_factory=list)
    """Folders with the benchmarks' files."""
    every: int = Field(default=500, ge=1)
    """Steps between them; the last step always has one."""
    limit: int | None = Field(default=100, ge=1)
    """Items of each task; none: all."""


class RewardRecipe(Section):
    """One reward of an answer. `column` is the row's column with the reference answer or tests."""

    kind: Literal["exact", "numeric", "regex", "unit_tests", "model"]
    """`exact`, `numeric` and `unit_tests` compare with the row's `column`, `regex` searches for
    `pattern`, `model` asks a reward model."""
    weight: float = 1.0
    """Factor of this reward in the sum of rewards."""
    column: str = "answer"
    """The row's column that holds the reference answer, or the tests."""
    pattern: str | None = None
    """Regular expression; an answer that contains a match is worth 1. Required by kind
    `regex`."""
    model: str | None = None
    """Folder of a reward model. Required by kind `model`."""
    timeout: float = Field(default=5.0, gt=0)
    """Seconds that `unit_tests`, and the search of `regex`, may run per answer."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> RewardRecipe:
        needed = NEEDS.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"a reward of kind {self.kind} needs {needed}")
        return self


class RolloutRecipe(Section):
    """How answers are sampled from the model, and how they are rewarded.

    One rollout answers as many prompts as `train.batch` × `minibatches` / `samples`; its answers
    are then trained on for `epochs` × `minibatches` steps.
    """

    samples: int = Field(default=8, ge=1)
    """Answers sampled per prompt (the group size of GRPO)."""
    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of a sampled answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per epoch over a rollout's answers."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the answers of one rollout."""
    rewards: list[RewardRecipe] = Field(default_factory=list)
    """Rewards of an answer; their weighted sum counts."""
    missing_end: float = 0.0
    """Added to the reward of an answer that reached `max_tokens` without an end token."""
    eval_prompts: int = Field(default=200, ge=1)
    """Held-out prompts answered at each evaluation."""


class GrpoRecipe(Section):
    """Group relative policy optimization; defaults are TRL's, `sequence` is DeepSeek-V3's form."""

    loss: Literal["dapo", "grpo", "dr_grpo", "sequence"] = "dapo"
    """How token losses are averaged; `sequence` is DeepSeek-V3's form."""
    beta: float = Field(default=0.0, ge=0)
    """Coefficient of the KL divergence to the reference model."""
    epsilon: float = Field(default=0.2, gt=0)
    """Clip range of the probability ratio."""
    kl_ratio: bool = False
    """Multiply the KL by the probability ratio ρ, as DeepSeek-V3.2 and TRL do."""
    scale: bool = True
    """Divide advantages by the standard deviation of their group."""


class PpoRecipe(Section):
    """Proximal policy optimization; defaults are those of TRL, the KL controller Ziegler's."""

    kl: float = Field(default=0.05, ge=0)
    """Initial coefficient of the KL penalty in the reward."""
    kl_target: float | None = Field(default=None, gt=0)
    """Target KL in nats per answer for the adaptive coefficient; none keeps `kl` fixed."""
    kl_horizon: int = Field(default=1000, ge=1)
    """Answers over which the adaptive coefficient follows its target."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount factor."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """The λ of generalized advantage estimation."""
    clip: float = Field(default=0.2, gt=0)
    """Clip range of the probability ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Clip range of the value function."""
    value_weight: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""


class SamplingRecipe(Section):
    """Fine-tuning on sampled answers: rejection sampling, or distillation from a teacher's samples.

    `samples` answers are sampled per prompt, and the one with the highest reward is kept if it
    reaches `least`.
    """

    teacher: str | None = None
    """Folder of the model that answers; none: the model that is trained."""
    samples: int = Field(default=10, ge=1)
    """Answers sampled per prompt."""
    max_tokens: int = Field(default=128, ge=1)
    """Most tokens of a sampled answer."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    rewards: list[RewardRecipe] = Field(default_factory=list)
    """Rewards of an answer; the answer with the largest weighted sum is kept."""
    least: float | None = None
    """Smallest reward at which the best answer is kept; none keeps every best answer."""


class DistillRecipe(Section):
    """Distillation from a teacher's logits: the KL divergence to them has the share
    `weight` of the loss."""

    teacher: str
    """Folder of the teacher model; it must have the same tokenizer."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both softmaxes."""
    weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the KL to the teacher; the rest, 1 − weight, is the cross-entropy of the rows."""
