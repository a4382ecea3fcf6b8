"""Files that are either there whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamaseek import units
from llamaseek.errors import UserError

GGUF_SUFFIX, GGUF_MAGIC = ".gguf", b"GGUF"
GGUF_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # name, part, parts
LARGEST_JSON = 64 << 20
"""Bytes of one JSON text; DeepSeek-V3's index of 90,000 tensors has 9 million."""
MOST_VALUES = 4_000_000
"""Values of one JSON text, which take 60 bytes of memory and more each."""


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a GGUF file: by its name, or by the first bytes of a file that exists."""
    path = Path(path)
    if path.suffix == GGUF_SUFFIX:
        return not path.is_dir()
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, renamed into place; `UserError` where it cannot be."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)


def check_json_size(text: bytes) -> None:
    """ValueError for a JSON text of more bytes or values than any sound file has.

    Values are counted by their commas and brackets, also where those stand in strings.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"has {len(text):,} bytes; at most {LARGEST_JSON:,} are read")
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"has more than {MOST_VALUES:,} values")


def read_bytes(path: Path, most: int = LARGEST_JSON) -> bytes:
    """A file's bytes. OSError where it cannot be read; `UserError` for more than `most`."""
    with path.open("rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise UserError(f"{path}: has {path.stat().st_size:,} bytes; at most {most:,} are read")
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `UserError` names the file and what is wrong with it."""
    try:
        text = read_bytes(path)
        check_json_size(text)
        data = json.loads(text.decode("utf-8"))
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


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON; a last line cut short by a kill is left out, and no file has
    none. UserError for a line that is not JSON.
    """
    if not path.is_file():
        return []
    texts, found = path.read_text().splitlines(), []
    for number, line in enumerate(texts, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(texts):
                raise UserError(f"{path}:{number}: is not JSON") from None
    return found


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
        raise UserError(f"{target}: contains {source}, which it is made from")


def disk_reason(error: OSError, folder: Path, needed: int = 0) -> str:
    """Why writing to a folder failed; of a full disk, how many bytes are needed and free.

    Libraries report a write that was cut short in words of their own, so the room is looked at.
    """
    free = shutil.disk_usage(folder).free
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) and free > max(needed, 1 << 16):
        return error.strerror or str(error)
    asked = f"{units.size(needed)} are needed, " if needed else ""
    return f"No space left on device: {asked}{units.size(free)} are free in {folder}"


def _check_free(folder: Path, overwrite: bool) -> None:
    """Raise UserError unless `folder` is a model folder that may be replaced."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: exists already and is not a model folder, so it is not replaced"
        )
    if not overwrite:
        raise UserError(f"{folder}: exists and is not empty; --overwrite replaces it")


@contextmanager
def new_folder(folder: Path, size: int, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes its name only once the block ends well.

    Raises `UserError` where `folder` exists (unless it holds a model and `overwrite` is said),
    where `size` bytes do not fit, and where writing fails; nothing is left then. What a killed run
    left is removed.
    """
    partial, old = (folder.parent / f".{folder.name}.{kind}" for kind in ("partial", "old"))
    try:
        if old.is_dir() and not folder.exists():
            os.replace(old, folder)  # a run was killed between its two renames
        _check_free(folder, overwrite)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if size > free:
            raise UserError(f"{folder}: needs {units.size(size)}, {units.size(free)} are free")
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)  # taking a tree away is slow; a name changes at once
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        reason = disk_reason(error, partial.parent, size)
        raise UserError(f"{folder}: cannot be written ({reason})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
