"""The `openai` package, unchanged, as its users use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from llamaseek.serve.keys import ApiKey
from llamaseek.text.published import get
from llamaseek.text.tokenizer import Tokenizer
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, Running, make_service, running

KEY = "a secret"
HELLO: Any = [{"role": "user", "content": "Say something."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
EMPTY: Any = {"type": "object", "properties": {}, "additionalProperties": False}
OTHER: Any = {"type": "function", "function": {"name": "other", "parameters": EMPTY}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(
        make_service(options={"api_keys": (ApiKey(KEY),)}, enable_prefix_caching=True)
    ) as run:
        yield run
        assert run.idle()


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "seed": 1, "n": 2}
    whole = client.chat.completions.create(**asked)
    assert whole.usage is not None and whole.usage.completion_tokens > 0
    said = ["", ""]
    with client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == [choice.message.content for choice in whole.choices]
    assert chunks[-1].usage == whole.usage


def test_chat_logprobs_stops_and_penalties(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_completion_tokens=30,
        stop=["e"],
        logprobs=True,
        top_logprobs=2,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        temperature=0.7,
        seed=5,
    )
    (choice,) = answer.choices
    assert "e" not in str(choice.message.content)
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


class Person(pydantic.BaseModel):
    name: Literal["Ada", "Alan"]
    age: Literal[36, 41]
    tags: list[Literal["a", "b"]] = pydantic.Field(max_length=2)


def test_structured_output(client: openai.OpenAI) -> None:
    for seed in range(5):
        parsed = client.chat.completions.parse(
            model="tiny",
            messages=HELLO,
            response_format=Person,
            max_tokens=80,
            temperature=1.0,
            seed=seed,
        )
        person = parsed.choices[0].message.parsed
        assert isinstance(person, Person)
    answer = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        response_format={"type": "json_object"},
        max_tokens=150,
        seed=1,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length" or isinstance(
        json.loads(str(choice.message.content)), dict
    )


def check_calls(client: openai.OpenAI, choice: Any, names: set[str]) -> list[dict[str, Any]]:
    """Whole and streamed calls of a tool are the same, and fit its schema."""
    asked: Any = {"model": "tiny", "messages": HELLO, "tools": [WEATHER, OTHER], "seed": 2}
    whole = client.chat.completions.create(**asked, tool_choice=choice, max_tokens=80)
    (answer,) = whole.choices
    assert answer.finish_reason == "tool_calls", answer
    assert answer.message.content is None and answer.message.tool_calls
    (call,) = answer.message.tool_calls
    assert call.type == "function" and call.function.name in names
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments["city"] in ("Bern", "Rome") and arguments["days"] in (1, 2, 3)
    streamed: dict[int, dict[str, str]] = {}
    stream = client.chat.completions.create(**asked, tool_choice=choice, max_tokens=80, stream=True)
    for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or []:
            mine = streamed.setdefault(part.index, {"name": "", "arguments": ""})
            mine["name"] += part.function.name or ""
            mine["arguments"] += part.function.arguments or ""
    assert streamed == {0: {"name": call.function.name, "arguments": call.function.arguments}}
    history = [
        *HELLO,
        answer.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"sun": true}'},
    ]
    again = client.chat.completions.create(model="tiny", messages=history, max_tokens=5)
    assert again.choices[0].message.content is not None
    return [arguments]


NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def roomy() -> Iterator[openai.OpenAI]:
    """A Llama whose context holds the tools' definitions."""
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size, max_position_embeddings=2048)
    with running(make_service(model)) as run:
        yield openai.OpenAI(base_url=f"{run.url}/v1", api_key="none", max_retries=0)
        assert run.idle()


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (NAMED, {"get_weather"}),
        ("required", {"get_weather", "other"}),
    ],
)
def test_llama_3_calls_tools(roomy: openai.OpenAI, choice: Any, names: set[str]) -> None:
    check_calls(roomy, choice, names)


def test_without_a_call_tools_do_not_change_the_answer_s_text(roomy: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        answer = roomy.chat.completions.create(
            model="tiny", messages=HELLO, tools=[WEATHER], tool_choice=choice, max_tokens=9, seed=4
        )
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.content


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = get("deepseek_v3", tmp_path_factory.mktemp("deepseek_v3"))[0].parent
    tokenizer = Tokenizer.load(folder)
    model = tiny_model("deepseek_v3", vocab_size=tokenizer.vocab_size, max_position_embeddings=2048)
    with running(make_service(model, tokenizer)) as run:
        yield openai.OpenAI(base_url=f"{run.url}/v1", api_key="none", max_retries=0)
        assert run.idle()


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (NAMED, {"get_weather"}),
        ("required", {"get_weather", "other"}),
    ],
)
def test_deepseek_calls_tools(deepseek: openai.OpenAI, choice: Any, names: set[str]) -> None:
    check_calls(deepseek, choice, names)


def test_completions_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["The red fox", "A"], max_tokens=3, logprobs=2, echo=True, seed=1
    )
    for choice in answer.choices:
        scores = choice.logprobs
        assert scores is not None and scores.token_logprobs is not None
        assert scores.tokens and scores.top_logprobs and scores.text_offset is not None
        assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset)
        assert scores.token_logprobs[0] is None  # type: ignore[comparison-overlap]
        assert all(value < 0 for value in scores.token_logprobs[1:])


def test_completions_score_a_prompt_from_a_token_on(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "tiny",
        "prompt": "The red fox ran over the hill and the red fox slept.",
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
        "temperature": 0,
    }
    whole = client.completions.create(**asked).choices[0].logprobs
    part = client.completions.create(**asked, extra_body={"logprob_start_len": 5}).choices[0]
    assert whole is not None and part.logprobs is not None
    found, wanted = part.logprobs.token_logprobs, whole.token_logprobs
    assert found is not None and wanted is not None and part.logprobs.tokens == whole.tokens
    assert found[:5] == [None] * 5
    assert found[5:] == pytest.approx(wanted[5:], abs=1e-4)
    with pytest.raises(openai.BadRequestError, match="logprob_start_len"):
        client.completions.create(**{**asked, "echo": False}, extra_body={"logprob_start_len": 5})


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["The red fox", "A blue bird"]
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="tiny", input=texts)  # it asks for base64 by itself
    for one, other in zip(plain.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-5)


def test_cancelling_a_stream_frees_its_blocks(server: Running, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    stream.close()
    assert server.idle()
    assert server.service.engine.statistics.cancelled > 0


def test_errors_are_the_client_s_own(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="audio"):
        client.chat.completions.create(model="tiny", messages=HELLO, audio={})  # type: ignore
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_extras_by_extra_body(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=40,
        extra_body={"response_format": {"type": "regex", "regex": "[ab]{3}"}, "top_k": 50},
    )
    assert answer.choices[0].text in {a + b + c for a in "ab" for b in "ab" for c in "ab"}
