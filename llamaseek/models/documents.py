"""Documents packed into rows as cumulative lengths, which GPU kernels take in place of a mask.

They are made on the host, so that no kernel waits for them; a T × T mask is never made.
B rows, T tokens a row, Q queries a row, N documents of all rows, H query heads, K key-value heads.
"""

from __future__ import annotations

from functools import cache
from inspect import signature
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from llamaseek.data.batch import Batch

# Positions on a GPU → the same numbers on the host.
_on_host: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Documents(NamedTuple):
    """Where the documents of packed rows end, all rows one behind the other: int32 (N + 1) each,
    beginning with 0. A document may have fewer queries than keys: its last ones.
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    grouped: dict[str, Any]  # the arguments by which PyTorch's kernel shares keys among query heads
    host: Tensor  # queries and keys (2, N + 1) on the CPU


def keep_on_host(positions: Tensor, host: Tensor) -> None:
    """Let `documents_of` know the numbers of `positions` without reading them from their device."""
    _on_host[positions] = host


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch of the host on a device, where its documents are known."""
    there = batch.to(device)
    if device.type != batch.positions.device.type:
        keep_on_host(there.positions, batch.positions)
    return there


def host_positions(positions: Tensor) -> np.ndarray:
    """The numbers of positions (B, T); a GPU is waited for where they were not kept on the host."""
    host = positions if positions.device.type == "cpu" else _on_host.get(positions)
    if host is None:
        host = positions.cpu()
        keep_on_host(positions, host)
    numbers: np.ndarray = host.numpy()
    return numbers


def packed_documents(positions: Tensor) -> Documents | None:
    """The documents of positions (B, T); None where every row is one."""
    numbers = host_positions(positions)
    whole = bool((numbers == np.arange(numbers.shape[1])).all())
    return None if whole else documents_of(positions)


def documents_of(
    positions: Tensor, columns: np.ndarray | None = None, end: int | None = None
) -> Documents:
    """The documents of positions (B, T), which restart at 0 where one begins. Queries are those of
    `columns` (Q), keys those before column `end`.
    """
    numbers = host_positions(positions)
    starts = numbers[:, :end] == 0
    starts[:, 0] = True
    place = starts.ravel().cumsum().reshape(starts.shape) - 1
    count = int(place[-1, -1]) + 1
    asked = place if columns is None else place[:, columns]
    lengths = np.stack([np.bincount(some.ravel(), minlength=count) for some in (asked, place)])
    return documents_with(lengths, positions.device)


def documents_with(lengths: np.ndarray, device: torch.device | str) -> Documents:
    """Documents of so many queries and keys each: lengths (2, N)."""
    ends = np.zeros((2, lengths.shape[1] + 1), dtype=np.int32)
    ends[:, 1:] = lengths.cumsum(1)
    host = torch.from_numpy(ends)
    queries, keys = host.to(device, non_blocking=True)
    longest_query, longest_key = (int(longest) for longest in lengths.max(1))
    return Documents(queries, keys, longest_query, longest_key, grouped(), host)


@cache
def grouped() -> dict[str, Any]:
    """PyTorch 2.11 takes grouped keys without an argument."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def attend_by_document(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, causal: bool, scale: float
) -> Tensor:
    """Attention of packed rows: q (B, Q, H, W), k (B, T, K, W), v (B, T, K, V) → (B, Q, H, V).

    In 16 bits by one kernel, which wants keys and values of one width; otherwise, as no such
    kernel takes float32, document by document.
    """
    rows, width = q.shape[0], v.shape[-1]
    attend = _in_one_kernel if q.dtype.itemsize == 2 else _one_by_one
    out = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents, causal, scale)
    return out[..., :width].unflatten(0, (rows, -1))


def _in_one_kernel(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, causal: bool, scale: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    wide = max(q.shape[-1], v.shape[-1])
    q, k, v = (F.pad(x, (0, wide - x.shape[-1])) if x.shape[-1] < wide else x for x in (q, k, v))
    ends = documents.queries, documents.keys, documents.longest_query, documents.longest_key
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(q, k, v, *ends, scale=scale, window_size=window, **documents.grouped)  # type: ignore[return-value]


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, causal: bool, scale: float
) -> Tensor:
    outs = []
    for (first, last), (start, stop) in zip(*map(pairwise, documents.host.tolist()), strict=True):
        if last > first:
            part = q[None, first:last], k[None, start:stop], v[None, start:stop]
            outs.append(attend_whole(*part, causal, scale)[0])
    return torch.cat(outs)


def attend_whole(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention of the last Q of T tokens of one document, by a fused kernel without a mask:
    q (B, Q, H, W), k (B, T, K, W), v (B, T, K, V) → (B, Q, H, V).
    """
    queries, keys = q.shape[1], k.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    shared = q.shape[1] // k.shape[1]
    grouped = shared > 1 and q.dtype.itemsize == 2
    if shared > 1 and not grouped:  # the fused kernels of float32 take no grouped keys
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    mask = None
    if causal and queries < keys:
        from torch.nn.attention.bias import causal_lower_right  # a second: it imports dynamo

        mask = causal_lower_right(queries, keys)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2)
