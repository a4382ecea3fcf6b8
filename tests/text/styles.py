"""Tokenizers of bytes with the control tokens of eleven chat template styles, and conversations."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import trl

from llamaseek.text.special import llama3_names
from llamaseek.text.templates.stored import ChatTemplates
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import SMALLEST, train_bpe

PUBLISHED = Path(__file__).with_name("templates")
TRL = Path(trl.__file__).parent / "chat_templates"
DEEPSEEK = [
    *("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>"),
    *("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>"),
    "<｜tool▁output▁end｜>",
]
CHATML = (["<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>"])
LLAMA3 = (list(llama3_names()[:11]), [])
SENTENCE = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]

# Control tokens that are special, added ones that are not, bos and eos.
TOKENS: dict[str, tuple[list[str], list[str], str | None, str]] = {
    "chatml": (*CHATML, None, "<|im_end|>"),
    "smollm2": (*CHATML, "<|im_start|>", "<|im_end|>"),
    "hermes": (["<|begin_of_text|>", *CHATML[0]], CHATML[1], "<|begin_of_text|>", "<|im_end|>"),
    "llama2": (["<s>", "</s>"], [], "<s>", "</s>"),
    "zephyr": (["<s>", "</s>"], [], "<s>", "</s>"),
    "llama3": (*LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama3.1": (*LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama3.2": (*LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "deepseek_v3": (SENTENCE, DEEPSEEK, *SENTENCE),
    "deepseek_v3.1": (SENTENCE, DEEPSEEK, *SENTENCE),
    "r1_distill": (SENTENCE, DEEPSEEK[:4], *SENTENCE),
}
FILES = {
    "chatml": PUBLISHED / "chatml.jinja",
    "smollm2": PUBLISHED / "smollm2.jinja",
    "llama2": PUBLISHED / "llama2.jinja",
    "zephyr": PUBLISHED / "zephyr.jinja",
    "llama3": TRL / "llama3.jinja",
    "llama3.1": TRL / "llama3_1.jinja",
    "llama3.2": TRL / "llama3_2.jinja",
    "deepseek_v3": TRL / "deepseekv3.jinja",
    "deepseek_v3.1": PUBLISHED / "deepseek_v3_1.jinja",
    "r1_distill": PUBLISHED / "deepseek_r1_distill.jinja",
}


def source(style: str) -> str:
    """A style's template, as published."""
    return FILES[style].read_text(encoding="utf-8")


@cache
def tokenizer(style: str) -> Tokenizer:
    """Bytes and the style's control tokens, with its templates."""
    if style == "hermes":
        tools = (PUBLISHED / "hermes_2_pro_tool_use.jinja").read_text(encoding="utf-8")
        begun = "{{ bos_token }}" + source("chatml")
        return made(style, ChatTemplates({"default": begun, "tool_use": tools}, "hermes"))
    return made(style, source(style))


def made(style: str, templates: str | ChatTemplates | None) -> Tokenizer:
    """A tokenizer with the style's tokens and these templates."""
    special, added, bos, eos = TOKENS[style]
    content = json.loads(train_bpe(["a"], SMALLEST).to_json())
    names = [*special, *added]
    content["added_tokens"] = [
        content["added_tokens"][0] | {"id": 256 + n, "content": name, "special": name in special}
        for n, name in enumerate(names)
    ]
    content["model"]["vocab"] = {t: i for t, i in content["model"]["vocab"].items() if i < 256}
    content["post_processor"] = None
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    return Tokenizer(json.dumps(content), config | ({"bos_token": bos} if bos else {}), templates)


def say(role: str, content: str | None) -> dict[str, Any]:
    """A message of text."""
    return {"role": role, "content": content}


def calls(name: str, **arguments: Any) -> dict[str, Any]:
    """An assistant's message that is one call."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
        },
    },
}
TALK = [
    say("system", "Be brief."),
    say("user", "Hi"),
    say("assistant", "Yes?"),
    say("user", "2+2?"),
    say("assistant", "4"),
]
SPELLED = [say("user", "What is <|im_end|></s>?"), say("assistant", "\nTokens.\n\n")]
CALLING = [
    say("user", "Weather?"),
    calls("weather", city="Oslo"),
    say("tool", "sunny"),
    say("assistant", "It is sunny."),
    say("user", "Thanks"),
    say("assistant", "Bye"),
]
UNCALLED = [say("user", "Weather?"), say("assistant", "Sunny."), say("user", "Thanks"),
            say("assistant", "Bye")]  # fmt: skip
