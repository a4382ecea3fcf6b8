"""The `anthropic` package for Python."""

import anthropic
from steps import KEY, MODEL, QUESTION, SCHEMA, STORY, URL, WEATHER, holds, same, step

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
COLD = {"temperature": 0}  # this client has no argument for it
ASK = [{"role": "user", "content": "Weather in Bern?"}]
INPUT = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "get_weather", "description": "The weather.", "input_schema": INPUT}]


@step
def messages():
    answer = client.messages.create(
        model=MODEL, max_tokens=200, messages=ASK, system="Be brief.", extra_body=COLD
    )
    same(answer.stop_reason, "end_turn")
    return same(answer.content[0].text, STORY)


@step
def messages_stream():
    with client.messages.stream(model=MODEL, max_tokens=200, messages=ASK) as stream:
        text = "".join(stream.text_stream)
        same(stream.get_final_message().content[0].text, text)
    return same(text, STORY)


@step
def messages_tools():
    asked = {"model": MODEL, "max_tokens": 200, "tools": TOOLS}
    first = client.messages.create(messages=ASK, **asked)
    same(first.stop_reason, "tool_use")
    (block,) = first.content
    same(block.input, {"city": "Bern"})
    result = {"type": "tool_result", "tool_use_id": block.id, "content": WEATHER}
    talk = [*ASK, {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]}]  # fmt: skip
    return same(client.messages.create(messages=talk, **asked).content[0].text, STORY)


@step
def messages_tools_stream():
    with client.messages.stream(model=MODEL, max_tokens=200, messages=ASK, tools=TOOLS) as stream:
        message = stream.get_final_message()
    return same(message.content[0].input, {"city": "Bern"})


@step
def count_tokens():
    count = client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    assert count > 0
    return count


@step
def messages_structured():
    answer = client.messages.create(
        model=MODEL, max_tokens=200, messages=ASK,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )  # fmt: skip
    return same(answer.content[0].text, '{"city": "Bern", "days": 2}')


@step
def real_messages():
    talk = [{"role": "user", "content": QUESTION}]
    answer = client.messages.create(model=MODEL, max_tokens=50, messages=talk, extra_body=COLD)
    return holds(answer.content[0].text, "Paris")
