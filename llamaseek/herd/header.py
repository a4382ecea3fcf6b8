"""What a model folder stores, read from the headers of its safetensors files. No torch.

The format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes
(huggingface/safetensors README). A header is believed only where its file bears it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, shorten
from llamaseek.files import check_json_size, read_json_object
from llamaseek.herd.configs import Shape
from llamaseek.herd.formats import DTYPES, FLOATS

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PIECE = 1 << 24  # bytes compared at once
LARGEST_HEADER = 100_000_000  # the library's own limit, bytes
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a folder; `dtype` as safetensors writes it ("BF16")."""

    name: str
    dtype: str
    shape: Shape
    path: Path

    @property
    def is_float(self) -> bool:
        """Whether it holds numbers that a model can compute with."""
        return self.dtype in FLOATS

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return DTYPES[self.dtype][1] * prod(self.shape)


def folder_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name; `UserError` names the file that is missing or broken."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for stored in read_header(path):
            if stored.name in found:
                first = found[stored.name].path.name
                raise UserError(f"{path}: holds {stored.name}, which {first} holds as well")
            found[stored.name] = stored
    _check_index(folder, found)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's tensors: its index's shards, or the single file."""
    shards = sorted(set(_weight_map(folder).values())) or [SINGLE]
    for name in shards:
        if Path(name).name != name or name in (".", ".."):
            raise UserError(f"{folder / INDEX}: names a file outside the folder: {shorten(name)!r}")
    paths = [folder / name for name in shards]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return paths


def stored_names(folder: Path) -> set[str]:
    """The names of a folder's tensors; none where it holds no weights.

    Whether the files are sound is for `folder_tensors` to say.
    """
    try:
        if names := set(_weight_map(folder)):
            return names
        path = folder / SINGLE
        return {stored.name for stored in read_header(path)} if path.is_file() else set()
    except UserError:
        return set()


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file, after checking that the header fits the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            _check_start(path, start, length, size)
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _check_extent(path, _entries(path, raw), size - 8 - length)


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of sound files are the same byte for byte, compared a piece at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(_offset(one))
        second.seek(_offset(other))
        for start in range(0, one.nbytes, PIECE):
            size = min(PIECE, one.nbytes - start)
            if first.read(size) != second.read(size):
                return False
    return True


def _offset(tensor: StoredTensor) -> int:
    """Where a tensor's bytes begin in its file."""
    with tensor.path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = _entries(tensor.path, file.read(length))
    return 8 + length + next(start for each, start, _ in entries if each.name == tensor.name)


def _check_start(path: Path, start: bytes, length: int, size: int) -> None:
    if len(start) == 8 and 8 + length <= size:
        if length > LARGEST_HEADER:
            raise UserError(f"{path}: its header of {length:,} bytes is over {LARGEST_HEADER:,}")
    elif start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":  # no header can be that long
        raise UserError(f"{path}: is a pickle under a safetensors name; it is not opened")
    else:
        raise UserError(f"{path}: is truncated, or not a safetensors file ({size:,} bytes)")


def _entries(path: Path, raw: bytes) -> list[tuple[StoredTensor, int, int]]:
    """Header entries with their byte ranges."""
    try:
        check_json_size(raw)
        header = json.loads(raw, object_pairs_hook=lambda pairs: _unique(path, pairs))
        header.pop("__metadata__", None)
        return [_entry(path, name, entry) for name, entry in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: has a broken header ({shorten(str(error))})") from None


def _unique(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"{path}: its header names {shorten(key)} twice")
        found[key] = value
    return found


def _entry(path: Path, name: str, entry: dict[str, Any]) -> tuple[StoredTensor, int, int]:
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the unknown dtype {entry['dtype']!r}")
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name} has {len(shape)} dimensions")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"{name} has a size that is not a whole number")
    stored = StoredTensor(name, entry["dtype"], tuple(shape), path)
    if end - start != stored.nbytes:
        raise ValueError(f"{name} takes {stored.nbytes:,} bytes and is given {end - start:,}")
    return stored, start, end


def _check_extent(
    path: Path, entries: list[tuple[StoredTensor, int, int]], room: int
) -> list[StoredTensor]:
    """Tensors must lie one behind another and fill the file exactly."""
    reached = 0
    for stored, start, end in sorted(entries, key=lambda entry: entry[1:]):
        if start != reached:
            raise UserError(f"{path}: {stored.name} overlaps another tensor or leaves a gap")
        reached = end
    if reached != room:
        raise UserError(f"{path}: is truncated: {room:,} bytes of tensors, {reached:,} announced")
    return [stored for stored, _, _ in entries]


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    if not path.exists():
        return {}
    found = read_json_object(path).get("weight_map")
    names = found.values() if isinstance(found, dict) else [None]
    if not found or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: has no weight_map from tensors to files")
    assert isinstance(found, dict)
    return found


def _check_index(folder: Path, found: dict[str, StoredTensor]) -> None:
    """Check that index and shards agree."""
    index = _weight_map(folder)
    for name, shard in index.items():
        if name not in found or found[name].path.name != shard:
            raise UserError(f"{folder / shard}: lacks {name}, which {INDEX} says it holds")
    for name in found if index else ():
        if name not in index:
            raise UserError(f"{found[name].path}: holds {name}, which {INDEX} does not list")
