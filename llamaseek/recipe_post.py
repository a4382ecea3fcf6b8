"""What post-training adds to a recipe: adapters, sampled answers and their rewards, GRPO, PPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llamaseek.section import Section

NEEDS = {"regex": "pattern", "model": "model"}
"""What a kind of reward cannot do without."""


class LoraRecipe(Section):
    """Adapters instead of whole weights; `base` "nf4" keeps the frozen base in 4 bits (QLoRA)."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: list[str] = Field(default_factory=list)  # last names of layers; none: every linear
    base: Literal["float", "nf4"] = "float"


class RewardRecipe(Section):
    """One reward of an answer. `column` is where the row keeps what the answer is held against."""

    kind: Literal["exact", "numeric", "regex", "unit_tests", "model"]
    weight: float = 1.0
    column: str = "answer"
    pattern: str | None = None  # of regex: found anywhere in the answer is 1
    model: str | None = None  # of model: the folder of a reward model
    timeout: float = Field(default=5.0, gt=0)  # of unit_tests, seconds

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> RewardRecipe:
        needed = NEEDS.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"a reward of kind {self.kind} needs {needed}")
        return self


class RolloutRecipe(Section):
    """How answers are sampled from the model, and what rewards them.

    One rollout answers as many prompts as `train.batch` × `minibatches` / `samples`; its answers
    are then trained on for `epochs` × `minibatches` steps.
    """

    samples: int = Field(default=8, ge=1)  # answers a prompt
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    minibatches: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    rewards: list[RewardRecipe] = Field(default_factory=list)
    missing_end: float = 0.0  # added to the reward of an answer that was cut off
    eval_prompts: int = Field(default=200, ge=1)


class GrpoRecipe(Section):
    """Group relative policy optimization; defaults are TRL's, `sequence` is DeepSeek-V3's form."""

    loss: Literal["dapo", "grpo", "dr_grpo", "sequence"] = "dapo"
    beta: float = Field(default=0.0, ge=0)  # of the KL to the reference
    epsilon: float = Field(default=0.2, gt=0)
    kl_ratio: bool = False  # the KL is multiplied by ρ, as in DeepSeek-V3.2 and TRL
    scale: bool = True  # advantages are divided by their group's standard deviation


class PpoRecipe(Section):
    """Proximal policy optimization; defaults are those of TRL, the KL controller Ziegler's."""

    kl: float = Field(default=0.05, ge=0)  # coefficient of the KL in the reward, at the start
    kl_target: float | None = Field(default=None, gt=0)  # nats an answer; None keeps `kl` fixed
    kl_horizon: int = Field(default=1000, ge=1)  # answers over which the coefficient follows
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_weight: float = Field(default=0.1, ge=0)


class SamplingRecipe(Section):
    """Rows that a model answers: rejection sampling, or distillation from a teacher's samples.

    `samples` answers a prompt, of which the best by `rewards` is kept where it reaches `least`.
    """

    teacher: str | None = None  # a model folder; None is the model that is trained
    samples: int = Field(default=10, ge=1)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    rewards: list[RewardRecipe] = Field(default_factory=list)
    least: float | None = None


class DistillRecipe(Section):
    """Distillation from a teacher's logits: `weight` of the loss is the KL to them."""

    teacher: str
    temperature: float = Field(default=1.0, gt=0)
    weight: float = Field(default=0.5, ge=0, le=1)
