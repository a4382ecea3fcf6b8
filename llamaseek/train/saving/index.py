"""A safe reader of `.metadata`, the index that torch.distributed.checkpoint writes.

It is a pickle, and a pickle can call anything. Here its names lead to records without behavior,
never to the classes themselves; what they hold is checked against the files and only then becomes
torch's `Metadata`. No other pickle of a run folder is read: torch loads the tensors with
`weights_only`, and an entry that is no tensor, which it would unpickle in full, is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from llamaseek.errors import UserError, shorten

LARGEST = 1 << 28  # bytes of an index; one of 100,000 tensors has 20 million

CLASSES = "torch.distributed.checkpoint.metadata"
FILES = "torch.distributed.checkpoint.filesystem"
RECORDS = {
    *((CLASSES, kind.__name__) for kind in (Metadata, MetadataIndex, StorageMeta)),
    *((CLASSES, kind.__name__) for kind in (TensorStorageMetadata, TensorProperties)),
    (CLASSES, ChunkStorageMetadata.__name__),
    (FILES, _StorageInfo.__name__),
}
VALUES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): str,
    (CLASSES, "_MEM_FORMAT_ENCODING"): int,
    ("pathlib", "PosixPath"): lambda *parts: parts,
    ("pathlib._local", "PosixPath"): lambda *parts: parts,  # its name in Python 3.13
}
OPCODES = (
    "PROTO FRAME MEMOIZE BINGET LONG_BINGET STACK_GLOBAL NEWOBJ REDUCE BUILD STOP MARK "
    "EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 SHORT_BINUNICODE BINUNICODE"
)
"""What an index is written with. Others can take memory beyond the file's size."""


class Record:
    """An object of the pickle: what it was made with, and the state it was given."""

    def __new__(cls, *args: Any) -> Record:
        made = super().__new__(cls)
        made.state = {}
        return made

    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows the names that an index may hold, each as a record or a plain value."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.kinds = {place: type(place[1], (Record,), {}) for place in RECORDS}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; UnpicklingError for any other."""
        place = (module, name)
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        if place not in self.kinds and place not in VALUES:
            raise pickle.UnpicklingError(f"it names {shorten(f'{module}.{name}', 60)}")
        return self.kinds.get(place) or VALUES[place]


class Reader(FileSystemReader):
    """Reads tensors by an index that is read once and checked. UserError where it is broken.

    `checked` also compares each tensor's bytes with their checksum.
    """

    def __init__(self, path: Path, checked: bool = False) -> None:
        super().__init__(path)
        self.checked = checked

    @cached_property
    def index(self) -> Metadata:
        """Which tensors there are, and where."""
        return read_index(Path(self.path))

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What `dcp.load` asks for."""
        return self.index

    def _slice_file(self, file: Any, sinfo: _StorageInfo) -> IO[bytes]:
        stored = super()._slice_file(file, sinfo)
        return checked(stored.read()) if self.checked else stored


def checked(stored: bytes) -> IO[bytes]:
    """A tensor's file; ValueError where its bytes are not those that were written."""
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ValueError("a tensor is packed")
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"{broken} is not what was written")
    return io.BytesIO(stored)


def read_index(folder: Path) -> Metadata:
    """The index of a folder, as torch's own reader would give it. UserError where it is broken."""
    path = folder / ".metadata"
    try:
        if not path.is_file():
            raise ValueError("there is none")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has over {LARGEST:,} bytes")
        return _index(folder, _unpickled(path.read_bytes()))
    except RecursionError:
        reason = "it is nested too deep"
    except Exception as error:  # a broken pickle raises whatever it likes
        reason = str(error) or repr(error)
    raise UserError(f"{path}: is not an index of tensors ({shorten(reason)})")


def _unpickled(data: bytes) -> Any:
    allowed = frozenset(OPCODES.split())
    for opcode, _, _ in pickletools.genops(data):
        if opcode.name not in allowed:
            raise pickle.UnpicklingError(f"it uses {opcode.name}")
    return _Unpickler(data).load()


def _index(folder: Path, found: Any) -> Metadata:
    """torch's own classes from records, all of it checked."""
    state = _state(found, "Metadata")
    tensors = {str(n): _tensor(n, one) for n, one in state["state_dict_metadata"].items()}
    places = dict(_place(folder, *item) for item in state["storage_data"].items())
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            place = places[MetadataIndex(name, chunk.offsets)]
            if prod(chunk.sizes) * tensor.properties.dtype.itemsize > place.length:
                raise ValueError(f"{shorten(name, 60)} is larger than what is stored of it")
    return Metadata({**tensors}, storage_data=places, storage_meta=StorageMeta())


def _state(record: Any, kind: str) -> Any:
    if not isinstance(record, Record) or type(record).__name__ != kind:
        raise ValueError(f"it holds {shorten(type(record).__name__, 40)} in place of {kind}")
    return record.state


def _tensor(name: Any, record: Any) -> TensorStorageMetadata:
    state = _state(record, "TensorStorageMetadata")
    dtype = _state(state["properties"], "TensorProperties")[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{shorten(str(name), 60)} has no dtype")
    size = _sizes(state["size"])
    chunks = [_chunk(one, size) for one in state["chunks"]]
    return TensorStorageMetadata(TensorProperties(dtype), size, chunks)


def _chunk(record: Any, size: torch.Size) -> ChunkStorageMetadata:
    state = _state(record, "ChunkStorageMetadata")
    offsets, sizes = _sizes(state["offsets"]), _sizes(state["sizes"])
    ends = [a + b for a, b in zip(offsets, sizes, strict=True)]
    if len(ends) != len(size) or any(end > whole for end, whole in zip(ends, size, strict=True)):
        raise ValueError("a part of a tensor lies outside of it")
    return ChunkStorageMetadata(offsets, sizes)


def _place(folder: Path, key: Any, record: Any) -> tuple[MetadataIndex, _StorageInfo]:
    """Where a part of a tensor is: within a file of this very folder."""
    index, state = _state(key, "MetadataIndex"), _state(record, "_StorageInfo")
    name, offset, length = state["relative_path"], state["offset"], state["length"]
    path = folder / name
    if path.parent != folder or path.is_symlink() or not path.is_file():
        raise ValueError(f"{shorten(str(name), 60)} is no file of this folder")
    if state.get("transform_descriptors"):
        raise ValueError("its tensors are packed")
    if _whole(offset) + _whole(length) > path.stat().st_size:
        raise ValueError(f"{name} is truncated")
    return MetadataIndex(index["fqn"], _sizes(index["offset"])), _StorageInfo(name, offset, length)


def _sizes(found: Any) -> torch.Size:
    return torch.Size([_whole(n) for n in found])


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"{shorten(repr(number), 40)} is no size")
    return number
