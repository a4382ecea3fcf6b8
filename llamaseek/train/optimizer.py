"""AdamW with fused kernels, and the routing bias that is moved by load instead of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llamaseek.models import CausalLM
from llamaseek.recipe import TrainRecipe


def make_optimizer(model: CausalLM, recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=1e-8, fused=True)


def optimizer_tensors(model: CausalLM, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    model: CausalLM, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    for full, tensor in tensors.items():
        key, name = full.split(".", 1)
        parameter = parameters[name]
        place = tensor if key == "step" else tensor.to(parameter.device)
        optimizer.state[parameter][key] = place


def update_routing_bias(model: CausalLM, speed: float) -> None:
    """b_i + γ for experts under the mean load of this step, - γ over it (V3 report §2.1.2)."""
    layers = model.moe_layers()
    for index, count in model.expert_load.items():  # multi-token modules only where they ran
        load = count.float()
        layers[index].gate.e_score_correction_bias += speed * torch.sign(load.mean() - load)


class WeightAverage:
    """Exponential moving average of the weights (V3 report §3.2.3)."""

    def __init__(self, model: CausalLM, decay: float) -> None:
        self.decay = decay
        self.tensors = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }
        self.steps = 0

    def update(self, model: CausalLM) -> None:
        """One step; early on the average is shorter, so that the start does not linger."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        averages = list(self.tensors.values())
        trained = [p.detach() for p in model.parameters() if p.requires_grad]
        torch._foreach_lerp_(averages, trained, 1 - decay)

    def swap(self, model: CausalLM) -> None:
        """Exchange the model's weights with the average; twice gives them back."""
        parameters = dict(model.named_parameters())
        for name in self.tensors:
            parameter = parameters[name]
            kept = parameter.detach().clone()
            parameter.data.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
