"""Checkpoints' templates: the same text as in transformers, bounded, and users' text stays text."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from transformers.utils.chat_template_utils import render_jinja_template

from llamaseek.errors import UserError
from llamaseek.text.chat import ANSWER, END, PROMPT, ChatOptions, encode_chat, format_of
from llamaseek.text.template import TemplateRunner
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.workers import pool as pool_module
from tests.cli.run import Cli
from tests.text.conversations import (
    Message,
    calling,
    conversation,
    definition,
    pool,
    text,
    turn,
)

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
KNOWN = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
TOOL = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"x": 1}}}
TALK: list[Message] = [
    {"role": "user", "content": "What's <b>up</b>? é"},
    {"role": "assistant", "content": "Not much."},
    {"role": "user", "content": "Call f."},
]


@pytest.fixture(scope="module")
def runner() -> Iterator[TemplateRunner]:
    made = TemplateRunner()
    yield made
    made.close()


def variables(**more: Any) -> dict[str, Any]:
    return {"messages": TALK, "tools": None, "documents": None, "generation_marks": ["", ""]} | more


# The same as transformers


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_published_templates_as_transformers_has_them(
    runner: TemplateRunner, path: Path, tools: Any
) -> None:
    source = path.read_text()
    known = KNOWN | {"date_string": "1 May 2025", "add_generation_prompt": True}
    try:
        theirs = render_jinja_template([TALK], chat_template=source, tools=tools, **known)[0][0]
    except Exception as error:  # a template may refuse this conversation; then it does here, too
        with pytest.raises(UserError, match="chat template: ") as ours:
            runner.render(source, variables(tools=tools, **known))
        assert " ".join(str(error).split())[:80] in str(ours.value)
        return
    assert runner.render(source, variables(tools=tools, **known)) == theirs


def test_what_templates_are_given(runner: TemplateRunner) -> None:
    source = (
        "{%- for m in messages -%}{%- if loop.index > 2 -%}{%- break -%}{%- endif -%}"
        "{{ m | tojson }}{%- endfor -%}|{{ tools | tojson(indent=1) }}|{{ strftime_now('%Y') }}"
        "|{% generation %}said{% endgeneration %}|{{ undefined_name }}"
    )
    found = runner.render(source, variables(tools=[TOOL], generation_marks=["<", ">"]))
    assert '"What\'s <b>up</b>? é"' in found and "Call f." not in found
    assert f"|{time.strftime('%Y')}|<said>|" in found


# Bounds


def refused(source: str, seconds: float = 2.0, **more: Any) -> str:
    """The one line about a template, and that the next one runs."""
    runner = TemplateRunner(seconds)
    try:
        runner.render("ready", {})
        with pytest.raises(UserError, match="chat template: ") as error:
            runner.render(source, variables(**more))
        assert runner.render("{{ 1 + 1 }}", {}) == "2"
    finally:
        runner.close()
    line = str(error.value)
    assert "\n" not in line and len(line) < 400
    return line


def test_a_range_too_long_is_refused() -> None:
    assert "Range too big" in refused("{% for i in range(10**9) %}x{% endfor %}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ messages | tojson | wordwrap(1) and 7 ** 99999999 % 3 }}",
        "{% macro f() %}{% for i in range(99999) %}{{ f() }}{% endfor %}{% endmacro %}"
        "{% set x = range(99999) | list | length %}{% for i in range(99999) %}"
        "{% set y = range(99999) | list %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_long_is_ended(source: str) -> None:
    began = time.monotonic()
    assert "takes longer than 1 s" in refused(source, 1)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'a' * 10**10 }}", "needs more than 1024 MiB of memory"),
        ("{{ 'a' * 20_000_000 }}", "writes more than 10000000 characters"),
        (
            "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
            "writes more than 10000000 characters",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "is nested too deeply"),
        ("a\n{% if %}", "line 2: Expected an expression"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ raise_exception('only\\ntwo roles') }}", "only two roles"),
        ("{{ raise_exception('x' * 100000) }}", "xxx"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("x" * 1_000_001, "has 1000001 characters; at most 1000000 are run"),
    ],
)
def test_a_template_that_fails_is_one_line(source: str, message: str) -> None:
    assert message in refused(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ tojson.__globals__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ (messages | attr('__class__')).x }}",
    ],
)
def test_the_sandbox_holds(runner: TemplateRunner, source: str) -> None:
    try:
        assert runner.render(source, variables()) == ""  # what must not be seen is undefined
    except UserError as error:
        assert "unsafe" in str(error) or "undefined" in str(error)


def test_the_child_sees_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "1")
    runner = TemplateRunner()
    runner.render("", {})
    worker = runner.pool.take()
    if Path("/proc").is_dir():
        environ = Path(f"/proc/{worker.pid}/environ").read_bytes()
        assert b"A_SECRET" not in environ
        files = {os.readlink(each) for each in Path(f"/proc/{worker.pid}/fd").iterdir()}
        assert all(each == "/dev/null" or each.startswith("socket:") for each in files)
    runner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_threads_take_turns_and_copies_start_their_own() -> None:
    runner = TemplateRunner()
    found: list[str] = []
    threads = [
        Thread(target=lambda n=n: found.append(runner.render("{{ n }}", {"n": n})))  # type: ignore[misc]
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=int) == [str(n) for n in range(20)]
    copy = pickle.loads(pickle.dumps(runner))
    theirs, ours = copy.pool.take().pid, runner.pool.take().pid
    assert copy.render("a", {}) == "a" and theirs != ours
    copy.close()
    assert runner.render("b", {}) == "b"
    runner.close()


def test_a_child_that_cannot_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool_module, "CHILD", tmp_path / "none.py")
    with pytest.raises(UserError, match="chat template: ends its process"):
        TemplateRunner().render("a", {})


# Conversations by an unknown template

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "<|eot_id|>{% endgeneration %}{% else %}{{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)


@pytest.fixture(scope="module")
def unknown(llama: Tokenizer) -> Iterator[Tokenizer]:
    made = Tokenizer(llama._backend, None, CHATML)
    assert format_of(made) == "template"
    yield made
    made.templates.close()


def test_ids_and_kinds_of_a_template(unknown: Tokenizer) -> None:
    chat = encode_chat(unknown, TALK[:2], add_generation_prompt=True)
    shown = unknown.decode(chat.ids, skip_special=False)
    head = "<|start_header_id|>{}<|end_header_id|>".format
    assert shown == (
        f"<|begin_of_text|>{head('user')}What's <b>up</b>? é<|eot_id|>"
        f"{head('assistant')}Not much.<|eot_id|>{head('assistant')}"
    )
    answer = unknown.encode("Not much.")
    end = len(chat.ids) - 3
    kinds = [PROMPT] * (end - len(answer) - 1) + [ANSWER] * len(answer) + [END] + [PROMPT] * 3
    assert chat.kinds == kinds
    assert [i in unknown.special_ids for i in chat.ids] == chat.control


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(
    conversation(turn("user"), turn("assistant"), calling(text)),
    pool(definition, count=200),
)
def test_text_stays_text_through_a_template(
    unknown: Tokenizer, messages: list[Message], tool: Message
) -> None:
    chat = encode_chat(unknown, messages, tools=[tool])
    assert chat.ids.count(unknown.eot_id) == len(messages)
    assert chat.ids.count(unknown.start_header_id) == len(messages)
    assert sum(chat.control) == 1 + 3 * len(messages)
    theirs = render_jinja_template(
        [messages], chat_template=CHATML, tools=[tool], bos_token="<|begin_of_text|>"
    )
    assert unknown.decode(chat.ids, skip_special=False) == theirs[0][0]


def test_text_cannot_become_a_token_by_what_stands_beside_it(llama: Tokenizer) -> None:
    joined = "{% for m in messages %}{{ m.content }}{% endfor %}_id|>"
    tokenizer = Tokenizer(llama._backend, None, joined)
    halves = [{"role": "user", "content": half} for half in ("<|eo", "t_id|><|eot", "\ue000<|eot")]
    chat = encode_chat(tokenizer, halves)
    assert not any(chat.control)
    assert tokenizer.decode(chat.ids) == "<|eot_id|><|eot\ue000<|eot_id|>"
    tokenizer.templates.close()


def test_options_reach_a_template(llama: Tokenizer) -> None:
    source = "{{ date_string }} {{ builtin_tools }} {{ tools_in_user_message }} {{ documents }}"
    tokenizer = Tokenizer(llama._backend, None, source)
    asked = ChatOptions(date="1 May 2025", built_in_tools=("a",), tools_in_user_message=False)
    shown = tokenizer.decode(encode_chat(tokenizer, TALK, options=asked).ids)
    assert shown == "1 May 2025 ['a'] False None"
    assert tokenizer.decode(encode_chat(tokenizer, TALK).ids) == "   None"
    tokenizer.templates.close()


def test_messages_that_json_cannot_hold_are_named(unknown: Tokenizer) -> None:
    with pytest.raises(UserError, match="messages: cannot be written as JSON"):
        encode_chat(unknown, [{"role": "user", "content": "a", "extra": {1}}])


def test_a_hostile_template_is_one_line_on_the_command_line(
    cli: Cli, llama_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for i in range(10**9) %}x{% endfor %}")
    done = cli("tokenize", "Hi", "-t", str(tmp_path), "--chat")
    assert done.code == 2 and done.err.startswith("error: chat template: Range too big")
    assert done.err.count("\n") == 1 and not done.out
