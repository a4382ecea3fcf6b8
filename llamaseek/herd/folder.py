"""What a model's files say of it: config and tensors of a Hugging Face folder or a GGUF file.

Everything that takes a model takes either; this is where they part. No torch, no weights.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

from llamaseek.errors import UserError, unknown_name
from llamaseek.files import is_gguf, read_json_object
from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.header import StoredTensor, folder_tensors, same_bytes, stored_names
from llamaseek.herd.json_config import config_from_dict
from llamaseek.herd.published import ENTRIES, Entry
from llamaseek.herd.tensors import tied

log = logging.getLogger(__name__)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_config(model: str | Path) -> ModelConfig:
    """The config of a model folder or GGUF file; `UserError` where it is missing, broken or cannot
    be run."""
    if is_gguf(model):
        from llamaseek.gguf_header import read_gguf
        from llamaseek.herd.gguf_config import gguf_config

        return gguf_config(read_gguf(model))
    path = Path(model) / "config.json"
    try:
        config = config_from_dict(read_json_object(path))
    except UserError as error:
        message = str(error)
        raise UserError(message if str(path) in message else f"{path}: {message}") from None
    return _as_stored(config, Path(model))


def stored_tensors(model: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder or GGUF file by its name in the model.

    `UserError` names the file that is missing or broken.
    """
    if is_gguf(model):
        from llamaseek.gguf_header import read_gguf
        from llamaseek.herd.gguf_config import gguf_config
        from llamaseek.herd.gguf_tensors import stored_gguf

        header = read_gguf(model)
        return dict(stored_gguf(header, gguf_config(header)))
    return folder_tensors(model)


def _as_stored(config: ModelConfig, folder: Path) -> ModelConfig:
    """Without multi-token modules where the folder has weights but none of theirs, and with a head
    of its own where the folder holds another one than the embedding.

    transformers leaves the modules out when it saves a DeepSeek-V3, and lets the config say that
    they are there. A head that was trained apart lies in folders whose config says it is tied.
    """
    if tied(config) and _head_differs(folder):
        config = replace(config, tie_word_embeddings=False)
    if not config.multi_token_depth:
        return config
    names = stored_names(folder)
    first = f"model.layers.{config.num_hidden_layers}."
    if not names or any(name.startswith(first) for name in names):
        return config
    return config.without_multi_token()


def _head_differs(folder: Path) -> bool:
    """Whether a folder holds a head with other numbers than its embedding's."""
    if not {EMBEDDING, HEAD} <= stored_names(folder):
        return False
    try:
        stored = folder_tensors(folder)
    except UserError:
        return False  # told where the tensors are read
    pair = stored[EMBEDDING], stored[HEAD]
    return _differ(*pair, *(tensor.path.stat().st_mtime_ns for tensor in pair))


@cache
def _differ(embedding: StoredTensor, head: StoredTensor, *changed: int) -> bool:
    """Whether the two differ; said once for files `changed` at these times."""
    if same_bytes(embedding, head):
        return False
    log.warning(
        "%s: tie_word_embeddings is true, but %s differs from %s; both are kept, untied",
        head.path.parent,
        HEAD,
        EMBEDDING,
    )
    return True


def find_or_read(model: str) -> Entry:
    """The herd's entry called `model`, else one made from the folder or GGUF file `model`."""
    if model.lower() in ENTRIES:
        return ENTRIES[model.lower()]
    folder = Path(model)
    if (folder / "config.json").is_file() or is_gguf(folder):
        return Entry(name=model, title=folder.resolve().name, repo=None, config=read_config(folder))
    if folder.is_dir():
        raise UserError(f"{model}: is a folder without config.json")
    raise unknown_name("model", model, list(ENTRIES))
