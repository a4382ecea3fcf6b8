"""What the ranks of a test run: the same small job under different layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from llamaseek.data.batch import Batch
from llamaseek.data.source import Rows
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.models.moe import Router
from llamaseek.recipe.load import make_recipe
from llamaseek.train.job import Job
from llamaseek.train.jobs.pretrain import make_objective
from llamaseek.train.loop import Trainer
from tests.train.tiny import tiny_tokenizer

LENGTH, BATCH, VOCABULARY = 32, 8, 400
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
DEEPSEEK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
SIZES = {"llama3": LLAMA, "deepseek_v3": DEEPSEEK}
OBJECTIVE = {"llama3": "next_token", "deepseek_v3": "multi_token"}


def recipe_of(family: str, plan: dict[str, Any], out: str = "unused", **train: Any) -> Any:
    """A recipe of 20 steps in float64."""
    return make_recipe(
        {
            "name": "tiny",
            "stage": "pretrain",
            "out": out,
            "model": {"family": family, "config": SIZES[family]},
            "data": {"length": LENGTH, "sources": ["unused"]},
            "train": {
                "objective": OBJECTIVE[family],
                "steps": 20,
                "batch": BATCH,
                "micro_batch": 1 if plan.get("pipeline", 1) > 1 else 2,
                "lr": 1e-2,
                "warmup": 2,
                "precision": "fp64",
                "balance_weight": 0.1,
                "bias_update": 0.01,
                **train,
            },
            "parallel": plan,
        }
    )


def rows() -> Rows:
    """Rows of several documents each; some targets have no loss."""
    rng = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCABULARY, (3 * BATCH, LENGTH), generator=rng)
    begins = torch.rand(tokens.shape, generator=rng) < 0.08
    begins[:, 0] = True
    index = torch.arange(LENGTH).expand_as(tokens)
    positions = index - torch.where(begins, index, 0).cummax(1).values
    targets = tokens.roll(-1, 1).masked_fill(torch.rand(tokens.shape, generator=rng) < 0.1, -100)
    targets[:, -1] = -100
    return Rows(Batch(tokens, positions, targets), seed=3)


def job_of(recipe: Any) -> Job:
    """The job of a recipe: the same model and rows on every rank."""
    torch.manual_seed(0)
    model = build_model(config_from_sizes(recipe.model.family, dict(recipe.model.config)))
    tokenizer = tiny_tokenizer()
    objective = make_objective(recipe, model, tokenizer)
    return Job(recipe, model, tokenizer, objective, rows())


def train_steps(family: str, plan: dict[str, Any], steps: int = 20, **train: Any) -> dict[str, Any]:
    """Losses and norms of each step, all gradients of the first, and the smallest margin by which
    an expert was chosen.
    """
    trainer = Trainer(job_of(recipe_of(family, plan, **train)))
    margins = watch_margins(trainer)
    gradients: dict[str, torch.Tensor] = {}
    clip = trainer.ranks.clip

    def keep(limit: float) -> float:
        if not gradients:
            gradients.update(whole_gradients(trainer))
        return clip(limit)

    trainer.ranks.clip = keep  # type: ignore[method-assign]
    lines = [trainer.step(step) for step in range(steps)]
    names = ("loss", "grad_norm", "expert_load_max_over_mean", *trainer.logged.values())
    return {
        "lines": [{name: line[name] for name in names if name in line} for line in lines],
        "gradients": {name: tensor.numpy() for name, tensor in gradients.items()},
        "margin": min(margins, default=None),
    }


def whole_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """This rank's gradients, put together over the ranks they are split over."""
    found = {}
    for weight in trainer.ranks.weights:
        if weight.own.grad is not None:
            like = weight.like(weight.own.grad)
            whole = like.full_tensor() if isinstance(like, DTensor) else like
            found[weight.name] = whole.clone()
    return found


def watch_margins(trainer: Trainer) -> list[float]:
    """Every router call adds the gap between the last expert taken and the first left out."""
    margins: list[float] = []
    for part in trainer.ranks.parts:
        for module in part.modules():
            if isinstance(module, Router):
                module.choose = _watched(module, margins)  # type: ignore[method-assign]
    return margins


def _watched(router: Router, margins: list[float]) -> Any:
    choose = router.choose

    def watched(scores: torch.Tensor) -> Any:
        config = router.config
        biased = scores.detach() + router.e_score_correction_bias
        groups = biased.unflatten(1, (config.n_group, -1)).topk(2).values.sum(-1)
        for values, taken in (
            (groups, config.topk_group),
            (router._limit_groups(biased), config.num_experts_per_tok),
        ):
            top = values.topk(taken + 1).values
            margins.append(float((top[:, -2] - top[:, -1]).min()))
        return choose(scores)

    return watched


def folder(path: Path) -> str:
    """A path as the recipe wants it."""
    return str(path)
