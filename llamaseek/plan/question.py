"""A question to the planner, validated, with defaults for fields that are not given."""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.errors import UserError, bad_value, unknown_name
from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.folder import find_or_read
from llamaseek.herd.published import Entry, find
from llamaseek.plan.cost import HOUR
from llamaseek.plan.flops import task_flops
from llamaseek.plan.formats import Format, find_format
from llamaseek.plan.gpus import Gpu, find_gpu
from llamaseek.plan.layout import Running
from llamaseek.plan.serving import Sampling


@dataclass(frozen=True)
class PublishedRun:
    """Pre-training of `model` on `tokens` in rows of `context`, in `gpu_hours` of `gpu`."""

    model: str
    gpu: str
    tokens: float
    context: int
    gpu_hours: float
    source: str


RUNS = (
    PublishedRun(
        "llama-3.1-405b",
        "h100-80gb",
        tokens=15.6e12,
        context=8192,
        gpu_hours=30.84e6,
        source="Llama 3.1 model card; Llama 3 paper §3.1, at 38 to 43% (table 4)",
    ),
    PublishedRun(
        "deepseek-v3-base",
        "h800-80gb",
        tokens=14.8e12,
        context=4096,
        gpu_hours=2.664e6,
        source="DeepSeek-V3 report table 1, trained in fp8",
    ),
)


def published_run(config: ModelConfig) -> PublishedRun | None:
    """The published run of a model with this architecture."""
    return next((run for run in RUNS if _same(find(run.model).config, config)), None)


def implied_utilization(
    config: ModelConfig, gpu: Gpu, rate: str, tokens: float, context: int, gpu_hours: float
) -> float:
    """The share of the peak at which `tokens` take `gpu_hours`: a calibration, not a prediction."""
    flops = tokens * task_flops(config, "pretrain", context)
    return flops / (gpu_hours * HOUR * gpu.peak(rate))


def calibration(config: ModelConfig) -> dict[str, object] | None:
    """What the model's published run implies, against both peaks of its GPU."""
    run = published_run(config)
    if run is None:
        return None
    gpu = find_gpu(run.gpu)
    shares = {
        rate: implied_utilization(config, gpu, rate, run.tokens, run.context, run.gpu_hours)
        for rate in ("bf16", "fp8")
    }
    return {
        "gpu": gpu.name,
        "tokens": run.tokens,
        "context": run.context,
        "gpu_hours": run.gpu_hours,
        "utilization_of_bf16_peak": round(shares["bf16"], 4),
        "utilization_of_fp8_peak": round(shares["fp8"], 4),
        "source": run.source,
    }


def _same(one: ModelConfig, other: ModelConfig) -> bool:
    return one.to_dict() | _IDS == other.to_dict() | _IDS


_IDS = {"eos_token_id": None}  # base and Instruct differ in nothing else


TASKS = ("inference", "lora", "sft", "pretrain")
CHECKPOINTING = ("full", "selective", "none")
CONTEXT = 8192
STEP_TOKENS = 2**22  # of pre-training: Llama 3 began with 4M tokens a step (§3.4.1)
ROWS = {"inference": 1, "lora": 16, "sft": 64}
# Shares of the peak that whole published runs reached, for a number of parameters without a model:
# Llama 3 38 to 43% (table 4), DeepSeek-V3 22% of the fp8 peak (`RUNS`); gpt-fast 72% of the memory
# bandwidth when it decodes.
RUN_SHARE, FP8_RUN_SHARE, SERVING_SHARE = 0.40, 0.22, 0.60


@dataclass(frozen=True)
class Question:
    """One request. `config` is None where only a number of parameters is known."""

    name: str
    title: str
    config: ModelConfig | None
    parameters: float | None
    gpu: Gpu
    task: str
    form: Format
    context: int
    batch: int
    checkpoint: bool
    utilization: float | None  # None in training: what comes out of counted work
    assumed: bool  # the utilization is a default
    gpus: int | None = None
    tokens: float | None = None
    price: float | None = None
    selective: bool = False  # recomputation of what is cheap for its size
    modules: int = 0  # multi-token modules trained
    running: Running = Running()
    rank: int = 16  # of LoRA's adapters
    nf4: bool = False  # whether their base is kept in 4 bits
    rows: int | None = 1  # of a micro-batch in training; None: as many as a rank has
    scored: bool = False  # the loss is made of tokens' log-probabilities, not of their sum
    sampling: Sampling | None = None  # answers drawn in training

    @property
    def checkpointing(self) -> str:
        """What of the activations is computed again, by the recipe's words."""
        return "full" if self.checkpoint else "selective" if self.selective else "none"

    @property
    def trains(self) -> bool:
        """Every task but inference."""
        return self.task != "inference"


def ask(
    model: str | Entry | None,
    gpu: str | Gpu,
    task: str = "inference",
    dtype: str | None = None,
    context: int | None = None,
    batch: int | None = None,
    gpus: int | None = None,
    params: float | None = None,
    tokens: float | None = None,
    price: float | None = None,
    utilization: float | None = None,
    checkpointing: str = "full",
) -> Question:
    """A checked question; UserError names the field, its value and what is allowed.

    `dtype` None is for inference what the model's weights are stored in, else bf16.
    """
    if task not in TASKS:
        raise unknown_name("task", task, list(TASKS))
    if checkpointing not in CHECKPOINTING:
        raise unknown_name("checkpointing", checkpointing, list(CHECKPOINTING))
    positive = {"context": context, "batch": batch, "gpus": gpus, "params": params}
    for field, value in {**positive, "tokens": tokens, "price": price}.items():
        if value is not None and not 0 < value < float("inf"):
            raise bad_value(field, value, "a number above 0")
    if utilization is not None and not 0 < utilization <= 1:
        raise bad_value("utilization", utilization, "above 0, up to 1")
    if (model is None) == (params is None):
        raise UserError("model: give either a model or --params")
    entry = find_or_read(model) if isinstance(model, str) else model
    config = entry.config if entry else None
    stored = entry.stored if entry and task == "inference" else None
    form, found = (
        find_format(dtype or stored or "bf16", task),
        find_gpu(gpu) if isinstance(gpu, str) else gpu,
    )
    found.peak(form.rate)
    length = context or _context(config, task)
    if config and length > config.max_position_embeddings:
        raise bad_value("context", length, f"up to {config.max_position_embeddings:,} tokens")
    return Question(
        name=entry.name if entry else "",
        title=entry.title if entry else f"{params:.4g} parameters",
        config=config,
        parameters=params,
        gpu=found,
        task=task,
        form=form,
        context=length,
        batch=batch or ROWS.get(task) or max(STEP_TOKENS // length, 1),
        checkpoint=checkpointing == "full",
        selective=checkpointing == "selective",
        utilization=utilization or (None if config and task != "inference" else _share(task, form)),
        assumed=utilization is None,
        modules=config.multi_token_depth if config and task == "pretrain" else 0,
        gpus=gpus,
        tokens=tokens,
        price=price,
    )


def _context(config: ModelConfig | None, task: str) -> int:
    """The published run's rows for pre-training, else 8,192 or what the model has."""
    if config is None:
        return CONTEXT
    run = published_run(config) if task == "pretrain" else None
    return run.context if run else min(CONTEXT, config.max_position_embeddings)


def _share(task: str, form: Format) -> float:
    if task == "inference":
        return SERVING_SHARE
    return FP8_RUN_SHARE if form.rate == "fp8" else RUN_SHARE
