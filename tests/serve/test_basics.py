"""The endpoints one by one, on a tiny random model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from llamaseek.engine.request import Request, SamplingParams
from tests.serve.running import TOKENIZER, Running, make_service, running

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_service()) as run:
        yield run


def events(text: str) -> list[Any]:
    """The JSON of a stream's events; it has to end with [DONE]."""
    *lines, last = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


def greedy(server: Running, prompt: list[int], count: int) -> list[int]:
    """Tokens by full forwards."""
    model, ids = server.service.engine.model, list(prompt)
    for _ in range(count):
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None])
        ids.append(int(model.logits(hidden)[0, -1].argmax()))
    return ids[len(prompt) :]


def test_models(server: Running) -> None:
    listed = server.client.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["tiny"]
    assert server.client.get("/v1/models/tiny").json() == listed[0]
    assert server.client.get("/v1/models/other").status_code == 404


def test_a_completion_is_the_model_s_own_greedy_text(server: Running) -> None:
    for prompt in ("The red fox", [5, 6, 7]):
        body = server.post(
            "/v1/completions", prompt=prompt, max_tokens=8, temperature=0, ignore_eos=True
        ).json()
        ids = [TOKENIZER.bos_id, *TOKENIZER.encode(prompt)] if isinstance(prompt, str) else prompt
        (choice,) = body["choices"]
        assert choice["text"] == TOKENIZER.decode(greedy(server, ids, 8))
        assert choice["finish_reason"] == "length"
        assert body["usage"]["prompt_tokens"] == len(ids)
        assert body["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_streams_add_up_to_the_whole(server: Running, path: str) -> None:
    given = {"prompt": "The"} if path == "/v1/completions" else {"messages": HELLO}
    asked = {**given, "max_tokens": 40, "temperature": 1.5, "seed": 3, "n": 3}
    whole = server.post(path, **asked).json()
    parts = events(
        server.post(path, **asked, stream=True, stream_options={"include_usage": True}).text
    )
    assert parts[-1]["usage"] == whole["usage"] and not parts[-1]["choices"]
    for index, choice in enumerate(whole["choices"]):
        mine = [c for part in parts for c in part["choices"] if c["index"] == index]
        if path == "/v1/completions":
            assert "".join(c["text"] for c in mine) == choice["text"]
        else:
            said = "".join(c["delta"].get("content", "") for c in mine)
            assert said == choice["message"]["content"]
            assert [c["delta"].get("role") for c in mine][0] == "assistant"
        ends = [c["finish_reason"] for c in mine]
        assert ends == [None] * (len(mine) - 1) + [choice["finish_reason"]]


def test_chat_logprobs(server: Running) -> None:
    body = server.post(
        "/v1/chat/completions",
        messages=HELLO,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
        ignore_eos=True,
        temperature=0,
    ).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == 5
    for entry in content:
        top = entry["top_logprobs"]
        assert len(top) == 3 and entry["logprob"] == top[0]["logprob"]
        assert bytes(entry["bytes"]).decode("utf-8", "replace")
        assert top == sorted(top, key=lambda each: -each["logprob"])


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_the_last_hidden_state(server: Running, form: str) -> None:
    body = server.post("/v1/embeddings", input=["The red fox", "a"], encoding_format=form).json()
    model = server.service.engine.model
    for text, entry in zip(["The red fox", "a"], body["data"], strict=True):
        found = entry["embedding"]
        if form == "base64":
            found = np.frombuffer(base64.b64decode(found), "<f4")
        ids = [TOKENIZER.bos_id, *TOKENIZER.encode(text)]
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1]
        expected = hidden / hidden.norm()
        assert np.abs(np.asarray(found) - expected.numpy()).max() < 1e-5


def test_tokenize_and_back(server: Running) -> None:
    text = "The red 🦊 <|eot_id|>"
    ids = server.post("/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
    assert ids == TOKENIZER.encode(text)
    assert server.post("/detokenize", tokens=ids).json() == {"prompt": text}
    chat = server.post("/tokenize", messages=HELLO).json()
    assert chat["count"] == len(chat["tokens"]) and chat["tokens"][0] == TOKENIZER.bos_id
    info = server.client.get("/tokenizer_info").json()
    assert info["bos_token"] == "<|begin_of_text|>" and info["eos_token"] and info["pad_token"]
    assert info["chat_template"]


def test_health_ready_and_metrics(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}
    text = server.client.get("/metrics").text
    for name in ("time_to_first_token_seconds_count", "output_tokens_total", "cache_use"):
        assert f"llamaseek_{name}" in text


def test_failing_forwards_fail_their_batch_and_show_in_health(server: Running) -> None:
    engine = server.service.engine
    real = engine.runner.run
    try:
        engine.runner.run = lambda *step: 1 / 0  # type: ignore[assignment, method-assign]
        failed = server.post("/v1/completions", prompt="x")
        assert failed.status_code == 500 and "ZeroDivision" not in failed.text
        assert server.client.get("/health").status_code == 503
    finally:
        engine.runner.run = real  # type: ignore[method-assign]
    assert server.post("/v1/completions", prompt="x").status_code == 200
    assert server.client.get("/health").status_code == 200
    assert server.idle()


def test_the_engine_s_params_tell_the_embedding() -> None:
    service = make_service()
    work = service.engine.add(
        Request(prompt=[1, 2], params=SamplingParams(max_tokens=0, embed=True))
    )
    (delta,) = service.engine.step()
    assert work.done and delta.embedding is not None and len(delta.embedding) == 32
