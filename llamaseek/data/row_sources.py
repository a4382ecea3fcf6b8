"""The rows of what a user names: files, folders, globs, and data sets of `datasets`."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamaseek.data.bad_rows import Row
from llamaseek.data.documents import files_matching, files_within
from llamaseek.data.hub import SCHEME, hub_rows
from llamaseek.data.opened import ending_of
from llamaseek.data.tables import ROW_ENDINGS, rows_of
from llamaseek.errors import UserError

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `datasets.save_to_disk` writes beside a data set's Arrow files, and above its splits."""

ABOUT = (SAVED, SAVED_SPLITS, "dataset_info.json", "dataset_infos.json")
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
ALLOWED = f"{', '.join(ROW_ENDINGS)}, also .gz or .zst"


def file_rows(sources: Sequence[str | Path], encoding: str = "auto") -> Iterator[Row]:
    """The rows of every source, each with its place."""
    for source in sources:
        yield from read_rows(source, encoding)


def read_rows(source: str | Path, encoding: str = "auto") -> Iterator[Row]:
    """The rows of a file, a folder, a glob, or `hf://NAME?split=train`, each with its place.

    Raises UserError at once for a source that is missing or holds no file of rows, and while
    reading for a row that cannot be read, a broken file, or a source without rows.
    """
    if str(source).startswith(SCHEME):
        return _some(source, hub_rows(str(source)))
    files = row_files(source)
    return _some(source, (row for file in files for row in rows_of(file, encoding)))


def row_files(source: str | Path) -> list[Path]:
    """The files of rows behind a source, in the order in which they are read."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = _saved(path) or _about_aside(files_within(path, ROW_ENDINGS))
    elif path.is_file():
        if ending_of(path) not in ROW_ENDINGS:
            hint = "; save the sheet as CSV" if ending_of(path) in SHEETS else ""
            raise UserError(f"{source}: not rows{hint}; allowed: {ALLOWED}")
        return [path]
    elif glob.has_magic(str(path)):
        found = _about_aside(files_matching(str(path), ROW_ENDINGS))
    else:
        raise UserError(f"{source}: no such file or folder")
    if not found:
        raise UserError(f"{source}: holds no file of rows; allowed: {ALLOWED}")
    return found


def _about_aside(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.name not in ABOUT]


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `save_to_disk` wrote; of its splits, those of `train`."""
    try:
        if (folder / SAVED_SPLITS).is_file():
            splits = json.loads((folder / SAVED_SPLITS).read_text())["splits"]
            if "train" not in splits:
                raise UserError(
                    f"{folder}: has no split 'train'; allowed: the folder of one of its splits, "
                    f"{', '.join(splits)}"
                )
            folder /= "train"
        if not (folder / SAVED).is_file():
            return []
        named = json.loads((folder / SAVED).read_text())["_data_files"]
        return [folder / one["filename"] for one in named]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}: cannot be read as a saved data set ({error!r})") from None


def _some(source: str | Path, rows: Iterator[Row]) -> Iterator[Row]:
    empty = True
    for place, row in rows:
        empty = False
        yield place, row
    if empty:
        raise UserError(f"{source}: holds no rows")
