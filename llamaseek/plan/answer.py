"""The answer to a question as plain values: what `llamaseek plan --json` prints."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from llamaseek.errors import UserError, bad_value
from llamaseek.herd.tensors import cache_numbers_per_token, count_parameters
from llamaseek.plan.cost import DAY, HOUR, Speed
from llamaseek.plan.flops import attention_flops, matrix_flops, task_flops
from llamaseek.plan.formats import GRADIENT, MASTER
from llamaseek.plan.layout import Layout
from llamaseek.plan.memory import Memory, training_memory
from llamaseek.plan.planner import USABLE, Planner
from llamaseek.plan.question import Question, calibration
from llamaseek.plan.serving import weight_bytes
from llamaseek.units import size


def answer(question: Question) -> dict[str, Any]:
    """What `llamaseek plan --json` prints. Raises UserError where no number of GPUs is enough."""
    if question.config is None:
        return _answer_count(question)
    return _answer_model(question)


def _answer_model(question: Question) -> dict[str, Any]:
    planner = Planner(question)
    config, count = planner.config, count_parameters(planner.config)
    weights = weight_bytes(config, question.form)
    needed = planner.smallest()
    if needed is None:
        raise UserError(_no_layout(question, planner))
    gpus = question.gpus or needed
    layout = planner.fastest(gpus)
    if layout is None:
        allowed = f"{needed:,} or another number that {question.batch:,} rows can be split over"
        raise bad_value("gpus", gpus, f"{allowed}, for {question.task} on {question.gpu.name}")
    alone, speed = planner.memory(Layout()), planner.speed(layout)
    return {
        **_asked(question),
        "utilization": speed.utilization or question.utilization,
        "utilization_is_assumed": question.assumed and not question.trains,
        "parameters": count.total,
        "activated_parameters": count.activated,
        "bytes": _bytes(alone),
        "activation_bytes": _activations(planner),
        "cache_bytes_per_token": cache_numbers_per_token(config) * question.form.number,
        "weight_bytes": round(weights),
        "gpus_for_weights": ceil(weights / question.gpu.memory),
        "gpus_for_task": needed,
        "gpus": gpus,
        "layout": _layout(planner, layout),
        "flops_per_token": flops_per_token(question),
        **_speed(speed),
        **_bill(question, gpus, speed),
        "calibration": calibration(config) if question.task == "pretrain" else None,
    }


def _layout(planner: Planner, layout: Layout) -> dict[str, Any]:
    """The degrees, and what the fullest GPU holds."""
    found: dict[str, Any] = {**layout.to_dict(), "bytes_per_gpu": _bytes(planner.memory(layout))}
    if planner.question.trains:
        micro = planner.micro_batches(layout)
        waits = planner.question.running.waits(layout.pipeline)
        found |= {"micro_batches": micro, "bubble": waits / (waits + micro)}
    return found


def _bytes(memory: Memory) -> dict[str, int]:
    return memory.to_dict() | {"total": round(memory.total)}


def _answer_count(question: Question) -> dict[str, Any]:
    """The same for a number of parameters: no cache, no activations, states split evenly."""
    count, form = question.parameters or 0, question.form
    share_of_peak = question.utilization or 0.0
    weights = count * form.matrix
    memory = Memory(weights=weights)
    if question.task in ("sft", "pretrain"):
        memory = Memory(count * MASTER, count * GRADIENT, count * form.moments)
    per_gpu = USABLE * question.gpu.memory
    alone = ceil(weights / question.gpu.memory)
    # Weights alone need no room beside them; a task does.
    needed = ceil(memory.total / per_gpu)
    gpus = question.gpus or needed
    if gpus < needed:
        raise bad_value("gpus", gpus, f"at least {needed:,} on {question.gpu.name}")
    share = replace(memory, **{k: v / gpus for k, v in vars(memory).items()})
    passes = {"inference": 2, "lora": 4}.get(question.task, 6)
    flops = passes * count
    rate = gpus * question.gpu.peak(form.rate) * share_of_peak / flops
    tokens = question.batch * (question.context if question.trains else 1)
    bandwidth = gpus * question.gpu.bandwidth * share_of_peak / weights
    if not question.trains:
        rate = min(rate, question.batch * bandwidth)
    speed = Speed(tokens / rate, rate, "compute" if question.trains else "memory bandwidth")
    return {
        **_asked(question),
        "parameters": round(count),
        "activated_parameters": round(count),
        "bytes": _bytes(memory),
        "activation_bytes": None,
        "cache_bytes_per_token": None,
        "weight_bytes": round(weights),
        "gpus_for_weights": alone,
        "gpus_for_task": needed,
        "gpus": gpus,
        "layout": {"shard": gpus, "bytes_per_gpu": _bytes(share)},
        "flops_per_token": round(flops),
        **_speed(speed),
        **_bill(question, gpus, speed),
        "calibration": None,
    }


def _asked(question: Question) -> dict[str, Any]:
    gpu = question.gpu
    return {
        "model": question.name or None,
        "title": question.title,
        "gpu": gpu.name,
        "gpu_memory": round(gpu.memory),
        "gpu_source": gpu.source,
        "usable_share": USABLE,
        "task": question.task,
        "dtype": question.form.name,
        "context": question.context,
        "batch": question.batch,
        "checkpointing": question.checkpointing if question.trains else None,
        "utilization": question.utilization,
        "utilization_is_assumed": question.assumed,
    }


def _activations(planner: Planner) -> dict[str, int] | None:
    """Bytes kept for the backward pass of one row on one GPU, both ways."""
    if not planner.question.trains:
        return None
    both = {"full": True, "none": False}
    return {
        f"checkpointing_{name}": round(
            training_memory(planner.config, planner.training(Layout(), way)).activations
        )
        for name, way in both.items()
    }


def flops_per_token(question: Question) -> int:
    """FLOPs of a token's forward pass with a full context, or of training it."""
    config = question.config
    assert config is not None
    if question.trains:
        return task_flops(config, question.task, question.context)
    return matrix_flops(config) + attention_flops(config, question.context)


def _speed(speed: Speed) -> dict[str, Any]:
    return {
        "step_seconds": speed.step_seconds,
        "tokens_per_second": speed.tokens_per_second,
        "prefill_tokens_per_second": speed.prefill_tokens_per_second,
        "bound": speed.bound,
    }


def _bill(question: Question, gpus: int, speed: Speed) -> dict[str, Any]:
    """Days, GPU-hours and cost of the tokens asked for; the price of a million in any case."""
    price = question.price
    hours = gpus / speed.tokens_per_second / HOUR  # a token
    tokens = question.tokens
    return {
        "tokens": tokens,
        "days": tokens / speed.tokens_per_second / DAY if tokens else None,
        "gpu_hours": tokens * hours if tokens else None,
        "price_per_gpu_hour": price,
        "cost": tokens * hours * price if tokens and price else None,
        "cost_per_million_tokens": 1e6 * hours * price if price else None,
    }


def _no_layout(question: Question, planner: Planner) -> str:
    memory = planner.memory(Layout())
    return (
        f"gpu: no layout of {question.gpu.name} that was tried fits {question.title} for "
        f"{question.task} ({size(memory.total)} in all; batch {question.batch:,}, context "
        f"{question.context:,}); allowed: more memory a GPU, a larger --batch, a shorter --context"
    )
