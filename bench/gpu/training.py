"""Training steps of the 8B width beside transformers': tokens a second, share of the data sheet's
dense bf16 peak, memory, and the kernels that take longest.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from bench.common import installed, median_seconds
from llamaseek.data.batch import Batch
from llamaseek.data.source import Rows
from llamaseek.herd import ModelConfig, config_from_sizes
from llamaseek.models import build_model
from llamaseek.plan.flops import training_flops
from llamaseek.recipe.load import make_recipe
from llamaseek.runtime.device import peak_rate
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.job import Job
from llamaseek.train.loop import Trainer
from llamaseek.train.objectives.choose import make_objective

SHAPE = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
DOCUMENTS, ROWS = 9, 4  # of a row, of a step


def rows(config: ModelConfig, length: int, apart: bool) -> Batch:
    """Random rows, of several documents each if `apart`."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (ROWS, length), generator=generator)
    positions = torch.arange(length).repeat(ROWS, 1)
    for row in positions if apart else ():
        cuts = torch.randint(1, length, (DOCUMENTS - 1,), generator=generator).sort().values
        for cut in cuts.tolist():
            row[cut:] = torch.arange(length - cut)
    return Batch(tokens, positions, tokens.roll(-1, 1))


def trainer(sizes: dict[str, int], apart: bool, compiled: bool, folder: str) -> Trainer:
    """Ours, a row a micro-batch."""
    config = config_from_sizes("llama3", sizes)
    settings = {
        "batch": ROWS, "micro_batch": 1, "precision": "bf16", "steps": 99, "compile": compiled,
        "moments": "bf16",
    }  # fmt: skip
    recipe = make_recipe({"name": "gpu", "stage": "pretrain", "out": folder, "train": settings})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = build_model(config)
    tokenizer = train_bpe(["any text does"], 270)
    objective = make_objective(recipe, model, tokenizer)
    source = Rows(rows(config, sizes["max_position_embeddings"], apart), 0)
    return Trainer(Job(recipe, model, tokenizer, objective, source))


def ours(sizes: dict[str, int], apart: bool, compiled: bool) -> tuple[float, list[str]]:
    """Seconds a step, and the kernels that take longest."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(sizes, apart, compiled, folder)
        seconds = median_seconds(lambda: made.step(0), warm=3)
        return seconds, longest(lambda: made.step(0))


def longest(step: Callable[[], object], count: int = 15) -> list[str]:
    """The kernels of a step that take longest, with their milliseconds; none on a CPU."""
    if not torch.cuda.is_available():
        return []
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)[:count]
    return [f"{e.self_device_time_total / 1000:.2f} ms {e.key[:90]}" for e in events]


def theirs(sizes: dict[str, int], compiled: bool) -> float:
    """Seconds a step of transformers' Llama, rows whole, as its users train it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="sdpa")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    called = torch.compile(model) if compiled else model
    tokens = torch.randint(0, sizes["vocab_size"], (ROWS, sizes["max_position_embeddings"]))

    def step() -> None:
        for row in tokens.to(device).split(1):
            with torch.autocast(device, torch.bfloat16):
                loss = called(input_ids=row, labels=row).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return median_seconds(step, warm=3)


def show(case: str, sizes: dict[str, int], seconds: float, **more: Any) -> None:
    """A JSON line of a case."""
    length = sizes["max_position_embeddings"]
    config = config_from_sizes("llama3", sizes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = ROWS * length / seconds
    share = rate * training_flops(config, length) / peak_rate(torch.bfloat16, device)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    found = {"tokens/s": round(rate), "share of peak": round(share, 4), "GB": round(memory, 1)}
    print(json.dumps({"case": case, **found, **more}), flush=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Every case in turn; on a CPU nothing is compiled."""
    dry = "--dry" in sys.argv
    sizes = TINY if dry else SHAPE
    for compiled in (False,) if dry else (True, False):
        for apart in (True, False):
            name = ("compiled" if compiled else "eager", "documents" if apart else "whole rows")
            seconds, kernels = ours(sizes, apart, compiled)
            show(", ".join(name), sizes, seconds, kernels=kernels)
    if installed("transformers"):
        show("transformers, whole rows", sizes, theirs(sizes, compiled=not dry))


if __name__ == "__main__":
    main()
