"""A tokenizer that keeps what a user typed apart from what the format means.

`encode` never yields a special id, whatever the text spells; the special tokens of a
conversation are put between encoded pieces by `llamaseek.text.chat`, one id at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, bad_value
from llamaseek.files import check_json_size, is_gguf
from llamaseek.text import special
from llamaseek.text.json_backend import Backend, JsonBackend
from llamaseek.text.llama3_calls import CHAT_TEMPLATE
from llamaseek.text.template import TemplateRunner
from llamaseek.text.templates.contents import Contents
from llamaseek.text.templates.stored import (
    DEFAULT,
    ChatTemplates,
    given_template,
    read_templates,
    read_text,
)

TOKENIZER_FILE = "tokenizer.json"
META_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"

DEFAULT_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": special.BEGIN_OF_TEXT,
    "eos_token": special.END_OF_TEXT,
    "pad_token": special.PAD,
    "mask_token": special.MASK,
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
}
"""`tokenizer_config.json` of a tokenizer trained here."""

PAD_NAMES = (special.PAD, "<｜▁pad▁｜>", "<|reserved_special_token_1|>")
"""Padding of Llama 3.1, of DeepSeek-V3, and one that Llama 3.0 leaves unused."""

END_NAMES = (special.END_OF_TEXT, special.END_OF_MESSAGE, special.END_OF_TURN)


class Tokenizer:
    """Text to ids and back. No added token of the file can be reached from plain text.

    `chat_templates` are the templates by name, `generation_config` is the content of the model
    folder's generation_config.json. Built by `Tokenizer.load` or `train_bpe`. Safe to share
    between threads.
    """

    def __init__(
        self,
        source: str | Backend,
        config: dict[str, Any] | None = None,
        chat_template: str | ChatTemplates | None = None,
        generation_config: Mapping[str, Any] | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        """`source` is a tokenizer.json's text or an engine, `config` the config file's content.

        `end_ids` are ids that end generation besides those the other files name. Raises UserError
        if the source is broken, or would let plain text turn into an added token.
        """
        self._backend: Backend = JsonBackend(source) if isinstance(source, str) else source
        self._config = DEFAULT_CONFIG if config is None else config
        self._special_texts = self._backend.specials
        self._special_ids = frozenset(self._special_texts)
        self._refuse_reachable_specials()
        if not isinstance(chat_template, ChatTemplates):
            named = {} if chat_template is None else {DEFAULT: chat_template}
            chat_template = ChatTemplates(named)
        self.chat_templates = chat_template
        self.generation_config = dict(generation_config or {})
        self.chat_template_kwargs: dict[str, Any] = {}
        self._end_ids = tuple(end_ids)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face model folder, of a folder with Meta's own file, or of a
        GGUF file.

        Raises UserError, naming the file, if it is missing or broken.
        """
        if is_gguf(folder):
            return cls(*_read_gguf(Path(folder)))
        place = Path(folder)
        config = _read_config(place / CONFIG_FILE)
        templates = read_templates(place, config or {})
        generation = _read_config(place / GENERATION_FILE)
        ends = _end_ids(place, generation or {})
        path = place / TOKENIZER_FILE
        if not path.is_file() and (place / META_FILE).is_file():
            backend, default = _read_meta(place)
            meta = templates if templates.named else ChatTemplates({DEFAULT: CHAT_TEMPLATE})
            return cls(backend, config or default, meta, generation, ends)
        if not path.is_file():
            raise UserError(
                f"{path}: not found; a tokenizer's folder holds {TOKENIZER_FILE} or {META_FILE}"
            )
        source = read_text(path)
        try:
            return cls(source, config, templates, generation, ends)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def use_chat_template(
        self, template: str | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> Tokenizer:
        """Itself, with another chat template and with what every conversation gives to it.

        `template` is `llama3`, `chatml` or the path of a file; None keeps the folder's own.
        Raises UserError where there is none, or the tokenizer lacks a token that it needs.
        """
        if template is not None:
            source, needed = given_template(template)
            if needed is not None and not self.has(needed):
                raise UserError(f"chat template {template}: this tokenizer has no token {needed}")
            self.chat_templates = ChatTemplates({DEFAULT: source}, template)
        self.chat_template_kwargs = dict(kwargs or {})
        return self

    def save(self, folder: str | Path) -> None:
        """Writes the files that transformers, vLLM and `load` read; makes the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        _write(target / TOKENIZER_FILE, self.to_json())
        kept = {key: value for key, value in self._config.items() if key != "chat_template"}
        _write_json(target / CONFIG_FILE, kept)
        self.chat_templates.save(target)

    def to_json(self) -> str:
        """The text of its tokenizer.json; a tokenizer.model is converted (a second or two)."""
        return self._backend.to_json()

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: `<|eot_id|>` typed by a user stays what it spells.

        Raises UserError for text with lone surrogates, which no UTF-8 can hold.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all processors."""
        return self._backend.encode_batch(texts)

    def encode_special(self, text: str) -> list[int]:
        """The ids of `text` where a spelled special token is that token; never for user text."""
        pieces = self._special_pattern.split(text)
        return [i for piece in pieces if piece for i in self._encode_piece(piece)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, unknown ids nothing.

        `skip_special` leaves out `hidden_ids`, as transformers' `skip_special_tokens` does.
        """
        hidden = self.hidden_ids if skip_special else frozenset()
        return self._backend.decode([i for i in ids if i not in hidden])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; none for an id beyond the vocabulary."""
        return self._backend.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """One id's text to show: half characters as `\\xe2`, line breaks as `\\n`."""
        text = self.token_bytes(token_id).decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else _escape(c) for c in text)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, special ones included: the classes of the model's head."""
        return self._backend.size

    @property
    def specials(self) -> dict[int, str]:
        """The text of every added token, in the order of the ids."""
        return dict(self._special_texts)

    @property
    def special_ids(self) -> frozenset[int]:
        """Every id that `encode` never yields: all added tokens."""
        return self._special_ids

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """The ids that are left out of text: those added as `"special": true`.

        Other added tokens, as `<think>` and `<tool_call>` usually are, belong to the text.
        """
        added = self._config.get("added_tokens_decoder")
        named = added.items() if isinstance(added, dict) else ()
        more = {i for i, token in named if isinstance(token, dict) and token.get("special") is True}
        return self._backend.hidden | {i for i in self._special_ids if str(i) in more}

    @property
    def bos_id(self) -> int | None:
        """The token that begins a document or conversation, if there is one."""
        return self._backend.id_of(self._configured("bos_token", special.BEGIN_OF_TEXT))

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer's own post-processor puts before a text: begin-of-text, or nothing."""
        return self._backend.prefix

    @property
    def eos_id(self) -> int:
        """Ends a document; the config file's `eos_token`, which in chat models ends a turn."""
        return self.id_of(self._configured("eos_token", special.END_OF_TEXT))

    @property
    def pad_id(self) -> int | None:
        """Fills rows up, if there is a token for that. Never the end token, or a model that learns
        not to pad never stops.
        """
        configured = self._configured("pad_token", special.PAD)
        eos = self._configured("eos_token", special.END_OF_TEXT)
        names = [name for name in (configured, *PAD_NAMES) if name != eos and self._has(name)]
        return self.id_of(names[0]) if names else None

    @property
    def eot_id(self) -> int:
        """Ends a turn."""
        return self.id_of(special.END_OF_TURN)

    @property
    def mask_id(self) -> int:
        """Hides a token in masked-language-model training."""
        return self.id_of(special.MASK)

    @property
    def start_header_id(self) -> int:
        """Opens the header that names a turn's role."""
        return self.id_of(special.START_HEADER)

    @property
    def end_header_id(self) -> int:
        """Closes the header that names a turn's role."""
        return self.id_of(special.END_HEADER)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids after which generation ends: `end_ids`, and what ends a turn of its template."""
        end = self._turn_end
        return self.end_ids if end is None or end in self.end_ids else (*self.end_ids, end)

    @cached_property
    def _turn_end(self) -> int | None:
        from llamaseek.text.chat import turn_end

        return turn_end(self)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The end tokens that its files name.

        Those of the tokenizer's config, of generation_config.json and of config.json, and Llama
        3's for a document, a message and a turn, where the tokenizer has them.
        """
        names = [self._configured("eos_token", special.END_OF_TEXT), *END_NAMES]
        ids = [self._backend.id_of(name) for name in names]
        found = [i for i in (*ids, *self._end_ids) if i is not None and i < self.vocab_size]
        return tuple(dict.fromkeys(found))

    @property
    def named_tokens(self) -> dict[str, str]:
        """The special tokens that the config file names, as `bos_token`."""
        keys = [key for key in self._config if key.endswith("_token")]
        return {key: name for key in keys if (name := self._configured(key, ""))}

    @property
    def chat_template(self) -> str | None:
        """The template of conversations without tools, if there is one."""
        return self.chat_templates.named.get(DEFAULT)

    @cached_property
    def template_contents(self) -> dict[str, Contents]:
        """What its templates take as contents, as far as that is known by now."""
        return {}

    @cached_property
    def templates(self) -> TemplateRunner:
        """The renderer of its chat template, if the template is not a known format."""
        return TemplateRunner()

    def _configured(self, key: str, default: str) -> str:
        """A token's name in the config file, where it is a string or an object with `content`."""
        value = self._config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        return name if isinstance(name, str) else default

    def id_of(self, name: str) -> int:
        """The id of a token by its name; UserError where there is none."""
        found = self._backend.id_of(name)
        if found is None:
            raise UserError(f"tokenizer: it has no token {name}")
        return found

    def has(self, name: str) -> bool:
        """Whether there is an added token of this name."""
        return name in self._special_by_text

    def _has(self, name: str) -> bool:
        return self._backend.id_of(name) is not None

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Matches any special token, the longest first, and keeps it when splitting."""
        longest_first = sorted(self._special_texts.values(), key=len, reverse=True)
        return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")

    @cached_property
    def _special_by_text(self) -> dict[str, int]:
        return {text: i for i, text in self._special_texts.items()}

    def _encode_piece(self, piece: str) -> list[int]:
        token_id = self._special_by_text.get(piece)
        return self.encode(piece) if token_id is None else [token_id]

    def _refuse_reachable_specials(self) -> None:
        texts = list(self._special_texts.values())
        unknown = {i for i, text in self._special_texts.items() if text == self._backend.unknown}
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            if not (self._special_ids - unknown).isdisjoint(ids):
                raise UserError(f"plain text that spells {text!r} becomes that special token")


class StreamDecoder:
    """Text from ids that come one at a time, without ever showing half a character.

    What `push` returns, joined and with `flush` at the end, is what `decode` gives.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._hidden = tokenizer.hidden_ids if skip_special else frozenset()
        self._stream = tokenizer._backend.stream()

    def push(self, token_id: int) -> str:
        """The text this id completes; empty while a character is not whole."""
        return "" if token_id in self._hidden else self._stream.push(token_id)

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character never became whole, else nothing."""
        return self._stream.flush()


def _read_gguf(
    path: Path,
) -> tuple[Backend, dict[str, Any], ChatTemplates, dict[str, Any], list[int]]:
    """The engine, config, chat templates, generation config and end tokens that a GGUF file's
    metadata describes."""
    from llamaseek.gguf_header import read_gguf
    from llamaseek.text.gguf.tokenizer import tokenizer_files

    files = tokenizer_files(read_gguf(path))
    try:
        backend = JsonBackend(files.tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    templates = ChatTemplates(files.templates, str(path))
    return backend, files.config, templates, files.generation, files.generation["eos_token_id"]


def _read_meta(folder: Path) -> tuple[Backend, dict[str, Any]]:
    """The engine of Meta's file, and the config to go with it.

    The file is the same in every release; the names come from `params.json` beside it, where
    3.1 and later have `use_scaled_rope`. Without one they are those of 3.1.
    """
    from llamaseek.text.meta_backend import read_model

    params = _read_config(folder / "params.json")
    old = params is not None and not params.get("use_scaled_rope")
    backend = read_model(folder / META_FILE, special.llama3_names("3.0" if old else "3.1"))
    return backend, DEFAULT_CONFIG | ({"pad_token": PAD_NAMES[-1]} if old else {})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        text = read_text(path)
        check_json_size(text.encode())
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object")
    return config


def _end_ids(folder: Path, generation: Mapping[str, Any]) -> list[int]:
    """The end tokens that generation_config.json and config.json name.

    Raises UserError, naming the file, unless they are ids or lists of ids.
    """
    model = _read_config(folder / "config.json") or {}
    ends = []
    for name, config in ((GENERATION_FILE, generation), ("config.json", model)):
        stored = config.get("eos_token_id")
        ids = stored if isinstance(stored, list) else [] if stored is None else [stored]
        if not all(type(i) is int and i >= 0 for i in ids):
            allowed = "an id or a list of ids"
            raise bad_value(f"{folder / name}: eos_token_id", stored, allowed)
        ends += ids
    return ends


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
