"""Tokenizers from GGUF metadata, against llama.cpp's tokenizer and the published ones.

`gguf_tokens.json` holds texts and the ids that llama.cpp gives them. With LLAMA_CPP_SOURCE naming
the folder `vendor/llama.cpp` of llama-cpp-python's source, its vocabulary files are read too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType

from llamaseek.errors import UserError
from llamaseek.gguf_header import read_gguf
from llamaseek.text import published
from llamaseek.text.gguf.pre_tokenizers import PRE_TOKENIZERS
from llamaseek.text.gguf.tokenizer import tokenizer_files, tokenizer_texts
from llamaseek.text.tokenizer import Tokenizer
from tests.checkpoints.gguf_files import (
    CONTROL,
    SMOLLM2,
    TEMPLATE,
    byte_vocabulary,
    needs_smollm2,
    small_llama,
    write,
)
from tests.text.texts import random_texts

SOURCE = Path(os.environ.get("LLAMA_CPP_SOURCE", "/nowhere")) / "models"
ANSWERS = json.loads(Path(__file__).with_name("gguf_tokens.json").read_text())
TINY = {"token_embd.weight": np.zeros((4, 32), np.float32)}


def made(path: Path, **changes: Any) -> Path:
    """A file that holds a vocabulary and nothing else to speak of."""
    metadata = {**byte_vocabulary(CONTROL), **{f"tokenizer.{k}": v for k, v in changes.items()}}
    return write(path, {k: v for k, v in metadata.items() if v is not None}, TINY)


@pytest.mark.skipif(not SOURCE.is_dir(), reason="LLAMA_CPP_SOURCE names no llama.cpp source")
@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "deepseek-llm", "deepseek-coder"])
def test_the_vocabularies_that_ship_with_llama_cpp(name: str) -> None:
    path = SOURCE / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.load(path)
    *texts, end = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().splitlines()
    expected = [[int(number) for number in line.split()] for line in lines]
    assert len(texts) == len(expected) == 46 and not end
    assert tokenizer.encode_batch(texts) == expected


@needs_smollm2
def test_smollm2_encodes_as_llama_cpp_does() -> None:
    tokenizer = Tokenizer.load(SMOLLM2)
    found = tokenizer.encode_batch([answer["text"] for answer in ANSWERS])
    assert found == [answer["smollm"] for answer in ANSWERS]
    assert tokenizer.bos_id == 1 and tokenizer.eos_id == 2 and tokenizer.stop_ids == (2,)


def as_gguf(folder: Path, path: Path, pre: str) -> Path:
    """A folder's tokenizer.json written into a file's metadata, as llama.cpp's converter does."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in content["added_tokens"]}
    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    kinds = {True: TokenType.CONTROL, False: TokenType.USER_DEFINED, None: TokenType.NORMAL}
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    pairs = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ordered,
        "tokenizer.ggml.token_type": [
            int(kinds[special.get(vocabulary[token])]) for token in ordered
        ],
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.bos_token_id": 128000 if pre == "llama-bpe" else 0,
        "tokenizer.ggml.eos_token_id": 128009 if pre == "llama-bpe" else 1,
    }
    return write(path, metadata, TINY)


@pytest.mark.parametrize(
    ("family", "pre"), [("llama3", "llama-bpe"), ("deepseek_v3", "deepseek-v3")]
)
def test_published_tokenizers_come_through(family: str, pre: str, tmp_path: Path) -> None:
    published.get(family, tmp_path)
    original = Tokenizer.load(tmp_path)
    original.save(tmp_path)
    path = as_gguf(tmp_path, tmp_path / "m.gguf", pre)
    found = Tokenizer.load(path)
    texts = [*random_texts(200), *(answer["text"] for answer in ANSWERS)]
    assert found.encode_batch(texts) == original.encode_batch(texts)
    assert [found.decode(ids) for ids in found.encode_batch(texts)] == texts
    assert found.specials == original.specials and found.vocab_size == original.vocab_size
    if family == "llama3":
        expected = [answer["llama-bpe"] for answer in ANSWERS]
        assert found.encode_batch([answer["text"] for answer in ANSWERS]) == expected


def test_sentence_piece(tmp_path: Path) -> None:
    """Merges follow from the scores, the leftmost first, and bytes stand for what has no token."""
    pieces = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    path = write(
        tmp_path / "m.gguf",
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.scores": scores,
        },
        TINY,
    )
    tokenizer = Tokenizer.load(path)
    names = [tokens[i] for i in tokenizer.encode("hello")]
    assert names == ["▁hello"]
    assert [tokens[i] for i in tokenizer.encode("he é")] == ["▁", "he", "▁", "<0xC3>", "<0xA9>"]
    for text in ("hello hello", " he", "é\n😀 l", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bos_id == 1 and tokenizer.eos_id == 2


def test_special_tokens_and_ends(tmp_path: Path) -> None:
    path = made(tmp_path / "m.gguf")
    tokenizer, files = Tokenizer.load(path), tokenizer_files(read_gguf(path))
    assert tokenizer.chat_template == TEMPLATE
    assert set(tokenizer.specials.values()) == set(CONTROL)
    assert files.generation == {"eos_token_id": [258, 259]}
    assert files.config["bos_token"] == CONTROL[0] and files.config["add_bos_token"]
    assert set(tokenizer.encode(" ".join(CONTROL))).isdisjoint(tokenizer.special_ids)


@pytest.mark.parametrize(("asked", "expected"), [(None, True), (True, True), (False, False)])
def test_bos_is_added_where_the_file_asks(
    asked: bool | None, expected: bool, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer as Library

    path = made(tmp_path / "m.gguf", **{"ggml.add_bos_token": asked})
    ids = Library.from_str(tokenizer_files(read_gguf(path)).tokenizer).encode("he").ids
    assert ids == ([257, 256] if expected else [256])


def test_a_file_without_a_tokenizer_has_no_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"tokenizer.ggml.model": "none"}, TINY)
    assert tokenizer_texts(read_gguf(path)) == {}
    bare = write(tmp_path / "bare.gguf", {}, TINY)
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.load(bare)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ggml.model": "bert"}, "'bert' is not read; read are gpt2 and llama"),
        ({"ggml.pre": "llama-bqe"}, "'llama-bqe' is unknown; did you mean 'llama-bpe'"),
        ({"ggml.tokens": ["a", "b", "a"], "ggml.token_type": [1, 1, 1]}, "holds 'a' twice"),
        ({"ggml.token_type": [1, 1]}, "token_type has 2 entries for 300 tokens"),
        ({"ggml.tokens": None}, "lacks the key tokenizer.ggml.tokens"),
        ({"ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is a list of another type"),
        ({"ggml.merges": ["he z"]}, "not a tokenizer"),
    ],
)
def test_broken_metadata_is_one_line(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = made(tmp_path / "m.gguf", **changes)
    with pytest.raises(UserError) as raised:
        Tokenizer.load(path)
    message = str(raised.value)
    assert named in message and str(path) in message and "\n" not in message


def test_no_two_names_mean_the_same_by_mistake() -> None:
    assert len({id(pre) for pre in PRE_TOKENIZERS.values()}) == 10


def test_the_model_and_its_tokenizer_are_one_file(tmp_path: Path) -> None:
    path = small_llama(tmp_path / "m.gguf")
    assert Tokenizer.load(path).vocab_size == 300
