"""Hostile request bodies of any size, made by rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
HELLO = {"role": "user", "content": "hi"}
Make = Callable[[int], Any]


def _many(text: str, size: int) -> str:
    """A JSON list of so many bytes."""
    return "[" + ",".join([text] * max(1, size // (len(text) + 1))) + "]"


def _object(size: int, value: str = "0") -> str:
    count = max(1, size // (len(value) + 12))
    return "{" + ",".join(f'"k{n:08d}":{value}' for n in range(count)) + "}"


def _text(piece: str, size: int) -> str:
    return '"' + piece * max(1, size // len(piece)) + '"'


def _deep(size: int) -> str:
    return "[" * (size // 2) + "]" * (size // 2)


VALUES: dict[str, Callable[[int], str]] = {
    "lists of one": lambda size: _many("[5]", size),
    "empty lists": lambda size: _many("[]", size),
    "numbers": lambda size: _many("5", size),
    "large numbers": lambda size: _many("9" * 300, size),
    "floats": lambda size: _many("1.5e3", size),
    "texts": lambda size: _many('"a"', size),
    "objects": lambda size: _many("{}", size),
    "messages": lambda size: _many('{"role":"user","content":"x"}', size),
    "answers": lambda size: _many('{"role":"assistant","content":"x"}', size),
    "parts": lambda size: _many('{"type":"text","text":"x"}', size),
    "tools": lambda size: _many('{"type":"function","function":{"name":"f"}}', size),
    "wrong tools": lambda size: _many('{"type":"x"}', size),
    "calls": lambda size: _many('{"function":{"name":"f","arguments":"{}"}}', size),
    "keys": _object,
    "keys with lists": lambda size: _object(size, "[1]"),
    "text": lambda size: _text("word ", size),
    "one letter": lambda size: _text("a", size),
    "escapes": lambda size: _text("\\n", size),
    "unicode escapes": lambda size: _text("\\u00e9", size),
    "quotes": lambda size: _text('\\"', size),
    "signs": lambda size: _text("\U0001f98a", size),
    "depth": _deep,
    "an open text": lambda size: '"' + "a" * size,
    "backslashes": lambda size: '"' + "\\" * (size | 1) + '"',
    "blanks": lambda size: " " * size + "0",
    "commas": lambda size: "[" + "," * size + "]",
}
ASK = '{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"x"}'
CALLED = ASK + ',{"role":"assistant","content":"","tool_calls":'
SAMPLE = '{"model":"tiny","prompt":"x","max_tokens":1,'
FORMAT = '],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":'
PLACES: dict[str, tuple[str, str]] = {
    "a prompt": (COMPLETIONS, '{"model":"tiny","max_tokens":1,"prompt":%s}'),
    "an input": (EMBEDDINGS, '{"model":"tiny","input":%s}'),
    "a text to tokenize": (TOKENIZE, '{"prompt":%s}'),
    "messages to tokenize": (TOKENIZE, '{"messages":%s}'),
    "ids": (DETOKENIZE, '{"tokens":%s}'),
    "messages": (CHAT, '{"model":"tiny","max_tokens":1,"messages":%s}'),
    "a content": (CHAT, ASK + ',{"role":"user","content":%s}]}'),
    "a result": (CHAT, CALLED + '[{"id":"1","function":{"name":"f","arguments":"{}"}}]},'
                 '{"role":"tool","tool_call_id":"1","content":%s}]}'),
    "calls": (CHAT, CALLED + "%s}]}"),
    "arguments": (CHAT, CALLED + '[{"function":{"name":"f","arguments":{"a":%s}}}]}]}'),
    "tools": (CHAT, ASK + '],"tools":%s}'),
    "parameters": (CHAT, ASK + '],"tools":[{"type":"function","function":{"name":"f",'
                   '"parameters":{"enum":%s}}}]}'),
    "a schema": (CHAT, ASK + FORMAT + '{"enum":%s}}}}'),
    "a bias": (COMPLETIONS, SAMPLE + '"logit_bias":%s}'),
    "stops": (COMPLETIONS, SAMPLE + '"stop":%s}'),
    "a user": (COMPLETIONS, SAMPLE + '"user":%s}'),
    "a name": (COMPLETIONS, '{"prompt":"x","max_tokens":1,"model":%s}'),
    "variables": (CHAT, ASK + '],"chat_template_kwargs":{"a":%s}}'),
    "an unknown field": (CHAT, ASK + '],"what":%s}'),
    "nothing else": (COMPLETIONS, "%s"),
}  # fmt: skip


def _long_answers() -> Iterator[tuple[str, bytes]]:
    """What is allowed and answered with megabytes."""
    chat = {"model": "tiny", "messages": [HELLO], "max_tokens": 200, "ignore_eos": True}
    yield CHAT, json.dumps({**chat, "n": 16, "logprobs": True, "top_logprobs": 20}).encode()
    ids = [[5 + n % 90 for n in range(2000)]] * 4
    scored = {"model": "tiny", "prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 20}
    yield COMPLETIONS, json.dumps(scored).encode()
    yield COMPLETIONS, json.dumps({**scored, "stream": True}).encode()
    yield EMBEDDINGS, json.dumps({"model": "tiny", "input": ["x"] * 64}).encode()
    call = {"name": "f", "arguments": json.dumps({"a": "b" * 3_700_000})}
    talk = [HELLO, {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}]
    yield CHAT, json.dumps({"model": "tiny", "messages": talk}).encode()


def bodies(count: int, largest: int) -> Iterator[tuple[str, bytes]]:
    """So many requests, path and body, of up to `largest` bytes; the same each time."""
    rng = Random("bodies")
    pairs = [(place, value) for place in PLACES for value in VALUES]
    rng.shuffle(pairs)
    yield from _long_answers()
    for number in range(count - 5):
        place, value = pairs[number % len(pairs)]
        path, frame = PLACES[place]
        size = largest if number < len(pairs) // 4 else int(largest ** rng.uniform(0.5, 1))
        body = frame % VALUES[value](max(8, size - len(frame)))
        yield path, body.encode()
