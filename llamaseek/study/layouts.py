"""What ranks hold and receive under a layout, measured on processes of this machine.

Each rank is a process of one thread that trains a small model on random rows for a few steps; what
it receives is counted as it happens, what it holds is added up afterwards.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llamaseek.data.batch import Batch
from llamaseek.data.source import Rows
from llamaseek.herd import ModelConfig, config_from_sizes
from llamaseek.models import build_model
from llamaseek.parallel.ranks import layout_of
from llamaseek.plan.layout import Layout
from llamaseek.recipe.load import make_recipe
from llamaseek.recipe.reading import apply_override
from llamaseek.recipe.schema import Recipe
from llamaseek.study.traffic import Traffic
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.job import Job
from llamaseek.train.jobs.pretrain import make_objective
from llamaseek.train.loop import Trainer

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
    "data": {"data": 2},
    "data, zero": {"data": 2, "zero": True},
    "shard": {"shard": 2},
    "data, shard": {"data": 2, "shard": 2},
    "tensor": {"tensor": 2},
    "pipeline": {"pipeline": 2},
    "context": {"context": 2},
    "data, expert": {"data": 2, "expert": 2},
}


@dataclass(frozen=True)
class Case:
    """A model of a family under a plan, and changes to its recipe as on the command line."""

    family: str
    plan: dict[str, Any]
    overrides: Sequence[str] = ()

    @property
    def recipe(self) -> Recipe:
        """Two micro-batches a rank, or as many as a pipeline needs."""
        deepseek = self.family == "deepseek_v3"
        data: dict[str, Any] = {
            "name": "layouts",
            "stage": "pretrain",
            "model": {"family": self.family, "config": deepcopy(SIZES[self.family])},
            "data": {"length": 128},
            "train": {
                "objective": "multi_token" if deepseek else "next_token",
                "batch": 8,
                "micro_batch": 2,
                "precision": "fp32",
                "device": "cpu",
            },
            "parallel": self.plan,
        }
        for override in self.overrides:
            apply_override(data, override)
        return make_recipe(data)

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return config_from_sizes(self.family, dict(self.recipe.model.config))

    @property
    def layout(self) -> Layout:
        """The plan's degrees."""
        return layout_of(self.recipe.parallel)

    @property
    def micro_batches(self) -> int:
        """Of one rank in a step."""
        train = self.recipe.train
        return train.batch // self.layout.replicas // (train.micro_batch or train.batch)


@dataclass
class Seen:
    """Of one rank: bytes received in a step by purpose, bytes held, seconds a step."""

    received: dict[str, float] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    activations: float = 0.0  # of one micro-batch, kept for its backward
    seconds: float = 0.0


def observe(case: Case) -> Seen:
    """What this rank sees in a few steps."""
    trainer = trainer_of(case)
    batch = trainer.job.source.step(0, case.recipe.train.batch)
    with saved(trainer) as kept:
        trainer._gradients(batch)
    own = [weight.own for weight in trainer.ranks.weights]
    held: dict[str, float] = {
        "weights": sum(size(p) for p in own),
        "gradients": sum(size(p.grad) for p in own if p.grad is not None),
    }
    trainer.ranks.zero_gradients()
    trainer.step(0)
    moments = [t for state in trainer.optimizer.state.values() for t in state.values() if t.dim()]
    held["optimizer"] = sum(map(size, moments))
    with Traffic() as traffic:
        trainer._gradients(batch)
    received = traffic.received
    with Traffic() as traffic:
        trainer._update(1e-3, trainer.ranks.loads(), torch.tensor(True))
    received["broadcast"] = traffic.received["broadcast"]
    trainer.ranks.zero_gradients()
    seconds = step_seconds(trainer, 3)
    return Seen(
        by_purpose(received, case.layout), held, sum(kept.values()) / case.micro_batches, seconds
    )


def by_purpose(received: Mapping[str, float], layout: Layout) -> dict[str, float]:
    """Bytes by collective as bytes by what they are: gradients of replicas (and ZeRO-1's weights),
    FSDP's weights and gradients, or activations, by the dimension of the mesh that sends them.
    """
    split = [name for name in ("shard", "tensor", "context") if getattr(layout, name) > 1]
    found = {
        "replicas": received.get("all_reduce", 0) + received.get("broadcast", 0),
        "pipeline": received.get("receive", 0),
        "expert": received.get("all_to_all", 0),
    }
    gathered = received.get("all_gather", 0) + received.get("reduce_scatter", 0)
    return found | dict.fromkeys(split, gathered)


def step_seconds(trainer: Trainer, steps: int) -> float:
    """Of the fastest of some steps."""
    taken = []
    for step in range(1, steps + 1):
        start = time.perf_counter()
        trainer.step(step)
        taken.append(time.perf_counter() - start)
    return min(taken)


def size(tensor: Tensor) -> int:
    """Bytes."""
    return tensor.numel() * tensor.itemsize


def trainer_of(case: Case) -> Trainer:
    """A trainer of random rows, alike on every rank."""
    recipe, config = case.recipe, case.config
    torch.manual_seed(recipe.seed)
    model = build_model(config)
    shape = (recipe.train.batch, recipe.data.length)
    tokens = torch.randint(0, config.vocab_size, shape)
    positions = torch.arange(shape[1]).expand(shape).contiguous()
    rows = Rows(Batch(tokens, positions, tokens.roll(-1, 1)), 0)
    tokenizer = train_bpe(["no row is made of this"], 267)
    return Trainer(Job(recipe, model, tokenizer, make_objective(recipe, model, tokenizer), rows))


@contextmanager
def saved(trainer: Trainer) -> Iterator[dict[int, int]]:
    """Bytes of what layers and final norms keep for backward in here, weights apart, by storage."""
    found: dict[int, int] = {}
    alive: list[Any] = []  # so that no address is used twice
    inside: list[nn.Module] = []
    handles = []
    for part in trainer.ranks.parts:
        for module in (*part.model.layers, part.model.norm):
            handles.append(module.register_forward_pre_hook(lambda m, _: inside.append(m)))
            handles.append(module.register_forward_hook(lambda m, _, out: inside.remove(m)))

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in weights(inside[0]):
            alive.append(storage)
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            yield found
    finally:
        for handle in handles:
            handle.remove()


def weights(module: nn.Module) -> set[int]:
    """Where the numbers of a module's parameters are, gathered ones included."""
    local = (p.to_local() if isinstance(p, DTensor) else p for p in module.parameters())
    return {parameter.untyped_storage().data_ptr() for parameter in local}


def on_ranks(world: int, looks: Sequence[Callable[[], Any]], threads: int = 1) -> list[list[Any]]:
    """What each of `looks` gives on each of `world` processes, one look after the other."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (world, folder, list(looks), threads), world)
        paths = [Path(folder) / f"{rank}.pt" for rank in range(world)]
        ranks = [torch.load(path, weights_only=False) for path in paths]  # our own, just written
    return [list(seen) for seen in zip(*ranks, strict=True)]


def _rank(number: int, world: int, folder: str, looks: list[Any], threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world)}
    found = []
    console = Console(stderr=True, quiet=number > 0)
    for place, look in enumerate(track(looks, f"{world} ranks", console=console, transient=True)):
        if world > 1:
            store = f"file://{folder}/store-{place}"
            dist.init_process_group("gloo", init_method=store, rank=number, world_size=world)
        found.append(look())
        if world > 1:
            dist.barrier()
            dist.destroy_process_group()
    torch.save(found, f"{folder}/{number}.pt")


def observed(cases: Sequence[Case]) -> list[list[Seen]]:
    """What every rank of every case sees."""
    found: dict[int, list[Seen]] = {}
    for world in sorted({case.layout.gpus for case in cases}):
        numbers = [n for n, case in enumerate(cases) if case.layout.gpus == world]
        looks = [partial(observe, cases[number]) for number in numbers]
        found |= dict(zip(numbers, on_ranks(world, looks), strict=True))
    return [found[number] for number in range(len(cases))]
