"""Small jobs for tests of the loop: a corpus of sentences and a recipe that trains in seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from llamaseek.data.builtin.stories import story
from llamaseek.recipe.load import make_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe

LLAMA_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
DEEPSEEK_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


@cache
def stories(count: int = 400) -> list[str]:
    """Sentences to train on."""
    rng = Random("tests")
    return [story(rng, "train").text for _ in range(count)]


@cache
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 ids."""
    return train_bpe(stories(), 400)


def corpus(folder: Path) -> str:
    """The stories as a file; its path."""
    path = folder / "stories.txt"
    path.write_text("\n\n".join(stories()))
    return str(path)


def recipe(folder: Path, family: str = "llama3", **changes: Any) -> Recipe:
    """A pre-training recipe on the stories; `changes` are dotted keys with __ for the dot."""
    data: dict[str, Any] = {
        "name": "tiny",
        "stage": "pretrain",
        "out": str(folder / "run"),
        "model": {
            "family": family,
            "config": dict(DEEPSEEK_SIZES if family == "deepseek_v3" else LLAMA_SIZES),
        },
        "tokenizer": {"vocab_size": 400},
        "data": {"sources": [corpus(folder)], "holdout": 0.1, "length": 64},
        "train": {"steps": 6, "batch": 4, "warmup": 2, "precision": "fp32", "eval_every": 3},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data[section][name] = value
        else:
            data[section] = value
    return make_recipe(data)
