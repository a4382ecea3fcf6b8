"""A family registered from outside, by a config class and a model class: Qwen3 (report §2), which
is Llama 3 with a norm on each head's query and key before they are rotated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from llamaseek.checkpoints.gguf.metadata import architecture
from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.dry_run.answer import plan_training
from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.fused import fuse
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError
from llamaseek.herd import FAMILIES, Llama3Config
from llamaseek.herd.configs import Shape, find_family, load_plugins
from llamaseek.models import MODELS, Llama3, build_model, register_family
from llamaseek.models.attention import GroupedQueryAttention
from llamaseek.models.layers import RMSNorm
from llamaseek.models.rope import rotate_halves
from llamaseek.plan.gpus import GPUS
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.cli.run import Cli
from tests.train.tiny import LLAMA_SIZES, recipe


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(Llama3Config):
    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"

    def attention_tensors(self) -> dict[str, Shape]:
        norms: dict[str, Shape] = {f"{x}_norm.weight": (self.head_dim,) for x in "qk"}
        return super().attention_tensors() | norms


class NormedAttention(GroupedQueryAttention):
    def __init__(self, config: Qwen3Config, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Any, positions: Tensor, mask: Any, cache: Any) -> Tensor:
        three = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in three)
        q, k = rotate_halves(self.q_norm(q), *rotary), rotate_halves(self.k_norm(k), *rotary)
        if cache is None:
            out = self.attend(q, k, v, mask, self.causal, self.scale)
        else:
            out = cache.attend(self.layer, q, (k, v), positions, self.scale)
        projected: Tensor = self.o_proj(out.flatten(2))
        return projected


class Qwen3(Llama3):
    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = NormedAttention(config, index)
        self.initialize()


@pytest.fixture
def qwen3() -> Iterator[str]:
    register_family("qwen3", Qwen3Config, Qwen3)
    yield "qwen3"
    del FAMILIES["qwen3"], MODELS[Qwen3Config]


def test_a_family_registered_from_outside(qwen3: str, cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="llama3 is registered for Llama3Config already"):
        register_family("llama3", Qwen3Config, Qwen3)
    made = recipe(tmp_path, qwen3, train__steps=3, train__save_every=1)
    stopped = made.model_copy(update={"out": str(tmp_path / "stopped")})

    def stop(step: int) -> None:
        assert step < 1, "killed"

    folder = train(build_job(made)).final
    with pytest.raises(AssertionError, match="killed"):
        train(build_job(stopped), on_step=stop)
    resumed = train(build_job(stopped), resume=True).final
    model, again = load_model(folder), load_model(resumed)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))

    # transformers computes the same from its folder, with norms that are no longer all ones.
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    save_model(model, folder)
    tokens, positions = torch.randint(3, 300, (1, 40)), torch.arange(40)[None]
    theirs = Qwen3ForCausalLM.from_pretrained(folder)(tokens).logits
    assert torch.allclose(model.logits(model(tokens, positions)), theirs, atol=1e-4)

    # It decodes from the paged cache; the fused operators of Llama 3 do not know the norms.
    request = Request(prompt=tokens[0].tolist(), params=SamplingParams(max_tokens=12))
    answer = Engine(model).generate([request])[0].answers[0].tokens
    row = torch.cat((tokens[0], torch.tensor(answer)))[None]
    whole = model.logits(model(row, torch.arange(52)[None])).argmax(-1)
    assert fuse(model) is None and answer == whole[0, 39:-1].tolist()

    with pytest.raises(UserError, match="Qwen3ForCausalLM cannot be written to a .gguf file"):
        architecture(model.config)

    # It is counted, planned and drawn.
    drawing = tmp_path / "qwen3.svg"
    shown = json.loads(cli("herd", "show", str(folder), "--json", "--diagram", str(drawing)).out)
    assert shown["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert "Grouped-query attention" in drawing.read_text()
    planned = json.loads(cli("plan", str(folder), "--gpu", "h100-80gb", "--json").out)
    assert planned["parameters"] == shown["parameters"]
    step = plan_training(made, GPUS["h100-80gb"], "bf16").answer
    assert step["per_rank"][0]["parameters"] == shown["parameters"]


PLUGIN = """
from llamaseek.models import register_family
from tests.models.test_third_family import Qwen3, Qwen3Config

def register():
    register_family("qwen3", Qwen3Config, Qwen3)
"""


def installed(folder: Path, name: str, text: str) -> None:
    """A package in `folder`, as pip leaves it, that has an entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[llamaseek.families]\nqwen3 = {name}:register\n")
    (folder / f"{name}.py").write_text(text)


def test_an_installed_package_registers_its_family(qwen3: str, tmp_path: Path) -> None:
    """In a process of its own, which has called nothing."""
    installed(tmp_path, "some_family", PLUGIN)
    config = Qwen3Config(vocab_size=300, head_dim=8, **LLAMA_SIZES)
    save_model(build_model(config), tmp_path / "model")
    path = os.pathsep.join((str(tmp_path), os.getcwd()))
    done = subprocess.run(
        [sys.executable, "-m", "llamaseek", "inspect", str(tmp_path / "model"), "--json"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "Qwen3ForCausalLM"


def test_an_entry_point_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "broken_family", "def register():\n    raise RuntimeError('no weights')\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins.cache_clear()
    message = "llamaseek.families entry point qwen3 fails: RuntimeError: no weights"
    with pytest.raises(UserError, match=message):
        find_family("qwen3")
    assert find_family("llama3") is FAMILIES["llama3"]
    load_plugins.cache_clear()
