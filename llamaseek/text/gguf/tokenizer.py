"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face folder.

Byte-level BPE (`tokenizer.ggml.model` "gpt2") and SentencePiece ("llama"). llama.cpp
`src/llama-vocab.cpp` defines the keys and what a missing one means.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from llamaseek.errors import UserError, shorten, unknown_name
from llamaseek.gguf_header import GgufHeader
from llamaseek.text.gguf.pre_tokenizers import PRE_TOKENIZERS, UNNAMED
from llamaseek.text.templates.stored import ADDITIONAL_FOLDER, DEFAULT, TEMPLATE_FILE

PREFIX = "tokenizer.ggml."
MODELS = ("gpt2", "llama")
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Keys of the tokens that end a text, a turn, and a message that awaits a tool's result."""
TEMPLATE = "tokenizer.chat_template"
SPACE = "▁"


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of tokenizer.json, tokenizer_config.json, generation_config.json and
    chat_template.jinja, of templates by their names."""

    tokenizer: str
    config: dict[str, Any]
    generation: dict[str, Any]
    templates: dict[str, str]


def tokenizer_files(header: GgufHeader) -> TokenizerFiles:
    """What a Hugging Face folder of this model would hold for its tokenizer.

    Raises `UserError` for a kind of tokenizer that is not read, and for metadata that is broken.
    """
    model = header.get(PREFIX + "model", str)
    if model is None:
        raise UserError(f"{header.path}: holds no tokenizer (it lacks {PREFIX}model)")
    if model not in MODELS:
        allowed = " and ".join(MODELS)
        raise UserError(f"{header.path}: {PREFIX}model {model!r} is not read; read are {allowed}")
    vocabulary = Vocabulary(header)
    content = _byte_level(vocabulary) if model == "gpt2" else _sentence_piece(vocabulary)
    ends = [i for key in ENDS if (i := vocabulary.special(key)) is not None]
    return TokenizerFiles(
        json.dumps(content, ensure_ascii=False),
        vocabulary.config(),
        {"eos_token_id": list(dict.fromkeys(ends))},
        _templates(header),
    )


def tokenizer_texts(header: GgufHeader) -> dict[str, str]:
    """The same as texts by the files' names; none for a file without a tokenizer."""
    if header.get(PREFIX + "model", str, "none") == "none":
        return {}
    files = tokenizer_files(header)
    texts = {
        "tokenizer.json": files.tokenizer,
        "tokenizer_config.json": json.dumps(files.config, indent=2, ensure_ascii=False) + "\n",
        "generation_config.json": json.dumps(files.generation, indent=2) + "\n",
    }
    for name, template in files.templates.items():
        own = TEMPLATE_FILE if name == DEFAULT else f"{ADDITIONAL_FOLDER}/{name}.jinja"
        texts[own] = template
    return texts


def _templates(header: GgufHeader) -> dict[str, str]:
    """The chat templates by name; those that have one have it in their key."""
    found = {name: header.get(f"{TEMPLATE}.{name}", str) for name in _template_names(header)}
    found[DEFAULT] = header.get(TEMPLATE, str)
    return {name: template for name, template in found.items() if template is not None}


def _template_names(header: GgufHeader) -> list[str]:
    keys = (key.removeprefix(f"{TEMPLATE}.") for key in header.metadata if f"{TEMPLATE}." in key)
    return [name for name in keys if re.fullmatch(r"[\w-]+", name)]


class Vocabulary:
    """The lists and flags of the metadata, checked against each other."""

    def __init__(self, header: GgufHeader) -> None:
        self.header, self.path = header, header.path
        self.tokens = self._texts("tokens")
        count = len(self.tokens)
        self.types = self._numbers("token_type", [TokenType.NORMAL] * count)
        self.scores = self._numbers("scores", [0.0] * count)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != count:
            twice = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
            raise UserError(f"{self.path}: {PREFIX}tokens holds {shorten(repr(twice))} twice")
        if not count:
            raise UserError(f"{self.path}: {PREFIX}tokens is empty")

    @property
    def pre(self) -> str:
        """The name of its pre-tokenizer; UserError for one that is not known."""
        name = str(self.header.get(PREFIX + "pre", str, UNNAMED))
        if name not in PRE_TOKENIZERS:
            raise UserError(
                f"{self.path}: {unknown_name(PREFIX + 'pre', name, list(PRE_TOKENIZERS))}"
            )
        return name

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with bos."""
        if self.header.get(PREFIX + "model", str) == "llama":
            default = True
        else:
            default = PRE_TOKENIZERS[self.pre].add_bos
        return bool(self.header.get(PREFIX + "add_bos_token", bool, default))

    @property
    def add_eos(self) -> bool:
        """Whether a text ends with eos."""
        return bool(self.header.get(PREFIX + "add_eos_token", bool, False))

    def merges(self) -> list[str]:
        """Pairs of tokens with a blank between, in the order of their ranks.

        That each is a pair of tokens is for the tokenizers library to check.
        """
        return self._texts("merges")

    def special(self, key: str) -> int | None:
        """A special token's id, or None where the file does not name it or has no such id."""
        found = self.header.get(PREFIX + key, int)
        if found is None and self.header.get(PREFIX + "model", str) == "llama":
            found = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}.get(key)
        return found if found is not None and 0 <= found < len(self.tokens) else None

    def added(self) -> list[dict[str, Any]]:
        """The tokens that stand apart from text: control tokens, and those a user may write."""
        kinds = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
        rest = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        return [
            {"id": i, "content": token, "special": kinds[TokenType(kind)], **rest}
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in kinds
        ]

    def config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        named = {
            name: self.tokens[i]
            for name, key in NAMED.items()
            if (i := self.special(key)) is not None
        }
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "add_bos_token": self.add_bos,
            "add_eos_token": self.add_eos,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }

    def framing(self) -> dict[str, Any] | None:
        """The post-processor that puts bos and eos around a text, where the file asks for them."""
        wanted = {"bos_token_id": self.add_bos, "eos_token_id": self.add_eos}
        ids = {key: self.special(key) for key, asked in wanted.items() if asked}
        frame = {key: self.tokens[i] for key, i in ids.items() if i is not None}
        if not frame:
            return None
        pieces: list[dict[str, Any]] = [
            {"SpecialToken": {"id": token, "type_id": 0}} for token in frame.values()
        ]
        at = 1 if "bos_token_id" in frame else 0
        text = [*pieces[:at], {"Sequence": {"id": "A", "type_id": 0}}, *pieces[at:]]
        return {
            "type": "TemplateProcessing",
            "single": text,
            "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [self.ids[token]], "tokens": [token]}
                for token in frame.values()
            },
        }

    def _texts(self, key: str) -> list[str]:
        return self._list(key, str, None)

    def _numbers(self, key: str, default: list[Any]) -> list[Any]:
        found = self._list(key, (int, float), default)
        if len(found) != len(default):
            counts = f"{len(found):,} entries for {len(default):,} tokens"
            raise UserError(f"{self.path}: {PREFIX}{key} has {counts}")
        return found

    def _list(self, key: str, kind: Any, default: list[Any] | None) -> list[Any]:
        found = self.header.get(PREFIX + key, list, default)
        if found is None:
            raise UserError(f"{self.path}: lacks the key {PREFIX}{key}")
        if found and not isinstance(found[0], kind):
            raise UserError(f"{self.path}: {PREFIX}{key} is a list of another type")
        return list(found)


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    pre = PRE_TOKENIZERS[vocabulary.pre]
    model = {"merges": vocabulary.merges(), "ignore_merges": pre.ignore_merges}
    decoder = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return _content(vocabulary, model, None, pre.to_json(), decoder)


def _sentence_piece(vocabulary: Vocabulary) -> dict[str, Any]:
    """SentencePiece's BPE: its merges follow from the scores, and bytes stand for the rest."""
    prefix = vocabulary.header.get(PREFIX + "add_space_prefix", bool, True)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    begun = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    stripped = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = vocabulary.special("unknown_token_id")
    model = {
        "merges": scored_merges(vocabulary),
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": None if unknown is None else vocabulary.tokens[unknown],
    }
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *stripped,
    ]
    normalizer = {"type": "Sequence", "normalizers": [*begun, replaced]}
    decoder = {"type": "Sequence", "decoders": decoders}
    return _content(vocabulary, model, normalizer, None, decoder)


def _content(
    vocabulary: Vocabulary,
    model: dict[str, Any],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    """A tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": vocabulary.framing(),
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "unk_token": None,
            "vocab": vocabulary.ids,
            **model,
        },
    }


def scored_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens whose text together is a token, the highest score first.

    SentencePiece merges neighbours while what they spell is a token, the best score first and then
    the leftmost; only normal tokens and those a user may write are made by merging.
    """
    kinds = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    made = {
        token: score
        for token, score, kind in zip(
            vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True
        )
        if kind in kinds
    }
    ranked = sorted(made, key=lambda token: -made[token])
    return [
        (token[:at], token[at:])
        for token in ranked
        for at in range(1, len(token))
        if token[:at] in made and token[at:] in made
    ]
