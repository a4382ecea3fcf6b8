"""The chat format: golden ids, what each token is to training, and agreement with others."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from llamaseek.data.builtin.python_library import web_documents
from llamaseek.errors import UserError
from llamaseek.text.chat import (
    ANSWER,
    CHAT_TEMPLATE,
    END,
    PROMPT,
    ROLES,
    ChatOptions,
    encode_chat,
    render,
)
from llamaseek.text.special import SPECIAL_TOKENS
from llamaseek.text.train_bpe import SMALLEST, train_bpe
from tests.text.conversations import calling, conversation, definitions, text, turn

TOKENIZER = train_bpe([d.text for d in islice(web_documents(), 20)], 500)
BYTES = train_bpe(["a"], SMALLEST)

CONVERSATION = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?\n\n"},
    {"role": "ipython", "content": '{"x": 1}'},
    {"role": "assistant", "content": ""},
]
LECTURE = [
    {
        "role": "system",
        "content": "Based on the information provided, rewrite the sentence by changing its tense"
        " from past to future.",
    },
    {
        "role": "user",
        "content": "She played the piano beautifully for hours and then stopped as it was"
        " midnight.",
    },
]
LECTURE_IDS = [
    *(128000, 128000, 128006, 9125, 128007, 271, 29815, 389, 279, 2038, 3984, 11, 18622, 279),
    *(11914, 555, 10223, 1202, 43787, 505, 3347, 311, 3938, 13, 128009, 128006, 882, 128007),
    *(271, 8100, 6476, 279, 27374, 32719, 369, 4207, 323, 1243, 10717, 439, 433, 574, 33433),
    *(13, 128009, 128006, 78191, 128007, 271),
]

message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(ROLES),
        "content": st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL_TOKENS))).map("".join),
    }
)


def test_golden_ids_of_a_tokenizer_of_bytes() -> None:
    bos, header, closed, eot = (256 + n for n in (0, 6, 7, 9))

    def spell(spelled: str) -> list[int]:
        return [BYTES.encode(c)[0] for c in spelled]

    found = encode_chat(BYTES, CONVERSATION[1:3], add_generation_prompt=True)
    user = [header, *spell("user"), closed, *spell("\n\nHi"), eot]
    head = [header, *spell("assistant"), closed, *spell("\n\n")]
    assert found.ids == [bos, *user, *head, *spell("Yes?"), eot, *head]
    asked = [PROMPT] * (1 + len(user) + len(head))
    assert found.kinds == [*asked, *[ANSWER] * 4, END, *[PROMPT] * len(head)]


def test_the_rendered_text() -> None:
    assert render(CONVERSATION[:3], add_generation_prompt=True) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_only_what_the_assistant_says_is_an_answer() -> None:
    found = encode_chat(TOKENIZER, CONVERSATION)
    answers = [i for i, kind in zip(found.ids, found.kinds, strict=True) if kind == ANSWER]
    ends = [i for i, kind in zip(found.ids, found.kinds, strict=True) if kind == END]
    assert TOKENIZER.decode(answers) == "Yes?"
    assert ends == [TOKENIZER.eot_id] * 2


@given(st.lists(message, min_size=1, max_size=4), st.booleans())
def test_no_content_can_become_a_special_token(messages: list[dict[str, str]], open: bool) -> None:
    found = encode_chat(TOKENIZER, messages, add_generation_prompt=open)
    count = {name: found.ids.count(name) for name in TOKENIZER.special_ids}
    turns = len(messages)
    assert count.pop(TOKENIZER.bos_id) == 1
    assert count.pop(TOKENIZER.eot_id) == turns
    assert count.pop(TOKENIZER.start_header_id) == turns + open
    assert count.pop(TOKENIZER.end_header_id) == turns + open
    assert not any(count.values())
    assert len(found.kinds) == len(found.ids)
    assert found.kinds.count(END) == sum(m["role"] == "assistant" for m in messages)


@given(st.lists(message, min_size=1, max_size=4), st.booleans())
def test_ids_and_text_say_the_same(messages: list[dict[str, str]], open: bool) -> None:
    ids = encode_chat(TOKENIZER, messages, open).ids
    assert TOKENIZER.decode(ids, skip_special=False) == render(messages, open)


@pytest.mark.parametrize("open", [False, True])
def test_transformers_template_gives_the_same(tmp_path: Path, open: bool) -> None:
    auto = pytest.importorskip("transformers").AutoTokenizer
    TOKENIZER.save(tmp_path)
    theirs = auto.from_pretrained(tmp_path)
    made: dict[str, Any] = {"add_generation_prompt": open}
    assert theirs.apply_chat_template(CONVERSATION, tokenize=False, **made) == render(
        CONVERSATION, open
    )
    ids = theirs.apply_chat_template(CONVERSATION, tokenize=True, return_dict=False, **made)
    assert ids == encode_chat(TOKENIZER, CONVERSATION, open).ids


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "messages: "),
        ("hi", "messages: "),
        (["hi"], r"messages\[0\]: 'hi' is not allowed"),
        ([{"role": "user"}], r"messages\[0\]\.content: missing"),
        ([{"content": "x"}], r"messages\[0\]\.role: missing"),
        ([CONVERSATION[1], {"role": "bot", "content": "x"}], r"messages\[1\]\.role: 'bot' .*ipyt"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role: "),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content: None .* a string"),
    ],
)
def test_a_bad_message_is_named(messages: Any, where: str) -> None:
    for use in (lambda: render(messages), lambda: encode_chat(TOKENIZER, messages)):
        with pytest.raises(UserError, match=where):
            use()


@given(
    conversation(*(turn(role) for role in ROLES), calling(text)),
    st.booleans(),
    st.one_of(st.none(), definitions),
)
def test_the_folders_template_is_the_same_format(
    messages: list[Any], open: bool, tools: list[Any] | None
) -> None:
    if tools:
        start = messages[: int(messages[0]["role"] == "system")]
        messages = [*start, CONVERSATION[1], *messages[len(start) :]]
    found = render_jinja_template(
        [messages], chat_template=CHAT_TEMPLATE, tools=tools, add_generation_prompt=open
    )
    assert found[0][0] == render(messages, open, tools)


TOOL_CALL = {"function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"content": None}, r"content: None .* a string"),
        ({"content": [{"type": "image_url"}]}, r"content: \[.* a string"),
        ({"tool_calls": {}}, r"tool_calls: \{\} .* a list"),
        ({"tool_calls": [{}]}, r"tool_calls\[0\]: .* an object with a function"),
        ({"tool_calls": [{"function": {"name": ""}}]}, r"tool_calls\[0\]\.function\.name: ''"),
        ({"tool_calls": [{"function": {"name": "a\nb"}}]}, r"function\.name: .* on one line"),
        ({"tool_calls": [{"function": {"name": "f"}}]}, r"function\.arguments: None .* an object"),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            r"function\.arguments: '\[1\]' .* JSON text of one",
        ),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": {"x": {1}}}}]},
            r"function\.arguments: cannot be written as JSON",
        ),
        ({"role": "user", "tool_calls": [TOOL_CALL]}, r"only an assistant calls tools, not 'user'"),
    ],
)
def test_a_bad_call_is_named(message: dict[str, Any], where: str) -> None:
    messages = [CONVERSATION[1], {"role": "assistant", "content": ""} | message]
    with pytest.raises(UserError, match=r"messages\[1\]\..*" + where) as error:
        render(messages)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tools", "where"),
    [
        ({"name": "f"}, "tools: "),
        (["f"], r"tools\[0\]: 'f'"),
        ([{"function": {}}], r"tools\[0\]: .* has a name"),
        ([{"name": "f", "parameters": {1, 2}}], r"tools\[0\]: cannot be written as JSON"),
    ],
)
def test_a_bad_definition_is_named(tools: Any, where: str) -> None:
    with pytest.raises(UserError, match=where):
        render(CONVERSATION[1:2], tools=tools)


def test_openai_forms_are_taken() -> None:
    as_text = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"x":  1}'}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for format in ("llama3", "deepseek_v3"):
        asked = ChatOptions(format=format)
        given = [{"role": "user", "content": parts}, calling_f := call_message(as_text)]
        plain = [{"role": "user", "content": "ab"}, calling_f]
        assert render(given, options=asked) == render(plain, options=asked)
    assert render([call_message(as_text)]) == render([call_message(TOOL_CALL)])
    assert '```json\n{"x":  1}\n```' in render([calling_f], options=asked)
    assert render([CONVERSATION[1]], tools=[]) == render([CONVERSATION[1]])


def call_message(call: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call]}
