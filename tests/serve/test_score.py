"""`/v1/score`: the scores of a reward model, equal to those read without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaseek.engine.options import EngineOptions
from llamaseek.engine.uncached import score_sequences
from llamaseek.models.score import reward_model
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import make_service
from llamaseek.text.chat import encode_chat
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, Running, running
from tests.serve.running import make_service as generating

PATH = "/v1/score"
ANSWERS = ["A fox.", "A very old frog sat in the forest.", ""]


@pytest.fixture(scope="module", params=["llama3", "deepseek_v3"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    model = reward_model(tiny_model(request.param, vocab_size=TOKENIZER.vocab_size))
    options = ServeOptions(port=0, name="tiny")
    service = make_service(model, Path(), options, EngineOptions(), tokenizer=TOKENIZER)
    with running(service) as run:
        yield run
        assert run.idle()


def expected(server: Running, talks: list[tuple[str, str]]) -> list[float]:
    ids = [
        encode_chat(TOKENIZER, [{"role": "user", "content": question},
                                {"role": "assistant", "content": answer}]).ids
        for question, answer in talks
    ]  # fmt: skip
    return score_sequences(server.service.engine.model, ids)


def test_scores_are_the_model_s_own(server: Running) -> None:
    for body, talks in (
        ({"text_1": "Who?", "text_2": ANSWERS}, [("Who?", each) for each in ANSWERS]),
        ({"text_1": "Who?", "text_2": "I."}, [("Who?", "I.")]),
        ({"text_1": ["Who?", "What?"], "text_2": ANSWERS[:2]},
         [("Who?", ANSWERS[0]), ("What?", ANSWERS[1])]),
    ):  # fmt: skip
        for path in (PATH, "/score"):
            found = server.post(path, **body).json()
            assert [each["index"] for each in found["data"]] == list(range(len(talks)))
            scores = [each["score"] for each in found["data"]]
            assert scores == pytest.approx(expected(server, talks), abs=1e-4)
    assert found["object"] == "list" and found["usage"]["prompt_tokens"] > 0


def test_a_reward_model_is_asked_for_nothing_else(server: Running) -> None:
    hello = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": hello}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/messages", {"messages": hello, "max_tokens": 5}),
    ):
        error = server.post(path, **body).json()["error"]
        assert error["param"] == "model" and "cannot generate text" in error["message"]
    assert server.post(PATH, text_1="a", text_2="b").status_code == 200


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"text_1": "a"}, "text_2"),
    ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
    ({"text_1": "a", "text_2": []}, "text_2"),
    ({"text_1": "a", "text_2": ["b"] * 65}, "text_2"),
    ({"text_1": 5, "text_2": "b"}, "text_1"),
    ({"text_1": "x" * 1_000_000, "text_2": "b"}, "text_1"),
    ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_is_wrong_is_named(server: Running, body: dict[str, Any], param: str) -> None:
    answer = server.post(PATH, **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_model_that_generates_has_no_scores() -> None:
    with running(generating()) as run:
        error = run.post(PATH, text_1="a", text_2="b").json()["error"]
        assert error["param"] == "model" and "is no reward model" in error["message"]
