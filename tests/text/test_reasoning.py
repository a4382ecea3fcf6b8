"""Reasoning read apart from answers, and given back to templates."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from llamaseek.errors import UserError
from llamaseek.text.chat import ChatOptions, encode_chat
from llamaseek.text.parse import TextStream, message_of, parse_ids, parse_text
from llamaseek.text.tokenizer import Tokenizer
from tests.text.styles import made, say, source, tokenizer
from tests.text.test_spans import shown

R1 = tokenizer("r1_distill")
ASKED = [say("user", "2+2?")]
QWEN = (  # a template that writes the last reasoning itself, from its own field
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(output: str, ours: Tokenizer = R1, opened: bool = True) -> dict[str, Any]:
    """What a model said, as a message."""
    prompt = encode_chat(ours, ASKED, add_generation_prompt=opened).ids
    return parse_ids(ours, ours.encode_special(output), prompt=prompt)


def said(reasoning: str | None, content: str) -> dict[str, Any]:
    """A message with reasoning, if there is any."""
    rest = {} if reasoning is None else {"reasoning_content": reasoning}
    return {"role": "assistant", "content": content, **rest}


# Out


@pytest.mark.parametrize(
    ("output", "reasoning", "content"),
    [
        ("I add.\n</think>\n\nIt is 4.<｜end▁of▁sentence｜>", "I add.", "It is 4."),
        ("<think>\nI add.\n</think>\n\nIt is 4.", "I add.", "It is 4."),
        ("I add", "I add", ""),
        ("\n</think>\n\n4", None, "4"),
        ("a\n\n b </think> 4 \n", "a\n\n b", "4 \n"),
        ("a</think>b<think>c</think>", "a", "b<think>c</think>"),
    ],
)
def test_reasoning_that_the_prompt_opens(output: str, reasoning: str | None, content: str) -> None:
    assert read(output) == said(reasoning, content)


@pytest.mark.parametrize(
    ("output", "reasoning", "content"),
    [
        ("<think>\nI add.\n</think>\n\nIt is 4.", "I add.", "It is 4."),
        (" \n<think>a</think>4", "a", "4"),
        ("It is 4.", None, "It is 4."),
        (" 4 </think> 5", None, " 4 </think> 5"),
        ("4 <think>a</think>", None, "4 <think>a</think>"),
    ],
)
def test_reasoning_that_the_model_opens(output: str, reasoning: str | None, content: str) -> None:
    assert read(output, opened=False) == said(reasoning, content)
    assert parse_text("deepseek_v3", output, reasoning=True) == said(reasoning, content)
    assert read(output, SPELLED, opened=False) == said(reasoning, content)


def test_a_model_that_does_not_reason_keeps_its_tags() -> None:
    assert read("<think>a</think>b", tokenizer("llama3")) == said(None, "<think>a</think>b")
    assert parse_text("llama3", "<think>a</think>b") == said(None, "<think>a</think>b")


def test_a_call_ends_reasoning_that_was_not_closed() -> None:
    call = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    found = read(
        f"<think>a <｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜>", tokenizer("deepseek_v3.1")
    )
    assert found["reasoning_content"] == "a" and found["content"] == ""
    assert found["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


SPELLED = made("chatml", QWEN)  # a tokenizer without the tags, whose template has them
PARTS = st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<thi", "é"]), max_size=9)


@settings(deadline=None)
@given(PARTS, st.randoms(use_true_random=False))
def test_however_it_is_cut_it_is_the_same_message(parts: list[str], rng: Random) -> None:
    output = rest = "".join(parts)
    whole = parse_text("template", output, reasoning=True)
    stream, events = TextStream("template", reasoning=True), []
    while rest:
        size = rng.randint(1, len(rest))
        events += stream.feed(rest[:size])
        rest = rest[size:]
    assert message_of([*events, *stream.finish()]) == whole
    for ours in (R1, SPELLED):
        assert parse_ids(ours, ours.encode_special(output)) == whole


# In


def test_published_templates_drop_the_reasoning_of_the_past() -> None:
    answer = "<think>\nI add.\n</think>\n\n4"
    talk = [*ASKED, say("assistant", answer), say("user", "And 3+3?")]
    for style in ("r1_distill", "deepseek_v3.1", "deepseek_v3"):
        ours = tokenizer(style)
        expected = render_jinja_template(
            [talk], chat_template=source(style), add_generation_prompt=True, **ours.named_tokens
        )[0][0]
        if style == "deepseek_v3":
            expected = expected.removesuffix("<think>\n")  # which is another model's
        found = encode_chat(ours, talk, add_generation_prompt=True)
        assert ours.decode(found.ids, skip_special=False) == expected
        assert "I add." not in expected


def test_reasoning_goes_to_templates_by_the_names_they_read() -> None:
    for name in ("reasoning_content", "reasoning", "thinking"):
        for field in ("reasoning_content", "thinking"):
            ours = made("chatml", QWEN.replace("m.reasoning_content", f"m.{field}"))
            talk = [*ASKED, {"role": "assistant", "content": "4", name: "I add."}]
            text = ours.decode(encode_chat(ours, talk).ids, skip_special=False)
            assert "<think>\nI add.\n</think>\n\n4<|im_end|>" in text
    with pytest.raises(UserError, match=r"messages\[0\].reasoning_content: .* is not allowed"):
        encode_chat(R1, [{"role": "user", "content": "a", "reasoning": "b"}])


LEARNT = "I add.\n</think>\n\n4<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("form", ["field", "content"])
def test_the_last_answers_reasoning_is_in_the_loss(form: str) -> None:
    """As the model itself would go on from the generation prompt."""
    field = {"role": "assistant", "content": "4", "reasoning_content": "I add."}
    content = say("assistant", "<think>\nI add.\n</think>\n\n4")
    talk = [*ASKED, say("assistant", "4"), *ASKED, field if form == "field" else content]
    first = "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>{}[[4<｜end▁of▁sentence｜>]]"
    found = shown(R1, encode_chat(R1, talk, spans=True))
    assert found == f"{first.format('')}<｜User｜>2+2?<｜Assistant｜><think>\n[[{LEARNT}]]"
    v31 = tokenizer("deepseek_v3.1")
    thinking = ChatOptions(chat_template_kwargs={"thinking": True})
    found = shown(v31, encode_chat(v31, talk, options=thinking, spans=True))
    closed = "I add.</think>4" if form == "field" else "I add.</think>\n\n4"
    assert found.endswith(f"<｜Assistant｜><think>[[{closed}<｜end▁of▁sentence｜>]]")
    with pytest.raises(UserError, match=r"messages\[3\]: the chat template of .* leaves its reas"):
        encode_chat(v31, talk, spans=True)
    smol = tokenizer("smollm2")  # whose template knows content alone
    if form == "field":
        with pytest.raises(UserError, match=r"messages\[3\]: the chat template"):
            encode_chat(smol, talk, spans=True)
    else:
        kept = "[[<think>\nI add.\n</think>\n\n4<|im_end|>]]\n"
        assert shown(smol, encode_chat(smol, talk, spans=True)).endswith(kept)
    v3 = tokenizer("deepseek_v3")
    assert "[[<think>\nI add.\n</think>\n\n4<" in shown(v3, encode_chat(v3, talk, spans=True))
