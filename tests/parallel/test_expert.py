"""Expert parallel: nothing is dropped, loads are one process's, no token goes to too many nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llamaseek.parallel import expert
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
