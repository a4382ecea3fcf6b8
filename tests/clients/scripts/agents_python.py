"""OpenAI's Agents SDK, by the Responses API and by chat completions."""

import asyncio

import pydantic
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from steps import KEY, MODEL, QUESTION, STORY, URL, WEATHER, holds, same, step

set_tracing_disabled(True)


class Trip(pydantic.BaseModel):
    city: str
    days: int


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    assert city == "Bern"
    return WEATHER


def agent(kind, **more):
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    return Agent(name="guide", model=kind(model=MODEL, openai_client=client), **more)  # fmt: skip


def run(kind, question="Weather in Bern?", **more):
    return asyncio.run(Runner.run(agent(kind, **more), question)).final_output


async def streamed(kind):
    found = Runner.run_streamed(agent(kind, tools=[get_weather]), "Weather in Bern?")
    async for _ in found.stream_events():
        pass
    return same(found.final_output, STORY)


@step
def responses_tools():
    return same(run(OpenAIResponsesModel, tools=[get_weather]), STORY)


@step
def responses_structured():
    return same(run(OpenAIResponsesModel, output_type=Trip), Trip(city="Bern", days=2))


@step
async def responses_tools_stream():
    return await streamed(OpenAIResponsesModel)


@step
def chat_tools():
    return same(run(OpenAIChatCompletionsModel, tools=[get_weather]), STORY)


@step
def chat_structured():
    return same(run(OpenAIChatCompletionsModel, output_type=Trip), Trip(city="Bern", days=2))


@step
async def chat_tools_stream():
    return await streamed(OpenAIChatCompletionsModel)


@step
def real_responses():
    short = ModelSettings(max_tokens=200, temperature=0)
    return holds(run(OpenAIResponsesModel, QUESTION, model_settings=short), "Paris")
