"""Two adapters and the base, asked at once by name: each says what its merged model says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llamaseek.checkpoints.peft import read_adapter, save_adapter
from llamaseek.engine.engine import Engine
from llamaseek.errors import UserError
from llamaseek.models.lora import merge
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import Service, adapter_folders
from tests.engine.test_adapters import PROMPTS, adapted, requests, tokens
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, running


def test_each_name_gives_its_own_tokens(tmp_path: Path) -> None:
    expected = {"tiny": tokens(Engine(tiny_model("llama3")), requests())}
    for name, seed in (("a", 1), ("b", 2)):
        model = adapted("llama3", seed)
        save_adapter(model, tmp_path / name, "base")
        merge(model)
        expected[name] = tokens(Engine(model), requests())
    adapters = {name: read_adapter(tmp_path / name) for name in ("a", "b")}
    engine = Engine(tiny_model("llama3"), TOKENIZER, None, adapters)
    with running(Service(engine, TOKENIZER, ServeOptions(port=0, name="tiny"))) as run:
        listed = run.client.get("/v1/models").json()["data"]
        assert [(each["id"], each["parent"]) for each in listed] == [
            ("tiny", None), ("a", "tiny"), ("b", "tiny"),
        ]  # fmt: skip

        def ask(name: str, prompt: list[int]) -> str:
            body = {"model": name, "prompt": prompt, "max_tokens": 12, "temperature": 0}
            answer = run.post("/v1/completions", **body, ignore_eos=True).json()
            assert answer["model"] == name
            return str(answer["choices"][0]["text"])

        jobs = [(name, n) for name in expected for n in range(len(PROMPTS))] * 4
        with ThreadPoolExecutor(len(jobs)) as pool:
            found = list(pool.map(lambda job: ask(job[0], PROMPTS[job[1]]), jobs))
        for (name, n), text in zip(jobs, found, strict=True):
            assert text == TOKENIZER.decode(expected[name][n])
        assert engine.statistics.cached > 0 and run.idle()
        assert run.post("/v1/completions", model="c", prompt="x").status_code == 404


@pytest.mark.parametrize("given", ["a", "=x", "a=", "tiny=x"])
def test_adapters_that_cannot_be_named(given: str) -> None:
    with pytest.raises(UserError, match="--adapter"):
        adapter_folders([given], "tiny")
