"""Any checkpoint that we read → a Hugging Face folder, a few rows of one tensor at a time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamaseek.checkpoints.card import write_derived_card
from llamaseek.checkpoints.gguf.read import exact
from llamaseek.checkpoints.hf import cast_weights, config_json, read_folder
from llamaseek.checkpoints.merge_adapter import merged
from llamaseek.checkpoints.meta import is_meta_folder, read_meta
from llamaseek.checkpoints.peft import read_adapter
from llamaseek.checkpoints.shards import SHARD_BYTES, OnBytes, write_tensors
from llamaseek.checkpoints.sources import name_of
from llamaseek.checkpoints.widen import dequantized, widened
from llamaseek.errors import UserError
from llamaseek.files import (
    check_apart,
    check_kept,
    is_gguf,
    new_folder,
    read_json_object,
    write_json,
)
from llamaseek.gguf_header import read_gguf
from llamaseek.herd.folder import read_config
from llamaseek.models.lazy import Lazy
from llamaseek.text.gguf.tokenizer import tokenizer_texts
from llamaseek.text.templates.stored import ADDITIONAL_FOLDER

# What a model folder holds beside its weights and config; nothing else is copied.
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)


class DerivedFolder:
    """A model folder made from another: checked before anything is written, then written by `run`.

    Its makers set what is to be written (`config`, `tensors`) and what the model card says of it
    (`what`, `relation`).
    """

    source: Path
    target: Path
    config: dict[str, Any]
    tensors: dict[str, Lazy]
    what: str
    relation: str
    shard_bytes: int = SHARD_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors to be written."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def count(self) -> int:
        """Tensors to be written."""
        return len(self.tensors)

    def prepare(self) -> None:
        """What takes long and is done only when the folder is written."""

    def run(self, overwrite: bool = False, watch: OnBytes = lambda written: None) -> None:
        """Write the target, which appears only when it is whole; `watch` counts its bytes."""
        with new_folder(self.target, self.nbytes, overwrite) as folder:
            self.prepare()
            write_copy(folder, self.source, self.config, self.tensors, self.shard_bytes, watch)
            write_derived_card(folder, self.source, self.what, self.relation)


class Conversion(DerivedFolder):
    """A checked conversion: made before anything is written, then run."""

    def __init__(
        self,
        source: Path,
        target: Path,
        dtype: torch.dtype | None = None,
        adapter: Path | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """`dtype` None keeps what is stored, fp8 blocks too; `adapter` is folded in.

        Raises `UserError` for a source, target or adapter that cannot be used.
        """
        check_apart(target, source)
        self.source, self.target, self.shard_bytes = source, target, shard_bytes
        self.relation = "finetune" if adapter is None else "merge"
        kept = "its own precision" if dtype is None else str(dtype).removeprefix("torch.")
        self.what = f"converted, in {kept}"
        if adapter is not None:
            self.what += f", with the adapter `{name_of(str(adapter))}` merged"
        config, tensors = read_any(source)
        if adapter is not None:
            check_kept(target, adapter)
            plain = dequantized(widened(tensors, torch.bfloat16), torch.bfloat16)
            tensors = merged(plain, read_adapter(adapter), adapter)
            if "lm_head.weight" in tensors:
                config["tie_word_embeddings"] = False
        if dtype is not None:
            tensors = cast_weights(dequantized(widened(tensors, dtype), dtype), dtype)
        quantized = (torch.float8_e4m3fn, torch.int32)
        if all(tensor.dtype not in quantized for tensor in tensors.values()):
            config.pop("quantization_config", None)
        config.pop("torch_dtype", None)  # the old name; a reader must not find two answers
        self.config, self.tensors = config_json(config, tensors), tensors


def write_copy(
    folder: Path,
    source: Path,
    config: dict[str, Any],
    tensors: dict[str, Lazy],
    shard_bytes: int,
    watch: OnBytes,
) -> None:
    """Write `tensors` and `config` as a model folder, beside the other files of `source`."""
    write_tensors(folder, tensors, shard_bytes, watch=watch)
    copy_beside(source, folder)
    write_json(folder / "config.json", config)


def copy_beside(source: Path, folder: Path) -> None:
    """Put into a model folder what the source has beside its weights: tokenizer, chat template,
    end tokens, license."""
    if is_gguf(source):
        for name, text in tokenizer_texts(read_gguf(source)).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        return
    named = (source / ADDITIONAL_FOLDER).glob("*.jinja")
    for path in (*(source / name for name in BESIDE), *named):
        if path.is_file():
            copy = folder / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


def read_any(source: Path) -> tuple[dict[str, Any], dict[str, Lazy]]:
    """Config (as in `config.json`) and tensors of a Hugging Face folder, a GGUF file or Meta's
    folder."""
    if is_meta_folder(source):
        meta, tensors = read_meta(source)
        return meta.to_dict(), tensors
    if is_gguf(source):
        config = read_config(source)
        return config.to_dict(), exact(read_folder(source, config))
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    data, tensors = (
        read_json_object(source / "config.json"),
        read_folder(source, read_config(source)),
    )
    if "lm_head.weight" in tensors:  # another one than the embedding, whatever the config says
        data["tie_word_embeddings"] = False
    return data, tensors


def average_models(folders: Sequence[Path], target: Path) -> None:
    """Write config and mean weights of model folders that agree in their config.

    The mean is taken in float32 and stored in the first folder's dtypes.
    Raises UserError for fewer than two folders, for configs that differ, for a broken folder.
    """
    if len(folders) < 2:
        raise UserError("average: needs at least two model folders")
    config = read_config(folders[0])
    for folder in folders[1:]:
        if read_config(folder) != config:
            raise UserError(f"{folder}: has a different config from {folders[0]}")
    stored = [read_folder(folder, config) for folder in folders]
    tensors = {name: _mean([one[name] for one in stored]) for name in stored[0]}
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "config.json", config_json(config.to_dict(), tensors))
    write_tensors(target, tensors)


def _mean(tensors: list[Lazy]) -> Lazy:
    def rows(start: int, stop: int) -> Tensor:
        return torch.stack([one.rows(start, stop).float() for one in tensors]).mean(0)

    return Lazy(tensors[0].dtype, tensors[0].shape, rows)
