"""The recipe: everything a training run depends on, checked before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from llamaseek.recipe.parallel import ParallelRecipe
from llamaseek.recipe.post_training import (
    BenchmarkRecipe,
    DistillRecipe,
    GrpoRecipe,
    LoraRecipe,
    PpoRecipe,
    RolloutRecipe,
    SamplingRecipe,
)
from llamaseek.recipe.reading import (
    Overrides,
    Section,
    apply_override,
    as_words,
    find_recipe,
    read_mapping,
    validated,
)
from llamaseek.recipe.stages import STAGES, stage_of

Stage = Literal["pretrain", "sft", "dpo", "reward", "grpo", "ppo"]
RowFormat = Literal[
    "auto", "messages", "prompt_completion", "alpaca", "sharegpt", "labels", "preference"
]
# YAML's yes and no mean full and none.
Recomputed = Annotated[
    Literal["none", "selective", "full"],
    BeforeValidator(lambda x: {True: "full", False: "none"}[x] if isinstance(x, bool) else x),
]
# One tool may be named without a list.
Trackers = Annotated[
    list[Literal["tensorboard", "wandb", "mlflow", "trackio"]],
    BeforeValidator(lambda x: [x] if isinstance(x, str) else x),
]
Float8 = Literal["none", "tensorwise", "rowwise", "deepseek"]
ObjectiveName = Literal["next_token", "multi_token", "masked", "sft", "dpo"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Beta = Annotated[float, Field(ge=0, lt=1)]
INSTEAD = ("corpora", "mix", "rows")  # the other origins of data, without `data.sources`
"""The stage that an objective requires, for those that require one."""


class ExtendRecipe(Section):
    """A longer context for `model.init_from`: rotary frequencies are scaled by `factor`.

    Without a factor it is `to` divided by the context length of the original training.
    """

    to: int = Field(ge=2)
    """New context length in tokens."""
    rope: Literal["yarn", "llama3"] = "yarn"
    """Scaling of the rotary frequencies: YaRN, or Llama 3.1's."""
    factor: float | None = Field(default=None, ge=1)
    """Scaling factor; none: `to` divided by the original context length."""


class ModelRecipe(Section):
    """A new model with the sizes of `config`, or a trained one to start from (`init_from`)."""

    family: str = "llama3"
    """Architecture of a new model: `llama3`, `deepseek_v3`, or one that a program registered."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Sizes of a new model by their Hugging Face names, e.g. `{hidden_size: 128}`."""
    init_from: str | None = None
    """A trained model to start from: a folder, a GGUF file, or a name (docs/models.md)."""
    extend: ExtendRecipe | None = None
    """Extend the context length of `init_from`."""


class TokenizerRecipe(Section):
    """A tokenizer folder (`path`), or one trained on the run's own training text."""

    path: str | None = None
    """Folder of a tokenizer; none: one is trained on the run's training text."""
    vocab_size: int = Field(default=2048, ge=267)
    """Vocabulary size of a trained tokenizer, special tokens included."""
    chat_template: str | None = None
    """`llama3`, `chatml` or a template's file, in place of the model's own; the run's model folder
    gets it."""
    chat_template_kwargs: dict[str, Any] = {}
    """What the chat template reads beside messages and tools, as `thinking: true`."""


class PhaseRecipe(Section):
    """Another mix of sources for the rest of the steps, as in annealing on the best sources."""

    start: float = Field(gt=0, lt=1)
    """The phase starts at this share of the steps."""
    mix: dict[str, float] = Field(min_length=1)
    """Weights of the sources by tokens, as in `data.mix`."""


class LongRecipe(Section):
    """Documents of at least `tokens` tokens are read `times` times an epoch."""

    tokens: int = Field(ge=1)
    """Length in tokens from which a document counts as long."""
    times: int = Field(ge=2)
    """How many times a long document is read per epoch."""


class DataRecipe(Section):
    """Where text or rows come from, and how they become rows of `length` tokens.

    A mix weighs named `corpora` and built-in sources by tokens; without one, corpora weigh their
    size to the power of 1 / `temperature`. `budgets` cap the tokens a source gives in all.
    """

    sources: list[str] = Field(default_factory=list)
    """Files and folders; given on the command line they replace the recipe's `corpora`, `mix` and
    `rows`."""
    corpora: dict[str, list[str]] = Field(default_factory=dict)
    """Named lists of files and folders, e.g. `{web: [data/web/documents]}`."""
    mix: dict[str, float] = Field(default_factory=dict)
    """Weights by tokens of `corpora` and of built-in sources: `web`, `code`, `stories`, `math`,
    `reasoning`, `languages`, `knowledge`, `categories`, `policies`, `guard`."""
    temperature: float = Field(default=1.0, gt=0)
    """Without `mix`, a corpus is weighted by its size to the power of 1 / temperature."""
    budgets: dict[str, int] = Field(default_factory=dict)
    """Most tokens that a source gives in the whole run."""
    phases: list[PhaseRecipe] = Field(default_factory=list)
    """Other mixes from a share of the steps on, e.g. `[{start: 0.9, mix: {math: 1}}]`."""
    fim: float = Field(default=0.0, ge=0, le=1)
    """Share of documents rearranged as prefix, suffix, middle (fill-in-the-middle); DeepSeek-V3
    §4.1 uses 0.1."""
    long: LongRecipe | None = None
    """Read long documents more than once per epoch."""
    mix_bytes: int = Field(default=8_000_000, ge=1)
    """Bytes of text that the built-in sources generate together."""
    rows: dict[str, int] = Field(default_factory=dict)
    """Built-in row generators and how many rows each generates: `tasks`, `instructions`,
    `preferences`, `arithmetic`, `guard`, `policies`, `reviews`."""
    holdout: float = Field(default=0.02, ge=0, lt=1)
    """Share of the data, taken from the end, that is held out for evaluation."""
    shuffle: bool = False
    """Shuffle the rows of files by `seed` before the share of `holdout` is taken from their end."""
    length: int = Field(default=256, ge=2)
    """Tokens per training row."""
    isolate: bool = True
    """Documents packed into one row do not attend to each other."""
    bad_rows: Literal["error", "skip"] = "error"
    """What an invalid row does: `error` stops the run, `skip` leaves it out and counts it."""
    format: RowFormat = "auto"
    """Format of the rows; `auto` detects it from the column names."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column names of llamaseek → those of the file, e.g. `{prompt: question}`."""
    ignore: list[str] = Field(default_factory=list)
    """Columns that are not needed, and keys of messages, as `messages.timestamp`; any other that
    nothing reads is reported with its count."""
    encoding: str = "auto"
    """Encoding of files of text and of rows, by Python's name, e.g. `cp1252`; `auto` is UTF-8, or
    UTF-16 with a byte order mark."""

    @model_validator(mode="after")
    def _one_origin(self) -> DataRecipe:
        others = [name for name in INSTEAD if getattr(self, name)]
        if self.sources and others:
            raise ValueError(f"sources and {others[0]} are both given; allowed: one of them")
        return self


class TrainRecipe(Section):
    """The training loop: batch, optimizer, schedule, precision, evaluation and checkpoints."""

    objective: ObjectiveName = "next_token"
    """The training objective; `sft` and `dpo` belong to their stages, the others to
    `pretrain`."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data, in place of `steps`, which are computed when the data is read."""
    batch: int = Field(default=32, ge=1)
    """Rows per optimizer step, over all ranks."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Rows per forward pass; none: all rows of the batch, or 1 with pipeline stages."""
    lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0.1, ge=0, le=1)
    """Final learning rate as a share of `lr`."""
    warmup: int = Field(default=50, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning-rate schedule; `wsd` is warm-up, stable, decay."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps in which `wsd` decays."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` steps the layers' matrices by Muon (momentum 0.95, orthogonalized updates of AdamW's
    size, arXiv:2502.16982), and embedding, head, norms, routers and routed experts by AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's β₁ and β₂."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Precision of AdamW's moments; `bf16` halves their memory (DeepSeek-V3 report §3.3.3)."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm; larger gradients are scaled down."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Compute precision; `auto` is bf16 where the hardware supports it. Weights stay in fp32."""
    float8: Float8 = "none"
    """Training in fp8: matrix products with torchao's scaling, or with DeepSeek-V3's tiles
    (report §3.3)."""
    compile: bool | Literal["auto"] = "auto"
    """Compile each layer with torch.compile; `auto` does on a GPU."""
    deterministic: bool = False
    """On a GPU, run kernels alone that give the same bits every time, so that a resumed run is the
    same bit for bit; slower. CPUs always do."""
    checkpoint_activations: Recomputed = "none"
    """Activation checkpointing: recompute nothing, cheap operations, or whole layers."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights; the average is evaluated and saved as the
    model."""
    eval_every: int = Field(default=200, ge=1)
    """Steps between evaluations."""
    evaluate: BenchmarkRecipe | None = None
    """Benchmarks during training; none: no benchmarks."""
    samples: int = Field(default=10, ge=0)
    """Held-out rows of files that the model answers before and after the run, for its report; 0:
    none."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Number of latest checkpoints that are kept."""
    load_best_model_at_end: bool = False
    """Save a checkpoint at every evaluation whose held-out loss is the lowest so far, and end with
    the weights of the best one."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """The run ends after so many evaluations in a row whose held-out loss is not the lowest; none:
    after `steps`."""
    save_in_background: bool = False
    """Continue training while a checkpoint is written."""
    track: Trackers = ["tensorboard"]
    """Tools that get the numbers of metrics.jsonl, the recipe, the samples and the report:
    `tensorboard`, `wandb`, `mlflow`, `trackio` (docs/tracking.md)."""
    max_skipped: int = Field(default=10, ge=1)
    """The run stops after this many consecutive steps with a loss or gradient that is not
    finite."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    mtp_weight: float = Field(default=0.3, ge=0)
    """Weight λ of the multi-token prediction loss (DeepSeek-V3 report §4.2)."""
    balance_weight: float = Field(default=1e-4, ge=0)
    """Weight α of the sequence-wise balance loss (DeepSeek-V3 report §4.2)."""
    bias_update: float = Field(default=1e-3, ge=0)
    """Update speed γ of the routing bias (DeepSeek-V3 report §4.2)."""
    dpo_beta: float = Field(default=0.1, gt=0)
    """The coefficient β of DPO (Llama 3 §4.1.4)."""
    dpo_form: Literal["llama3", "plain"] = "llama3"
    """`llama3` masks formatting tokens and adds `dpo_nll` × NLL (Llama 3 §4.1.4); `plain` is the
    original loss."""
    dpo_nll: float = Field(default=0.2, ge=0)
    """Weight of the NLL of the chosen answer."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainRecipe:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("steps and epochs are both given; allowed: one of them")
        if self.optimizer == "muon" and self.moments != "fp32":
            raise ValueError(f"moments {self.moments} is for optimizer adamw; allowed: fp32")
        return self

    @model_serializer(mode="wrap")
    def _without_steps(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was given: steps are not known where epochs are."""
        plain: dict[str, Any] = handler(self)
        if self.epochs is not None:
            plain.pop("steps")
        return plain


def with_given(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A recipe's plain data, where overrides that give `data.sources` replace its other origins of
    data, and of `train.steps` and `train.epochs` the one that is given replaces the other.
    """
    given = {".".join(override.partition("=")[0].split(".")[:2]) for override in overrides}
    section, train = data.get("data"), data.get("train")
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        alone = f"train.{name}" in given and f"train.{other}" not in given
        if alone and isinstance(train, dict) and train.get(name) is not None:
            train.pop(other, None)
    if "data.sources" in given and isinstance(section, dict) and section.get("sources"):
        for name in INSTEAD:
            if f"data.{name}" not in given:
                section.pop(name, None)
    return data


class Recipe(Section):
    """One training run. `out` is its run folder."""

    name: str
    """Name of the run."""
    stage: Stage
    """Training stage; each is also a command."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Random seed."""
    out: str | None = None
    """The run folder; none: `runs/NAME`."""
    model: ModelRecipe = ModelRecipe()
    """The model to train."""
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    """The tokenizer."""
    data: DataRecipe = DataRecipe()
    """The training data."""
    train: TrainRecipe = TrainRecipe()
    """The training loop."""
    lora: LoraRecipe | None = None
    """Train adapters instead of all weights; none: full training."""
    rollout: RolloutRecipe = RolloutRecipe()
    """Sampling and rewards of `grpo` and `ppo`."""
    grpo: GrpoRecipe = GrpoRecipe()
    """The stage `grpo`."""
    ppo: PpoRecipe = PpoRecipe()
    """The stage `ppo`."""
    sampling: SamplingRecipe | None = None
    """`sft` on answers that a model samples; none: on the rows' own."""
    distill: DistillRecipe | None = None
    """`sft` on a teacher's logits; none: no distillation."""
    parallel: ParallelRecipe = ParallelRecipe()
    """Parallel layout over the ranks."""

    @model_validator(mode="after")
    def _keys_together(self) -> Recipe:
        objective = self.train.objective
        if objective not in STAGES[self.stage].objectives:
            stage = stage_of(objective)
            raise ValueError(f"train.objective {objective} is for stage {stage}, not {self.stage}")
        if self.train.epochs is not None and (self.data.phases or self.data.budgets):
            raise ValueError("data.phases and data.budgets are for train.steps, not train.epochs")
        if self.train.optimizer == "muon" and self.lora is not None:
            raise ValueError(
                "train.optimizer muon is for whole matrices, and lora has factors; allowed: adamw"
            )
        return self

    @classmethod
    def load(cls, source: str | Path, overrides: Overrides = ()) -> Recipe:
        """A recipe file, or the bundled recipe of a name, with overrides.

        Overrides are dotted keys with values, `{"train.steps": 200}`, or texts `"train.steps=200"`.
        Raises UserError, naming the key, its value and what is allowed.
        """
        words = as_words(overrides)
        data = read_mapping(find_recipe(str(source)), words)
        return validated(cls, with_given(data, words))

    def with_overrides(self, overrides: Overrides) -> Recipe:
        """This recipe with other values. Raises UserError as `load` does."""
        words, data = as_words(overrides), self.model_dump(mode="json")
        for word in words:
            apply_override(data, word)
        return validated(type(self), with_given(data, words))

    @property
    def samples(self) -> bool:
        """Whether rows are prompts alone, answered by a model during the run or before it."""
        return STAGES[self.stage].rollouts or self.sampling is not None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.name}")
