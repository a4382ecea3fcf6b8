"""Low-rank adapters on linear layers (Hu et al. 2021): y = W x + (α / r) B A x, W frozen.

O output width, I input width, r rank. Names stay Hugging Face's: the base weight of an adapted
layer is still `….q_proj.weight`, and `….q_proj.lora_A.weight` is PEFT's
`base_model.model.….q_proj.lora_A.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.errors import UserError, bad_value, unknown_name
from llamaseek.models.layers import widen
from llamaseek.models.quant.nf4 import NF4Linear


class LoRALinear(nn.Linear):
    """A linear layer without bias that keeps its weight and adds a trained product of rank r.

    Of a base in 4 bits it keeps the layer, as `base`. With `use_rslora` the product is scaled by
    α / √r (Kalajdzievski 2023); with `use_dora` each row of the adapted matrix has a trained norm,
    `lora_magnitude_vector` (Liu et al. 2024). A scaling of 0 leaves the base alone.
    """

    lora_magnitude_vector: nn.Parameter | None

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        use_dora: bool = False,
        use_rslora: bool = False,
    ) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.nf4 = isinstance(base, NF4Linear)
        if isinstance(base, NF4Linear):
            del self.weight
            self.base = base
            device = base.codes.device
        else:
            self.weight = base.weight
            device = base.weight.device
        self.rslora = use_rslora
        self.scaling = alpha / (rank**0.5 if use_rslora else rank)
        # Adapters are trained, so they stay float32 on whatever the base is stored in.
        place = {"device": device, "dtype": torch.float32}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **place)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **place)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        norms = nn.Parameter(self._changed().detach().norm(dim=1)) if use_dora else None
        self.register_parameter("lora_magnitude_vector", norms)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) → (..., O), in x's dtype."""
        inner = F.linear(x, self.lora_A.weight.to(x.dtype))
        plain = self.base(x) if self.nf4 else F.linear(x, self.weight)
        out = plain + self.scaling * F.linear(inner, self.lora_B.weight.to(x.dtype))
        if self.lora_magnitude_vector is None or not self.scaling:
            return out
        with torch.no_grad():  # the norm counts as a constant (§4.3)
            norms = self._changed().norm(dim=1)
        return out * (self.lora_magnitude_vector / norms).to(x.dtype)

    def _changed(self) -> Tensor:
        """W + (α / r) B A, (O, I) in at least float32."""
        weight = self.base.dense(torch.float32) if self.nf4 else widen(self.weight)
        return weight + self.scaling * (self.lora_B.weight @ self.lora_A.weight)

    def merged(self) -> Tensor:
        """The adapted matrix (O, I) in the base's dtype; it is computed in float32.

        A base of 4 bits is widened to float32.
        """
        changed = self._changed()
        if self.lora_magnitude_vector is not None:
            changed = changed * (self.lora_magnitude_vector / changed.norm(dim=1))[:, None]
        return changed if self.nf4 else changed.to(self.weight.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The same in `dtype`, for code that takes the matrix apart."""
        return self.merged().to(dtype)


def add_lora(
    model: nn.Module, rank: int, alpha: float, targets: Sequence[str], **kind: bool
) -> list[str]:
    """Freeze `model` and adapt every linear layer whose last name is in `targets`, or all.

    `kind` is `use_dora` and `use_rslora`. Returns the full names of the adapted layers. `UserError`
    for a rank below 1, for a target that names no linear layer, and for `lm_head`, whose weight the
    chunked loss reads directly.
    """
    if rank < 1:
        raise bad_value("lora.rank", rank, "an integer of at least 1")
    if "lm_head" in targets:
        raise UserError("lora.targets: 'lm_head' cannot be adapted; allowed: other linear layers")
    linears = {name: m for name, m in model.named_modules() if type(m) in (nn.Linear, NF4Linear)}
    known = sorted({_last(name) for name in linears} - {"lm_head", "score"})
    targets = targets or known
    for target in targets:
        if target not in known:
            raise unknown_name("lora target", target, known)
    chosen = [name for name in linears if _last(name) in targets]
    adapt(model, chosen, rank, alpha, **kind)
    return chosen


def adapt(model: nn.Module, layers: Sequence[str], rank: int, alpha: float, **kind: bool) -> None:
    """Freeze `model` and adapt the linear layers of these full names."""
    model.requires_grad_(False)
    for name in layers:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, LoRALinear(linear, rank, alpha, **kind))


@torch.no_grad()
def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model with its adapters folded in and its 4 bits widened."""
    state = dict(model.state_dict())
    kept = [(n, m) for n, m in model.named_modules() if isinstance(m, LoRALinear | NF4Linear)]
    inner = tuple(f"{name}." for name, module in kept if isinstance(module, LoRALinear))
    for name, module in kept:
        if name.startswith(inner):  # the base of an adapted layer
            continue
        for own in module.state_dict():
            del state[f"{name}.{own}"]
        state[f"{name}.weight"] = (
            module.dense(torch.float32) if isinstance(module, NF4Linear) else module.merged()
        )
    return state


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold every adapter into its layer, which is a plain linear layer again. In place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(module.merged(), requires_grad=False)
            model.set_submodule(name, plain)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
