"""Expert parallel: nothing is dropped, loads are one process's, no token goes to too many nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from llamaseek.models import moe
from llamaseek.parallel import expert
from llamaseek.parallel.expert import exchange_in_fp8
from llamaseek.train.loop import Trainer
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import BATCH, DEEPSEEK, LENGTH, job_of, recipe_of

RANKS = 4
MIXTURES = DEEPSEEK["num_hidden_layers"] + 1 - 1  # a multi-token module more, a dense layer less
CHOICES = BATCH * LENGTH * DEEPSEEK["num_experts_per_tok"] * MIXTURES


def routed(plan: dict[str, Any]) -> dict[str, Any]:
    """A step: nodes a token went to, rows that went through experts here, load by layer."""
    trainer = Trainer(job_of(recipe_of("deepseek_v3", plan)))
    nodes: list[Tensor] = []
    computed = [0]
    elsewhere, run_experts, loads = (
        expert.SplitExperts._elsewhere, expert.run_experts, trainer.ranks.loads
    )  # fmt: skip
    kept: dict[int, list[int]] = {}

    def watched(self: Any, x: Tensor, chosen: Tensor, *rest: Any) -> Tensor:
        home = chosen // (DEEPSEEK["n_routed_experts"] // RANKS)
        nodes.append(torch.tensor([len(set(row)) for row in home.tolist()]))
        return elsewhere(self, x, chosen, *rest)

    def counted(x: Tensor, *rest: Any) -> Tensor:
        computed[0] += len(x)
        return run_experts(x, *rest)

    def seen() -> dict[int, Tensor]:
        found = loads()
        kept.update({layer: load.tolist() for layer, load in found.items()})
        return found

    expert.SplitExperts._elsewhere, expert.run_experts = watched, counted  # type: ignore
    trainer.ranks.loads = seen  # type: ignore[method-assign]
    trainer.step(0)
    spread = torch.cat(nodes).bincount().tolist() if nodes else []
    return {"nodes": spread, "computed": computed[0], "loads": kept}


def test_every_choice_is_computed_and_no_token_goes_to_more_nodes_than_the_limit() -> None:
    (alone,) = on_ranks(1, routed, {})
    ranks = on_ranks(RANKS, routed, {"data": RANKS, "expert": RANKS})
    assert sum(rank["computed"] for rank in ranks) == CHOICES  # none dropped
    for rank in ranks:
        assert rank["loads"] == alone["loads"]
        assert len(rank["nodes"]) == DEEPSEEK["topk_group"] + 1  # at most so many nodes
        assert rank["nodes"][-1] > 0  # and some tokens use them all
    assert all(sum(load) * MIXTURES == CHOICES for load in alone["loads"].values())


def test_rows_sent_in_fp8_are_rounded_by_groups_and_their_gradients_are_not() -> None:
    ranks = on_ranks(2, sent_in_fp8)
    for rank, (came, gradient) in enumerate(ranks):
        wanted = [rounded(numbers(sender))[2 * rank : 2 * rank + 2] for sender in range(2)]
        assert torch.equal(torch.tensor(came), torch.cat(wanted))
        # Every rank multiplies what it gets by its number.
        assert gradient == [[1.0] * WIDTH] * 2 + [[2.0] * WIDTH] * 2


WIDTH = 256


def numbers(rank: int) -> Tensor:
    """Rows (4, D) of very different sizes."""
    rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(rank))
    rows[1] *= 1e4
    rows[2, :128] *= 1e-3
    rows[3] = 0.0
    return rows


def rounded(rows: Tensor) -> Tensor:
    """Group by group: the smallest power of two that brings the largest number to 448 at most."""
    out = torch.empty_like(rows)
    for row in range(len(rows)):
        for start in range(0, rows.shape[1], 128):
            group = rows[row, start : start + 128]
            scale = 2.0**-60
            while float(group.abs().max()) / scale > 448:
                scale *= 2
            out[row, start : start + 128] = (group / scale).to(torch.float8_e4m3fn).to(
                rows.dtype
            ) * scale
    return out


def sent_in_fp8() -> tuple[Any, Any]:
    """Half of the rows to each of two ranks; what came, and the gradient of what was sent."""
    group, rank = dist.group.WORLD, dist.get_rank()
    x = numbers(rank).requires_grad_()
    came = exchange_in_fp8(x, [2, 2], [2, 2], group)
    (came * (rank + 1)).sum().backward()
    return came.tolist(), x.grad.tolist()


def test_a_run_with_fp8_dispatch_is_one_whose_experts_see_rounded_rows() -> None:
    plan = {"data": 2, "expert": 2, "fp8_dispatch": True}
    (wanted,) = on_ranks(1, wide_losses, {})
    for losses in on_ranks(2, wide_losses, plan):
        assert losses == pytest.approx(wanted, rel=1e-10)


def wide_losses(plan: dict[str, Any]) -> list[float]:
    """Two steps of a model whose width 128 divides. One process rounds what experts see itself."""
    run_experts = moe.run_experts

    def rounding(x: Tensor, *rest: Any) -> Tensor:
        return run_experts(x + (rounded(x.detach()) - x.detach()), *rest)

    if not plan:
        moe.run_experts = rounding  # type: ignore[assignment]
    made = recipe_of("deepseek_v3", plan)
    sizes = {**made.model.config, "hidden_size": 128}
    made = made.model_copy(update={"model": made.model.model_copy(update={"config": sizes})})
    trainer = Trainer(job_of(made))
    return [trainer.step(step)["loss"] for step in range(2)]
