"""What a checkpoint depends on, written beside it and compared when a run is resumed.

`state/pins.json` holds the resolved recipe, fingerprints of the tokenizer, the data and every
model that the run reads, the precision, the code version and the device. A change of what the
weights depend on (`recipe.keys.FIXED`) is refused by name unless it is allowed; any other is
logged and taken.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import llamaseek
from llamaseek.data.builtin.rows import generated_rows
from llamaseek.data.hub import SCHEME
from llamaseek.errors import UserError
from llamaseek.files import read_json_object, write_json
from llamaseek.recipe.keys import CONTENTS, FIXED, leaf_keys, value_at
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.job import Job
from llamaseek.train.saving.reads import read_by

FILE = "pins.json"
DIGEST = "sha256:"
BLOCK, BLOCKS = 1 << 16, 64  # bytes and number of the parts of a large file that are compared
MODEL_FILES = (".json", ".safetensors", ".gguf")


@dataclass(frozen=True)
class Change:
    """A key or content that is not what it was, with both values where they can be shown."""

    key: str
    before: Any
    now: Any
    content: bool = False

    def __str__(self) -> str:
        if str(self.before or self.now).startswith(DIGEST):
            return f"{self.key} (other content)"
        return f"{self.key} ({json.dumps(self.before)} before, {json.dumps(self.now)} now)"


def pins_of(job: Job, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What a checkpoint of this job depends on, as JSON."""
    recipe = job.recipe
    contents = {
        "tokenizer": tokenizer_fingerprint(job.tokenizer),
        "data": job.data_fingerprint or rows_fingerprint(recipe),
        "train.precision": str(dtype).removeprefix("torch."),
    }
    for key, path in read_by(recipe):
        if key not in ("tokenizer.path", "data.sources", "data.corpora"):
            contents[key] = files_fingerprint(Path(path))
    return {
        "recipe": recipe.model_dump(mode="json"),
        "contents": contents,
        "code": {"llamaseek": code_version(), "torch": torch.__version__},
        "device": f"{device.type} on {platform.machine()}",
    }


def save_pins(folder: Path, pins: dict[str, Any]) -> None:
    """Write them beside a checkpoint's state, with the names and sizes of its files."""
    state = folder / "state"
    files = {p.name: p.stat().st_size for p in sorted(state.iterdir()) if p.is_file()}
    write_json(state / FILE, {**pins, "files": files})


def read_pins(folder: Path) -> dict[str, Any]:
    """What `save_pins` wrote; {} where an older version wrote none. UserError where it is broken,
    and where a file of the state is not as it was.
    """
    path = folder / "state" / FILE
    if not path.exists():
        return {}
    found = read_json_object(path)
    if not all(isinstance(found.get(k), dict) for k in ("recipe", "contents", "code", "files")):
        raise UserError(f"{path}: lacks what a checkpoint depends on")
    for name, size in found["files"].items():
        own = path.with_name(Path(name).name)
        if not own.is_file() or own.stat().st_size != size:
            raise UserError(f"{own}: is not as it was written ({size} bytes)")
    return found


def compare(before: dict[str, Any], now: dict[str, Any], allowed: Sequence[str]) -> list[Change]:
    """What is different and taken. `UserError` names what may not be different unless allowed."""
    changes = list(_changes(before, now))
    refused = [c for c in changes if _matters(c) and not _is_allowed(c.key, allowed)]
    if refused:
        keys = dict.fromkeys(change.key for change in refused)
        raise UserError(
            f"the checkpoint was trained with another {', another '.join(map(str, refused))}; "
            f"allowed: the same, or {' '.join(f'--allow-change {key}' for key in keys)}"
        )
    return changes


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Change]:
    for key in leaf_keys():
        old, new = value_at(before["recipe"], key), value_at(now["recipe"], key)
        if old != new:
            yield Change(key, old, new)
    for key in {**before["contents"], **now["contents"]}:
        if before["contents"].get(key) != now["contents"].get(key):
            yield Change(key, before["contents"].get(key), now["contents"].get(key), content=True)
    for name in ("code", "device"):
        if before.get(name) != now.get(name):
            yield Change(name, before.get(name), now.get(name))


def _matters(change: Change) -> bool:
    """Whether weights depend on it. A new name for the same content is taken."""
    return change.content or change.key in FIXED


def _is_allowed(key: str, allowed: Sequence[str]) -> bool:
    """By its own name or a section's; the content of data and of a tokenizer by any key of it."""
    return any(
        f"{key}.".startswith(f"{name}.") or key in CONTENTS and name.startswith(f"{key}.")
        for name in allowed
    )


# Fingerprints


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Of the bytes of its tokenizer.json, its template and the tokens that its config names."""
    parts = [tokenizer.to_json(), tokenizer.chat_template, tokenizer.named_tokens]
    plain = json.dumps(parts, sort_keys=True, default=str)
    return DIGEST + hashlib.sha256(plain.encode()).hexdigest()


def rows_fingerprint(recipe: Recipe) -> str:
    """Of every byte of the rows' files, and of what the recipe's generators make."""
    digest = hashlib.sha256()
    for source in recipe.data.sources:
        path = Path(source).expanduser()
        if source.startswith(SCHEME) or not path.exists():
            digest.update(source.encode())
        else:
            for file in _files(path):
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    for _, row in generated_rows(recipe.data.rows, recipe.seed, "train"):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return DIGEST + digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def files_fingerprint(path: Path) -> str:
    """Of a model's folder or file: config and indexes whole; of weights their size, their header
    and 64 parts spread over them, which another training changes.
    """
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        if file.suffix in MODEL_FILES and not file.name.startswith(("token", "generation")):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(_sample(file))
    return DIGEST + digest.hexdigest()


def _sample(path: Path) -> bytes:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for place in dict.fromkeys(size * part // BLOCKS for part in range(BLOCKS)):
            file.seek(min(place, max(size - BLOCK, 0)))
            digest.update(file.read(BLOCK))
    return digest.digest()


@cache
def code_version() -> str:
    """The version, and a digest of the package's own files."""
    root = Path(llamaseek.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{llamaseek.__version__}+{digest.hexdigest()[:12]}"
