"""Rows of one file: JSON lines and arrays, CSV and TSV, parquet and Arrow, each also packed."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from llamaseek.data.opened import (
    LONGEST_LINE,
    decoded,
    ending_of,
    naming,
    seekable,
    unpacked_limit,
    utf8_lines,
)
from llamaseek.errors import UserError, shorten
from llamaseek.files import check_json_size

Row = dict[str, Any]
Placed = Iterator[tuple[str, Row]]

PARQUET_ROWS = 1024
"""Rows read at once: 5 MB where a document has 5 kB."""

DELIMITERS = ",;\t|"
DELIMITER_LINE = re.compile(r'"?sep=([,;\t|])"?')
"""The first line of a CSV that names the delimiter for Excel."""

WRAPPERS = {"data", "rows", "train", "examples", "instances"}
"""The names under which a file that is one JSON object has its rows."""

LARGEST_ARRAY = 1 << 31  # bytes of a JSON array, which is read as a whole
LONG_TEXT = 1 << 20  # characters of a row whose values are counted before it is parsed
LONGEST_FIELD = 2**31 - 1


def rows_of(path: Path, encoding: str = "auto") -> Placed:
    """The rows of one file, each with its place: `path:line`, or `path:row` where a file has no
    lines (arrays, parquet, Arrow), both from 1.

    Raises UserError while reading for a line that is not a row, and a broken file.
    """
    ending = ending_of(path)
    with naming(path):
        if ending in COLUMNAR:
            yield from _columnar_rows(path)
        else:
            longest = LARGEST_ARRAY if ending == ".json" else LONGEST_LINE
            yield from TEXTUAL[ending](path, utf8_lines(path, encoding, longest))


# JSON


def _json_lines(path: Path, lines: Iterable[bytes]) -> Placed:
    for number, line in enumerate(lines, start=1):
        if is_written(line):
            yield f"{path}:{number}", json_row(f"{path}:{number}", line)


def is_written(line: bytes) -> bool:
    """Whether a line holds more than blanks and a byte order mark."""
    return bool(line.removeprefix(codecs.BOM_UTF8).strip())


def json_row(place: str, line: bytes) -> Row:
    """The object of a line. UserError, naming its place, for anything else."""
    if len(line) > LONG_TEXT:
        try:
            check_json_size(line)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    return _object(place, _json(place, decoded(place, line)))


def _json(place: str, text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_without_twins)
        if "\\u" in text:  # an escape can spell what UTF-8 cannot hold
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: holds half of a \\u surrogate pair") from error
    except json.JSONDecodeError as error:  # in a file of one value, the line within it
        line = f"{place}:{error.lineno}" if "\n" in text.strip() else place
        raise UserError(f"{line}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from error
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twin!r} twice")
    return made


def _object(place: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object but {shorten(repr(row), 40)}")
    return row


def _json_array(path: Path, lines: Iterable[bytes]) -> Placed:
    """An array of objects, alone or wrapped in an object; else an object a line."""
    every = list(lines)
    written = [line for line in every if is_written(line)]
    if len(written) > 1 and decoded(str(path), written[0]).strip()[-1:] == "}":
        yield from _json_lines(path, every)
        return
    text = "".join(decoded(f"{path}:{n}", line) for n, line in enumerate(every, start=1))
    value = _json(str(path), text) if written else []
    if isinstance(value, dict) and len(value) == 1 and value.keys() <= WRAPPERS:
        (value,) = value.values()
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"{path}:{number}", _object(f"{path}:{number}", row)


# CSV


def _csv_rows(path: Path, lines: Iterable[bytes]) -> Placed:
    """Every value is a text, and an empty field an empty text; a row's place is its first line.

    A row whose fields are all empty is passed over as an empty line is: spreadsheets end with such.
    """
    csv.field_size_limit(LONGEST_FIELD)
    texts = (decoded(f"{path}:{number}", line) for number, line in enumerate(lines, start=1))
    first, begin = next(texts, ""), 1
    said = DELIMITER_LINE.fullmatch(first.strip())
    if said is not None:
        first, begin = next(texts, ""), 2
    delimiter = said[1] if said is not None else _delimiter(path, first)
    reader = csv.reader(chain([first], texts), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    above = begin - 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{begin}: not CSV: {error}") from None
        if row is None:
            return
        if header is None:
            header = _header(f"{path}:{begin}", row)
        elif any(row):
            yield f"{path}:{begin}", _csv_row(f"{path}:{begin}", header, row)
        begin = above + reader.line_num + 1


def _delimiter(path: Path, header: str) -> str:
    """What cuts the header's line into the most names; `csv.Sniffer` guesses letters there."""
    usual = "\t" if ending_of(path) == ".tsv" else ","

    def names(delimiter: str) -> tuple[int, bool]:
        return len(next(csv.reader([header], delimiter=delimiter), [])), delimiter == usual

    return max(DELIMITERS, key=names)


def _header(place: str, names: list[str]) -> list[str]:
    names = [name.strip() or f"Unnamed: {n}" for n, name in enumerate(names)]  # as pandas does
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{place}: two columns have the name {name!r}")
    return names


def _csv_row(place: str, header: list[str], row: list[str]) -> Row:
    if len(row) < len(header):
        missing = header[len(row)]
        raise UserError(
            f"{place}: has {len(row)} fields, the header {len(header)}; column {missing!r} is "
            "missing"
        )
    if len(row) > len(header):
        more = shorten(repr(row[len(header)]), 40)
        raise UserError(
            f"{place}: has {len(row)} fields, the header {len(header)}; {more} has no column"
        )
    return dict(zip(header, row, strict=True))


TEXTUAL: dict[str, Callable[[Path, Iterable[bytes]], Placed]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_array,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
}


# Parquet and Arrow


def _columnar_rows(path: Path) -> Placed:
    number = 0
    with seekable(path) as file:
        for batch in _batches(path, file):
            read = _row_reader(path, batch.schema)
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", read(row)


def _batches(path: Path, file: Any) -> Iterator[Any]:
    """Record batches of a parquet file, or of an Arrow file in either of its two forms."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    if ending_of(path) == ".parquet":
        table = pq.ParquetFile(file)
        _check_unpacked(table.metadata)
        yield from table.iter_batches(batch_size=PARQUET_ROWS)
        return
    try:
        table = pa.ipc.open_file(file)
        batches = map(table.get_batch, range(table.num_record_batches))
    except pa.ArrowInvalid:
        file.seek(0)
        batches = pa.ipc.open_stream(file)
    for batch in batches:
        batch.validate(full=True)  # offsets into memory that a file may make up
        yield batch


def _check_unpacked(metadata: Any) -> None:
    """OSError for a parquet file with a column that unpacks to much more than it has bytes."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > unpacked_limit(column.total_compressed_size):
                raise OSError(f"column {column.path_in_schema} unpacks to too many bytes")


def _row_reader(path: Path, schema: Any) -> Callable[[Row], Row]:
    """How the values of a row become what was written: see `_value_reader`; and the names of
    classes, which `datasets` stores as numbers.
    """
    twins = {name for name in schema.names if schema.names.count(name) > 1}
    if twins:
        raise UserError(f"{path}: two columns have the name {min(twins)!r}")
    readers = {field.name: _value_reader(field.type) for field in schema}
    found = {name: read for name, read in readers.items() if read is not None}
    found |= {name: _class_reader(names) for name, names in _classes(schema).items()}
    return lambda row: row | {name: read(row[name]) for name, read in found.items()}


def _value_reader(kind: Any) -> Callable[[Any], Any] | None:
    """What undoes Arrow's forms: JSON texts, maps, and the nulls that fill a struct's other keys.

    A null within a struct cannot be distinguished from a key that was not there, and is left out.
    """
    import pyarrow as pa

    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_struct(kind):
        readers = {field.name: _value_reader(field.type) or _same for field in kind}
        return lambda value: (
            value
            and {name: readers[name](inner) for name, inner in value.items() if inner is not None}
        )
    if pa.types.is_map(kind):
        item = _value_reader(kind.item_type) or _same
        return lambda pairs: pairs and {key: item(value) for key, value in pairs}
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        inner = _value_reader(kind.value_type)
        return inner and (lambda values: values and [inner(value) for value in values])
    return None


def without_nulls(value: Any, kept: Collection[str] = ()) -> Any:
    """A value whose objects have no key that is null, but for the keys `kept`: what fills up
    structs, as a table has it when it has become Python's values or JSON.
    """
    if isinstance(value, dict):
        return {
            key: without_nulls(inner, kept)
            for key, inner in value.items()
            if inner is not None or key in kept
        }
    return [without_nulls(one, kept) for one in value] if isinstance(value, list) else value


def _same(value: Any) -> Any:
    return value


def _classes(schema: Any) -> dict[str, list[str]]:
    """Columns of classes by what `datasets` wrote into the schema, with the classes' names."""
    written = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(written).get("info", {}).get("features", {}) if written else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        and name in schema.names
    }  # fmt: skip


def _class_reader(names: list[str]) -> Callable[[Any], Any]:
    return lambda value: names[value] if isinstance(value, int) and value >= 0 else None


COLUMNAR = (".parquet", ".arrow", ".feather")
ROW_ENDINGS = (*TEXTUAL, *COLUMNAR)
