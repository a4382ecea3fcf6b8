"""The chat format: golden ids, what each token is to training, and agreement with others."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaseek.data.machine import web_documents
from llamaseek.errors import UserError
from llamaseek.text.chat import ANSWER, END, PROMPT, ROLES, encode_chat, render
from llamaseek.text.special import SPECIAL_TOKENS
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import SMALLEST, train_bpe

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

    def text(spelled: str) -> list[int]:
        return [BYTES.encode(c)[0] for c in spelled]

    found = encode_chat(BYTES, CONVERSATION[1:3], add_generation_prompt=True)
    user = [header, *text("user"), closed, *text("\n\nHi"), eot]
    head = [header, *text("assistant"), closed, *text("\n\n")]
    assert found.ids == [bos, *user, *head, *text("Yes?"), eot, *head]
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


@pytest.mark.skipif(find_spec("llama_models") is None, reason="llama-models is not installed")
def test_the_lectures_ids_with_metas_tokenizer(tmp_path: Path) -> None:
    tokenizer = metas_tokenizer(tmp_path)
    found = encode_chat(tokenizer, LECTURE, add_generation_prompt=True)
    assert found.ids == LECTURE_IDS[1:]
    twice = [tokenizer.bos_id, *tokenizer.encode_special(render(LECTURE, True))]
    assert twice == LECTURE_IDS


def metas_tokenizer(folder: Path) -> Tokenizer:
    """Meta's tokenizer.model, converted by transformers."""
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    places = find_spec("llama_models").submodule_search_locations  # type: ignore[union-attr]
    found = [path for place in places or [] for path in Path(place).rglob("llama3/tokenizer.model")]
    made = convert.TikTokenConverter(str(found[0]), extra_special_tokens=SPECIAL_TOKENS)
    made.converted().save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)
