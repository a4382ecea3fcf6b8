"""Documents from files: text, web pages, and rows (see `tables`), each also as .gz or .zst.

Files are read as a stream. What is in memory is one document, or for parquet one batch of rows.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llamaseek.data.bad_rows import BadRows, RowError
from llamaseek.data.opened import (
    PACKED_ENDINGS,
    bounded_line,
    decoded,
    ending_of,
    naming,
    opened,
    utf8_lines,
)
from llamaseek.data.tables import ROW_ENDINGS, Row, is_written, json_row, rows_of
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
ENDINGS = TEXT_ENDINGS + PAGE_ENDINGS + ROW_ENDINGS
ALLOWED = f"{', '.join(ENDINGS)}, each also with {' or '.join(PACKED_ENDINGS)}"

LARGEST_TEXT = 1 << 31  # bytes of a line of text

IN_FOLDERS = tuple(ending for ending in ENDINGS if ending != ".json")
"""Of a folder's files: a .json there is as often about the data as it is data."""


@dataclass(frozen=True)
class Document:
    """A text, a name to find it by, and whatever else its row held.

    `metadata["place"]` is where it was read: a path, or path:line.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)


def read_documents(
    sources: Sequence[str | Path],
    bad: BadRows | None = None,
    column: str = "text",
    encoding: str = "auto",
) -> Iterator[Document]:
    """The documents of files, folders (with all below them) and globs, always in one order.

    A text file is one document, passed over if blank; so is the main text of a web page; a row is
    one by its string field `column`. `encoding` is of files of text and of rows.
    In folders and globs, hidden files and files of other kinds are passed over. Rows without a
    text are an error, or with `bad.skip` counted.

    Raises UserError at once for a source that is missing, of another kind or without files, and
    while reading for a file, line or row that cannot be used, or if there was no document.
    """
    files = [path for source in sources for path in _files(source)]
    return _documents(files, sources, bad or BadRows(), column, encoding)


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
    with naming(path), path.open("rb") as stream:
        stream.seek(start)
        while stream.tell() < stop:
            line = bounded_line(path, stream)
            if is_written(line):
                place = f"{path}:{number}"
                yield place, json_row(place, line)
            number += 1


def _documents(
    files: Sequence[Path], sources: Sequence[str | Path], bad: BadRows, column: str, encoding: str
) -> Iterator[Document]:
    empty = True
    for path in files:
        for document in _of_file(path, bad, column, encoding):
            empty = False
            yield document
    if empty:
        named = shorten(", ".join(map(str, sources))) or "no source given"
        raise UserError(f"corpus: holds no document ({named})")


def _of_file(
    path: Path, bad: BadRows, column: str = "text", encoding: str = "auto"
) -> Iterator[Document]:
    if _kind(path) in ROW_ENDINGS:
        yield from bad.usable(rows_of(path, encoding), partial(row_document, column=column))
        return
    text = _whole_text(path, encoding)
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
        return files_within(path, IN_FOLDERS) or _no_files(source)
    if path.is_file():
        if _kind(path) is None:
            raise UserError(f"{source}: cannot be read as documents; allowed: {ALLOWED}")
        return [path]
    if glob.has_magic(str(path)):
        return files_matching(str(path), IN_FOLDERS) or _no_files(source)
    raise UserError(f"{source}: no such file or folder")


def _no_files(source: str | Path) -> list[Path]:
    raise UserError(f"{source}: no file to read there; allowed: {ALLOWED}")


def files_within(folder: Path, endings: Collection[str]) -> list[Path]:
    """The files of these kinds in a folder and all below it, in order, without hidden ones."""
    found = []
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        found += [Path(root, name) for name in shown if ending_of(Path(name)) in endings]
    return found


def files_matching(pattern: str, endings: Collection[str]) -> list[Path]:
    """The files of these kinds that a glob matches, and those in the folders that it matches."""
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    found = [match for match in matches if match.is_file() and ending_of(match) in endings]
    if "**" not in pattern:  # which itself reaches what lies inside folders
        inside = (files_within(match, endings) for match in matches if match.is_dir())
        found += [path for paths in inside for path in paths]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _kind(path: Path) -> str | None:
    """The ending that says how to read a file, without .gz or .zst; None if it cannot be."""
    return ending if (ending := ending_of(path)) in ENDINGS else None


# What is in them


def _whole_text(path: Path, encoding: str = "auto") -> str:
    """A web page's main text, or a text file."""
    with naming(path):
        if _kind(path) not in PAGE_ENDINGS:
            return _decoded_text(path, encoding).replace("\r\n", "\n")
        with opened(path) as stream:
            return page_text(stream.read())


def _decoded_text(path: Path, encoding: str) -> str:
    """The text of a file; UserError with the line that is not in its encoding."""
    if encoding == "auto":
        with opened(path) as stream, suppress(UnicodeDecodeError):
            return stream.read().decode("utf-8-sig")
    lines = enumerate(utf8_lines(path, encoding, LARGEST_TEXT), start=1)
    return "".join(decoded(f"{path}:{number}", line) for number, line in lines)
