"""A tokenizer as the metadata of a GGUF file: the inverse of `llamaseek.text.gguf.tokenizer`."""

from __future__ import annotations

import json
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer as Library

from llamaseek.errors import UserError
from llamaseek.text.gguf.pre_tokenizers import PRE_TOKENIZERS
from llamaseek.text.gguf.tokenizer import SPACE
from llamaseek.text.special import END_OF_MESSAGE
from llamaseek.text.tokenizer import Tokenizer

PROBES = (
    "Hello, y'all! I'VE 12345 apples… \n\n \t\t  x=3.1415;\r\n  def f(a_b):  return a**2  # ok?!\n",
    " \n \n\n\n 3 33 333 3333 33.333 ½ Ⅷ 我想在apple工作1314151天～ かな カナ 한국어 ",
    "нещо ελληνικά العربية हिन्दी e\u0301",
    "🚀 (normal) 😶‍🌫️ ------======= '''``` ““quotes”” don't DON'T l'été <|x|>",
    " http://a.b/c?d=e&f $5.00 ^~|",
)
"""Texts over which no two pre-tokenizers of `PRE_TOKENIZERS` with different expressions agree."""


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Put a tokenizer and its chat template into a file's metadata; `size` is the model's number
    of classes.

    Raises `UserError` for a tokenizer that GGUF has no form for.
    """
    text = tokenizer.to_json()
    content = json.loads(text)
    if content["model"].get("type", "BPE") != "BPE":
        raise UserError(f"tokenizer: a .gguf file has no form for {content['model']['type']}")
    tokens, types = _tokens(content, size)
    if content["model"].get("byte_fallback"):
        _add_sentence_piece(writer, content, tokens, types)
    else:
        _add_byte_level(writer, content, tokens)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)
    _add_framing(writer, tokenizer, Library.from_str(text))
    named = tokenizer.chat_templates.named
    if named:
        writer.add_chat_template([{"name": k, "template": v} for k, v in named.items()])


def _tokens(content: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token by its id, and its type; ids without a token are filled up."""
    added = content.get("added_tokens", [])
    texts = {i: token for token, i in content["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in added}
    if texts and max(texts) >= size:
        raise UserError(f"tokenizer: has {max(texts) + 1:,} ids, the model {size:,}")
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    if content["model"].get("byte_fallback"):
        kinds |= {i: TokenType.BYTE for i, text in texts.items() if _is_byte(text)}
    for token in added:
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = content["model"].get("unk_token")
    kinds |= {i: TokenType.UNKNOWN for i, text in texts.items() if text == unknown}
    found = [texts.get(i, f"[PAD{i}]") for i in range(size)]
    return found, [int(kinds.get(i, TokenType.UNUSED)) for i in range(size)]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _merges(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges, which older files have as one text each."""
    pairs = content["model"]["merges"]
    return [tuple(each.split(" ", 1) if isinstance(each, str) else each) for each in pairs]  # type: ignore[misc]


def _add_byte_level(writer: GGUFWriter, content: dict[str, Any], tokens: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_name(content))
    writer.add_token_merges([" ".join(pair) for pair in _merges(content)])


def pre_name(content: dict[str, Any]) -> str:
    """The name of a tokenizer.json's pre-tokenizer: the one that cuts texts in the same way.

    Raises `UserError` where none does, or where words are merged otherwise.
    """
    wanted = _cuts(_bare(content["pre_tokenizer"], content.get("normalizer")))
    whole = bool(content["model"].get("ignore_merges"))
    for name, pre in PRE_TOKENIZERS.items():
        if pre.ignore_merges == whole and _cuts(_bare(pre.to_json())) == wanted:
            return name
    raise UserError("tokenizer: cuts text into words as none that llama.cpp has a name for")


def _bare(pre: dict[str, Any] | None, normalizer: dict[str, Any] | None = None) -> Any:
    """The library's tokenizer without a vocabulary."""
    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Library.from_str(
        json.dumps({"normalizer": normalizer, "pre_tokenizer": pre, "model": model})
    )


def _cuts(library: Any) -> list[list[str]]:
    """Into which words the probes are cut."""
    found = []
    for probe in PROBES:
        text = library.normalizer.normalize_str(probe) if library.normalizer else probe
        cut = library.pre_tokenizer.pre_tokenize_str(text) if library.pre_tokenizer else [(text, 0)]
        found.append([piece for piece, _ in cut])
    return found


def _add_sentence_piece(
    writer: GGUFWriter, content: dict[str, Any], tokens: list[str], types: list[int]
) -> None:
    """Scores stand in the place of merges: the sooner a token is made, the higher its own."""
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(_merges(content)):
        rank.setdefault(left + right, place)
    least = -float(len(rank) + len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(rank[token]) if token in rank else least for token in tokens])
    normalizer = json.dumps(content.get("normalizer"), ensure_ascii=False)
    pre = json.dumps(content.get("pre_tokenizer"), ensure_ascii=False)
    if SPACE not in normalizer + pre:
        raise UserError("tokenizer: has bytes to fall back to, but no SentencePiece spelling")
    writer.add_add_space_prefix(
        "Prepend" in normalizer or '"prepend_scheme"' in pre and '"never"' not in pre
    )


def _add_special(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """Ids of the named tokens, and of those that end a turn or a message."""
    ids = {key: tokenizer.id_of(text) for key, text in tokenizer.named_tokens.items()}
    named = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "unk_token": writer.add_unk_token_id,
        "pad_token": writer.add_pad_token_id,
        "mask_token": writer.add_mask_token_id,
    }
    for key, add in named.items():
        if key in ids:
            add(ids[key])
    specials = tokenizer.specials
    for end in tokenizer.stop_ids:
        if end != ids.get("eos_token"):
            add = (
                writer.add_eom_token_id
                if specials.get(end) == END_OF_MESSAGE
                else writer.add_eot_token_id
            )
            add(end)


def _add_framing(writer: GGUFWriter, tokenizer: Tokenizer, library: Any) -> None:
    """Whether the tokenizer puts bos before a text, and eos after it."""
    names, framed = tokenizer.named_tokens, library.encode("x").tokens
    writer.add_add_bos_token(framed[:1] == [names.get("bos_token")])
    writer.add_add_eos_token(framed[-1:] == [names.get("eos_token")])
