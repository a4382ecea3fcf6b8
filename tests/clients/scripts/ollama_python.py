"""The `ollama` package for Python."""

import json

import ollama
from steps import MODEL, QUESTION, SCHEMA, STORY, URL, WEATHER, holds, same, step

client = ollama.Client(host=URL)
ASK = [{"role": "user", "content": "Weather in Bern?"}]


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return WEATHER


@step
def models():
    same(client.show(MODEL).modelinfo["general.architecture"], "llama3")
    return same([each.model for each in client.list().models], [MODEL])


@step
def chat():
    return same(client.chat(MODEL, ASK, options={"temperature": 0}).message.content, STORY)


@step
def chat_stream():
    parts = client.chat(MODEL, ASK, stream=True)
    return same("".join(part.message.content for part in parts), STORY)


@step
def chat_tools():
    first = client.chat(MODEL, ASK, tools=[get_weather]).message
    (call,) = first.tool_calls
    same((call.function.name, call.function.arguments), ("get_weather", {"city": "Bern"}))
    result = {"role": "tool", "content": WEATHER, "tool_name": "get_weather"}
    talk = [*ASK, first, result]
    return same(client.chat(MODEL, talk, tools=[get_weather]).message.content, STORY)


@step
def chat_structured():
    found = client.chat(MODEL, ASK, format=SCHEMA).message.content
    return same(json.loads(found), {"city": "Bern", "days": 2})


@step
def generate():
    parts = client.generate(MODEL, "Hello", system="Be brief.", stream=True)
    same("".join(part.response for part in parts), STORY)
    return same(client.generate(MODEL, "Hello").response, STORY)


@step
def real_chat():
    talk = [{"role": "user", "content": QUESTION}]
    answer = client.chat(MODEL, talk, options={"temperature": 0, "num_predict": 40})
    return holds(answer.message.content, "Paris")
