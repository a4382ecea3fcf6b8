"""Training runs whose GPU-hours were published, to hold the planner's arithmetic against."""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.published import find
from llamaseek.plan.cost import HOUR
from llamaseek.plan.flops import training_flops
from llamaseek.plan.gpus import Gpu, find_gpu


@dataclass(frozen=True)
class Run:
    """Pre-training of `model` on `tokens` in rows of `context`, in `gpu_hours` of `gpu`."""

    model: str
    gpu: str
    tokens: float
    context: int
    gpu_hours: float
    source: str


RUNS = (
    Run(
        "llama-3.1-405b",
        "h100-80gb",
        tokens=15.6e12,
        context=8192,
        gpu_hours=30.84e6,
        source="Llama 3.1 model card; Llama 3 paper §3.1, at 38 to 43% (table 4)",
    ),
    Run(
        "deepseek-v3-base",
        "h800-80gb",
        tokens=14.8e12,
        context=4096,
        gpu_hours=2.664e6,
        source="DeepSeek-V3 report table 1, trained in fp8",
    ),
)


def published_run(config: ModelConfig) -> Run | None:
    """The published run of a model with this architecture."""
    return next((run for run in RUNS if _same(find(run.model).config, config)), None)


def implied_utilisation(
    config: ModelConfig, gpu: Gpu, rate: str, tokens: float, context: int, gpu_hours: float
) -> float:
    """The share of the peak at which `tokens` take `gpu_hours`: a calibration, not a prediction."""
    flops = tokens * training_flops(config, "pretrain", context)
    return flops / (gpu_hours * HOUR * gpu.peak(rate))


def calibration(config: ModelConfig) -> dict[str, object] | None:
    """What the model's published run implies, against both peaks of its GPU."""
    run = published_run(config)
    if run is None:
        return None
    gpu = find_gpu(run.gpu)
    shares = {
        rate: implied_utilisation(config, gpu, rate, run.tokens, run.context, run.gpu_hours)
        for rate in ("bf16", "fp8")
    }
    return {
        "gpu": gpu.name,
        "tokens": run.tokens,
        "context": run.context,
        "gpu_hours": run.gpu_hours,
        "utilisation_of_bf16_peak": round(shares["bf16"], 4),
        "utilisation_of_fp8_peak": round(shares["fp8"], 4),
        "source": run.source,
    }


def _same(one: ModelConfig, other: ModelConfig) -> bool:
    return one.to_dict() | _IDS == other.to_dict() | _IDS


_IDS = {"eos_token_id": None}  # base and Instruct differ in nothing else
