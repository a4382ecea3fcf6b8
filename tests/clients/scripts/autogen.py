"""AutoGen's agents by `autogen-ext[openai]`."""

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient
from steps import KEY, MODEL, QUESTION, STORY, URL, WEATHER, holds, same, step

INFO = {"vision": False, "function_calling": True, "json_output": True, "family": "unknown",
        "structured_output": True, "multiple_system_messages": True}  # fmt: skip


def client(**more):
    return OpenAIChatCompletionClient(
        model=MODEL, base_url=f"{URL}/v1", api_key=KEY, model_info=INFO, max_retries=0, **more
    )


async def get_weather(city: str) -> str:
    """The weather of a city."""
    return WEATHER


@step
async def chat():
    found = await AssistantAgent("guide", client()).run(task="Hello")
    return same(found.messages[-1].content, STORY)


@step
async def chat_tools():
    agent = AssistantAgent("guide", client(), tools=[get_weather], reflect_on_tool_use=True)
    found = await agent.run(task="Weather in Bern?")
    return same(found.messages[-1].content, STORY)


@step
async def chat_team():
    agents = [AssistantAgent(name, client()) for name in ("ann", "bob")]
    team = RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(4))
    found = await team.run(task="Tell a story.")
    return same([each.content for each in found.messages[1:]], [STORY] * 3)


@step
async def chat_stream():
    agent = AssistantAgent("guide", client(), model_client_stream=True)
    seen = [each async for each in agent.run_stream(task="Hello")]
    return same(seen[-1].messages[-1].content, STORY)


@step
async def real_chat():
    found = await AssistantAgent("guide", client(temperature=0, max_tokens=40)).run(task=QUESTION)
    return holds(found.messages[-1].content, "Paris")
