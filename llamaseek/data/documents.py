"""Documents from files: text, web pages, JSON lines and parquet, each also as .gz or .zst.

Files are read as a stream. What is in memory is one document, or for parquet one batch of rows.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llamaseek.data.bad_rows import BadRows, RowError
from llamaseek.errors import UserError, shorten


def page_text(page: bytes) -> str:
    """Paragraphs and list items, a line each; empty if the page has no text."""
    try:
        import trafilatura
    except ImportError:
        raise UserError("web pages need trafilatura: pip install 'llamaseek[data]'") from None
    text = trafilatura.extract(page, include_comments=False, include_tables=True)
    return f"{text}\n" if text else ""


TEXT_ENDINGS = (".txt", ".md", ".py")
PAGE_ENDINGS = (".html", ".htm")
ROW_ENDINGS = (".jsonl", ".parquet")
PACKED_ENDINGS = (".gz", ".zst")
ENDINGS = TEXT_ENDINGS + PAGE_ENDINGS + ROW_ENDINGS
ALLOWED = f"{', '.join(ENDINGS)}, each also with {' or '.join(PACKED_ENDINGS)}"

PARQUET_ROWS = 1024
"""Rows read at once: 5 MB where a document has 5 kB."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """A text, a name to find it by, and whatever else its row held.

    `metadata["place"]` is where it was read: a path, or path:line.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)


def read_documents(sources: Sequence[str | Path], bad: BadRows | None = None) -> Iterator[Document]:
    """The documents of files, folders (with all below them) and globs, always in one order.

    A text file is one document, passed over if blank; so is the main text of a web page; a row is
    one by its string field `text`.
    In folders and globs, hidden files and files of other kinds are passed over. Rows without a
    text are an error, or with `bad.skip` counted.

    Raises UserError at once for a source that is missing, of another kind or without files, and
    while reading for a file, line or row that cannot be used, or if there was no document.
    """
    files = [path for source in sources for path in _files(source)]
    return _documents(files, sources, bad or BadRows())


def list_files(source: str | Path) -> list[Path]:
    """The files of one file, folder or glob, in the order `read_documents` reads them."""
    return _files(source)


def read_file(path: Path, bad: BadRows | None = None) -> Iterator[Document]:
    """The documents of one file."""
    return _of_file(path, bad or BadRows())


def read_lines(
    path: Path, start: int, stop: int, number: int, bad: BadRows | None = None
) -> Iterator[Document]:
    """Documents of the lines of a plain .jsonl file from byte `start`, where line `number` begins.

    Lines that begin at byte `stop` or later are left to the next part.
    """
    return (bad or BadRows()).usable(_line_rows(path, start, stop, number), row_document)


def _line_rows(path: Path, start: int, stop: int, number: int) -> Iterator[tuple[str, Row]]:
    with _naming(path), path.open("rb") as stream:
        stream.seek(start)
        while stream.tell() < stop:
            line = stream.readline()
            if _written(line):
                place = f"{path}:{number}"
                yield place, _json_row(place, line)
            number += 1


def read_rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    """The rows of one .jsonl or .parquet file, each with its place `path:line`, from line 1.

    Raises UserError at once for a path that is missing or of another kind, and while reading for
    a line that is not a JSON object, a broken file, or a file without rows.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    if _kind(file) not in ROW_ENDINGS:
        raise UserError(f"{path}: not rows; allowed: {', '.join(ROW_ENDINGS)}, also .gz or .zst")
    return _some_rows(file)


def _some_rows(path: Path) -> Iterator[tuple[str, Row]]:
    empty = True
    for place, row in _rows(path):
        empty = False
        yield place, row
    if empty:
        raise UserError(f"{path}: holds no rows")


def _documents(
    files: Sequence[Path], sources: Sequence[str | Path], bad: BadRows
) -> Iterator[Document]:
    empty = True
    for path in files:
        for document in _of_file(path, bad):
            empty = False
            yield document
    if empty:
        named = shorten(", ".join(map(str, sources))) or "no source given"
        raise UserError(f"corpus: holds no document ({named})")


def _of_file(path: Path, bad: BadRows) -> Iterator[Document]:
    if _kind(path) in ROW_ENDINGS:
        yield from bad.usable(_rows(path), row_document)
        return
    text = _whole_text(path)
    if text.strip():
        yield Document(text, str(path), {"place": str(path)})


def row_document(place: str, row: Row, column: str = "text") -> Document:
    """The document of a row, by a field that is a string; raises RowError where there is none."""
    text, named = row.get(column), f"field '{column}'"
    if column not in row:
        fields = shorten(", ".join(row)) or "none"
        raise RowError(place, f"without a {named}", f"no {named}; fields: {fields}")
    if not isinstance(text, str):
        kind = type(text).__name__
        raise RowError(place, "whose text is no string", f"{named} is {kind}, not a string")
    if not text:
        raise RowError(place, "whose text is empty", f"{named} is empty")
    rest = {key: value for key, value in row.items() if key not in (column, "text", "id")}
    name = row.get("id")
    return Document(text, place if name is None else str(name), rest | {"place": place})


# Which files


def _files(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path) or _no_files(source)
    if path.is_file():
        if _kind(path) is None:
            raise UserError(f"{source}: cannot be read as documents; allowed: {ALLOWED}")
        return [path]
    if glob.has_magic(str(path)):
        return _of_glob(str(path)) or _no_files(source)
    raise UserError(f"{source}: no such file or folder")


def _no_files(source: str | Path) -> list[Path]:
    raise UserError(f"{source}: no file to read there; allowed: {ALLOWED}")


def _of_folder(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        found += [Path(root, name) for name in shown if _kind(Path(name))]
    return found


def _of_glob(pattern: str) -> list[Path]:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    found = [match for match in matches if match.is_file() and _kind(match)]
    if "**" not in pattern:  # which itself reaches what lies inside folders
        found += [path for match in matches if match.is_dir() for path in _of_folder(match)]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _kind(path: Path) -> str | None:
    """The ending that says how to read a file, without .gz or .zst; None if it cannot be."""
    packed = path.suffix.lower() in PACKED_ENDINGS
    ending = Path(path.stem if packed else path.name).suffix.lower()
    return ending if ending in ENDINGS else None


# What is in them


def _whole_text(path: Path) -> str:
    with _naming(path), _opened(path) as stream:
        if _kind(path) in PAGE_ENDINGS:
            return page_text(stream.read())
        return stream.read().decode("utf-8-sig").replace("\r\n", "\n")


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    rows = _jsonl_rows(path) if _kind(path) == ".jsonl" else _parquet_rows(path)
    with _naming(path):
        yield from rows


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if _written(line):
                yield f"{path}:{number}", _json_row(f"{path}:{number}", line)


def _written(line: bytes) -> bool:
    """Whether a line holds more than blanks and a byte order mark."""
    return bool(line.removeprefix(codecs.BOM_UTF8).strip())


def _json_row(place: str, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:  # an escape can spell what UTF-8 cannot hold
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: holds half of a \\u surrogate pair") from error
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)  # without the parser's own count of lines
        raise UserError(f"{place}: not JSON: {reason}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object but {shorten(repr(row), 40)}")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with _opened(path) as stream, _seekable(path, stream) as file:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row


# How they are opened


def _opened(path: Path) -> io.BufferedIOBase:
    """The unpacked bytes of a file."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return gzip.open(path)
    if ending == ".zst":
        return _zstd(path)
    return path.open("rb")


def _zstd(path: Path) -> io.BufferedIOBase:
    """Through pyarrow, which reports a file cut short; zstandard's reader returns what is left."""
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 16)


@contextmanager
def _seekable(path: Path, stream: io.BufferedIOBase) -> Iterator[io.BufferedIOBase | IO[bytes]]:
    """The same bytes, but from a temporary file where the path is packed: parquet jumps about."""
    if path.suffix.lower() not in PACKED_ENDINGS:
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        yield copy


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what a broken file raises while it is read into a UserError with its path."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except (OSError, EOFError, zlib.error, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read: {shorten(str(error))}") from error
