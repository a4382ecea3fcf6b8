"""The answer in words and units for people: a table of bytes, and lines below it."""

from __future__ import annotations

from typing import Any

from llamaseek.units import count, figures, seconds, size

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "cache": "cache",
    "working": "working memory",
    "total": "total",
}
TASKS = {"inference": "inference", "lora": "LoRA", "sft": "fine-tuning", "pretrain": "pre-training"}
DEGREES = {
    "data": "copies",
    "shard": "shards",
    "tensor": "tensor",
    "pipeline": "pipeline",
    "context": "context",
    "expert": "expert",
}


def title(answer: dict[str, Any]) -> str:
    """What was asked, on one line."""
    rows = f"{answer['batch']:,} row{'s' * (answer['batch'] > 1)}"
    parts = [TASKS[answer["task"]], answer["dtype"], f"{rows} of {answer['context']:,} tokens"]
    if answer["checkpointing"]:
        parts.append(f"checkpointing {answer['checkpointing']}")
    return f"{answer['title']}: " + ", ".join(parts)


def byte_rows(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Part, bytes unsplit, bytes of the fullest GPU; parts that are nothing are left out."""
    alone, rank = answer["bytes"], answer["layout"]["bytes_per_gpu"]
    return [
        (label, size(alone[part]), size(rank[part])) for part, label in PARTS.items() if alone[part]
    ]


def lines(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and value of everything that is no part of the memory."""
    found = [
        ("parameters", _parameters(answer)),
        ("cache a token", _cache(answer)),
        ("activations a row", _activations(answer)),
        ("GPUs for weights alone", f"{answer['gpus_for_weights']:,}"),
        ("GPUs for this task", _gpus(answer)),
        ("layout", layout(answer)),
        ("step", _step(answer)),
        ("speed", _speed(answer)),
        ("writing" if answer["task"] == "inference" else "training", _tokens(answer)),
        ("cost", _cost(answer)),
        ("calibration", _calibration(answer)),
    ]
    return [(label, value) for label, value in found if value]


def layout(answer: dict[str, Any]) -> str:
    """The degrees above one, in words."""
    degrees = answer["layout"]
    used = [
        f"{label} {degrees[key]:,}" for key, label in DEGREES.items() if degrees.get(key, 1) > 1
    ]
    text = " × ".join(part for part in used if not part.startswith("expert")) or "one GPU"
    spread = f"; experts over {degrees['expert']:,}" if degrees.get("expert", 1) > 1 else ""
    steps = degrees.get("micro_batches", 1)
    passes = f"; {steps:,} passes a step" if steps > 1 else ""
    idle = degrees.get("bubble", 0)
    return text + spread + passes + (f", pipeline idle {idle:.0%}" if idle else "")


def _parameters(answer: dict[str, Any]) -> str:
    all_of_them = f"{answer['parameters']:,}"
    if answer["activated_parameters"] == answer["parameters"]:
        return all_of_them
    return f"{all_of_them}, {answer['activated_parameters']:,} activated a token"


def _cache(answer: dict[str, Any]) -> str:
    if answer["cache_bytes_per_token"] is None:
        return ""
    return f"{answer['cache_bytes_per_token']:,} B"


def _activations(answer: dict[str, Any]) -> str:
    both = answer["activation_bytes"]
    if not both:
        return ""
    full, none = both["checkpointing_full"], both["checkpointing_none"]
    return f"{size(full)} with checkpointing, {size(none)} without"


def _gpus(answer: dict[str, Any]) -> str:
    usable = size(answer["gpu_memory"] * answer["usable_share"])
    each = f"{answer['gpu']}, {usable} of {size(answer['gpu_memory'])} used at most"
    chosen = f"; planned on {answer['gpus']:,}"
    return f"{answer['gpus_for_task']:,} × {each}" + (
        chosen if answer["gpus"] != answer["gpus_for_task"] else ""
    )


def recipe_lines(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and value of all that is said of a recipe's own layout, memory apart."""
    times = answer["micro_batch_seconds"]
    parts = ", ".join(f"{name} {seconds(value)}" for name, value in times.items())
    once = {"pipeline idle": "idle", "sent once": "exposed", "optimizer": "optimizer",
            "answers": "sampling"}  # fmt: skip
    found = [(what, answer[f"{name}_seconds"]) for what, name in once.items()]
    shown = [f"{what} {seconds(value)}" for what, value in found if value > 1e-3 * _whole(answer)]
    passes = f"{answer['micro_batches']:,} × {seconds(sum(times.values()))}"
    room, at_once = size(answer["gpu_memory"]), answer["answers_at_once"]
    return [
        ("parameters", _parameters(answer)),
        ("layout", layout(answer)),
        ("memory", f"{'fits' if answer['fits'] else 'does not fit'} {room} of {answer['gpu']}"),
        *([("answers", f"{at_once:,} at once")] if at_once is not None else []),
        ("micro-batch", parts),
        ("step", f"{seconds(_whole(answer))}: " + ", ".join([passes, *shown])),
        ("speed", f"{count(answer['tokens_per_second'])} tokens/s"),
        ("utilization", f"{answer['utilization']:.1%} of the {answer['dtype']} peak"),
    ]


def _whole(answer: dict[str, Any]) -> float:
    return float(answer["step_seconds"])


def _step(answer: dict[str, Any]) -> str:
    share = f"{answer['utilization']:.0%} of the peak"
    share += " (assumed)" if answer["utilization_is_assumed"] else ""
    return f"{seconds(answer['step_seconds'])}, bound by {answer['bound']} at {share}"


def _speed(answer: dict[str, Any]) -> str:
    rate = f"{count(answer['tokens_per_second'])} tokens/s"
    if answer["task"] != "inference":
        return rate
    prompts = answer["prefill_tokens_per_second"]
    return f"{rate} written" + (f", {count(prompts)} tokens/s of prompt read" if prompts else "")


def _tokens(answer: dict[str, Any]) -> str:
    if not answer["tokens"]:
        return ""
    took = f"{figures(answer['days'])} days"
    hours = count(answer["gpu_hours"], 4)
    return f"{count(answer['tokens'], 4)} tokens in {took}, {hours} GPU-hours"


def _cost(answer: dict[str, Any]) -> str:
    if not answer["price_per_gpu_hour"]:
        return ""
    at = f"at {answer['price_per_gpu_hour']:,.2f} a GPU-hour"
    million = f"{answer['cost_per_million_tokens']:,.4g} a million tokens"
    if answer["cost"]:
        return f"{answer['cost']:,.0f}, {million}, {at}"
    return f"{million}, {at}"


def _calibration(answer: dict[str, Any]) -> str:
    found = answer["calibration"]
    if not found:
        return ""
    return (
        f"the published {count(found['gpu_hours'], 4)} {found['gpu']} hours for "
        f"{count(found['tokens'], 4)} tokens are {found['utilization_of_bf16_peak']:.1%} of the "
        f"bf16 peak, {found['utilization_of_fp8_peak']:.1%} of the fp8 peak ({found['source']})"
    )
