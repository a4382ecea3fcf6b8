"""Model folders whose weights are set by hand: one says a given text, one is a guard.

A token that is next to be said has a direction of its own, which the head maps to its follower. The
guard's only attention looks at all tokens alike for the mark, so that it finds unsafe what has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llamaseek.checkpoints.hf import save_model
from llamaseek.models import CausalLM
from llamaseek.safety.guard import Policy
from llamaseek.text.chat import encode_chat
from llamaseek.text.tokenizer import Tokenizer
from tests.models.shapes import tiny_model
from tests.safety.scripted import guard_tokenizer
from tests.train.tiny import tiny_tokenizer

MARK = "🦊"
"""What the guard finds unsafe."""
SURE = 2000.0
WIDTH, OWN = 64, 32  # directions; of these, for tokens that are said


def blank_model(vocabulary: int) -> CausalLM:
    """A model whose layers add nothing, and whose head knows no token."""
    sizes = {"vocab_size": vocabulary, "hidden_size": WIDTH, "max_position_embeddings": 1024}
    model = tiny_model("llama3", tie_word_embeddings=False, **sizes)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if "_proj" in name or name == "lm_head.weight":
                weight.zero_()
        weights["model.embed_tokens.weight"][:, :OWN] = 0
    return model


def follow(model: CausalLM, said: Sequence[int], end: int) -> None:
    """Each of these tokens is followed by the next one, the last one by `end`."""
    weights = dict(model.named_parameters())
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    used = int((embedding[:, 1:OWN].abs().sum(0) > 0).sum())
    with torch.no_grad():
        for place, (token, after) in enumerate(zip(said, [*said[1:], end], strict=True)):
            if not embedding[token, 1:OWN].any():
                embedding[token] = torch.eye(WIDTH)[1 + used + place]
            head[after] += SURE * embedding[token]


def saying_folder(folder: Path, text: str) -> Path:
    """A model that answers everything with a text, whose tokens must differ."""
    tokenizer = tiny_tokenizer()
    opened = encode_chat(tokenizer, [{"role": "user", "content": "x"}], True).ids[-1]
    said = [opened, *tokenizer.encode(text)]
    assert len(set(said)) == len(said) < OWN, "a token is said twice"
    model = blank_model(tokenizer.vocab_size)
    follow(model, said, tokenizer.id_of("<|eot_id|>"))
    return saved(folder, model, tokenizer)


def guard_folder(folder: Path) -> Path:
    """A guard that answers `unsafe` and `S2` where the mark is in the conversation, else `safe`."""
    tokenizer = guard_tokenizer()
    opened = Policy(tokenizer).request([{"role": "user", "content": "x"}]).prompt[-1]
    safe, unsafe = tokenizer.encode("safe"), tokenizer.encode("unsafe\nS2")
    model = blank_model(tokenizer.vocab_size)
    for said in (safe, unsafe):
        follow(model, said, tokenizer.id_of("<|eot_id|>"))
    weights: dict[str, Any] = dict(model.named_parameters())
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    with torch.no_grad():
        embedding[opened] = torch.eye(WIDTH)[OWN - 1]
        head[safe[0], OWN - 1] = 5
        embedding[tokenizer.encode(MARK)[0], 0] = 1
        weights["model.layers.0.self_attn.v_proj.weight"][0, 0] = 1
        weights["model.layers.0.self_attn.o_proj.weight"][0, 0] = 1000
        head[unsafe[0], 0] = 5
    return saved(folder, model, tokenizer)


def saved(folder: Path, model: CausalLM, tokenizer: Tokenizer) -> Path:
    """A folder with a model and its tokenizer."""
    save_model(model, folder)
    tokenizer.save(folder)
    return folder
