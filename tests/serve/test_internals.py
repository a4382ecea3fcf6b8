"""`/internals`: attention, experts and cache are those of the model and the engine."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.peft import read_adapter, save_adapter
from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.paged import bytes_per_token
from llamaseek.engine.internals import read_internals
from llamaseek.models.lora import merge
from llamaseek.serve.keys import ApiKey
from llamaseek.serve.options import Limits, ServeOptions
from llamaseek.serve.service import Service
from tests.engine.test_adapters import adapted
from tests.models.shapes import tiny_model
from tests.safety.scripted import deciding_guard
from tests.serve.running import TOKENIZER, Running, make_service, running
from tests.serve.spoken import Speech, finds, spoken_service

CHAT = [{"role": "user", "content": "Tell me a story about the old fox."}]


@pytest.fixture(scope="module", params=["llama3", "deepseek_v3"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    model = tiny_model(request.param, vocab_size=TOKENIZER.vocab_size, max_position_embeddings=2048)
    with running(make_service(model)) as run:
        yield run


def answered(server: Running, **fields: Any) -> dict[str, Any]:
    body = {"messages": CHAT, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
    return server.post("/v1/chat/completions", logprobs=True, **body).json()["choices"][0]


def texts_of(choice: dict[str, Any]) -> list[str]:
    return [entry["token"] for entry in choice["logprobs"]["content"]]


def test_it_is_what_the_model_and_the_engine_say(server: Running) -> None:
    choice = answered(server)
    before = answered(server)["message"]
    found = server.post("/internals", messages=CHAT, answer=texts_of(choice), layer=1).json()
    engine = server.service.engine
    prompt = server.post("/tokenize", messages=CHAT).json()["tokens"]
    known = server.service.ids_of_texts
    ids = [*prompt, *(known[text] for text in texts_of(choice))]
    assert found["count"] == len(ids) == len(found["tokens"]) and found["token"] == len(ids) - 1
    wanted = read_internals(engine.model, ids)
    for row, reference in zip(found["attention"], wanted.attention[1][:, -1], strict=True):
        assert sum(row) == pytest.approx(1, abs=1e-4)
        assert row == pytest.approx(reference.tolist(), abs=2e-6)
    assert len(found["layers"]) == engine.model.config.num_hidden_layers
    best = found["layers"][-1][0]
    assert known[best[0]] == int(wanted.layers[-1, -1, 0])
    assert best[1] == pytest.approx(float(wanted.probabilities[-1, -1, 0]), abs=2e-6)
    if wanted.experts:
        assert found["experts"]["chosen"] == wanted.experts[1][0].tolist()
        assert found["experts"]["gates"][-1] == pytest.approx(wanted.experts[1][1][-1].tolist())
        assert found["experts"]["load"] == wanted.expert_load[1].tolist()
    else:
        assert found["experts"] is None
    cached = engine.runner.cache.stores
    dtype = cached[0].kept[0].dtype
    own = bytes_per_token([store.shape for store in cached], dtype, "auto")
    assert found["cache"]["bytes_per_token"] == own < found["cache"]["full_bytes_per_token"]
    assert answered(server)["message"] == before
    assert server.idle()


def test_an_earlier_token_sees_the_text_up_to_it(server: Running) -> None:
    found = server.post("/internals", messages=CHAT, token=3).json()
    assert found["token"] == 3 and all(len(row) == 4 for row in found["attention"])
    assert found["count"] == len(found["tokens"]) > 4


def test_looking_while_an_answer_is_made_changes_none_of_its_tokens(server: Running) -> None:
    alone = texts_of(answered(server, max_tokens=80))
    found: list[list[str]] = []
    asking = threading.Thread(
        target=lambda: found.append(texts_of(answered(server, max_tokens=80)))
    )
    asking.start()
    while asking.is_alive():
        assert server.post("/internals", messages=CHAT).status_code == 200
    assert found == [alone]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": 99}, "layer: 99 is not allowed"),
        ({"token": 9999}, "token: 9999 is not allowed"),
        ({"answer": ["no such token"]}, "answer[0]: 'no such token' is not allowed"),
        ({"messages": []}, "messages"),
        ({"model": "other"}, "'other' does not exist"),
        ({"head": 1}, "head: is not supported"),
    ],
)
def test_what_is_wrong_is_named(server: Running, wrong: dict[str, Any], message: str) -> None:
    reply = server.post("/internals", **{"messages": CHAT, **wrong})
    assert reply.status_code in (400, 404)
    assert message in reply.json()["error"]["message"]


def test_an_adapter_s_attention_is_its_merged_model_s(tmp_path: Path) -> None:
    tuned = adapted("llama3", 1, vocab_size=TOKENIZER.vocab_size)
    save_adapter(tuned, tmp_path / "a", "base")
    merge(tuned)
    base = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size)
    models = {"tiny": copy.deepcopy(base), "a": tuned}
    engine = Engine(base, TOKENIZER, None, {"a": read_adapter(tmp_path / "a")})
    with running(Service(engine, TOKENIZER, ServeOptions(port=0, name="tiny"))) as run:
        prompt = run.post("/tokenize", messages=CHAT).json()["tokens"]
        for name, model in models.items():
            found = run.post("/internals", model=name, messages=CHAT, layer=1).json()
            wanted = read_internals(model, prompt, last=True).attention[1][:, 0]
            for row, reference in zip(found["attention"], wanted, strict=True):
                assert row == pytest.approx(reference.tolist(), abs=1e-5)
    assert not torch.allclose(*(read_internals(m, prompt).attention[1] for m in models.values()))


def test_a_long_text_is_read_up_to_the_limit(server: Running) -> None:
    most = Limits().internals_tokens
    long = [{"role": "user", "content": "the old fox " * 400}]
    reply = server.post("/internals", messages=long)
    assert reply.status_code == 400
    assert f"one of the first {most} tokens" in reply.json()["error"]["message"]
    found = server.post("/internals", messages=long, token=most - 1).json()
    assert len(found["tokens"]) == most < found["count"]


def test_tokens_that_the_model_does_not_have_are_refused() -> None:
    with running(make_service(tiny_model("llama3", vocab_size=40))) as run:
        reply = run.post("/internals", messages=CHAT)
        assert reply.status_code == 400
        assert "messages: " in reply.json()["error"]["message"]


def test_a_guard_s_model_and_a_wrong_key_are_refused() -> None:
    guarded = spoken_service(Speech(), deciding_guard(finds("wolf")))
    with running(guarded) as run:
        reply = run.post("/internals", messages=CHAT)
        assert reply.status_code == 403 and "has a guard" in reply.json()["error"]["message"]
    with running(make_service(options={"api_keys": (ApiKey("open sesame"),)})) as run:
        run.client.headers["Authorization"] = "Bearer wrong"
        assert run.post("/internals", messages=CHAT).status_code == 401


def test_a_failure_fails_its_own_request_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **named: Any) -> None:
        raise RuntimeError("no")

    before = answered(server)["message"]
    with monkeypatch.context() as patch:
        patch.setattr("llamaseek.serve.routes.internals.read_internals", broken)
        assert server.post("/internals", messages=CHAT).status_code == 500
    assert server.post("/internals", messages=CHAT).status_code == 200
    assert answered(server)["message"] == before
    monkeypatch.setattr(server.service.background, "fault", "RuntimeError: broken")
    reply = server.post("/internals", messages=CHAT)
    assert reply.status_code == 503 and "RuntimeError" in reply.json()["error"]["message"]


def test_too_many_at_once_are_told_to_wait(server: Running) -> None:
    server.service.looking = Limits().internals
    try:
        reply = server.post("/internals", messages=CHAT)
        assert reply.status_code == 429 and reply.headers["Retry-After"] == "1"
    finally:
        server.service.looking = 0
