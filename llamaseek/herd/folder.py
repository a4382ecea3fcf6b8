"""What a model's files say of it: config and tensors of a Hugging Face folder or a GGUF file.

Everything that takes a model takes either; this is where they part. No torch, no weights.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

from llamaseek.errors import UserError, unknown_name
from llamaseek.files import is_gguf, read_json_object
from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.header import StoredTensor, folder_tensors, same_bytes, stored_names
from llamaseek.herd.json_config import config_from_dict
from llamaseek.herd.published import ENTRIES, Entry
from llamaseek.herd.tensors import layer_tensors, tied

log = logging.getLogger(__name__)
BETWEEN_4_AND_8_BITS, BETWEEN_8_AND_16_BITS = 0.8, 1.5  # bytes a weight, its scales included
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
        return False  # reported where the tensors are read
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


def stored_format(model: Path, config: ModelConfig) -> str | None:
    """What the layers' matrices are stored in, by the words of `plan --dtype`: fp32, bf16, fp16,
    fp8, int8 or int4, the nearest where a file mixes types; None for a folder without weights."""
    if not is_gguf(model) and not any(model.glob("*.safetensors")):
        return None
    sizes: Counter[str] = Counter()
    for name, tensor in stored_tensors(model).items():
        if name.startswith("model.layers."):
            sizes[tensor.dtype] += tensor.nbytes
    layers = range(config.num_hidden_layers)
    numbers = sum(prod(s) for layer in layers for s in layer_tensors(config, layer).values())
    main, each = max(sizes, key=sizes.__getitem__, default=""), sizes.total() / numbers
    if main.startswith("F8"):
        return "fp8"
    if each < BETWEEN_4_AND_8_BITS:
        return "int4"
    if each < BETWEEN_8_AND_16_BITS:
        return "int8"
    return {"F16": "fp16", "F32": "fp32"}.get(main, "bf16")


def find_or_read(model: str) -> Entry:
    """The herd's entry called `model`, else one made from the folder or GGUF file `model`."""
    if model.lower() in ENTRIES:
        return ENTRIES[model.lower()]
    folder = Path(model)
    if (folder / "config.json").is_file() or is_gguf(folder):
        config = read_config(folder)
        stored = stored_format(folder, config)
        title = folder.resolve().name
        return Entry(name=model, title=title, repo=None, config=config, stored=stored)
    if folder.is_dir():
        raise UserError(f"{model}: is a folder without config.json")
    raise unknown_name("model", model, list(ENTRIES))
