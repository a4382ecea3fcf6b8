"""Adapters and the base in one batch: each row's tokens are those of its merged model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.peft import read_adapter, save_adapter
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.lora import LoRALinear, add_lora, merge
from tests.models.shapes import tiny_model

TARGETS = {
    "llama3": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "deepseek_v3": ["q_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj"],
}
PROMPTS = [[n + 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23] for n in (1, 2)]


def adapted(family: str, seed: int, **sizes: Any) -> CausalLM:
    """The base with a random adapter on it, the same base whatever the seed."""
    model: CausalLM = tiny_model(family, **sizes)
    torch.manual_seed(seed)
    add_lora(model, 4, 8.0, TARGETS[family])
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
    return model


def tokens(engine: Engine, asked: list[Request]) -> list[list[int]]:
    return [output.answers[0].tokens for output in engine.generate(asked)]


def requests(adapter: str = "", **changes: Any) -> list[Request]:
    params = SamplingParams(max_tokens=12, **changes)
    return [Request(prompt=prompt, params=params, adapter=adapter) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_two_adapters_and_the_base_in_one_batch(family: str, tmp_path: Path) -> None:
    expected = {"": tokens(Engine(tiny_model(family)), requests())}
    for name, seed in (("a", 1), ("b", 2)):
        model = adapted(family, seed)
        save_adapter(model, tmp_path / name, "base")
        merge(model)
        expected[name] = tokens(Engine(model), requests())
    assert expected[""] != expected["a"] != expected["b"]
    adapters = {name: read_adapter(tmp_path / name) for name in ("a", "b")}
    for options in ({}, {"max_num_batched_tokens": 7}, {"max_num_seqs": 2}):
        engine = Engine(tiny_model(family), None, EngineOptions(**options), adapters)
        for _ in range(2):  # again with what the first round left in shared blocks
            found = tokens(engine, [*requests("a"), *requests(), *requests("b")])
            assert found == [*expected["a"], *expected[""], *expected["b"]]
        assert engine.statistics.cached > 0


def test_blocks_are_shared_within_an_adapter_and_a_salt_only(tmp_path: Path) -> None:
    save_adapter(adapted("llama3", 1), tmp_path / "a", "base")
    adapters = {"a": read_adapter(tmp_path / "a")}
    engine = Engine(tiny_model("llama3"), None, EngineOptions(), adapters)
    params = SamplingParams(max_tokens=2)
    cached = []
    for adapter, salt in (("", ""), ("a", ""), ("", "a"), ("a", ""), ("", "a"), ("", "")):
        asked = Request(prompt=PROMPTS[0], params=params, adapter=adapter, salt=salt)
        cached.append(engine.generate([asked])[0].cached)
    assert cached == [0, 0, 0, 16, 16, 16]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted("llama3", 1), tmp_path / "a", "base")
    adapters = {"a": read_adapter(tmp_path / "a")}
    with pytest.raises(UserError, match="adapter a: has a matrix of shape"):
        Engine(tiny_model("llama3", hidden_size=64), None, None, adapters)
    with pytest.raises(UserError, match="is not a linear layer of the model"):
        Engine(tiny_model("llama3", num_hidden_layers=1), None, None, adapters)
    engine = Engine(tiny_model("llama3"), None, None, adapters)
    with pytest.raises(UserError, match="adapter 'b' is unknown"):
        engine.add(requests("b")[0])
    model = tiny_model("deepseek_v3")
    add_lora(model, 4, 8.0, ["kv_b_proj"])
    save_adapter(model, tmp_path / "kv", "base")
    with pytest.raises(UserError, match="llamaseek convert --adapter"):
        Engine(tiny_model("deepseek_v3"), None, None, {"kv": read_adapter(tmp_path / "kv")})
