"""The header of a GGUF file: its metadata, and where its tensors lie. No torch.

The format: magic, version, counts, key-value pairs, tensor descriptions, padding, then the
tensors' bytes (ggml-org/ggml `docs/gguf.md`). A GGUF file is untrusted input: every count, length
and offset is compared with the size of the file before it is used. The `gguf` package's reader
makes an array of every list element (two seconds for a small vocabulary) and checks no bounds, so
that only its constants are used here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from llamaseek.errors import UserError, shorten
from llamaseek.files import GGUF_MAGIC, GGUF_SPLIT

VERSIONS = (2, 3)
ALIGNMENT = 32
LARGEST_HEADER = (
    200_000_000  # bytes; Llama 3's, with 128,000 tokens and 280,000 merges, has 8 million
)
MOST_DIMENSIONS = 4  # of ggml
MOST_KEYS, MOST_TENSORS = 1 << 16, 1 << 18
MOST_ITEMS = 1 << 22  # of all lists of a file; Llama 3's have 0.5 million
SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file. `shape` has the rows first, as in PyTorch; `offset` is in the file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    path: Path

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which holds whole blocks."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def rows(self) -> int:
        """How many rows: all dimensions but the last."""
        return prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, and tensors by their GGUF names, of a file or of all files of a split."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """`general.architecture`; UserError where there is none."""
        return str(self.need("general.architecture", str))

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, with `{arch}` standing for the architecture's name.

        UserError for a value of another type; whole numbers count as floats as well.
        """
        if key.startswith("{arch}"):
            key = key.replace("{arch}", self.architecture)
        value = self.metadata.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{self.path}: {key} is {shorten(repr(value))}, not {_NAMES[kind]}")
        return value

    def need(self, key: str, kind: type) -> Any:
        """`get`, or a UserError where the key is missing."""
        value = self.get(key, kind)
        if value is None:
            key = key if key == "general.architecture" else self.key(key)
            raise UserError(f"{self.path}: lacks the key {key}")
        return value

    def key(self, key: str) -> str:
        """The key as it stands in the file."""
        return key.replace("{arch}", self.architecture)


_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
}


def read_gguf(path: str | Path) -> GgufHeader:
    """The header of a file, of all files where it is the first of a split.

    Read once for a file that does not change. Raises `UserError` for a file that is missing,
    truncated or broken, and for a split that is not whole.
    """
    path = Path(path)
    first = read_gguf_file(path)
    count = first.get("split.count", int, 1)
    if count <= 1:
        return first
    if first.get("split.no", int, 0) != 0:
        raise UserError(f"{path}: is not the first file of its split; name the one with 00001-of")
    tensors = dict(first.tensors)
    for other in _other_files(path, count):
        for name, tensor in read_gguf_file(other).tensors.items():
            if name in tensors:
                raise UserError(f"{other}: holds {name}, which {tensors[name].path.name} holds")
            tensors[name] = tensor
    announced = first.get("split.tensors.count", int, len(tensors))
    if announced != len(tensors):
        raise UserError(f"{path}: its files hold {len(tensors)} tensors, {announced} are announced")
    return GgufHeader(path, first.metadata, tensors)


def _other_files(path: Path, count: int) -> Iterator[Path]:
    """The second and later files of a split, whose names are numbered."""
    found = GGUF_SPLIT.fullmatch(path.name)
    if found is None or int(found[2]) != 1 or int(found[3]) != count:
        raise UserError(
            f"{path}: is one of {count} files and must be called NAME-00001-of-{count:05d}.gguf"
        )
    for number in range(2, count + 1):
        other = path.with_name(f"{found[1]}-{number:05d}-of-{count:05d}.gguf")
        if not other.is_file():
            raise UserError(f"{other}: no such file; {path.name} is one of {count} files")
        yield other


def read_gguf_file(path: Path) -> GgufHeader:
    """The header of one file alone, whichever of a split it is. UserError as `read_gguf`."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _read_file(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read_file(path: Path, modified: int, size: int) -> GgufHeader:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Parser(path, view).header()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # mmap's for an empty file, and this module's own
        raise UserError(
            f"{path}: is truncated, or not a GGUF file ({shorten(str(error))})"
        ) from None


class _Parser:
    """Reads a header from a mapped file; ValueError for what its bytes do not bear out."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at, self.items = path, view, 0, 0
        self.end = min(len(view), LARGEST_HEADER)

    def header(self) -> GgufHeader:
        """The whole header, its tensors checked against the file's size."""
        self._begin()
        tensor_count, pair_count = self._scalar("Q"), self._scalar("Q")
        self._room(tensor_count, 24, "tensors", MOST_TENSORS)
        self._room(pair_count, 12, "keys", MOST_KEYS)
        metadata = dict(self._pair() for _ in range(pair_count))
        if len(metadata) != pair_count:
            raise ValueError("a key is there twice")
        described = [self._tensor() for _ in range(tensor_count)]
        align = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(align, int) or align < 8 or align & (align - 1):
            raise ValueError(f"general.alignment {align} is no power of two of at least 8")
        start = -(-self.at // align) * align
        tensors = self._placed(described, start, align)
        return GgufHeader(self.path, metadata, tensors)

    def _begin(self) -> None:
        magic, version = self._bytes(4), self._scalar("I")
        if magic != GGUF_MAGIC:
            raise ValueError(f"it begins with {magic!r}, not with {GGUF_MAGIC!r}")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            order = " in big-endian order" if swapped else ""
            allowed = " and ".join(map(str, VERSIONS))
            number = (
                version if not swapped else int.from_bytes(version.to_bytes(4, "little"), "big")
            )
            raise UserError(
                f"{self.path}: is GGUF version {number}{order}; read are {allowed}, little-endian"
            )

    def _bytes(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise ValueError(
                f"{count:,} bytes are announced at {self.at:,}, there are {self.end:,}"
            )
        self.at += count
        return self.view[self.at - count : self.at]

    def _scalar(self, code: str) -> Any:
        value = struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code)))[0]
        return value

    def _room(self, count: int, size: int, what: str, most: int = MOST_ITEMS) -> None:
        """A count of things of at least `size` bytes each must fit what is left of the file."""
        if count > most:
            raise ValueError(f"{count:,} {what} are announced; at most {most:,} are read")
        if count * size > self.end - self.at:
            raise ValueError(f"{count:,} {what} are announced, there is no room for them")

    def _text(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8")

    def _pair(self) -> tuple[str, Any]:
        key = self._text()
        kind = GGUFValueType(self._scalar("I"))
        try:
            return key, self._array() if kind == GGUFValueType.ARRAY else self._value(kind)
        except ValueError as error:
            raise ValueError(f"{shorten(key)}: {error}") from None

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text()
        value = self._scalar(SCALARS[kind])
        return _short(value) if kind == GGUFValueType.FLOAT32 else value

    def _array(self) -> list[Any]:
        kind, count = GGUFValueType(self._scalar("I")), self._scalar("Q")
        self.items += count
        self._room(self.items, 0, "items of lists")
        if kind == GGUFValueType.ARRAY:
            raise ValueError("is a list of lists, which no key here has")
        if kind == GGUFValueType.STRING:
            self._room(count, 8, "texts")
            return self._texts(count)
        size = struct.calcsize("<" + SCALARS[kind])
        self._room(count, size, "numbers")
        return list(struct.unpack(f"<{count}{SCALARS[kind]}", self._bytes(count * size)))

    def _texts(self, count: int) -> list[str]:
        """Hundreds of thousands of tokens and merges: a loop without calls of our own."""
        view, at, end, unpack = self.view, self.at, self.end, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            if at + 8 > end or (stop := at + 8 + unpack(view, at)[0]) > end:
                raise ValueError(f"a text at {at:,} is longer than the file")
            found.append(view[at + 8 : stop].decode("utf-8"))
            at = stop
        self.at = at
        return found

    def _tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        """Name, type, shape with the rows first, and offset behind the header."""
        name, dimensions = self._text(), self._scalar("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{shorten(name)} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        number, offset = self._scalar("I"), self._scalar("Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise ValueError(f"{shorten(name)} has the unknown type {number}") from None
        if min(shape) < 1 or shape[-1] % GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{shorten(name)} has the shape {list(shape)} in {kind.name}")
        return name, kind, shape, offset

    def _placed(
        self,
        described: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int]],
        start: int,
        align: int,
    ) -> dict[str, GgufTensor]:
        """The tensors, which must lie in the file, aligned, none over another."""
        tensors = {
            name: GgufTensor(name, kind, shape, start + offset, self.path)
            for name, kind, shape, offset in described
        }
        if len(tensors) != len(described):
            raise ValueError("a tensor is there twice")
        reached = start
        for tensor in sorted(tensors.values(), key=lambda each: each.offset):
            if tensor.offset < reached or (tensor.offset - start) % align:
                raise ValueError(f"{tensor.name} overlaps another tensor or is not aligned")
            reached = tensor.offset + tensor.nbytes
            if reached > len(self.view):
                raise ValueError(f"{tensor.name} ends at byte {reached:,} of {len(self.view):,}")
        return tensors


def _short(value: float) -> float:
    """A float32 as the shortest decimal that is the same float32: 1e-05, not 9.99999974e-06."""
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if struct.pack("<f", float(text)) == struct.pack("<f", value):
            return float(text)
    return value
