"""Files that are either there whole or not at all."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, renamed into place; `UserError` where it cannot be."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `UserError` names the file and what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a JSON object")
    return data


def write_text(path: Path, text: str) -> None:
    """Write beside `path` and rename into place; `UserError` where that is impossible."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """The same for a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same for rows, one a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def places(path: str | Path) -> set[Path]:
    """Where reading `path`, a file, a folder or a glob, leads: all of it resolved, and what the
    symbolic links below it point to.
    """
    given = Path(path).expanduser()
    matched = [] if given.exists() else glob.glob(str(given), recursive=True)
    found = {given.resolve(), *(Path(one).resolve() for one in matched)}
    return found.union(*(_links(one) for one in found))


def _links(folder: Path) -> set[Path]:
    """What the symbolic links below a folder point to; nothing for a file."""
    walk = ((Path(root), names + files) for root, names, files in os.walk(folder))
    entries = (root / name for root, names in walk for name in names)
    return {entry.resolve() for entry in entries if entry.is_symlink()}


def check_apart(target: Path, source: Path) -> None:
    """UserError where a folder and the one it is made from are one, or one is within the other."""
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: is inside the folder it is made from ({source})")
    check_kept(target, source)


def check_kept(target: Path, source: Path) -> None:
    """UserError where replacing a folder would remove something of what it is made from."""
    if any(place.is_relative_to(target.resolve()) for place in places(source)):
        raise UserError(f"{target}: holds {source}, which it is made from")
