"""Quantized folders: what is in them, that others read them, and that answers come from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.quantize import Packing, Plan, Quantization
from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.models.lazy import lazy
from llamaseek.models.quant import rounding
from llamaseek.models.quant.packed import PackedExperts, PackedLinear
from llamaseek.train.saving.state import save_folder
from tests.engine.reference import FAMILIES
from tests.kernels.check import PACKED, TWICE, relative
from tests.models.shapes import tiny_model
from tests.train.tiny import LLAMA_SIZES, tiny_tokenizer

SIZES: dict[str, dict[str, Any]] = {
    "llama3": {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True},
    "deepseek_v3": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_nextn_predict_layers": 1,
    },
}


def quantized(family: str, folder: Path, bits: int, group: int | None) -> Path:
    save_model(tiny_model(family, **SIZES[family]), folder / "plain")
    Quantization(folder / "plain", folder / "packed", bits, group).run()
    return folder / "packed"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
class TestFolder:
    def test_transformers_reads_the_same_model(
        self, family: str, bits: int, group: int | None, tmp_path: Path
    ) -> None:
        """compressed-tensors widens our weights to bf16; so does `convert`, and ours multiply."""
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("compressed_tensors")
        folder = quantized(family, tmp_path, bits, group)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        Conversion(folder, tmp_path / "widened", torch.bfloat16).run()
        widened = load_model(tmp_path / "widened", torch.float32).eval()
        tokens = torch.arange(1, 21)[None]
        with torch.no_grad():
            wanted = theirs.eval()(tokens).logits
            found = widened.logits(widened(tokens, tokens - 1))
        assert (found - wanted).norm() / wanted.norm() < 2e-2

    def test_the_packed_model_is_the_widened_one(
        self, family: str, bits: int, group: int | None, tmp_path: Path
    ) -> None:
        folder = quantized(family, tmp_path, bits, group)
        Conversion(folder, tmp_path / "widened", torch.float32).run()
        widened, model = load_model(tmp_path / "widened").eval(), load_model(folder).eval()
        assert isinstance(model.lm_head, PackedLinear)
        routed = [m for m in model.modules() if isinstance(m, PackedExperts)]
        assert bool(routed) == (family == "deepseek_v3")
        for name, layer in model.named_modules():
            x, plain = torch.randn(5, 64), widened.get_submodule(name)
            if isinstance(layer, PackedLinear):
                x = torch.randn(5, layer.in_features)
                assert relative(layer(x), plain(x)) < PACKED
            elif isinstance(layer, PackedExperts):
                choice = torch.tensor([[0, 1], [1, 2], [1, 3], [0, 3], [7, 1]])
                rest = choice, torch.rand(5, 2), choice.flatten().bincount(minlength=8)
                assert relative(layer(x, *rest), plain(x, *rest)) < TWICE
        request = Request(prompt=[1, 2, 3], params=SamplingParams(max_tokens=6))
        assert len(Engine(model).generate([request])[0].answers[0].tokens) == 6


def test_words_and_scales_are_those_of_the_whole_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few rows at a time or all at once: the same bits; and read again, the scales are gone."""
    monkeypatch.setattr("llamaseek.checkpoints.quantize.NUMBERS", 128 * 64)
    weight = torch.randn(700, 64)
    tensors = Packing(lazy(weight), Plan(4, 32)).tensors("a")
    words, scales = rounding.quantize(weight, 4, 32)
    found = torch.cat([tensors["a.weight_packed"].rows(s, s + 350) for s in (0, 350)])
    assert torch.equal(found, words)
    assert torch.equal(tensors["a.weight_scale"].rows(0, 700), scales)


def test_what_stays_and_what_gets_fewer_bits(tmp_path: Path) -> None:
    folder = quantized("deepseek_v3", tmp_path, 4, 64)
    stored = load_file(folder / "model.safetensors")
    assert stored["model.layers.1.mlp.experts.0.gate_proj.weight_packed"].shape == (32, 8)
    # No group of 64 divides 32 inputs: 8 bits, a scale a row.
    assert stored["model.layers.1.mlp.experts.0.down_proj.weight_packed"].shape == (64, 8)
    assert stored["model.layers.1.mlp.experts.0.down_proj.weight_scale"].shape == (64, 1)
    assert stored["lm_head.weight_packed"].shape == (97, 16)
    for name in ("embed_tokens", "layers.1.mlp.gate", "layers.1.self_attn.kv_b_proj", "norm"):
        assert stored[f"model.{name}.weight"].dtype == torch.float32
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert {g["weights"]["num_bits"] for g in config["config_groups"].values()} == {4, 8}
    model = load_model(folder)
    assert model.config.num_nextn_predict_layers == 1


def test_a_tied_head_is_stored_apart(tmp_path: Path) -> None:
    folder = quantized("llama3", tmp_path, 8, None)
    model = load_model(folder)
    assert not model.config.tie_word_embeddings
    plain = load_model(tmp_path / "plain")
    assert torch.equal(model.model.embed_tokens.weight, plain.model.embed_tokens.weight)


@pytest.mark.parametrize("family", FAMILIES)
class TestFp8:
    """Blocks of 128 × 128; see also `tests/models/test_checkpoint.py`."""

    def folder(self, family: str, folder: Path, hidden: int, inner: int) -> Path:
        sizes = {**SIZES[family], "hidden_size": hidden, "intermediate_size": inner}
        save_model(tiny_model(family, **sizes), folder / "plain")
        Quantization(folder / "plain", folder / "fp8", "fp8").run()
        return folder / "fp8"

    def test_nothing_is_widened_in_memory(self, family: str, tmp_path: Path) -> None:
        folder = self.folder(family, tmp_path, 160, 300)
        stored = load_file(folder / "model.safetensors")
        wide = {name for name, t in stored.items() if t.dtype != torch.float8_e4m3fn}
        left = {name.split(".")[-2] for name in wide if not name.endswith(("inv", "bias"))}
        assert {name for name in left if "norm" not in name} <= {
            "embed_tokens", "lm_head", "gate", "kv_b_proj",
        }  # fmt: skip
        model = load_model(folder, torch.bfloat16, fp8=True).eval()
        kept = [t for t in model.state_dict().values() if t.dtype == torch.float8_e4m3fn]
        fp8 = [t for name, t in stored.items() if name not in wide]
        assert sum(t.numel() for t in fp8) == sum(t.numel() for t in kept) > 0
        request = Request(prompt=[1, 2, 3], params=SamplingParams(max_tokens=6))
        assert len(Engine(model).generate([request])[0].answers[0].tokens) == 6

    def test_transformers_reads_the_same_model(self, family: str, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        folder = self.folder(family, tmp_path, 256, 384)
        config = transformers.FineGrainedFP8Config(dequantize=True)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32
        ).eval()
        model = load_model(folder, fp8=True).eval()
        tokens = torch.arange(1, 21)[None]
        with torch.no_grad():
            wanted = theirs(tokens).logits
            found = model.logits(model(tokens, tokens - 1))
        assert (found - wanted).norm() / wanted.norm() < 1e-5


class TestRefused:
    def test_options(self, tmp_path: Path) -> None:
        folder = quantized("llama3", tmp_path, 8, None)
        plain = tmp_path / "plain"
        for bits, group, said in ((3, None, "--bits"), (4, 48, "--group"), (8, 48, "--group")):
            with pytest.raises(UserError, match=said):
                Quantization(plain, tmp_path / "new", bits, group)
        with pytest.raises(UserError, match="--group: 64"):
            Quantization(plain, tmp_path / "new", "fp8", 64)
        with pytest.raises(UserError, match="--calibrate: .*allowed: --bits 8 or 4"):
            Quantization(plain, tmp_path / "new", "fp8", calibrate=tmp_path / "text.txt")
        with pytest.raises(UserError, match="is already quantized"):
            Quantization(folder, tmp_path / "new", 4)
        Quantization(plain, tmp_path / "fp8", "fp8").run()
        with pytest.raises(UserError, match="is already quantized"):
            Quantization(tmp_path / "fp8", tmp_path / "new", "fp8")
        with pytest.raises(UserError, match="--overwrite"):
            Quantization(plain, folder, 4).run()
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("name", "broken", "said"),
        [
            ("weight_packed", torch.zeros(64, 9, dtype=torch.int32), "4 or 8 bits"),
            ("weight_packed", torch.zeros(64, 16, dtype=torch.int64), "I32"),
            ("weight_scale", torch.zeros(64, 3, dtype=torch.bfloat16), "one a row"),
            ("weight_scale", torch.zeros(64, 1), "BF16"),
            ("weight_scale", None, "lacks"),
        ],
    )
    def test_broken_folders(
        self, name: str, broken: torch.Tensor | None, said: str, tmp_path: Path
    ) -> None:
        folder = quantized("llama3", tmp_path, 8, None)
        tensors = load_file(folder / "model.safetensors")
        key = f"model.layers.0.self_attn.q_proj.{name}"
        tensors.pop(key)
        if broken is not None:
            tensors[key] = broken
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(UserError, match=f"q_proj.{name}.*{said}|{said}.*q_proj.{name}"):
            load_model(folder)

    def test_another_layout(self, tmp_path: Path) -> None:
        folder = quantized("llama3", tmp_path, 8, None)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq"}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="quantization_config"):
            load_model(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_calibration_lowers_the_change_of_logits(family: str, tmp_path: Path) -> None:
    """On tokens like those that it is calibrated on, whose embeddings have six dimensions; routed
    and shared experts are rounded so too."""
    torch.manual_seed(0)
    model = tiny_model(family, **SIZES[family]).eval()
    model.model.embed_tokens.weight.data = torch.randn(97, 6) @ torch.randn(6, 64)
    save_model(model, tmp_path / "plain")
    rows, tokens = torch.randint(0, 97, (2, 8, 64)).unbind()
    positions = torch.arange(64).expand(8, -1)
    changes = []
    for name in ("plainly", "calibrated"):
        work = Quantization(tmp_path / "plain", tmp_path / name, 4, 32)
        work.rows = rows if name == "calibrated" else None
        work.run()
        found = load_model(tmp_path / name).eval()
        with torch.no_grad():
            change = found.logits(found(tokens, positions)) - model.logits(model(tokens, positions))
        changes.append(float(change.norm()))
    assert changes[1] < 0.8 * changes[0]


def test_inputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama3", **SIZES["llama3"])
    model.model.embed_tokens.weight.data[5] = torch.inf
    save_model(model, tmp_path / "plain")
    work = Quantization(tmp_path / "plain", tmp_path / "new", 4, 32)
    work.rows = torch.full((1, 8), 5)
    with pytest.raises(UserError, match="q_proj.weight: its inputs .* are not finite"):
        work.run()
    assert not (tmp_path / "new").exists()


def test_a_text_to_calibrate_on_has_a_row_or_more(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = config_from_sizes("llama3", LLAMA_SIZES | {"vocab_size": tokenizer.vocab_size})
    save_folder(tmp_path / "plain", build_model(config), tokenizer)
    text = tmp_path / "short.txt"
    text.write_text("A fox.")
    with pytest.raises(UserError, match=r"short.txt: has \d tokens; calibration needs 512 or more"):
        Quantization(tmp_path / "plain", tmp_path / "new", 4, calibrate=text)
    text.write_text("A fox. " * 600)
    work = Quantization(tmp_path / "plain", tmp_path / "new", 4, calibrate=text)
    assert work.rows is not None and work.rows.shape[1] == 512
    assert work.rows[0].tolist() == tokenizer.encode("A fox. " * 600)[:512]
