"""What a folder holds and whether it is whole, from its headers and JSON files alone. No torch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError
from llamaseek.files import is_gguf, read_json_object
from llamaseek.herd.compare import is_second_copy, problems
from llamaseek.herd.configs import ModelConfig, Shape
from llamaseek.herd.folder import read_config, stored_tensors
from llamaseek.herd.header import StoredTensor
from llamaseek.herd.json_config import unused_keys
from llamaseek.herd.published import ENTRIES
from llamaseek.herd.tensors import count_parameters

# What may differ between two folders of one architecture.
INCIDENTAL = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "is_causal")
NEAR = 4  # a config with more differences than this is a model of its own


@dataclass(frozen=True)
class TensorPattern:
    """Tensors that differ only in the numbers of their names."""

    name: str
    times: int
    shape: Shape
    dtype: str
    nbytes: int


def inspect_folder(folder: Path) -> dict[str, Any]:
    """Everything `inspect --json` prints.

    Raises `UserError` for a folder whose files are missing or broken; tensors that do not fit the
    config are no error here but are listed.
    """
    if not folder.is_dir() and not is_gguf(folder):
        raise UserError(f"{folder}: no such folder")
    config = read_config(folder)
    stored = stored_tensors(folder)
    found = list(problems(config, stored, folder))
    count = count_parameters(config)
    return {
        "folder": str(folder),
        "architecture": config.architecture,
        "herd": nearest(config),
        "parameters": count.total,
        "activated_parameters": count.activated,
        "multi_token_parameters": count.multi_token,
        "files": len({tensor.path for tensor in stored.values()}),
        "bytes": sum(tensor.nbytes for tensor in stored.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in stored.values()).most_common()),
        "tensors": [asdict(group) for group in groups(stored)],
        "second_copies": [name for name in stored if is_second_copy(config, name)],
        "unused_config_keys": _unused(folder),
        "problems": [asdict(problem) for problem in found],
        "tokenizer": tokenizer_facts(folder, config),
    }


def _unused(folder: Path) -> list[str]:
    """Keys of a folder's `config.json` that have no effect here, nor in transformers."""
    return [] if is_gguf(folder) else unused_keys(read_json_object(folder / "config.json"))


def nearest(config: ModelConfig) -> dict[str, Any]:
    """The herd's model with the fewest differences, as `name` and `differences`.

    A difference is a field with its value here and there. The name is None where every model
    differs in more than a few fields.
    """
    best: tuple[str | None, dict[str, list[Any]]] = (None, {})
    here = asdict(config)
    for name, entry in ENTRIES.items():
        if entry.config.model_type != config.model_type:
            continue
        there = asdict(entry.config)
        differing = {
            key: [value, there[key]]
            for key, value in here.items()
            if key not in INCIDENTAL and value != there[key]
        }
        if len(differing) <= NEAR and (best[0] is None or len(differing) < len(best[1])):
            best = (name, differing)
    return {"name": best[0], "differences": best[1]}


def groups(stored: dict[str, StoredTensor]) -> list[TensorPattern]:
    """Tensors gathered by name without its numbers, shape and dtype, in their first order."""
    gathered: dict[tuple[str, Shape, str], list[StoredTensor]] = {}
    for name, tensor in stored.items():
        key = (re.sub(r"\.\d+\.", ".*.", name), tensor.shape, tensor.dtype)
        gathered.setdefault(key, []).append(tensor)
    return [
        TensorPattern(name, len(members), shape, dtype, sum(member.nbytes for member in members))
        for (name, shape, dtype), members in gathered.items()
    ]


def tokenizer_facts(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Which tokenizer files there are, how many ids they define and whether the model has them."""
    if is_gguf(folder):
        return _metadata_facts(folder, config)
    facts: dict[str, Any] = {
        "files": [
            name
            for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
            if (folder / name).is_file()
        ],
        "chat_template": _has_template(folder),
        "ids": None,
        "vocab_size": config.vocab_size,
    }
    if "tokenizer.json" in facts["files"]:
        facts["ids"] = _largest_id(folder / "tokenizer.json") + 1
    return facts


def _metadata_facts(path: Path, config: ModelConfig) -> dict[str, Any]:
    """The same of the tokenizer in a GGUF file's metadata."""
    from llamaseek.gguf_header import read_gguf

    metadata = read_gguf(path).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    model, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    return {
        "files": [f"tokenizer.ggml ({model}, {pre})"] if tokens else [],
        "chat_template": bool(metadata.get("tokenizer.chat_template")),
        "ids": len(tokens) if isinstance(tokens, list) else None,
        "vocab_size": config.vocab_size,
    }


def _largest_id(path: Path) -> int:
    data = read_json_object(path)
    try:
        added = [token["id"] for token in data.get("added_tokens", [])]
        return int(max([*data["model"]["vocab"].values(), *added]))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path}: has no vocabulary from tokens to ids") from None


def _has_template(folder: Path) -> bool:
    named = list(folder.glob("additional_chat_templates/*.jinja"))
    if named or (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json_object(path).get("chat_template"))
