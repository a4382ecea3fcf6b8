"""A folder's tensors with an adapter folded in, a few rows at a time.

V vocabulary, D width, O output width of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from llamaseek.checkpoints.peft import EMBEDDING, HEAD, Adapter
from llamaseek.errors import UserError
from llamaseek.models.lazy import Lazy

Change = Callable[[Tensor, int, int], Tensor]
"""Of rows start to stop of a weight, float32: what they become."""


def merged(tensors: dict[str, Lazy], adapter: Adapter, folder: Path) -> dict[str, Lazy]:
    """The tensors with an adapter of `folder` folded in.

    Where embedding and head were one table and no longer are, the head's tensor is there as well.
    Raises UserError for what the model does not have, and for other shapes.
    """
    found = dict(tensors)
    for layer, base in adapter.bases.items():
        shared = EMBEDDING if layer == HEAD and f"{HEAD}.weight" not in tensors else layer
        _put(found, f"{shared}.weight", base, folder)
    if f"{HEAD}.weight" not in found and "score.weight" not in found and adapter.parts_head():
        found[f"{HEAD}.weight"] = found[f"{EMBEDDING}.weight"]
    for name, whole in adapter.saved.items():
        _put(found, name, whole, folder)
    for layer, (ids, values) in adapter.tokens.items():
        size = (max(ids.tolist(), default=-1) + 1, values.shape[1])
        _change(found, layer, _with_rows(ids, values), size, folder, exact=False)
    for layer, (a, b) in adapter.embeddings.items():
        _change(found, layer, _with_product(a.T, b.T, 1.0), (a.shape[1], b.shape[0]), folder)
    for layer, (a, b) in adapter.pairs.items():
        change = _with_product(b, a, adapter.scaling)
        if layer in adapter.magnitudes:
            change = _with_norms(change, adapter.magnitudes[layer])
        _change(found, layer, change, (b.shape[0], a.shape[1]), folder)
    return found


def _put(found: dict[str, Lazy], name: str, whole: Lazy, folder: Path) -> None:
    """Put a tensor in the place of another, in the dtype that one had."""
    if name not in found:
        raise UserError(f"{folder}: holds {name}, which the model does not have")
    if found[name].shape != whole.shape:
        shapes = f"{list(whole.shape)}, the model's has {list(found[name].shape)}"
        raise UserError(f"{folder}: holds {name} of shape {shapes}")
    found[name] = whole.cast(found[name].dtype)


def _change(
    found: dict[str, Lazy],
    layer: str,
    change: Change,
    size: tuple[int, int],
    folder: Path,
    exact: bool = True,
) -> None:
    name = f"{layer}.weight"
    if name not in found:
        raise UserError(f"{folder}: adapts {layer}, which the model does not have")
    weight = found[name]
    rows, columns = weight.shape[0], weight.shape[-1]
    if columns != size[1] or (rows != size[0] if exact else rows < size[0]):
        sizes = f"{list(size)}, the model's is {list(weight.shape)}"
        raise UserError(f"{folder}: adapts {layer} as a matrix of shape {sizes}")

    def made(start: int, stop: int) -> Tensor:
        return change(weight.rows(start, stop).float(), start, stop)

    found[name] = Lazy(weight.dtype, weight.shape, made)


def _with_product(left: Tensor, right: Tensor, scaling: float) -> Change:
    """W + scaling · left right; left (O, r), right (r, I)."""
    return lambda rows, start, stop: rows + scaling * (left[start:stop] @ right)


def _with_norms(change: Change, magnitude: Tensor) -> Change:
    """DoRA: the changed rows, each scaled to a norm of its own (Liu et al. 2024, eq. 5)."""

    def made(rows: Tensor, start: int, stop: int) -> Tensor:
        changed = change(rows, start, stop)
        return changed * (magnitude[start:stop] / changed.norm(dim=1))[:, None]

    return made


def _with_rows(ids: Tensor, values: Tensor) -> Change:
    """Some rows replaced."""

    def made(rows: Tensor, start: int, stop: int) -> Tensor:
        here = (ids >= start) & (ids < stop)
        return rows.index_copy(0, ids[here] - start, values[here])

    return made
