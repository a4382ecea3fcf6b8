"""What the assistant says in conversations of eleven template styles, against spans by hand."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from transformers.utils.chat_template_utils import render_jinja_template

from llamaseek.data.rankings import last_answer
from llamaseek.data.rows import encode
from llamaseek.errors import UserError
from llamaseek.text.chat import END, PROMPT, ChatIds, ChatOptions, encode_chat
from llamaseek.text.tokenizer import Tokenizer
from tests.text.styles import (
    CALLING,
    SPELLED,
    TALK,
    TOKENS,
    TOOL,
    UNCALLED,
    made,
    say,
    source,
    tokenizer,
)

SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n".format
USER, ANSWER, SYSTEM = HEAD("user"), HEAD("assistant"), HEAD("system")
BOS = "<｜begin▁of▁sentence｜>"
CHATML_TALK = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n[[Yes?<|im_end|>]]\n<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n[[4<|im_end|>]]\n"
)
CHATML_SPELLED = (
    "<|im_start|>user\nWhat is <|im_end|></s>?<|im_end|>\n"
    "<|im_start|>assistant\n[[\nTokens.\n\n<|im_end|>]]\n"
)
CHATML_REST = (
    "Weather?<|im_end|>\n<|im_start|>assistant\n[[Sunny.<|im_end|>]]\n"
    "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n[[Bye<|im_end|>]]\n"
)
LLAMA_TALK = (
    f"Be brief.<|eot_id|>{USER}Hi<|eot_id|>{ANSWER}[[Yes?<|eot_id|>]]"
    f"{USER}2+2?<|eot_id|>{ANSWER}[[4<|eot_id|>]]"
)
LLAMA_SPELLED = f"{USER}What is <|im_end|></s>?<|eot_id|>{ANSWER}[[Tokens.<|eot_id|>]]"
LLAMA_REST = (
    f'Weather?<|eot_id|>{ANSWER}[[{{"name": "weather", "parameters": {{"city": "Oslo"}}}}'
    f"<|eot_id|>]]{HEAD('ipython')}sunny<|eot_id|>{ANSWER}[[It is sunny.<|eot_id|>]]"
    f"{USER}Thanks<|eot_id|>{ANSWER}[[Bye<|eot_id|>]]"
)
HERMES_REST = (
    'Weather?<|im_end|>\n<|im_start|>assistant\n[[<tool_call>\n{"name": "weather", "arguments": '
    '{"city": "Oslo"}}\n</tool_call><|im_end|>]]\n<|im_start|>tool\n<tool_response>\nsunny\n'
    "</tool_response>\n<|im_end|><|im_start|>assistant\n[[It is sunny.<|im_end|>]]\n"
    "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n[[Bye<|im_end|>]]\n"
)
R1_REST = (
    "Weather?<｜Assistant｜>[[Sunny.<｜end▁of▁sentence｜>]]<｜User｜>Thanks"
    "<｜Assistant｜>[[Bye<｜end▁of▁sentence｜>]]"
)
V3_REST = (
    "Weather?<｜Assistant｜>[[<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>]]'
    "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    "[[It is sunny.<｜end▁of▁sentence｜>]]<｜User｜>Thanks"
    "<｜Assistant｜>[[Bye<｜end▁of▁sentence｜>]]"
)
V31_REST = (
    "Weather?<｜Assistant｜><think></think>[[<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather"
    '<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>]]'
    "<｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜>[[It is sunny.<｜end▁of▁sentence｜>]]"
    "<｜User｜>Thanks<｜Assistant｜><think></think>[[Bye<｜end▁of▁sentence｜>]]"
)


def deepseek(opening: str) -> list[str]:
    """The first two conversations, with what stands between `<｜Assistant｜>` and an answer."""
    turn = f"<｜Assistant｜>{opening}[[{{}}<｜end▁of▁sentence｜>]]".format
    talk = f"{BOS}Be brief.<｜User｜>Hi{turn('Yes?')}<｜User｜>2+2?{turn('4')}"
    return [
        talk,
        f"{BOS}<｜User｜>What is <|im_end|></s>?{turn(chr(10) + 'Tokens.' + chr(10) * 2)}",
    ]


# Two whole conversations, and the third from its first question on; [[…]] is in the loss.
SPANS = {
    "chatml": [CHATML_TALK, CHATML_SPELLED, CHATML_REST],
    "smollm2": [CHATML_TALK, f"{SMOL}<|im_end|>\n{CHATML_SPELLED}", CHATML_REST],
    "hermes": [
        f"<|begin_of_text|>{CHATML_TALK}",
        f"<|begin_of_text|>{CHATML_SPELLED}",
        HERMES_REST,
    ],
    "llama2": [
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST][[ Yes? </s>]]"
        "<s>[INST] 2+2? [/INST][[ 4 </s>]]",
        "<s>[INST] What is <|im_end|></s>? [/INST][[ Tokens. </s>]]",
        "Weather? [/INST][[ Sunny. </s>]]<s>[INST] Thanks [/INST][[ Bye </s>]]",
    ],
    "zephyr": [
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n[[Yes?</s>]]\n"
        "<|user|>\n2+2?</s>\n<|assistant|>\n[[4</s>]]\n",
        "<|user|>\nWhat is <|im_end|></s>?</s>\n<|assistant|>\n[[\nTokens.\n\n</s>]]\n",
        "Weather?</s>\n<|assistant|>\n[[Sunny.</s>]]\n<|user|>\nThanks</s>\n"
        "<|assistant|>\n[[Bye</s>]]\n",
    ],
    "llama3": [
        f"<|begin_of_text|>{SYSTEM}{LLAMA_TALK}",
        f"<|begin_of_text|>{LLAMA_SPELLED}",
        LLAMA_REST,
    ],
    "llama3.1": [
        f"<|begin_of_text|>{SYSTEM}{DATES}{LLAMA_TALK}",
        f"<|begin_of_text|>{SYSTEM}{DATES}<|eot_id|>{LLAMA_SPELLED}",
        LLAMA_REST,
    ],
    "deepseek_v3": [*deepseek(""), V3_REST],
    "deepseek_v3.1": [*deepseek("<think></think>"), V31_REST],
    "r1_distill": [*deepseek(""), R1_REST],
}
SPANS["llama3.2"] = SPANS["llama3.1"]
WITHOUT_CALLS = ("chatml", "smollm2", "llama2", "zephyr", "r1_distill")
DATE = {"date_string": "26 Jul 2024"}


def shown(tokenizer: Tokenizer, chat: ChatIds) -> str:
    """The text of all ids, with brackets around what is in the loss."""
    parts = groupby(zip(chat.ids, chat.kinds, strict=True), lambda pair: pair[1] != PROMPT)
    text = ""
    for learnt, pairs in parts:
        part = tokenizer.decode([i for i, _ in pairs], skip_special=False)
        text += f"[[{part}]]" if learnt else part
    return text


def third(style: str) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The conversation with calls, where the style has them, and its tools."""
    if style in WITHOUT_CALLS:
        return UNCALLED, None
    return CALLING, None if style == "deepseek_v3.1" else [TOOL]  # which shows no definitions


@pytest.mark.parametrize("style", TOKENS)
def test_spans_of_a_style(style: str) -> None:
    ours, expected = tokenizer(style), SPANS[style]
    options = ChatOptions(chat_template_kwargs=DATE if style == "llama3.2" else {})
    for talk, spans in zip((TALK, SPELLED), expected, strict=False):
        assert shown(ours, encode_chat(ours, talk, options=options, spans=True)) == spans
    messages, tools = third(style)
    found = shown(ours, encode_chat(ours, messages, tools=tools, options=options, spans=True))
    head, _, rest = found.partition("Weather?")
    assert "Weather?" + rest == expected[2] and "[[" not in head


@pytest.mark.parametrize("style", sorted(set(TOKENS) - {"deepseek_v3"}))
def test_the_text_and_ids_are_transformers(style: str) -> None:
    """Whole conversations and prompts, through the template itself whichever style it is."""
    ours = tokenizer(style)
    library = Library.from_str(ours.to_json())
    options = ChatOptions(format="template")
    messages, tools = third(style)
    if style in ("llama3", "llama3.1", "llama3.2"):  # whose templates write results otherwise
        messages, tools = UNCALLED, None
    for talk, given in ((TALK, None), (messages, tools)):
        for opened in (False, True):
            text = render_jinja_template(
                [[{k: v for k, v in m.items() if v is not None} for m in talk]],
                chat_template=ours.chat_templates.pick(bool(given)),
                tools=given,
                add_generation_prompt=opened,
                **ours.named_tokens,
            )[0][0]
            chat = encode_chat(ours, talk, opened, given, options)
            assert ours.decode(chat.ids, skip_special=False) == text
            assert chat.ids == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("style", ["llama3", "llama3.1", "llama3.2"])
def test_spans_by_prefixes_are_those_of_our_encoders(style: str) -> None:
    ours = tokenizer(style)
    asked = {"chat_template_kwargs": DATE} if style == "llama3.2" else {}
    for talk in (TALK, SPELLED, UNCALLED):
        known = encode_chat(ours, talk, options=ChatOptions(**asked), spans=True)
        found = encode_chat(ours, talk, options=ChatOptions("template", **asked), spans=True)
        assert found == known


def test_turns_that_say_train_false_are_given() -> None:
    ours = tokenizer("chatml")
    messages = [*TALK[:2], TALK[2] | {"train": False}, *TALK[3:]]
    expected = CHATML_TALK.replace("[[Yes?<|im_end|>]]", "Yes?<|im_end|>")
    assert shown(ours, encode("here", messages, ours)) == expected


def test_the_last_answer_ends_before_what_the_template_adds() -> None:
    ours = tokenizer("chatml")
    chat = encode_chat(ours, TALK, spans=True)
    begin, end = last_answer(chat)
    assert ours.decode(chat.ids[begin:end], skip_special=False) == "4<|im_end|>"
    assert chat.kinds[end - 1] == END and chat.kinds[end:] == [PROMPT]


LOOKS_AHEAD = "{{ messages | length }}" + source("chatml")


def test_a_template_that_looks_ahead_shows_its_turns_by_a_probe() -> None:
    ours = made("chatml", LOOKS_AHEAD)
    assert shown(ours, encode_chat(ours, TALK, spans=True)) == "5" + CHATML_TALK


@pytest.mark.parametrize(
    "template",
    [
        LOOKS_AHEAD + "{{ messages[-1].content }}",  # the answer stands there twice
        LOOKS_AHEAD.replace("messages | length", "messages[-1].content | length"),
    ],
)
def test_a_template_whose_turns_cannot_be_told_apart_is_named(template: str) -> None:
    ours = made("chatml", template)
    messages = [say("user", "Hi"), say("assistant", "Yes?")]
    encode_chat(ours, messages)
    with pytest.raises(UserError, match="tokenizer: its chat template renders the first 2 of 2"):
        encode_chat(ours, messages, spans=True)


def test_what_a_template_does_not_write_is_an_error() -> None:
    ours = tokenizer("smollm2")
    with pytest.raises(UserError, match=r"does not show them .*tokenizer\.chat_template"):
        encode_chat(ours, TALK, tools=[TOOL])
    with pytest.raises(UserError, match=r"messages\[1\].tool_calls: .* does not write calls"):
        encode_chat(ours, CALLING[:2])
