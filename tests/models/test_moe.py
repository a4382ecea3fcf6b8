"""Rows of experts: sorted, filled up to whole multiples, and added up again."""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.models.moe import Experts, count_choices, run_experts, sorted_places

TOKENS, WIDTH, EXPERTS, CHOICES = 2048, 32, 4, 2


def routed() -> tuple[Tensor, Tensor, Tensor]:
    """Choices (N, K) that leave one expert out, their gates, and the load."""
    torch.manual_seed(0)
    chosen = torch.stack([torch.randperm(EXPERTS - 1)[:CHOICES] for _ in range(TOKENS)])
    return chosen, torch.rand(TOKENS, CHOICES), count_choices(chosen, EXPERTS)


def test_rows_are_sorted_by_expert_and_groups_filled_up() -> None:
    chosen, _, load = routed()
    for multiple in (1, 32):
        tokens, places, ends = sorted_places(chosen, load, multiple)
        starts = [0, *ends.tolist()[:-1]]
        for expert, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True)):
            assert (end - start) % multiple == 0
            assert 0 <= end - start - load[expert] < multiple
            own = places[chosen == expert]
            assert ((own >= start) & (own < end)).all()
        assert len(set(places.flatten().tolist())) == TOKENS * CHOICES
        assert torch.equal(tokens[places], torch.arange(TOKENS)[:, None].expand(-1, CHOICES))


def test_filled_groups_give_the_same_results_and_gradients() -> None:
    """Against one product an expert and token in float64."""
    chosen, gates, load = routed()
    experts = Experts(EXPERTS, WIDTH, WIDTH)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(TOKENS, WIDTH).bfloat16()
    assert chosen.numel() >= 16 * experts.multiple * EXPERTS  # so that groups are filled up
    found, wanted = [], []
    for out in (found, wanted):
        given = [t.clone().requires_grad_() for t in (x, gates)]
        if out is found:
            made = experts(given[0], chosen, given[1], load)
            weights = list(experts.parameters())
        else:
            wide = [p.detach().double().requires_grad_() for p in experts.parameters()]
            given = [t.detach().double().requires_grad_() for t in given]
            made = run_experts(given[0], chosen, given[1], load, wide[0].flatten(1, 2), wide[1])
            weights = wide
        made.double().square().sum().backward()
        out += [made, *(t.grad for t in (*given, *weights))]
    for ours, exact in zip(found, wanted, strict=True):
        assert (ours.double() - exact).norm() < 0.02 * exact.norm()
