"""AdamW with fused kernels, Muon beside it, and the routing bias that is moved by load instead of
gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llamaseek.models import CausalLM
from llamaseek.recipe.schema import TrainRecipe

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    weights: Mapping[str, nn.Parameter], recipe: TrainRecipe
) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW, over weights by name; matrices decay, norms do not."""
    trained = {name: p for name, p in weights.items() if p.requires_grad}
    muon = recipe.optimizer == "muon"
    inner = {name: p for name, p in trained.items() if muon and is_inner_matrix(name, p)}
    rest = [p for name, p in trained.items() if name not in inner]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    kind = NarrowAdamW if recipe.moments == "bf16" else torch.optim.AdamW
    adamw = kind(groups, lr=recipe.lr, betas=recipe.betas, eps=1e-8, fused=True)
    return MuonAndAdamW(list(inner.values()), adamw, recipe) if inner else adamw


def is_inner_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon steps a weight: a projection of a layer, not the embedding, the head, a router,
    or the routed experts, whose matrices lie in one tensor."""
    return weight.dim() == 2 and ".layers." in name and "_proj." in name


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the layers' matrices and AdamW for all else, with one list of groups and one state.

    Muon's updates have the size of AdamW's, so that both take the same learning rate and weight
    decay (Liu et al. 2025, arXiv:2502.16982).
    """

    def __init__(
        self, matrices: list[nn.Parameter], adamw: torch.optim.AdamW, recipe: TrainRecipe
    ) -> None:
        self.muon = torch.optim.Muon(
            matrices,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = adamw
        super().__init__([*self.muon.param_groups, *adamw.param_groups], {})
        # The groups are shared already: a rate that is set here is set in both.
        self.muon.state = adamw.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both, or of neither where `found_inf` is not 0; a GPU's host waits for it."""
        if not getattr(self, "found_inf", 0):
            self.muon.step()
            self.adamw.step()


class NarrowAdamW(torch.optim.AdamW):
    """AdamW that keeps its moments in bf16 and computes in the weights' dtype, as DeepSeek-V3
    trains (report §3.3.3).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; one weight's moments at a time are wide."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._one(weight, weight.grad, group)

    def _one(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            for name in MOMENTS:
                state[name] = torch.zeros_like(weight, dtype=torch.bfloat16)
        wide = [state[name].to(weight.dtype) for name in MOMENTS]
        beta1, beta2 = group["betas"]
        adamw(
            [weight], [gradient], [wide[0]], [wide[1]], [], [state["step"]],
            fused=True, found_inf=getattr(self, "found_inf", None),
            amsgrad=False, maximize=False, beta1=beta1, beta2=beta2,
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
        )  # fmt: skip
        for name, moment in zip(MOMENTS, wide, strict=True):
            state[name].copy_(moment)


def optimizer_tensors(
    weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `exp_avg.NAME`, `exp_avg_sq.NAME` and `step.NAME`
    of AdamW, `momentum_buffer.NAME` of Muon."""
    names: dict[Any, str] = {parameter: name for name, parameter in weights.items()}
    return {
        f"{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def update_routing_bias(
    model: CausalLM, loads: dict[int, Tensor], speed: float, finite: Tensor | None = None
) -> None:
    """b_i + γ for experts under the mean load of this step, - γ over it (V3 report §2.1.2).

    `loads` are tokens an expert, by layer; a multi-token module that did not run has none, or 0
    for every expert. `finite` is whether the step counts, a scalar on the device.
    """
    for index, moe in model.moe_layers().items():
        if index in loads:
            load = loads[index].float()
            change = speed * torch.sign(load.mean() - load)
            moe.gate.e_score_correction_bias += change if finite is None else change * finite


class WeightAverage:
    """Exponential moving average of the weights (V3 report §3.2.3)."""

    def __init__(self, weights: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in weights.items() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.weights.items()}
        self.steps = 0

    def update(self, finite: Tensor) -> None:
        """One step; early on the average is shorter, so that the start does not linger.

        A step that is not `finite`, a scalar on the device, moves nothing; who reads that calls
        `skipped`.
        """
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        share = (1 - decay) * finite.double()
        for average, weight in zip(self.tensors.values(), self.weights.values(), strict=True):
            average.lerp_(weight.detach(), share.to(average.dtype))

    def skipped(self) -> None:
        """The latest update was of a step that was skipped: it does not count."""
        self.steps -= 1

    def swap(self) -> None:
        """Exchange the weights with the average; twice gives them back."""
        for name, parameter in self.weights.items():
            kept = parameter.detach().clone()
            parameter.data.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """The rate of step `step` (from 0); the last step is at lr × min_lr."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "cosine":
        start, share = recipe.warmup, cosine
    else:
        start, share = round(recipe.steps * (1 - recipe.decay)), linear
    done = (step - start) / max(recipe.steps - 1 - start, 1)
    low = recipe.min_lr
    return recipe.lr * (low + (1 - low) * share(min(max(done, 0.0), 1.0)))


def cosine(done: float) -> float:
    """1 at the start, 0 at the end, along half a cosine."""
    return (1 + math.cos(math.pi * done)) / 2


def linear(done: float) -> float:
    """1 at the start, 0 at the end."""
    return 1 - done
