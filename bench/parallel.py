"""What each layout holds and receives on a rank, beside the formulas of docs/parallel.md.

Peers are our own formulas and the planner: a ratio of 1 is what is wanted. Ranks are processes of
one thread on this machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, report
from llamaseek.data.batch import Batch, Rows
from llamaseek.herd import ModelConfig, config_from_sizes
from llamaseek.models import build_model
from llamaseek.parallel.ranks import layout_of
from llamaseek.parallel.traffic import Traffic, expected
from llamaseek.plan.activations import Pass
from llamaseek.plan.memory import Training, training_memory
from llamaseek.recipe import Recipe, make_recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.build import make_objective
from llamaseek.train.loop import Job, Trainer

LENGTH, BATCH, MICRO = 128, 8, 2
SHARED = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
}
SIZES: dict[str, dict[str, Any]] = {
    "llama3": {**SHARED, "num_attention_heads": 8, "num_key_value_heads": 4},
    "deepseek_v3": {
        **SHARED,
        "num_attention_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "num_nextn_predict_layers": 1,
    },
}
PLANS: dict[str, dict[str, Any]] = {
    "one process": {},
    "data": {"data": 2},
    "zero": {"data": 2, "zero": True},
    "shard": {"shard": 2},
    "tensor": {"tensor": 2},
    "pipeline": {"pipeline": 2},
    "context": {"context": 2},
    "expert": {"data": 2, "expert": 2},
}


def recipe_of(family: str, plan: dict[str, Any]) -> Recipe:
    """Two micro-batches a rank, or as many as a pipeline wants."""
    deepseek = family == "deepseek_v3"
    return make_recipe(
        {
            "name": "bench",
            "stage": "pretrain",
            "model": {"family": family, "config": SIZES[family]},
            "data": {"length": LENGTH},
            "train": {
                "objective": "multi_token" if deepseek else "next_token",
                "batch": BATCH,
                "micro_batch": MICRO,
                "precision": "fp32",
                "device": "cpu",
            },
            "parallel": plan,
        }
    )


def trainer_of(family: str, plan: dict[str, Any], tokenizer: Tokenizer) -> Trainer:
    """A trainer of random rows."""
    recipe = recipe_of(family, plan)
    torch.manual_seed(0)
    model = build_model(config_from_sizes(family, SIZES[family]))
    tokens = torch.randint(0, 512, (BATCH, LENGTH))
    positions = torch.arange(LENGTH).expand_as(tokens).contiguous()
    rows = Rows(Batch(tokens, positions, tokens.roll(-1, 1)), 0)
    return Trainer(Job(recipe, model, tokenizer, make_objective(recipe, model, tokenizer), rows))


def measured(family: str, plan: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Bytes received in a step by collective, bytes of states held, and seconds a step."""
    trainer = trainer_of(family, plan, tokenizer)
    trainer.step(0)
    with Traffic() as traffic:
        batch = trainer.job.train.step(1, BATCH)
        trainer._gradients(batch)
    own = [w.own for w in trainer.ranks.weights]
    states = {
        "weights": sum(p.numel() * 4 for p in own),
        "gradients": sum(p.grad.numel() * 4 for p in own if p.grad is not None),
    }
    moments = [t for s in trainer.optimizer.state.values() for t in s.values() if t.dim()]
    states["optimizer"] = sum(t.numel() * 4 for t in moments)
    with Traffic() as shared:
        trainer._update(1e-3, trainer.ranks.loads())
    received = dict(traffic.received)
    received["broadcast"] = shared.received["broadcast"]
    start = time.perf_counter()
    for step in range(2, 5):
        trainer.step(step)
    return {"received": received, "states": states, "seconds": (time.perf_counter() - start) / 3}


def rank(number: int, world: int, folder: str, family: str, plan: Any, tokenizer: Any) -> None:
    """One process."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world)}
    if world > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=number, world_size=world)
    torch.save(measured(family, plan, tokenizer), f"{folder}/{number}.pt")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def run(family: str, plan: dict[str, Any], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """What every rank measured."""
    world = 1 if not plan else 2
    with tempfile.TemporaryDirectory() as folder:
        args = (world, folder, family, plan, tokenizer)
        multiprocessing.spawn(rank, args, world)
        return [torch.load(f"{folder}/{n}.pt", weights_only=True) for n in range(world)]


def compare(family: str, name: str, ranks: list[dict[str, Any]]) -> list[Row]:
    """Rows of a layout: traffic beside the formula, states beside the planner, seconds."""
    config, plan = config_from_sizes(family, SIZES[family]), PLANS[name]
    layout, case = layout_of(recipe_of(family, plan).parallel), f"{family} {name}"
    found = []
    if plan:
        micro_batches = BATCH // layout.replicas // MICRO
        wanted = expected(config, layout, MICRO * LENGTH, micro_batches, 4, plan.get("zero", False))
        for collective, value in wanted.items():
            mean = sum(r["received"].get(collective, 0) for r in ranks) / len(ranks)
            label = f"bytes received, {collective}"
            found.append(Row(case, label, mean, "formula", value, round(mean / value, 4), None))
    for part, value in planned(config, layout).items():
        most = max(r["states"][part] for r in ranks)
        if part == "optimizer" and plan.get("zero"):
            value /= 2  # the planner knows no ZeRO-1
        label = f"bytes held, {part}"
        found.append(Row(case, label, most, "planner", value, round(most / value, 4), None))
    seconds = max(r["seconds"] for r in ranks)
    found.append(Row(case, "ms a step", round(1000 * seconds, 1), "-", None, None, None))
    return found


def planned(config: ModelConfig, layout: Any) -> dict[str, float]:
    """The planner's bytes on the fullest rank."""
    depth = getattr(config, "num_nextn_predict_layers", 0)
    training = Training(Pass(MICRO, LENGTH, 4, blocked=True), depth=depth)
    stages = [
        training_memory(config, training, layout, stage, BATCH // MICRO)
        for stage in range(layout.pipeline)
    ]
    return {part: max(getattr(m, part) for m in stages) for part in ("weights", "optimizer")}


def main(json: Path | None = None) -> None:
    """Every layout of both families."""
    tokenizer = train_bpe(["a tokenizer that no row is made with"], 267)
    rows = []
    for family in SIZES:
        for name, plan in PLANS.items():
            if family == "llama3" and "expert" in plan:
                continue
            rows += compare(family, name, run(family, plan, tokenizer))
    report(rows, [], json)


if __name__ == "__main__":
    typer.run(main)
