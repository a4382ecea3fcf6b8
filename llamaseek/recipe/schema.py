"""The recipe: everything a training run depends on, checked before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, as are numbers that are not finite, and nothing
    changes after loading.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Schedule = Literal["1f1b", "interleaved", "zero_bubble"]


class ParallelRecipe(Section):
    """Degrees; their product but for `expert`, which divides data × shard, is the world size.

    `parallel: auto` takes the planner's layout for the model and the ranks that torchrun started.
    """

    auto: bool = False
    data: int = Field(default=1, ge=1)
    shard: int = Field(default=1, ge=1)
    tensor: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    context: int = Field(default=1, ge=1)
    expert: int = Field(default=1, ge=1)
    schedule: Schedule = "1f1b"
    stages_per_rank: int = Field(default=2, ge=2)  # of schedules that interleave
    last_layers: int | None = Field(default=None, ge=0)  # of the last stage, which has the head
    zero: bool = False  # the optimizer's moments spread over the data ranks (ZeRO-1)
    fp8_dispatch: bool = False  # rows go to their experts' ranks in fp8 (V3 report §3.3.3)
    reshard: bool = True  # sharded weights are given back after each layer's forward
    offload: bool = False  # sharded weights and moments wait in the host's memory
    timeout: float = Field(default=600, gt=0)  # seconds without progress that count as a hang

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, data: Any) -> Any:
        return {"auto": True} if data == "auto" else data

    @property
    def ranks(self) -> int:
        """The world size."""
        return self.data * self.shard * self.tensor * self.pipeline * self.context

    @property
    def stages(self) -> int:
        """Parts the layers are cut into: one a pipeline rank, several where they interleave."""
        alone = self.pipeline == 1 or self.schedule == "1f1b"
        return self.pipeline * (1 if alone else self.stages_per_rank)


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


Stage = Literal["pretrain", "sft", "dpo", "reward", "grpo", "ppo"]
RowFormat = Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "preference"]
# yes and no mean full and none
Recomputed = Annotated[
    Literal["none", "selective", "full"],
    BeforeValidator(lambda x: {True: "full", False: "none"}[x] if isinstance(x, bool) else x),
]
Float8 = Literal["none", "tensorwise", "rowwise", "deepseek"]
ObjectiveName = Literal["next_token", "multi_token", "masked", "sft", "dpo"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Beta = Annotated[float, Field(ge=0, lt=1)]
INSTEAD = ("corpora", "mix", "rows")  # where data comes from when `data.sources` is empty
STAGES = {"masked": "pretrain", "sft": "sft", "dpo": "dpo"}
"""The one stage of an objective that has one."""


class ExtendRecipe(Section):
    """A longer context for `model.init_from`: rotary frequencies stretched `factor` times.

    Without a factor it is `to` over the length the model was first trained on.
    """

    to: int = Field(ge=2)  # tokens
    rope: Literal["yarn", "llama3"] = "yarn"
    factor: float | None = Field(default=None, ge=1)


class ModelRecipe(Section):
    """A new model from sizes (`config`), or a trained one to go on from (`init_from`)."""

    family: Literal["llama3", "deepseek_v3"] = "llama3"
    config: dict[str, Any] = Field(default_factory=dict)
    init_from: str | None = None
    extend: ExtendRecipe | None = None


class TokenizerRecipe(Section):
    """A tokenizer folder (`path`), or one trained on the run's own training text."""

    path: str | None = None
    vocab_size: int = Field(default=2048, ge=267)


class PhaseRecipe(Section):
    """Another mix from a share of the steps on, as in annealing on the best sources."""

    start: float = Field(gt=0, lt=1)  # share of the steps
    mix: dict[str, float] = Field(min_length=1)


class LongRecipe(Section):
    """Documents of at least `tokens` tokens are read `times` times an epoch."""

    tokens: int = Field(ge=1)
    times: int = Field(ge=2)


class DataRecipe(Section):
    """Where text or rows come from, and how they become rows of `length` tokens.

    A mix weighs named `corpora` and built-in sources by tokens; without one, corpora weigh their
    size to the power of 1 / `temperature`. `budgets` cap the tokens a source gives in all.
    """

    sources: list[str] = Field(default_factory=list)
    corpora: dict[str, list[str]] = Field(default_factory=dict)
    mix: dict[str, float] = Field(default_factory=dict)
    temperature: float = Field(default=1.0, gt=0)
    budgets: dict[str, int] = Field(default_factory=dict)
    phases: list[PhaseRecipe] = Field(default_factory=list)
    fim: float = Field(default=0.0, ge=0, le=1)  # share of documents; DeepSeek-V3 §4.1 has 0.1
    long: LongRecipe | None = None
    mix_bytes: int = Field(default=8_000_000, ge=1)  # of the built-in sources together
    rows: dict[str, int] = Field(default_factory=dict)  # built-in row generators → rows
    holdout: float = Field(default=0.02, ge=0, lt=1)
    length: int = Field(default=256, ge=2)
    isolate: bool = True
    bad_rows: Literal["error", "skip"] = "error"
    # Rows of files: their format where it is not obvious, and our column names → the files' own.
    format: RowFormat = "auto"
    columns: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_origin(self) -> DataRecipe:
        others = [name for name in INSTEAD if getattr(self, name)]
        if self.sources and others:
            raise ValueError(f"sources and {others[0]} are both given; allowed: one of them")
        return self


class TrainRecipe(Section):
    """The loop: batch, steps, optimizer, schedule, precision, and what is saved when."""

    objective: ObjectiveName = "next_token"
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    lr: float = Field(default=3e-3, gt=0)
    min_lr: float = Field(default=0.1, ge=0, le=1)  # as a share of lr
    warmup: int = Field(default=50, ge=0)
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: float = Field(default=0.2, ge=0, le=1)  # share of the steps WSD decays over
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    moments: Literal["fp32", "bf16"] = "fp32"  # what AdamW keeps (bf16: V3 report §3.3.3)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    float8: Float8 = "none"  # the layers' products: torchao's scales, or DeepSeek-V3's (§3.3)
    compile: bool = False
    checkpoint_activations: Recomputed = "none"
    ema: float | None = Field(default=None, gt=0, lt=1)
    eval_every: int = Field(default=200, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    save_in_background: bool = False  # the run goes on while a checkpoint is written
    max_skipped: int = Field(default=10, ge=1)  # steps in a row without a finite loss and gradient
    device: Device = "auto"
    # DeepSeek-V3 report §4.2: lambda 0.3, alpha 1e-4, gamma 1e-3
    mtp_weight: float = Field(default=0.3, ge=0)
    balance_weight: float = Field(default=1e-4, ge=0)
    bias_update: float = Field(default=1e-3, ge=0)
    # Llama 3 §4.1.4: beta 0.1, formatting tokens masked, 0.2 × NLL on the chosen answer
    dpo_beta: float = Field(default=0.1, gt=0)
    dpo_form: Literal["llama3", "plain"] = "llama3"
    dpo_nll: float = Field(default=0.2, ge=0)


class Recipe(Section):
    """One training run. `out` is its run folder."""

    name: str
    stage: Stage
    seed: int = Field(default=0, ge=0, lt=2**32)
    out: str | None = None
    model: ModelRecipe = ModelRecipe()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    data: DataRecipe = DataRecipe()
    train: TrainRecipe = TrainRecipe()
    lora: LoraRecipe | None = None
    rollout: RolloutRecipe = RolloutRecipe()
    grpo: GrpoRecipe = GrpoRecipe()
    ppo: PpoRecipe = PpoRecipe()
    sampling: SamplingRecipe | None = None
    distill: DistillRecipe | None = None
    parallel: ParallelRecipe = ParallelRecipe()

    @model_validator(mode="after")
    def _objective_of_its_stage(self) -> Recipe:
        objective = self.train.objective
        stage = STAGES.get(objective, self.stage)
        if stage != self.stage:
            raise ValueError(f"train.objective {objective} is for stage {stage}, not {self.stage}")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.name}")
