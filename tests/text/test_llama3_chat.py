"""Llama 3's formats beside their sources: llama-models, checkpoints' templates, Meta's pages."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st
from llama_models.datatypes import RawMessage, StopReason, ToolPromptFormat
from llama_models.datatypes import ToolCall as MetasCall
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as Metas
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from llamaseek.errors import UserError
from llamaseek.text.chat import PROMPT, ChatOptions, encode_chat, format_of, render
from llamaseek.text.llama3_chat import today
from llamaseek.text.parse import parse_text
from llamaseek.text.special import BEGIN_OF_TEXT
from llamaseek.text.tokenizer import Tokenizer
from tests.text.conversations import (
    Message,
    calling,
    clean,
    conversation,
    definitions,
    hundreds,
    pool,
    scalar,
    ten_thousand,
    text,
    turn,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
DATE = "26 Jul 2024"
QUESTION: Message = {"role": "user", "content": "Is 7 prime?"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def options(format: str, **more: Any) -> ChatOptions:
    return ChatOptions(format=format, **more)


def calls(name: str, content: str = "", **arguments: Any) -> Message:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": function}],
    }


# Meta's own code

META = ChatFormat(Metas.get_instance())
ROLES = ("system", "user", "assistant", "tool")


def metas_ids(messages: list[Any], form: str = "json", ends: str = "end_of_turn") -> list[int]:
    """The conversation as `ChatFormat` encodes it for the model to go on."""
    raw = []
    for message in messages:
        functions = [each["function"] for each in message.get("tool_calls", [])]
        called = [
            MetasCall(call_id="", tool_name=f["name"], arguments=f["arguments"]) for f in functions
        ]
        stop = StopReason(ends if called else "end_of_turn")
        content = {"role": message["role"], "content": message["content"]}
        raw.append(RawMessage(**content, tool_calls=called, stop_reason=stop))
    return list(META.encode_dialog_prompt(raw, ToolPromptFormat(form)).tokens)


@ten_thousand
@given(conversation(*map(turn, ROLES), calling(text)))
def test_ten_thousand_conversations_as_llama_models_has_them(
    llama: Tokenizer, messages: list[Message]
) -> None:
    ours = encode_chat(llama, messages, True, options=options("llama3-meta"))
    assert ours.ids == metas_ids(messages)


@hundreds
@given(conversation(turn("user"), calling(text, value=scalar)), st.booleans())
def test_other_forms_of_calls_as_llama_models_has_them(
    llama: Tokenizer, messages: list[Message], python: bool
) -> None:
    form = "python_list" if python else "function_tag"
    asked = options("llama3-meta", call_form=form)
    assert encode_chat(llama, messages, True, options=asked).ids == metas_ids(messages, form)


def test_built_in_calls_and_eom_as_llama_models_has_them(llama: Tokenizer) -> None:
    talk = [
        {"role": "system", "content": "Environment: ipython\nTools: brave_search\n"},
        QUESTION,
        calls("brave_search", query='who is "7"?'),
        {"role": "ipython", "content": "a number"},
        calls("code_interpreter", code="print(7)\n"),
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Yes. "},
    ]
    theirs = [m | {"role": "tool"} if m["role"] == "ipython" else m for m in talk]
    ours = encode_chat(llama, talk, True, options=options("llama3-meta"))
    assert ours.ids == metas_ids(theirs, ends="end_of_message")
    spoken = [i for i, kind in zip(ours.ids, ours.kinds, strict=True) if kind != PROMPT]
    assert llama.decode(spoken, skip_special=False) == (
        'brave_search.call(query="who is "7"?")<|eom_id|>'
        "<|python_tag|>print(7)\n<|eom_id|>Yes. <|eot_id|>"
    )


# The templates of the checkpoints, as transformers runs them


@cache
def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def templates_text(name: str, messages: list[Message], **variables: Any) -> str:
    found = render_jinja_template([messages], chat_template=template(name), **variables)[0]
    return str(found[0])


SPOKEN = tuple(turn(role) for role in ("system", "user", "assistant"))


CASES = list(product(["llama3_1", "llama3_2"], [False, True], ["no tools", "in user", "in system"]))


@ten_thousand
@given(conversation(*SPOKEN, calling()), st.sampled_from(CASES), definitions)
def test_ten_thousand_conversations_as_transformers_has_them(
    messages: list[Message], case: tuple[str, bool, str], tools: list[Message]
) -> None:
    name, open, place = case
    asked: dict[str, Any] = {}
    if place != "no tools":  # the template takes what follows the system message for a user's
        after_system = int(messages[0]["role"] == "system")
        messages = [*messages[:after_system], QUESTION, *messages[after_system:]]
        asked = {"tools_in_user_message": place == "in user"}
    given_tools = tools if asked else None
    ours = render(messages, open, given_tools, options(name.replace("_", "."), date=DATE, **asked))
    known = {"bos_token": BEGIN_OF_TEXT, "date_string": DATE, "tools": given_tools, **asked}
    assert ours == templates_text(name, messages, add_generation_prompt=open, **known)


@hundreds
@given(conversation(*SPOKEN), st.booleans())
def test_llama_3_0_as_transformers_has_it(messages: list[Message], open: bool) -> None:
    theirs = templates_text("llama3", messages, bos_token=BEGIN_OF_TEXT, add_generation_prompt=open)
    assert render(messages, open) == theirs


BUILT_IN = ("brave_search", "wolfram_alpha")


def test_built_in_calls_as_transformers_has_them() -> None:
    talk = [QUESTION, calls("brave_search", query="7", count="2"), calls("f", x=[1, "é"])]
    for built_in in (BUILT_IN, (*BUILT_IN, "code_interpreter"), ("code_interpreter",), ()):
        if not built_in:
            talk = [talk[0], talk[2]]
        ours = render(talk, True, options=options("llama3.1", built_in_tools=built_in))
        theirs = templates_text(
            "llama3_1",
            talk,
            bos_token=BEGIN_OF_TEXT,
            builtin_tools=list(built_in),
            add_generation_prompt=True,
        )
        assert "Environment: ipython\nTools: " in ours and "<|eom_id|>" in ours
        if "brave_search" in built_in or not built_in:
            assert ours == theirs


@pytest.fixture(scope="module")
def theirs(llama: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Meta's tokenizer in transformers."""
    folder = tmp_path_factory.mktemp("transformers")
    llama.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["llama3", "llama3_1", "llama3_2"])
def test_ids_as_transformers_has_them(llama: Tokenizer, theirs: Any, name: str) -> None:
    source = template(name)
    makers = [turn(role, clean) for role in ("system", "user", "assistant")]
    makers += [] if name == "llama3" else [calling(value=scalar)]
    asked = options(name.replace("_", "."), date=None if name == "llama3" else DATE)

    @hundreds
    @given(st.lists(pool(*makers, count=600), min_size=1, max_size=5))
    def check(messages: list[Message]) -> None:
        ours = encode_chat(llama, [QUESTION, *messages], True, options=asked)
        made = theirs.apply_chat_template(
            [QUESTION, *messages],
            chat_template=source,
            date_string=DATE,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert ours.ids == made

    check()


@hundreds
@given(conversation(*(turn(role, clean) for role in ("user", "assistant"))))
def test_what_is_learnt_as_trl_marks_it(llama: Tokenizer, theirs: Any, messages: Any) -> None:
    source = template("llama3_training")
    made = theirs.apply_chat_template(
        messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = encode_chat(llama, messages)
    assert ours.ids == made["input_ids"]
    assert [int(kind != PROMPT) for kind in ours.kinds] == made["assistant_masks"]


# Meta's pages


def page(name: str) -> list[str]:
    """The prompts and responses on a page of llama-models, as their code blocks have them."""
    content = (files("llama_models") / name).read_text()
    return [
        block.replace("\n\n\n", "\n\n") for block in re.findall(r"```\n(.*?)\n```", content, re.S)
    ]


LLAMA_3_1 = page("llama3_1/prompt_format.md")
LLAMA_3_2 = page("llama3_2/text_prompt_format.md")
SYSTEM = {"role": "system", "content": "You are a helpful assistant.\n"}


def shown(prompts: list[str], holds: str) -> str:
    """The first prompt that holds these words, as it is tokenized."""
    return next(p for p in prompts if p.startswith(BEGIN_OF_TEXT) and holds in p).rstrip("\n")


def test_built_in_tools_as_on_metas_page() -> None:
    talk = [SYSTEM, {"role": "user", "content": "Search the web for the latest price of 1oz gold?"}]
    asked = options("llama3-meta", built_in_tools=BUILT_IN, date="21 September 2024")
    answer = calls("brave_search", query="latest price of 1oz gold")
    assert render(talk, True, options=asked).rstrip("\n") == shown(LLAMA_3_1, "1oz gold")
    response = '<|python_tag|>brave_search.call(query="latest price of 1oz gold")<|eom_id|>'
    assert response in LLAMA_3_1
    in_template = options("llama3.1", built_in_tools=BUILT_IN)
    assert render([*talk, answer], options=in_template).endswith(response)


def test_json_definitions_as_on_metas_page() -> None:
    parameters = {
        "type": "object",
        "properties": [
            {"n": {"type": "object", "description": "The number of songs to return"}},
            {"genre": {"type": "object", "description": "The genre of the songs to return"}},
        ],
        "required": ["n"],
    }
    function = {
        "name": "trending_songs",
        "description": "Returns the trending songs on a Music site",
        "parameters": parameters,
    }
    asked = options("llama3-meta", built_in_tools=(), date="21 September 2024")
    talk = [SYSTEM, {"role": "user", "content": "Use tools to get latest trending songs"}]
    ours = render(talk, True, [{"type": "function", "function": function}], asked)
    one_line = re.sub(r"\[\s*\"n\"\s*\]", '["n"]', ours)  # the page's list is on one line
    assert one_line.rstrip("\n") == shown(LLAMA_3_1, "Return function calls in JSON format")


def test_list_definitions_as_on_metas_page() -> None:
    described = "Get weather info for places"
    city = {"type": "string", "description": "The name of the city to get the weather for"}
    metric = {
        "type": "string",
        "description": "The metric for weather. Options are: celsius, fahrenheit",
        "default": "celsius",
    }
    parameters = {
        "type": "dict",
        "required": ["city"],
        "properties": {"city": city, "metric": metric},
    }
    tool = {"name": "get_weather", "description": described, "parameters": parameters}
    asked = options("llama3-meta", call_form="python_list")
    talk = [{"role": "user", "content": "What is the weather in SF and Seattle?"}]
    prompt = shown(LLAMA_3_2, "SF and Seattle")
    assert render(talk, True, [{"function": tool}], asked).rstrip("\n") == prompt
    assert render(talk, True, [tool], asked).rstrip("\n") == prompt


def test_tag_definitions_as_on_metas_page() -> None:
    parameters = {
        "genre": {
            "description": "The genre of the songs to return",
            "param_type": "str",
            "required": False,
        },
        "n": {
            "description": "The number of songs to return",
            "param_type": "int",
            "required": True,
        },
    }
    tool = {
        "name": "trending_songs",
        "description": "Returns the trending songs on a Music site",
        "parameters": parameters,
    }
    asked = options(
        "llama3-meta", call_form="function_tag", built_in_tools=(), date="21 September 2024"
    )
    talk = [SYSTEM, {"role": "user", "content": "Use tools to get latest trending songs"}]
    assert render(talk, True, [tool], asked).rstrip("\n") == shown(LLAMA_3_1, "Think very care")


# Traps


def test_a_string_result_is_not_put_into_quotes() -> None:
    talk = [QUESTION, calls("f"), {"role": "tool", "content": "sunny"}]
    known = {"bos_token": BEGIN_OF_TEXT, "date_string": DATE}
    assert templates_text("llama3_1", talk, **known).endswith('\n\n"sunny"<|eot_id|>')  # the trap
    for name in ("llama3", "llama3.1", "llama3.2", "llama3-meta"):
        assert render(talk, options=options(name, date=DATE)).endswith("\n\nsunny<|eot_id|>")
    talk[-1] = {"role": "tool", "content": {"sky": ["blü"]}}
    expected = '<|start_header_id|>ipython<|end_header_id|>\n\n{"sky": ["blü"]}<|eot_id|>'
    assert render(talk, options=options("llama3.1")).endswith(expected)
    assert templates_text("llama3_1", talk, **known).endswith(expected)


def test_the_template_on_hugging_face_and_metas_code_write_json_calls_apart() -> None:
    talk = [QUESTION, calls("f", x=1)]
    head = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    hf = head + '{"name": "f", "parameters": {"x": 1}}<|eot_id|>'
    meta = head + '{"type": "function", "name": "f", "parameters": {"x": 1}}<|eot_id|>'
    assert render(talk, options=options("llama3.1")).endswith(hf)
    assert render(talk, options=options("llama3-meta")).endswith(meta)


def test_definitions_go_into_the_first_user_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    shown = render([system, QUESTION], tools=[TOOL], options=options("llama3.1"))
    assert "\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the " in shown
    inside = options("llama3.1", tools_in_user_message=False)
    assert render([QUESTION], tools=[TOOL], options=inside).endswith("\n\nIs 7 prime?<|eot_id|>")
    for opening in ([system], [{"role": "assistant", "content": "Hi"}]):
        with pytest.raises(UserError, match="tools: .* first user message.*tools_in_user_message"):
            render(opening, tools=[TOOL], options=options("llama3.1"))
        assert "You have access to the following" in render(opening, tools=[TOOL], options=inside)


def test_a_message_holds_several_json_calls_and_one_tag() -> None:
    twice = calls("f")
    twice["tool_calls"] *= 2
    with pytest.raises(UserError, match="tool_calls: 2 calls in one message"):
        render([QUESTION, twice], options=options("llama3.1", call_form="function_tag"))
    written = render([QUESTION, twice], options=options("llama3.1"))
    one = '{"name": "f", "parameters": {}}'
    assert written.endswith(f"\n\n{one}; {one}<|eot_id|>")
    read = parse_text("llama3", f"{one}; {one}")["tool_calls"]
    assert [call["function"]["name"] for call in read] == ["f", "f"]
    several = options("llama3.2", call_form="python_list")
    assert render([QUESTION, twice], options=several).endswith("[f(), f()]<|eot_id|>")
    built_in = calls("code_interpreter", code="1")
    built_in["tool_calls"] += twice["tool_calls"]
    with pytest.raises(UserError, match="code_interpreter is called alone"):
        render([QUESTION, built_in], options=options("llama3.1", built_in_tools=()))
    with pytest.raises(UserError, match="code_interpreter takes one argument, code"):
        render([calls("code_interpreter", x=1)], options=options("llama3.1", built_in_tools=()))


def test_eom_ends_a_call_where_ipython_is_on_and_eot_elsewhere() -> None:
    code = calls("code_interpreter", code="print(7)")
    by_hand = {"role": "system", "content": "Environment: ipython"}
    for talk, asked in (
        ([QUESTION, code], options("llama3.1", built_in_tools=())),
        ([by_hand, QUESTION, code], options("llama3")),
    ):
        written = render([*talk, {"role": "assistant", "content": "Yes."}], options=asked)
        assert "<|python_tag|>print(7)<|eom_id|>" in written and written.endswith("Yes.<|eot_id|>")
    assert render([QUESTION, calls("f")], options=options("llama3.1")).endswith("}}<|eot_id|>")


def test_the_date_of_llama_3_1_is_fixed_and_of_3_2_is_today() -> None:
    head = f"{BEGIN_OF_TEXT}<|start_header_id|>system<|end_header_id|>\n\n"
    lines = "Cutting Knowledge Date: December 2023\nToday Date: {}\n\n<|eot_id|>"
    for name, date in (("llama3.1", "26 Jul 2024"), ("llama3.2", today())):
        assert render([QUESTION], options=options(name)).startswith(head + lines.format(date))
    assert re.fullmatch(r"\d\d [A-Z][a-z]{2} \d{4}", today())
    assert "Today" not in render([QUESTION]) + render([QUESTION], options=options("llama3-meta"))


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("llama3", "llama3"),
        ("llama3_training", "llama3"),
        ("llama3_1", "llama3.1"),
        ("llama3_2", "llama3.2"),
        ("deepseekv3", "deepseek_v3"),
        ("qwen3", "template"),
    ],
)
def test_published_templates_are_known(llama: Tokenizer, name: str, format: str) -> None:
    llama_with = Tokenizer(llama._backend, None, template(name))
    assert format_of(llama_with) == format
    assert format_of(llama) == "llama3"


def test_unknown_formats_and_forms_are_named() -> None:
    with pytest.raises(UserError, match="chat format 'lama3' is unknown; did you mean 'llama3'"):
        render([QUESTION], options=options("lama3"))
    with pytest.raises(UserError, match="call_form: 'xml' is not allowed; allowed: json, python"):
        options("llama3", call_form="xml")
