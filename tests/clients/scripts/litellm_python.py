"""LiteLLM as a library, by its `openai` and `anthropic` providers."""

import json

import litellm
from steps import KEY, MODEL, QUESTION, SCHEMA, STORY, URL, WEATHER, holds, same, step

ours = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
theirs = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": KEY}
ASK = [{"role": "user", "content": "Weather in Bern?"}]
INPUT = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": INPUT}
TOOLS = [{"type": "function", "function": FUNCTION}]


def two_turns(given):
    first = litellm.completion(messages=ASK, tools=TOOLS, **given).choices[0].message
    (call,) = first.tool_calls
    same(json.loads(call.function.arguments), {"city": "Bern"})
    result = {"role": "tool", "tool_call_id": call.id, "content": WEATHER}
    talk = [*ASK, first, result]
    return same(litellm.completion(messages=talk, tools=TOOLS, **given).choices[0].message.content,
                STORY)  # fmt: skip


@step
def chat():
    return same(litellm.completion(messages=ASK, **ours).choices[0].message.content, STORY)


@step
def chat_stream():
    chunks = litellm.completion(messages=ASK, stream=True, **ours)
    return same("".join(c.choices[0].delta.content or "" for c in chunks), STORY)


@step
def chat_tools():
    return two_turns(ours)


@step
def chat_structured():
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    answer = litellm.completion(messages=ASK, response_format=wanted, **ours)
    return same(json.loads(answer.choices[0].message.content), {"city": "Bern", "days": 2})


@step
def responses():
    answer = litellm.responses(input="Hello", **ours)
    return same(answer.output[0].content[0].text, STORY)


@step
def messages():
    answer = litellm.completion(messages=ASK, max_tokens=200, **theirs)
    return same(answer.choices[0].message.content, STORY)


@step
def messages_tools():
    return two_turns({**theirs, "max_tokens": 200})


@step
def real_chat():
    talk = [{"role": "user", "content": QUESTION}]
    answer = litellm.completion(messages=talk, temperature=0, max_tokens=40, **ours)
    return holds(answer.choices[0].message.content, "Paris")
