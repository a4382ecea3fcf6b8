"""The engine on a GPU, by fake tensors, which refuse to be mixed with those of another device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.engine.drafts.drafters import MultiTokenDrafter
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.engine.sampling.sampler import distributions, draw, penalize
from llamaseek.engine.scheduler import Chunk
from llamaseek.errors import UserError
from llamaseek.runtime.device import pick_device
from tests.engine.fake_gpu import GPU, fake_gpu, load_on_gpu
from tests.engine.reference import FAMILIES
from tests.models.shapes import tiny_model


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    extra = {"num_nextn_predict_layers": 1} if request.param == "deepseek_v3" else {}
    save_model(tiny_model(request.param, **extra), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def stepped(engine: Engine) -> list[Chunk]:
    """Answers go on as if each had said token 1, and what the next step computes."""
    for answer in engine.scheduler.running:
        answer.tokens.append(1)
        answer.computed = len(answer.tokens) - 1
    return engine.scheduler.schedule()


def asked(engine: Engine, *lengths: int) -> None:
    for first, length in enumerate(lengths, 1):  # no beginning in common
        engine.add(Request(prompt=[length + first] * length, params=SamplingParams(max_tokens=9)))


def check(engine: Engine, plan: list[Chunk], longer: int) -> None:
    """Run a step: everything is on the GPU; so many longer chunks attend in one kernel."""
    hidden = engine.runner.run(plan, []).hidden
    tokens = sum(chunk.count for chunk in plan)
    assert hidden.device == GPU and hidden.shape[0] == tokens
    assert engine.runner.last is not None and not engine.runner.last[2].groups
    joined = engine.runner.last[2].joined
    assert longer == (0 if joined is None else len(joined.documents.queries) - 1)
    assert engine.runner.logits(hidden).device == GPU


def test_weights_are_loaded_to_the_device(folder: Path, tmp_path: Path) -> None:
    Quantization(folder, tmp_path / "int4", 4, 32).run()
    with fake_gpu(tmp_path):
        for place in (folder, tmp_path / "int4"):
            model = load_on_gpu(place)
            found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            assert {tensor.device for tensor in found.values()} == {GPU}
            assert "model.rotary.inv_freq" in found


@pytest.mark.parametrize(("cache_dtype", "graphs"), [("auto", True), ("int8", False)])
def test_prompts_and_decoding_stay_on_the_device(
    folder: Path, cache_dtype: str, graphs: bool, tmp_path: Path
) -> None:
    with fake_gpu(tmp_path):
        options = EngineOptions(
            cache_dtype=cache_dtype, cuda_graphs=graphs, max_num_batched_tokens=100
        )
        engine = Engine(load_on_gpu(folder), options=options)
        assert (engine.runner.graphs is not None) == graphs
        if engine.runner.graphs is not None:
            engine.runner.graphs.capture = lambda forward: forward
        asked(engine, 20, 70)
        check(engine, engine.scheduler.schedule(), longer=2)
        check(engine, stepped(engine), longer=0)
        asked(engine, 40, 3)
        check(engine, stepped(engine), longer=1)  # a prompt beside decoding and a short one
        check(engine, stepped(engine), longer=0)
        if engine.runner.graphs is not None:
            assert set(engine.runner.graphs.steps) == {2, 4}


def test_a_model_drafts_on_the_device(tmp_path: Path) -> None:
    save_model(tiny_model("deepseek_v3", num_nextn_predict_layers=1), tmp_path / "model")
    with fake_gpu(tmp_path):
        model = load_on_gpu(tmp_path / "model")
        options = EngineOptions(speculation=Speculation(kind="mtp"), cuda_graphs=False)
        engine = Engine(model, options=options)
        asked(engine, 30, 5)
        plan = engine.scheduler.schedule()
        hidden = engine.runner.run(plan, []).hidden
        assert isinstance(engine.drafter, MultiTokenDrafter)
        ahead = engine.runner.ahead(plan, hidden, [1] * len(hidden))
        assert ahead.device == GPU and ahead.shape == hidden.shape


def test_sampling_stays_on_the_device(tmp_path: Path) -> None:
    with fake_gpu(tmp_path):
        logits = torch.randn(2, 97, device=GPU)
        params = SamplingParams(repetition_penalty=1.2, frequency_penalty=0.5, temperature=0.8)
        penalize(logits[0], [1, 2, 3, 3], 2, params)
        chances = distributions(logits, [params, params])
        numbers = np.array([0.1, 0.9], np.float32)
        assert draw(chances, numbers).device == GPU


def test_fake_tensors_find_what_is_elsewhere(folder: Path, tmp_path: Path) -> None:
    with fake_gpu(tmp_path):
        engine = Engine(load_on_gpu(folder), options=EngineOptions(cuda_graphs=False))
        engine.model.model.rotary.inv_freq = torch.ones(4)
        asked(engine, 5)
        with pytest.raises(RuntimeError, match="device"):
            engine.runner.run(engine.scheduler.schedule(), [])


def test_memory_that_is_not_there_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB …")

    monkeypatch.setattr("llamaseek.engine.engine.build_cache", full)
    with pytest.raises(UserError, match="cache_bytes: 1073741824 bytes are not free on cpu"):
        Engine(load_model(folder))
    monkeypatch.setattr(torch.nn.Module, "to_empty", full)
    with pytest.raises(UserError, match="B of weights do not fit cpu"):
        load_model(folder)


def test_devices_that_are_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for wanted in ("cuda", "cuda:1", "tpu"):
        said = f"--device: '{wanted}' is not allowed; allowed: auto, cpu on this machine"
        with pytest.raises(UserError, match=said):
            pick_device(wanted, "--device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="train.device: 'cuda:2'.* auto, cpu, cuda, cuda:0, cuda:1"):
        pick_device("cuda:2")
    assert load_model(folder, device="cpu").lm_head.weight.device.type == "cpu"
