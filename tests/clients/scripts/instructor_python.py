"""Instructor over the `openai` package."""

import instructor
import openai
import pydantic
from steps import KEY, MODEL, URL, same, step

base = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
ASK = [{"role": "user", "content": "Plan a trip."}]


class Trip(pydantic.BaseModel):
    city: str
    days: int


def create(mode, **more):
    client = instructor.from_openai(base, mode=mode)
    return client.chat.completions.create(
        model=MODEL, response_model=Trip, messages=ASK, max_retries=0, **more
    )


@step
def json_schema():
    found = create(instructor.Mode.JSON_SCHEMA)
    return same(found.model_dump(), {"city": "Bern", "days": 2})


@step
def tools():
    assert isinstance(create(instructor.Mode.TOOLS), Trip)
    return True


@step
def tools_strict():
    assert isinstance(create(instructor.Mode.TOOLS_STRICT), Trip)
    return True
