"""The paged cache: one pool of slots for all sequences, for either family's attention.

Keys and values lie by head, (K, slots, W), so that what is gathered for attention goes into
batched products as it is. Latent attention is the case of one head whose first numbers are the
values too. `build_cache` is the one place where a device chooses its kernels.

N tokens of the step, b sequences of a group, T queries, S keys, H query heads, K cached heads,
G = H / K query heads that share one, W cached width, V value width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from mmap import mmap

import torch
from torch import Tensor

from llamaseek.engine.forward.step_layout import AttentionGroup, JoinedChunks, StepLayout
from llamaseek.errors import bad_value
from llamaseek.kernels import paged as _paged  # noqa: F401  defines the operator
from llamaseek.kernels.build import builder
from llamaseek.kernels.fused import in_one_pass
from llamaseek.kernels.paged import widened
from llamaseek.models.cache import Cache, LayerShape
from llamaseek.models.documents import attend_by_document
from llamaseek.models.latent import LatentHeads

SCORES = 1 << 22  # attention scores held at once
QUERIES = 64  # attended at once: the keys behind a block's last one are left out
CACHE_DTYPES = ("auto", "int8")


class PagedStore:
    """What one layer keeps: a tensor (K, slots, W) for each of the layer's widths."""

    def __init__(
        self, shape: LayerShape, blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape, self.size = shape, size
        self.kept = [blank((shape.heads, blocks * size, w), dtype, device) for w in shape.widths]

    @staticmethod
    def bytes_per_token(shape: LayerShape, dtype: torch.dtype) -> int:
        """Memory a cached token takes in this layer."""
        return shape.numbers_per_token * dtype.itemsize

    @property
    def factors(self) -> list[Tensor]:
        """What the numbers of each tensor are multiplied by, (K, slots, parts); none here."""
        return []

    def write(self, slots: Tensor, new: Sequence[Tensor]) -> None:
        """Keep new (1, N, K, W) at slots (N)."""
        if in_one_pass(self.kept[0]):
            torch.ops.llamaseek.store([fresh[0] for fresh in new], slots, self.kept)
            return
        for kept, fresh in zip(self.kept, new, strict=True):
            kept.index_copy_(1, slots, fresh[0].transpose(0, 1).to(kept.dtype))

    def read(self, group: AttentionGroup, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys (K × b, S, W) and values (K × b, S, V) of a group's sequences."""
        found = [_gather(kept, group, self.size).to(dtype) for kept in self.kept]
        return found[0], found[-1][..., : self.shape.value_width]

    def at(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys (S, K, W) and values (S, K, V) at slots (S)."""
        width = self.shape.value_width
        factors: Sequence[Tensor | None] = self.factors or [None] * len(self.kept)
        found = [
            widened(kept[:, slots], None if factor is None else factor[:, slots], width)
            .to(dtype)
            .transpose(0, 1)
            for kept, factor in zip(self.kept, factors, strict=True)
        ]
        return found[0], found[-1][..., :width]


class QuantizedStore(PagedStore):
    """The same in 8 bits a number: a token's numbers of a head divided by their largest / 127.

    The latent and its rotary key, of different magnitudes, have a scale each.
    """

    def __init__(
        self, shape: LayerShape, blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, blocks, size, torch.int8, device)
        self.scales = [
            blank((shape.heads, blocks * size, len(parts)), torch.float32, device)
            for parts in self._parts(shape)
        ]

    @property
    def factors(self) -> list[Tensor]:
        """See `Store.factors`."""
        return self.scales

    @staticmethod
    def _parts(shape: LayerShape) -> list[tuple[int, ...]]:
        """Into which widths each tensor is cut."""
        if len(shape.widths) == 1:
            return [(shape.value_width, shape.widths[0] - shape.value_width)]
        return [(width,) for width in shape.widths]

    @staticmethod
    def bytes_per_token(shape: LayerShape, dtype: torch.dtype) -> int:
        """A byte a number, and the scales in float32."""
        scales = sum(len(parts) for parts in QuantizedStore._parts(shape))
        return shape.numbers_per_token + 4 * shape.heads * scales

    def write(self, slots: Tensor, new: Sequence[Tensor]) -> None:
        """See `Store.write`."""
        parts = self._parts(self.shape)
        for kept, scales, widths, fresh in zip(self.kept, self.scales, parts, new, strict=True):
            pieces = fresh[0].transpose(0, 1).float().split(widths, dim=-1)  # (K, N, part)
            largest = [piece.abs().amax(-1, keepdim=True).clamp(min=1e-20) for piece in pieces]
            codes = [(p / (m / 127)).round() for p, m in zip(pieces, largest, strict=True)]
            kept.index_copy_(1, slots, torch.cat(codes, -1).to(torch.int8))
            scales.index_copy_(1, slots, torch.cat(largest, -1) / 127)

    def read(self, group: AttentionGroup, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `Store.read`."""
        found = []
        parts = self._parts(self.shape)
        for kept, scales, widths in zip(self.kept, self.scales, parts, strict=True):
            codes = _gather(kept, group, self.size).float().split(widths, dim=-1)
            scale = _gather(scales, group, self.size).unbind(-1)
            whole = [c * s[..., None] for c, s in zip(codes, scale, strict=True)]
            found.append(torch.cat(whole, -1).to(dtype))
        return found[0], found[-1][..., : self.shape.value_width]


class PagedCache(Cache):
    """A cache for a row (1, N) of chunks laid out by `begin`."""

    def __init__(self, stores: Sequence[PagedStore]) -> None:
        self.stores = list(stores)
        self.layout: StepLayout | None = None

    @property
    def plain(self) -> bool:
        """Whether numbers are kept as the model computes them."""
        return all(type(store) is PagedStore for store in self.stores)

    @property
    def apart(self) -> bool:
        """Whether there are kernels for tokens that attend one by one."""
        kept = self.stores[0].kept[0]
        if kept.is_cuda:
            return True
        return self.plain and kept.dtype in (torch.float32, torch.bfloat16) and builder().ready

    @property
    def joins(self) -> bool:
        """Whether chunks of more than a few tokens attend as documents."""
        return self.stores[0].kept[0].is_cuda

    def begin(self, layout: StepLayout) -> None:
        """Say where the tokens of the coming forward stand."""
        self.layout = layout

    def attend(
        self, layer: int, q: Tensor, new: tuple[Tensor, ...], positions: Tensor, scale: float
    ) -> Tensor:
        """Keep `new` (each 1, N, K, W), then attend: q (1, N, H, W) → (1, N, H, V)."""
        assert self.layout is not None
        store, layout, row = self.stores[layer], self.layout, q[0]
        store.write(layout.slots, new)
        joined = layout.joined
        if not layout.groups and joined is None:
            return self._attend_apart(store, row, scale)[None]
        if joined is not None and joined.places is None:
            return _attend_joined(row, store, joined, scale)[None]
        if len(layout.groups) == 1 and layout.groups[0].places is None:
            return _attend(row, store, layout.groups[0], scale)[None]
        out = row.new_empty(*row.shape[:2], store.shape.value_width)
        if layout.alone is not None:
            found = self._attend_apart(store, row[layout.alone], scale)
            out.index_copy_(0, layout.alone, found)
        if joined is not None and joined.places is not None:
            found = _attend_joined(row[joined.places], store, joined, scale)
            out.index_copy_(0, joined.places, found)
        for group in layout.groups:
            queries = row if group.places is None else row[group.places]
            found, places = _attend(queries, store, group, scale), group.places
            if group.real is not None and places is not None:
                found, places = found[group.real], places[group.real]
            out = found if places is None else out.index_copy_(0, places, found)
        return out[None]

    def attend_latent(
        self,
        layer: int,
        q: tuple[Tensor, Tensor],
        new: Tensor,
        heads: LatentHeads,
        positions: Tensor,
        scale: float,
    ) -> Tensor:
        """See `Cache.attend_latent`: joined chunks attend to keys and values made of the latents,
        which no kernel for documents takes.
        """
        assert self.layout is not None
        store, layout, joined = self.stores[layer], self.layout, self.layout.joined
        if joined is None:
            return super().attend_latent(layer, q, new, heads, positions, scale)
        store.write(layout.slots, (new,))
        found = _attend_expanded(torch.cat(q, dim=-1)[0], store, joined, heads, scale)
        if joined.places is None or layout.alone is None:
            return found[None]
        out = found.new_empty(new.shape[1], *found.shape[1:]).index_copy_(0, joined.places, found)
        nope, rope = (part[:, layout.alone] for part in q)
        seen = heads.absorbed(nope, rope, lambda x: self._attend_apart(store, x[0], scale)[None])
        return out.index_copy_(0, layout.alone, seen[0])[None]

    def _attend_apart(self, store: PagedStore, q: Tensor, scale: float) -> Tensor:
        """Every token by itself, all of them kept already: q (N, H, W) → (N, H, V)."""
        layout = self.layout
        assert layout is not None and layout.tables is not None
        width, lengths = store.shape.value_width, layout.lengths
        found: Tensor = torch.ops.llamaseek.attend_paged(
            q, store.kept, store.factors, layout.tables, lengths, layout.size, width, scale
        )
        return found

    def attend_few(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """Attend for the few tokens of a step, already kept: q (N, H, W) → (N, H, V)."""
        store, layout = self.stores[layer], self.layout
        assert layout is not None and layout.tables is not None
        keys, values = store.kept[0], store.kept[-1][..., : store.shape.value_width]
        found: Tensor = torch.ops.llamaseek.attend(
            q, keys, values, layout.tables, layout.lengths, layout.size, scale
        )
        return found


def _attend(q: Tensor, store: PagedStore, group: AttentionGroup, scale: float) -> Tensor:
    """q (b × T, H, W) → (b × T, H, V), by blocks of queries whose scores stay in a CPU's caches."""
    heads, shared = store.shape.heads, q.shape[1] // store.shape.heads
    grouped = q.view(group.sequences, group.queries, heads, shared, q.shape[-1])
    grouped = grouped.permute(2, 0, 1, 3, 4)  # (K, b, T, G, W)
    keys, values = store.read(group, q.dtype)
    step = max(1, min(QUERIES, SCORES // (q.shape[1] * group.sequences * group.keys)))
    outs = []
    for start in range(0, group.queries, step):
        part = grouped[:, :, start : start + step]
        end = min(group.keys, group.before + start + step)
        hidden = group.hidden
        if hidden is not None:
            hidden = hidden[:, :, start : start + step, :, :end]
        outs.append(_attend_block(part, keys[:, :end], values[:, :end], hidden, scale))
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    return out.permute(1, 2, 0, 3, 4).reshape(q.shape[0], q.shape[1], -1)


def _attend_joined(q: Tensor, store: PagedStore, chunks: JoinedChunks, scale: float) -> Tensor:
    """q (Q, H, W) of chunks that lie end to end → (Q, H, V)."""
    keys, values = store.at(chunks.slots, q.dtype)
    rows = q[None], keys[None], values[None]
    return attend_by_document(*rows, chunks.documents, causal=True, scale=scale)[0]


def _attend_expanded(
    q: Tensor, store: PagedStore, chunks: JoinedChunks, heads: LatentHeads, scale: float
) -> Tensor:
    """Of the step's q (N, H, P + R) those of the chunks, over expanded latents → (Q, H, V)."""
    q = q if chunks.places is None else q[chunks.places]
    latents = store.at(chunks.slots, q.dtype)[0][:, 0]
    outs = [
        attend_by_document(
            q[None, :, some], keys[None], values[None], chunks.documents, causal=True, scale=scale
        )
        for some, keys, values in heads.expanded(latents)
    ]
    return torch.cat(outs, dim=2)[0]


def _attend_block(
    q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, scale: float
) -> Tensor:
    """q (K, b, T, G, W), keys (K × b, S, W), values (K × b, S, V) → (K, b, T, G, V)."""
    heads, sequences, queries, shared, width = q.shape
    flat = q.reshape(heads * sequences, queries * shared, width)
    scores = torch.baddbmm(q.new_empty(()), flat, keys.transpose(1, 2), beta=0, alpha=scale)
    if hidden is not None:
        scores.view(heads, sequences, queries, shared, -1).masked_fill_(hidden, -torch.inf)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
    return torch.bmm(weights, values).view(heads, sequences, queries, shared, -1)


def _gather(kept: Tensor, group: AttentionGroup, size: int) -> Tensor:
    """kept (K, slots, W) → (K × b, S, W) of the group's blocks; a view where they are one run."""
    if group.run is not None:
        return kept[:, group.run]
    assert group.blocks is not None
    heads, slots, width = kept.shape
    found = kept.view(heads, slots // size, size * width).index_select(1, group.blocks)
    return found.view(heads * group.sequences, group.keys, width)


def blank(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the system hands out the memory only where it is written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap(-1, prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def store_kind(cache_dtype: str) -> type[PagedStore]:
    """How cached numbers are kept: "auto" as the model computes, or "int8"."""
    if cache_dtype not in CACHE_DTYPES:
        raise bad_value("cache_dtype", cache_dtype, " or ".join(CACHE_DTYPES))
    return QuantizedStore if cache_dtype == "int8" else PagedStore


def bytes_per_token(shapes: Sequence[LayerShape], dtype: torch.dtype, cache_dtype: str) -> int:
    """Memory a cached token takes in all layers."""
    kind = store_kind(cache_dtype)
    return sum(kind.bytes_per_token(shape, dtype) for shape in shapes)


def build_cache(
    shapes: Sequence[LayerShape],
    blocks: int,
    size: int,
    dtype: torch.dtype,
    cache_dtype: str,
    device: torch.device,
) -> PagedCache:
    """A cache of `blocks` blocks of `size` tokens in every layer."""
    kind = store_kind(cache_dtype)
    return PagedCache([kind(shape, blocks, size, dtype, device) for shape in shapes])
