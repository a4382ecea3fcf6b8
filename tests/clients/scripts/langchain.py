"""LangChain's `langchain-openai`."""

import pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from steps import KEY, MODEL, QUESTION, STORY, URL, WEATHER, holds, same, step

given = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
llm = ChatOpenAI(**given)
newer = ChatOpenAI(**given, use_responses_api=True)


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return WEATHER


class Trip(pydantic.BaseModel):
    city: str
    days: int


def two_turns(model):
    bound = model.bind_tools([get_weather])
    talk = [HumanMessage("Weather in Bern?")]
    first = bound.invoke(talk)
    (call,) = first.tool_calls
    same((call["name"], call["args"]), ("get_weather", {"city": "Bern"}))
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    return same(bound.invoke([*talk, first, result]).text, STORY)


@step
def chat():
    return same(llm.invoke("Hello").text, STORY)


@step
def chat_stream():
    return same("".join(chunk.text for chunk in llm.stream("Hello")), STORY)


@step
def chat_tools():
    return two_turns(llm)


@step
def chat_structured():
    found = llm.with_structured_output(Trip).invoke("Hello")
    same(found, Trip(city="Bern", days=2))
    by_call = llm.with_structured_output(Trip, method="function_calling").invoke("Hello")
    assert isinstance(by_call, Trip)
    return found


@step
def responses():
    same("".join(chunk.text for chunk in newer.stream("Hello")), STORY)
    return same(newer.invoke("Hello").text, STORY)


@step
def responses_tools():
    return two_turns(newer)


@step
def embeddings():
    model = OpenAIEmbeddings(**given, check_embedding_ctx_length=False)
    return same(len(model.embed_documents(["a", "b"])), 2)


@step
def real_chat():
    cold = ChatOpenAI(**given, temperature=0, max_tokens=40)
    return holds(cold.invoke(QUESTION).text, "Paris")
