"""What clients of OpenAI's API send beside what they ask for, and their paths and methods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaseek.errors import UserError
from llamaseek.serve.keys import ApiKey
from llamaseek.serve.options import ServeOptions
from llamaseek.text.chat import encode_chat, render
from llamaseek.text.grammar import call_grammar
from llamaseek.text.published import get
from llamaseek.text.tokenizer import Tokenizer
from tests.serve.running import TOKENIZER, Running, make_service, running
from tests.serve.spoken import Speech, spoken_service
from tests.text.styles import made, tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]
DEEPSEEK = tokenizer("deepseek_v3.1")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_service(options={"cors": ("https://page.example",)})) as run:
        yield run


def tokens(server: Running, messages: list[dict[str, Any]]) -> int:
    answer = server.post(CHAT, messages=messages, max_tokens=1)
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["usage"]["prompt_tokens"]
    return count


IDLE: list[dict[str, Any]] = [
    {"parallel_tool_calls": True}, {"store": False}, {"service_tier": "auto"},
    {"metadata": {"run": "7"}}, {"metadata": {}}, {"modalities": ["text"]}, {"stop": [""]},
    {"stop": ""}, {"functions": []}, {"function_call": None},
    {"logprobs": False, "top_logprobs": 0},
    {"stream_options": {"include_usage": False}}, {"safety_identifier": "me"},
    {"prompt_cache_key": "k"}, {"min_tokens": 0, "use_beam_search": False}, {"suffix": ""},
]  # fmt: skip


@pytest.mark.parametrize("idle", IDLE)
def test_values_that_ask_for_nothing_change_nothing(server: Running, idle: dict[str, Any]) -> None:
    asked = {"messages": HELLO, "temperature": 0, "max_tokens": 3}
    plain = server.post(CHAT, **asked).json()["choices"]
    answer = server.post(CHAT, **asked, **idle)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("store", True, "false"), ("service_tier", "flex", '"auto" or "default" or "standard_only"'),
     ("modalities", ["text", "audio"], '["text"]'), ("min_tokens", 5, "0"),
     ("verbosity", "low", '"medium"')],
)  # fmt: skip
def test_other_values_are_refused_with_what_is_allowed(
    server: Running, field: str, value: Any, allowed: str
) -> None:
    error = server.post(CHAT, messages=HELLO, **{field: value}).json()["error"]
    assert error["param"] == field and error["code"] == "unsupported"
    assert error["message"] == f"{field}: is not supported by this server; allowed: {allowed}"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": 5}, "stop"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         "response_format.json_schema.name"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": 5}}},
         "tool_choice.function.name"),
        ({"metadata": {"run": 7}}, "metadata.run"),
        ({"messages": [{"role": "user", "content": "x", "name": 7}]}, "messages[0].name"),
        ({"messages": [5]}, "messages[0]"),
    ],
)  # fmt: skip
def test_errors_name_the_field_as_the_client_wrote_it(
    server: Running, body: dict[str, Any], param: str
) -> None:
    answer = server.post(CHAT, **{"messages": HELLO, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and error["message"].startswith(f"{param}: ")


def test_minus_one_is_no_limit() -> None:
    speech = Speech()
    with running(spoken_service(speech)) as run:
        for path, asked in ((CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": "x"})):
            found = run.post(path, **asked, max_tokens=-1, temperature=0).json()
            assert found["choices"][0]["finish_reason"] == "stop"
            assert found["usage"]["completion_tokens"] == len(speech.ids) - 1


def test_developer_messages_are_system_messages(server: Running) -> None:
    for role in ("system", "developer"):
        talk = [{"role": role, "content": "Be brief."}, *HELLO]
        assert tokens(server, talk) == tokens(server, [{**talk[0], "role": "system"}, *HELLO])
        for each in (TOKENIZER, DEEPSEEK):
            wanted = encode_chat(each, [{**talk[0], "role": "system"}, *HELLO]).ids
            assert encode_chat(each, talk).ids == wanted


def test_names_empty_arguments_and_empty_parts(server: Running) -> None:
    """AutoGen's names; LiteLLM's and LangChain's ways to write that there is nothing."""
    named = [{"role": "user", "content": "hi", "name": "bob"}]
    assert tokens(server, named) == tokens(server, HELLO)
    whole = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "a", "content": "5"}
    wanted = tokens(server, [*HELLO, calling([whole], None), result])
    for arguments in ("", " ", None, {}):
        call = {**whole, "function": {"name": "f", "arguments": arguments}}
        for content in (None, "", []):
            talk = [*HELLO, calling([call], content), result]
            assert tokens(server, talk) == wanted
            for each in (TOKENIZER, DEEPSEEK):
                usual = encode_chat(each, [*HELLO, calling([whole], None), result]).ids
                assert encode_chat(each, talk).ids == usual


def calling(calls: list[Any], content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": calls}


def test_several_calls_of_an_answer_go_back_as_one_turn(server: Running) -> None:
    calls = [
        {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in "ab"
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": "5"} for name in "ab"]
    talk = [*HELLO, calling(calls, None), *results]
    written = '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}<|eot_id|>'
    assert written in render(talk)
    ids = server.post("/tokenize", messages=talk, add_generation_prompt=False).json()["tokens"]
    assert server.service.tokenizer.decode(ids, skip_special=False) == render(talk)


def test_one_call_alone_where_several_are_not_wanted(tmp_path: Path) -> None:
    """DeepSeek-V3 may write several; the grammar of one is held although nothing is strict."""
    functions = {"f": {"type": "object"}}
    assert '("\\n" one)*' in call_grammar(functions, DEEPSEEK, True)
    alone = call_grammar(functions, DEEPSEEK, True, several=False)
    assert alone == call_grammar(functions, DEEPSEEK, True).replace(' ("\\n" one)*', "")
    tool = {"type": "function", "function": {"name": "f"}}
    call = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"
    published = Tokenizer.load(get("deepseek_v3", tmp_path)[0].parent)
    ours = made("deepseek_v3.1", published.chat_templates)
    speech = Speech(f"<｜tool▁calls▁begin｜>{call}\n{call}<｜tool▁calls▁end｜>", ours)
    with running(spoken_service(speech)) as run:
        for wanted, count in ((True, 2), (None, 2), (False, 1)):
            body = {"parallel_tool_calls": wanted, "max_tokens": 200, "temperature": 0}
            answer = run.post(CHAT, messages=HELLO, tools=[tool], **body).json()["choices"][0]
            assert len(answer["message"]["tool_calls"]) == count, answer
            assert answer["finish_reason"] == "tool_calls"


def test_paths_without_v1_and_head(server: Running) -> None:
    asked = {"messages": HELLO, "max_tokens": 2, "temperature": 0}
    bare = server.post("/chat/completions", **asked).json()
    assert bare["choices"] == server.post(CHAT, **asked).json()["choices"]
    assert server.post("/completions", prompt="x", max_tokens=1).status_code == 200
    assert server.post("/embeddings", input="x").status_code == 200
    listed = server.client.get("/v1/models").json()
    for path in ("/models", "/v1/models/", "/models/"):
        assert server.client.get(path).json() == listed
    for path in ("/", "/health", "/ready", "/v1/models", "/v1/models/tiny", "/metrics"):
        head, whole = server.client.head(path), server.client.get(path)
        assert head.status_code == whole.status_code == 200 and not head.content
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert server.client.head(CHAT).status_code == 405
    assert server.client.head("/v1/models/other").status_code == 404


def preflight(run: Running, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return run.client.options(CHAT, headers=headers)


def test_pages_of_allowed_origins_may_read_answers(server: Running) -> None:
    asked = preflight(server, "https://page.example")
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://page.example"
    assert "authorization" in asked.headers["access-control-allow-headers"]
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
    for origin, allowed in (("https://page.example", True), ("https://evil.example", False)):
        for sent in (body, {**body, "model": "other"}):  # errors, too, are for the page to read
            answer = server.client.post(CHAT, json=sent, headers={"Origin": origin})
            assert ("access-control-allow-origin" in answer.headers) is allowed
    refused = preflight(server, "https://evil.example")
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers


def test_without_the_option_no_page_of_another_origin_may() -> None:
    with running(make_service()) as run:
        assert preflight(run, "https://page.example").status_code == 405
        answer = run.client.get("/v1/models", headers={"Origin": "https://page.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_a_key_is_asked_of_the_page_but_not_of_its_preflight() -> None:
    options = {"cors": ("*",), "api_keys": (ApiKey("secret"),)}
    with running(make_service(options=options)) as run:
        asked = httpx.options(run.url + CHAT, headers=dict(preflight(run, "null").request.headers))
        assert asked.status_code == 200
        bare = httpx.get(run.url + "/v1/models", headers={"Origin": "https://a.example"})
        assert bare.status_code == 401 and bare.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["page.example", "https://a.example/path", "https://", "**", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UserError, match="--cors"):
        ServeOptions(cors=(origin,))


def test_a_template_that_takes_one_call_a_turn_gets_them_apart() -> None:
    source = (
        "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}"
        "{{ raise_exception('one call at once') }}{% endif %}<{{ m.role }}>{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}"
    )
    calls = [
        {"id": name, "type": "function", "function": {"name": f"call_{name}", "arguments": ""}}
        for name in "ab"
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in "ab"]
    talk = [*HELLO, calling(calls, None), *results]
    with running(make_service(tokenizer=made("smollm2", source))) as run:
        ids = run.post("/tokenize", messages=talk).json()["tokens"]
        text = run.service.tokenizer.decode(ids, skip_special=False)
    assert text == "<user>hi<assistant>call_a<tool>a<assistant>call_b<tool>b"
    assert json.dumps(talk)  # unchanged
