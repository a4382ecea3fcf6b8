"""The `openai` package for Python."""

import json

import openai
import pydantic
from steps import KEY, MODEL, QUESTION, STORY, URL, WEATHER, holds, same, step

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
ASK = [{"role": "user", "content": "Weather in Bern?"}]


class Trip(pydantic.BaseModel):
    city: str
    days: int


class get_weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str


TOOLS = [openai.pydantic_function_tool(get_weather)]
FLAT = [{"type": "function", **TOOLS[0]["function"]}]


@step
def models():
    return same([each.id for each in client.models.list()], [MODEL])


@step
def chat():
    answer = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    return same(answer.choices[0].message.content, STORY)


@step
def chat_stream():
    with client.chat.completions.stream(model=MODEL, messages=ASK, temperature=0) as stream:
        text = "".join(e.delta for e in stream if e.type == "content.delta")
    return same(text, STORY)


@step
def chat_structured():
    answer = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Trip)
    return same(answer.choices[0].message.parsed, Trip(city="Bern", days=2))


@step
def chat_tools():
    asked = {"model": MODEL, "tools": TOOLS, "parallel_tool_calls": False}
    message = client.chat.completions.create(messages=ASK, **asked).choices[0].message
    call = message.tool_calls[0]
    same(json.loads(call.function.arguments), {"city": "Bern"})
    result = {"role": "tool", "tool_call_id": call.id, "content": WEATHER}
    talk = [*ASK, message, result]
    return same(client.chat.completions.create(messages=talk, **asked).choices[0].message.content,
                STORY)  # fmt: skip


@step
def chat_tools_stream():
    with client.chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    return same(message.tool_calls[0].function.parsed_arguments, get_weather(city="Bern"))


@step
def responses():
    return same(client.responses.create(model=MODEL, input="Hello").output_text, STORY)


@step
def responses_stream():
    with client.responses.stream(model=MODEL, input="Hello") as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        same(stream.get_final_response().output_text, text)
    return same(text, STORY)


@step
def responses_structured():
    answer = client.responses.parse(model=MODEL, input="Hello", text_format=Trip)
    return same(answer.output_parsed, Trip(city="Bern", days=2))


@step
def responses_tools():
    first = client.responses.create(model=MODEL, input=ASK, tools=FLAT)
    call = first.output[0]
    same(json.loads(call.arguments), {"city": "Bern"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER}
    talk = [*ASK, *first.output, result]
    return same(client.responses.create(model=MODEL, input=talk, tools=FLAT).output_text, STORY)


@step
def embeddings():
    found = client.embeddings.create(model=MODEL, input=["a", "b"])
    return same(len(found.data), 2)


@step
def real_chat():
    asked = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    answer = client.chat.completions.create(model=MODEL, max_tokens=40, **asked)
    return holds(answer.choices[0].message.content, "Paris")


@step
def real_responses():
    asked = {"input": QUESTION, "temperature": 0}
    answer = client.responses.create(model=MODEL, max_output_tokens=40, **asked)
    return holds(answer.output_text, "Paris")
