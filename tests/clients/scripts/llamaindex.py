"""LlamaIndex's `llama-index-llms-openai-like`."""

import pydantic
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from steps import KEY, MODEL, QUESTION, STORY, URL, WEATHER, holds, same, step

llm = OpenAILike(model=MODEL, api_base=f"{URL}/v1", api_key=KEY, is_chat_model=True,
                 is_function_calling_model=True, context_window=2048, max_retries=0)  # fmt: skip
ASK = [ChatMessage(role="user", content="Weather in Bern?")]


class Trip(pydantic.BaseModel):
    """A trip."""

    city: str
    days: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return WEATHER


TOOL = FunctionTool.from_defaults(get_weather)


@step
def chat():
    return same(llm.chat(ASK).message.content, STORY)


@step
def chat_stream():
    return same("".join(each.delta or "" for each in llm.stream_chat(ASK)), STORY)


@step
def completion():
    plain = OpenAILike(model=MODEL, api_base=f"{URL}/v1", api_key=KEY, max_retries=0)
    assert plain.complete("Hello", max_tokens=5).text
    return True


@step
def chat_tools():
    first = llm.chat_with_tools([TOOL], chat_history=ASK)
    (call,) = llm.get_tool_calls_from_response(first)
    same(call.tool_kwargs, {"city": "Bern"})
    result = ChatMessage(role="tool", content=WEATHER,
                         additional_kwargs={"tool_call_id": call.tool_id})  # fmt: skip
    second = llm.chat_with_tools([TOOL], chat_history=[*ASK, first.message, result])
    return same(second.message.content, STORY)


@step
def chat_structured():
    found = llm.structured_predict(Trip, PromptTemplate("Plan a trip."))
    assert isinstance(found, Trip)
    return found


@step
def real_chat():
    talk = [ChatMessage(role="user", content=QUESTION)]
    return holds(llm.chat(talk, temperature=0, max_tokens=40).message.content, "Paris")
