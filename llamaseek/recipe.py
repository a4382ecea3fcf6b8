"""The recipe: everything a training run depends on, checked before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from llamaseek.errors import UserError, shorten, unknown_name
from llamaseek.files import write_text
from llamaseek.recipe_parallel import ParallelRecipe
from llamaseek.recipe_post import (
    DistillRecipe,
    GrpoRecipe,
    LoraRecipe,
    PpoRecipe,
    RolloutRecipe,
    SamplingRecipe,
)
from llamaseek.section import Section

Checked = TypeVar("Checked", bound=BaseModel)
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
    neftune: float = Field(default=0.0, ge=0)  # noise on embeddings (Jain et al. 2023); 0 is none
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


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """The recipe of a YAML file with dotted `key=value` overrides.

    Files given as `data.sources` take the place of the recipe's own corpora, mix and rows.
    Raises `UserError` naming the key, its value and what is allowed.
    """
    data = read_mapping(path, overrides)
    given = {".".join(override.partition("=")[0].split(".")[:2]) for override in overrides}
    section = data.get("data")
    if "data.sources" in given and isinstance(section, dict) and section.get("sources"):
        for name in INSTEAD:
            if f"data.{name}" not in given:
                section.pop(name, None)
    return make_recipe(data)


def read_mapping(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The plain data of a YAML file with its overrides, not checked yet."""
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({shorten(str(error))})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a recipe (a YAML mapping of keys)")
    for override in overrides:
        apply_override(data, override)
    return data


def make_recipe(data: dict[str, Any]) -> Recipe:
    """A checked recipe from plain data; one line for the first thing that is wrong."""
    return validated(Recipe, data)


def validated(kind: type[Checked], data: dict[str, Any], within: str = "") -> Checked:
    """A section of a recipe from plain data; `within` is where it stands, for the error."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _one_line(error, kind, within) from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in `data`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text  # a path or phrase that YAML cannot read is what it is
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"{key}: {parent} is not a section of the recipe")
    # YAML 1.1 reads 3e-4 as a word.
    data[last] = _number(value) if isinstance(value, str) else value


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, enough to repeat the run."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _one_line(error: ValidationError, kind: type[BaseModel], within: str) -> UserError:
    found = error.errors()
    # A misspelt key often leaves another one missing; the spelling is what to say.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    where = [str(part) for part in first["loc"]]
    key = ".".join([within, *where] if within else where)
    if first["type"] == "extra_forbidden":
        known = [*_section_at(kind, where[:-1]).model_fields]
        return UserError(str(unknown_name(f"recipe key {key}:", where[-1], known)))
    if first["type"] == "value_error":  # of a section as a whole, in our own words
        return UserError(f"{key or 'recipe'}: {first['ctx']['error']}")
    return UserError(f"{key}: {shorten(repr(first['input']))} is not allowed; {first['msg']}")


def _section_at(kind: Any, where: list[str]) -> Any:
    """The section that a path leads to, through optional sections and lists of them."""
    for part in where:
        if part.isdigit():
            continue
        kind = kind.model_fields[part].annotation
        inner = [one for one in get_args(kind) if isinstance(one, type) and one is not type(None)]
        kind = inner[0] if inner else kind
    return kind
