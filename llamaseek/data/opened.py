"""Data files as bytes: unpacked, seekable, line by line, with errors that name the file."""

from __future__ import annotations

import codecs
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.files import LARGEST_JSON

PACKED_ENDINGS = (".gz", ".zst")
LARGEST_UNPACKED, MOST_TIMES = 128 << 20, 250
"""Bytes that any packed file may become, and how many times its size; text packs to a tenth."""
LONGEST_LINE = LARGEST_JSON
BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def ending_of(path: Path) -> str:
    """The ending that says how to read a file, without .gz or .zst."""
    packed = path.suffix.lower() in PACKED_ENDINGS
    return Path(path.stem if packed else path.name).suffix.lower()


def opened(path: Path) -> io.BufferedReader:
    """The unpacked bytes of a file. Reading raises OSError beyond `unpacked_limit`."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return io.BufferedReader(_Unpacked(gzip.open(path), path), 1 << 16)
    if ending == ".zst":
        return io.BufferedReader(_Unpacked(_zstd(path), path), 1 << 16)
    return path.open("rb")


def unpacked_limit(packed: int) -> int:
    """The most bytes that so many packed ones may become."""
    return max(LARGEST_UNPACKED, MOST_TIMES * packed)


class _Unpacked(io.RawIOBase):
    """The bytes of an unpacking stream, counted: a few kilobytes may stand for terabytes."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream, self._left = stream, unpacked_limit(path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._stream.read(len(buffer))
        self._left -= len(found)
        if self._left < 0:
            raise OSError(f"it unpacks to more than {MOST_TIMES} times its size")
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _zstd(path: Path) -> Any:
    """Through pyarrow, which reports a file cut short; zstandard's reader returns what is left."""
    import pyarrow as pa  # type: ignore[import-untyped]

    return pa.input_stream(str(path), compression="zstd")


@contextmanager
def seekable(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file that is not read in order, from a temporary file where it is packed."""
    with opened(path) as stream:
        if path.suffix.lower() not in PACKED_ENDINGS:
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stream, copy)
            copy.seek(0)
            yield copy


BROKEN = (OSError, EOFError, ValueError, NotImplementedError, MemoryError, RecursionError,
          LookupError, TypeError, AttributeError)  # fmt: skip
"""What libraries raise while they read a broken file."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns what a broken file raises while it is read into a UserError with its path."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except (*BROKEN, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {shorten(str(error))}") from error


def bounded_line(path: Path, stream: IO[bytes], longest: int = LONGEST_LINE) -> bytes:
    """The next line, empty at the end. UserError for one of more than `longest` bytes."""
    line = stream.readline(longest + 1)
    if len(line) > longest:
        raise UserError(f"{path}: has a line of more than {longest:,} bytes")
    return line


def utf8_lines(path: Path, encoding: str = "auto", longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """The lines of a text file, in UTF-8 whatever its encoding is.

    "auto" is UTF-8, or UTF-16 where the file begins with its byte order mark. The lines of a UTF-8
    file are not checked here: `decoded` does that.
    """
    with opened(path) as stream:
        if encoding == "auto":
            start = stream.peek(2)[:2]
            encoding = BYTE_ORDER_MARKS.get(start, "utf-8")
        if codecs_name(encoding) in ("utf-8", "utf-8-sig"):
            yield from iter(partial(bounded_line, path, stream, longest), b"")
            return
        text = io.TextIOWrapper(stream, encoding, newline="")
        try:
            for line in text:
                yield line.encode("utf-8", "surrogatepass")
        except UnicodeError as error:
            raise UserError(f"{path}: not {encoding}: {error}; set data.encoding") from None


def codecs_name(encoding: str) -> str:
    """Python's name of an encoding. UserError for one that does not exist."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        allowed = "auto, utf-8, utf-8-sig, utf-16, cp1252, or another of Python's encodings"
        raise bad_value("data.encoding", encoding, allowed) from None


def decoded(place: str, line: bytes) -> str:
    """A line as text. UserError, with the encoding to try, for one that is not UTF-8."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: not UTF-8: {error.reason} at byte {error.start}; it reads as "
            f"{likely_encoding(line)}: try data.encoding={likely_encoding(line)}"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{place}: not UTF-8: holds null bytes, as {likely_encoding(line)} does: try "
            f"data.encoding={likely_encoding(line)}"
        )
    return text


def likely_encoding(line: bytes) -> str:
    """An encoding that text which is not UTF-8 is likely to be in."""
    if b"\0" in line:
        return "utf-16-be" if line[:1] == b"\0" else "utf-16-le"
    try:
        line.decode("cp1252")
    except UnicodeDecodeError:  # has bytes that cp1252 does not use
        return "latin-1"
    return "cp1252"
