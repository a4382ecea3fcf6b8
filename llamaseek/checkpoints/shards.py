"""Safetensors folders read without copying and written a few rows at a time.

The library writes a file only from a dict that holds all of it; here a shard is written as it is
made, so that converting takes the memory of a few rows, whatever the model's size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llamaseek.checkpoints.gguf.read import open_placed
from llamaseek.checkpoints.huge_pages import in_huge_pages
from llamaseek.errors import UserError
from llamaseek.files import write_json
from llamaseek.herd import formats
from llamaseek.herd.gguf_tensors import GgufStored
from llamaseek.herd.header import INDEX, SINGLE, StoredTensor
from llamaseek.models.lazy import Lazy

SHARD_BYTES = 5_000_000_000
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, ours) for name, (ours, _) in formats.DTYPES.items()
}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

OnBytes = Callable[[int], object]


def open_tensors(stored: dict[str, StoredTensor]) -> dict[str, Lazy]:
    """The tensors behind checked headers, mapped from their files, not read into memory."""
    files: dict[Path, Any] = {}
    found = open_placed({n: e.placed for n, e in stored.items() if isinstance(e, GgufStored)})
    for name, entry in stored.items():
        if isinstance(entry, GgufStored):
            continue
        try:
            if entry.path not in files:
                files[entry.path] = safe_open(entry.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{entry.path}: cannot be read ({error})") from None
        found[name] = _mapped(files[entry.path], entry)
    return found


def _mapped(file: Any, entry: StoredTensor) -> Lazy:
    def whole() -> Tensor:
        return in_huge_pages(file.get_tensor(entry.name))

    def rows(start: int, stop: int) -> Tensor:
        return whole()[start:stop] if entry.shape else whole()

    return Lazy(DTYPES[entry.dtype], entry.shape, rows, whole)


def write_tensors(
    folder: Path,
    tensors: dict[str, Lazy],
    shard_bytes: int = SHARD_BYTES,
    single: str = SINGLE,
    watch: OnBytes = lambda written: None,
) -> None:
    """Write a folder's safetensors files: one called `single`, or numbered shards and an index.

    `watch` is called with the number of bytes written. Raises OSError where the disk is full or
    cannot be written.
    """
    shards = _split(tensors, shard_bytes)
    if len(shards) == 1:
        _write_shard(folder / single, shards[0], watch)
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard, watch)
        index |= dict.fromkeys(shard, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": index})


def _split(tensors: dict[str, Lazy], shard_bytes: int) -> list[dict[str, Lazy]]:
    """In order, a new shard where the next tensor would make one too large."""
    shards: list[dict[str, Lazy]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write_shard(path: Path, tensors: dict[str, Lazy], watch: OnBytes) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    reached = 0
    for name, tensor in tensors.items():
        end = reached + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [reached, end],
        }
        reached = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight, as readers want
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for start, stop in tensor.pieces():
                watch(file.write(_bytes(tensor.rows(start, stop), tensor.dtype)))


def _bytes(rows: Tensor, dtype: torch.dtype) -> Any:
    """Rows as a buffer; fp8 has no numpy type, so every dtype goes out as bytes."""
    plain = rows.detach().to("cpu", dtype).contiguous()
    if dtype == torch.float16 and plain.isinf().any() and not rows.isinf().any():
        raise UserError("--dtype float16: a weight is too large for it; allowed: bfloat16, float32")
    return plain.flatten().view(torch.uint8).numpy().data
