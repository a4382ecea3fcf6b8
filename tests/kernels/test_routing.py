"""Experts chosen by Triton, interpreted on CPUs, beside the model's router."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llamaseek.herd.published import ENTRIES
from llamaseek.models.moe import Router, count_choices

routing = pytest.importorskip("llamaseek.kernels.routing")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 16, 2), (8, 4, 256, 8), (4, 2, 4, 1), (2, 1, 6, 3), (3, 2, 15, 5)]


def choose(router: Router, logits: Tensor) -> tuple[Tensor, ...]:
    """By the kernel: experts, gates and load."""
    config = router.config
    found = routing.choose_experts(
        logits.to(DEVICE), router.e_score_correction_bias.to(DEVICE), config.n_group,
        config.topk_group, config.num_experts_per_tok, config.norm_topk_prob,
        config.routed_scaling_factor,
    )  # fmt: skip
    return tuple(part.cpu() for part in found)


def make(groups: int, kept: int, experts: int, choices: int, normalize: bool = True) -> Router:
    torch.manual_seed(0)
    router = Router(
        replace(
            ENTRIES["deepseek-v3"].config,
            hidden_size=8,
            n_routed_experts=experts,
            n_group=groups,
            topk_group=kept,
            num_experts_per_tok=choices,
            norm_topk_prob=normalize,
        )  # fmt: skip
    )
    router.e_score_correction_bias.normal_(std=0.1)
    return router


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_kernel_chooses_as_the_router_does(
    shape: tuple[int, int, int, int], normalize: bool
) -> None:
    router, experts = make(*shape, normalize), shape[2]
    logits = torch.randn(7, experts)
    chosen, gates, load = choose(router, logits)
    wanted, weights = router.choose(logits.sigmoid())
    ours, theirs = (torch.zeros(7, experts) for _ in range(2))
    ours.scatter_(1, chosen, gates)
    assert torch.allclose(ours, theirs.scatter_(1, wanted, weights), atol=1e-6)
    assert torch.equal(load, count_choices(wanted, experts))


def test_a_dropped_group_wins_nothing_where_all_scores_are_negative() -> None:
    router = make(2, 1, 6, 3)
    router.e_score_correction_bias.fill_(-5)
    chosen = choose(router, torch.tensor([[3.0, 3, -9, 2, 1, 1]]))[0]
    assert sorted(chosen[0].tolist()) == [0, 1, 2]


def test_scores_that_are_no_numbers_choose_experts_that_exist() -> None:
    chosen, gates, load = choose(make(3, 2, 15, 5), torch.full((2, 15), torch.nan))
    assert all(len(set(row)) == 5 and max(row) < 15 for row in chosen.tolist())
    assert gates.isnan().all() and int(load.sum()) == 10
