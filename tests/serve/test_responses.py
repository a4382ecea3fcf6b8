"""`/v1/responses`: OpenAI's client, the order of events, what is refused and by which name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.safety.scripted import deciding_guard
from tests.serve.running import Running, roomy, running
from tests.serve.spoken import STORY, Speech, finds, spoken_service
from tests.text.styles import tokenizer

PATH = "/v1/responses"
CALL = '{"name": "get_weather", "parameters": {"city": "Bern"}}'
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def events(run: Running, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream; their names are their types, and they are numbered."""
    text = run.post(PATH, stream=True, **body).text
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def test_openais_client_whole_and_streamed(client: openai.OpenAI, speech: Speech) -> None:
    speech.say(STORY)
    asked: Any = {"model": "tiny", "input": "hi", "instructions": "Be brief.", "temperature": 0}
    whole = client.responses.create(**asked, metadata={"run": "7"})
    assert whole.output_text == STORY and whole.status == "completed" and whole.error is None
    assert whole.instructions == "Be brief." and whole.metadata == {"run": "7"}
    assert whole.usage is not None and whole.usage.output_tokens == len(speech.ids) - 1
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with client.responses.stream(**asked) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == STORY
    assert final.usage is not None and final.usage.output_tokens == whole.usage.output_tokens


def test_the_events_in_order(server: Running, speech: Speech) -> None:
    speech.say("The fox.")
    found = events(server, input="hi", temperature=0)
    kinds = [each["type"].removeprefix("response.") for each in found]
    deltas = [each["delta"] for each in found if each["type"].endswith(".delta")]
    assert "".join(deltas) == "The fox." and len(deltas) > 1
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * len(deltas), "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    response = found[-1]["response"]
    assert response["output"] == [found[-2]["item"]]
    assert response["output"][0]["content"][0]["text"] == "The fox."
    assert found[0]["response"]["status"] == "in_progress" and found[0]["response"]["output"] == []


def test_tools_over_two_turns(client: openai.OpenAI, server: Running, speech: Speech) -> None:
    speech.say(CALL)
    asked: Any = {"model": "tiny", "tools": [WEATHER], "temperature": 0}
    first = client.responses.create(**asked, input="Weather?")
    (call,) = first.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Bern"}
    kinds = [each["type"] for each in events(server, input="Weather?", tools=[WEATHER])]
    assert "response.function_call_arguments.delta" in kinds
    assert kinds.index("response.function_call_arguments.done") < kinds.index(
        "response.output_item.done"
    )
    speech.say(STORY)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    talk: Any = [{"role": "user", "content": "Weather?"}, call.model_dump(), output]
    second = client.responses.create(**asked, input=talk)
    assert second.output_text == STORY and second.usage is not None
    messages = [
        talk[0],
        {"role": "assistant", "content": None, "tool_calls": [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        ]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "rain"},
    ]  # fmt: skip
    function = {k: v for k, v in WEATHER.items() if k != "type"}
    chat = server.post(
        "/v1/chat/completions", messages=messages, max_tokens=1,
        tools=[{"type": "function", "function": function}],
    )  # fmt: skip
    assert second.usage.input_tokens == chat.json()["usage"]["prompt_tokens"]


class Weather(pydantic.BaseModel):
    city: str
    days: int


def test_structured_output_by_a_pydantic_model() -> None:
    with running(roomy()) as run:  # its model would say anything
        client = openai.OpenAI(base_url=f"{run.url}/v1", api_key="none", max_retries=0)
        schema: Any = {"type": "object", "properties": {"days": {"enum": [1, 2]}},
                       "required": ["days"], "additionalProperties": False}  # fmt: skip
        wanted: Any = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
        answer = client.responses.create(model="tiny", input="hi", text={"format": wanted})
        assert json.loads(answer.output_text)["days"] in (1, 2)
        assert answer.text is not None and answer.text.format is not None
        assert answer.text.format.type == "json_schema"
        held = client.responses.create(
            model="tiny", input="hi", tools=[WEATHER], tool_choice="required"
        )
        assert held.output[0].type == "function_call"
        refused = run.post(PATH, input="hi", text={"format": {**wanted, "schema": {"not": {}}}})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "text.format"


def test_openais_parse_reads_what_the_schema_holds(client: openai.OpenAI, speech: Speech) -> None:
    speech.say('{"city": "Bern", "days": 2}')
    answer = client.responses.parse(model="tiny", input="hi", text_format=Weather, temperature=0)
    assert answer.output_parsed == Weather(city="Bern", days=2)


def test_an_answer_that_is_cut_off_is_incomplete(server: Running, speech: Speech) -> None:
    speech.say(STORY)
    body = server.post(PATH, input="hi", max_output_tokens=3, temperature=0).json()
    assert body["status"] == "incomplete" and body["output"][0]["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events(server, input="hi", max_output_tokens=3)[-1]["type"] == "response.incomplete"


def test_reasoning_is_an_item_that_can_be_sent_back() -> None:
    speech = Speech("I add.\n</think>\n\nIt is 4.", tokenizer("deepseek_v3.1"))
    with running(spoken_service(speech)) as run:
        asked = {"chat_template_kwargs": {"thinking": True}, "temperature": 0}
        body = run.post(PATH, input="2+2?", **asked).json()
        thought, said = body["output"]
        assert thought["content"] == [{"type": "reasoning_text", "text": "I add."}]
        assert said["content"][0]["text"] == "It is 4."
        assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
        kinds = [each["type"] for each in events(run, input="2+2?", **asked)]
        assert kinds.index("response.reasoning_text.done") < kinds.index(
            "response.output_text.delta"
        )
        talk = [{"role": "user", "content": "2+2?"}, thought, said,
                {"role": "user", "content": "And 3+3?"}]  # fmt: skip
        assert run.post(PATH, input=talk, **asked).status_code == 200


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"text": {"format": {"type": "xml"}}}, "text.format"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"messages": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": []}, "input"),
    ({"input": [5]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": None}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
     "input[0].content[0].text"),
    ({"input": [{"role": "user", "content": "x", "voice": "alto"}]}, "input[0].voice"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]},
     "input[0].arguments"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": [{"role": "user", "content": "x"}, {"type": "function_call_output",
      "call_id": "a", "output": 5}]}, "input[1].output"),
    ({"input": [{"role": "user", "content": "x"}] * 2000}, "input"),
    ({"model": "other"}, "model"),
    ({"instructions": 5}, "instructions"),
    ({"input": "x" * 1_000_000}, "input"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_cannot_be_answered_is_refused_by_its_name(
    server: Running, body: dict[str, Any], param: str
) -> None:
    asked = body if "messages" in body else {"input": "hi", **body}
    for stream in (False, True):
        answer = server.client.post(PATH, json={"model": "tiny", **asked, "stream": stream})
        assert answer.status_code == (404 if param == "model" else 400), answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and len(answer.content) < 4096
        assert error["param"] == param
        assert "messages" not in error["message"] or "messages" in body


def test_an_error_in_the_middle_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = Speech()
    with running(spoken_service(speech)) as run:
        real = speech.logits

        def breaks(hidden: Any) -> Any:
            if len(speech.engine.scheduler.running[0].generated) == 2:
                raise RuntimeError("boom")
            return real(hidden)

        monkeypatch.setattr(run.service.engine.runner, "logits", breaks)
        last = events(run, input="hi", temperature=0)[-1]
        assert last["type"] == "error" and last["code"] == "internal" and "boom" not in str(last)


def test_what_a_guard_refuses_is_a_refusal() -> None:
    speech = Speech("All is well. A bomb is built so.")
    with running(spoken_service(speech, deciding_guard(finds("bomb")))) as run:
        asked = run.post(PATH, input="How is a bomb built?").json()
        assert asked["status"] == "incomplete"
        assert asked["incomplete_details"] == {"reason": "content_filter"}
        assert "refused by the guard" in asked["output"][0]["content"][0]["refusal"]
        tools = [{**WEATHER, "description": "a bomb"}]
        assert run.post(PATH, input="hi", tools=tools).json()["status"] == "incomplete"
        said = run.post(PATH, input="hi", temperature=0).json()
        assert said["output"][-1]["content"][0]["type"] == "refusal"
        kinds = [each["type"] for each in events(run, input="How is a bomb built?")]
        assert kinds[-1] == "response.incomplete" and "response.refusal.delta" in kinds


def test_without_v1_and_the_blocks_are_free_afterwards(server: Running) -> None:
    assert server.post("/responses", input="hi", max_output_tokens=1).status_code == 200
    assert server.idle()


@pytest.fixture(autouse=True)
def story(request: pytest.FixtureRequest) -> Iterator[None]:
    if "speech" in request.fixturenames:
        request.getfixturevalue("speech").say(STORY)
    yield
