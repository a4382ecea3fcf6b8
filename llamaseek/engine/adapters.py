"""Several LoRA adapters on one base model: each row of a step uses its own.

The base's product is made once for all rows; each adapter adds its own low-rank product to the
rows that ask for it (as in S-LoRA, Sheng et al. 2023 §4, with a product an adapter).

N rows of the step, I input width, O output width, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.errors import UserError, unknown_name
from llamaseek.models.layers import dense_weight
from llamaseek.models.quant.blocks import BlockLinear

if TYPE_CHECKING:
    from llamaseek.checkpoints.peft import Adapter
    from llamaseek.engine.scheduler import Chunk
    from llamaseek.models import CausalLM

ABSORBED = "kv_b_proj"
Rows = slice | Tensor


class Adapters:
    """The adapters of a model by name, and the adapter of each row of the current step."""

    def __init__(self, model: CausalLM, adapters: Mapping[str, Adapter]) -> None:
        """Changes the model in place. UserError for an adapter that does not fit it."""
        self.names = frozenset(adapters)
        self.rows: dict[str, Rows] = {}
        for name, adapter in adapters.items():
            if others := adapter.beyond_layers():
                raise _unserved(name, others[0], "is served for all adapters alike")
            for layer, (a, b) in adapter.pairs.items():
                norms = adapter.magnitudes.get(layer)
                _adapted(model, layer, name, self).add(name, a, b, adapter.scaling, norms)

    def check(self, name: str) -> None:
        """Raise UserError for an unknown adapter; "" is the base model."""
        if name and name not in self.names:
            raise unknown_name("adapter", name, sorted(self.names))

    def all_rows(self, name: str) -> None:
        """Say that every row of the coming forward is this adapter's; "" is the base model."""
        self.rows = {name: slice(None)} if name else {}

    def begin(self, chunks: Sequence[Chunk], device: torch.device) -> None:
        """Say whose rows the coming forward has."""
        wanted = [chunk.answer.request.adapter for chunk in chunks]
        if len(set(wanted)) == 1:
            self.all_rows(wanted[0])
            return
        places: dict[str, list[int]] = {}
        start = 0
        for chunk, name in zip(chunks, wanted, strict=True):
            if name:
                places.setdefault(name, []).extend(range(start, start + chunk.count))
            start += chunk.count
        self.rows = {name: torch.tensor(rows, device=device) for name, rows in places.items()}


class AdaptedLinear(nn.Module):
    """A linear layer of any kind, and low-rank products for rows with an adapter."""

    def __init__(
        self, base: nn.Linear | BlockLinear, adapters: Adapters, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.base, self.dtype = base, dtype
        self._adapters = adapters
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._gains: dict[str, Tensor] = {}

    def add(
        self, name: str, a: Tensor, b: Tensor, scaling: float, norms: Tensor | None = None
    ) -> None:
        """One adapter's A (r, I) and B (O, r), and DoRA's norms (O) of the adapted rows."""
        shape = (self.base.out_features, self.base.in_features)
        if (b.shape[0], a.shape[1]) != shape:
            raise UserError(
                f"adapter {name}: has a matrix of shape {[b.shape[0], a.shape[1]]} where the "
                f"model's is {list(shape)}"
            )
        device = next(chain(self.base.parameters(), self.base.buffers())).device
        self._pairs[name] = (a.to(device, self.dtype), (scaling * b).to(device, self.dtype))
        if norms is not None:
            whole = dense_weight(self.base, torch.float32) + (scaling * b @ a).to(device)
            self._gains[name] = (norms.to(device) / whole.norm(dim=1)).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., N, I) → (..., N, O)."""
        out: Tensor = self.base(x)
        for name, rows in self._adapters.rows.items():
            if name in self._pairs:
                a, b = self._pairs[name]
                out[..., rows, :] += F.linear(F.linear(x[..., rows, :], a), b)
                if name in self._gains:
                    out[..., rows, :] *= self._gains[name]
        return out


def _unserved(name: str, layer: str, why: str) -> UserError:
    return UserError(
        f"adapter {name}: adapts {layer}, which {why}; merge it with: llamaseek convert --adapter"
    )


def _adapted(model: CausalLM, layer: str, name: str, adapters: Adapters) -> AdaptedLinear:
    """The layer as one that takes adapters."""
    found = dict(model.named_modules()).get(layer)
    if isinstance(found, AdaptedLinear):
        return found
    own = layer.rpartition(".")[2]
    if not isinstance(found, (nn.Linear, BlockLinear)):
        raise UserError(f"adapter {name}: adapts {layer}, which is not a linear layer of the model")
    if own == ABSORBED:
        raise _unserved(name, layer, "decoding splits")
    if own == "lm_head":
        raise _unserved(name, layer, "is served for all adapters alike")
    made = AdaptedLinear(found, adapters, model.model.norm.weight.dtype)
    model.set_submodule(layer, made)
    return made
