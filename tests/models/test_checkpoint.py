"""Folders of both families, sharded, in fp8 blocks, from Meta: bit-equal and of equal logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import load_model, save_model, to_hf
from llamaseek.errors import UserError
from llamaseek.herd import Llama3Config
from llamaseek.herd.folder import read_config
from llamaseek.herd.formats import SCALE
from llamaseek.kernels.fp8 import dequantize_fp8
from llamaseek.models import CausalLM
from llamaseek.models.quant.fp8 import Fp8Experts, Fp8Linear, quantize
from tests.models.shapes import reference_model, rows, tiny_config, tiny_model

FAMILIES = {"llama3": {}, "deepseek_v3": {"q_lora_rank": 8}}
SMALL = 20_000  # bytes a shard


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Everything a folder stores, by the library's own reader."""
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard", [SMALL, 10**9])
class TestRoundTrips:
    def test_from_transformers_and_back(self, family: str, shard: int, tmp_path: Path) -> None:
        import transformers

        reference = reference_model(tiny_config(family, **FAMILIES[family]))
        reference.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
        model = load_model(tmp_path / "theirs")
        save_model(model, tmp_path / "ours", shard_bytes=shard)
        assert equal(folder_tensors(tmp_path / "theirs"), folder_tensors(tmp_path / "ours"))
        assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1 or shard > SMALL
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        for name, weight in reference.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), name

    def test_conversion_keeps_every_bit(self, family: str, shard: int, tmp_path: Path) -> None:
        save_model(tiny_model(family), tmp_path / "a", torch.bfloat16)
        Conversion(tmp_path / "a", tmp_path / "b", shard_bytes=shard).run()
        assert equal(folder_tensors(tmp_path / "a"), folder_tensors(tmp_path / "b"))
        Conversion(tmp_path / "b", tmp_path / "c").run()
        first, last = (tmp_path / x / "model.safetensors" for x in "ac")
        assert first.read_bytes() == last.read_bytes()

    def test_dtype(self, family: str, shard: int, tmp_path: Path) -> None:
        model = tiny_model(family)
        save_model(model, tmp_path / "a")
        Conversion(tmp_path / "a", tmp_path / "b", torch.bfloat16, shard_bytes=shard).run()
        stored = folder_tensors(tmp_path / "b")
        for name, tensor in to_hf(model):
            bias = name.endswith("e_score_correction_bias")
            assert torch.equal(stored[name], tensor if bias else tensor.bfloat16()), name
        assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    model = tiny_model("llama3", tie_word_embeddings=True)
    save_model(model, tmp_path)
    assert "lm_head.weight" not in folder_tensors(tmp_path)
    again = load_model(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_multi_token_modules_are_layers_behind_the_main_ones(tmp_path: Path) -> None:
    model = tiny_model("deepseek_v3", num_nextn_predict_layers=1)
    save_model(model, tmp_path)
    own = {n.removeprefix("model.layers.3.") for n in folder_tensors(tmp_path) if ".layers.3." in n}
    assert {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"} <= own
    # DeepSeek's release writes the shared embedding and head once more inside the module.
    stored = folder_tensors(tmp_path)
    stored["model.layers.3.embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
    stored["model.layers.3.shared_head.head.weight"] = stored["lm_head.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors")
    assert equal(dict(to_hf(load_model(tmp_path))), dict(to_hf(model)))


@pytest.mark.parametrize("shard", ["1GB", "100KB"])
def test_modules_that_transformers_left_out_are_not_missed(shard: str, tmp_path: Path) -> None:
    reference = reference_model(tiny_config("deepseek_v3", num_nextn_predict_layers=1))
    reference.save_pretrained(tmp_path, max_shard_size=shard)
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1
    loaded = load_model(tmp_path)
    assert loaded.config.num_nextn_predict_layers == 0
    assert dict(to_hf(loaded)).keys() == folder_tensors(tmp_path).keys()
    # Where no weights are, the config is believed.
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    assert read_config(tmp_path).num_nextn_predict_layers == 1


class TestFp8:
    """DeepSeek's blocks: `inference/kernel.py` weight_dequant, y = x · s over 128 × 128."""

    @staticmethod
    def folder(tmp_path: Path) -> tuple[CausalLM, Path]:
        """A model whose matrices span blocks, stored as DeepSeek's release stores it."""
        model = tiny_model(
            "deepseek_v3",
            hidden_size=160,
            intermediate_size=200,
            moe_intermediate_size=144,
            initializer_range=0.05,
            num_nextn_predict_layers=1,
        )
        save_model(model, tmp_path / "plain", torch.bfloat16)
        tensors = folder_tensors(tmp_path / "plain")
        for name in [n for n in tensors if n.endswith("_proj.weight") and "eh_proj" not in n]:
            tensors[name], tensors[name + SCALE] = quantize(tensors[name])
        config = json.loads((tmp_path / "plain" / "config.json").read_text())
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }
        fp8 = tmp_path / "fp8"
        fp8.mkdir()
        save_file(tensors, fp8 / "model.safetensors", metadata={"format": "pt"})
        (fp8 / "config.json").write_text(json.dumps(config))
        return model, fp8

    def test_dequantized_by_the_formula(self, tmp_path: Path) -> None:
        _, fp8 = self.folder(tmp_path)
        Conversion(fp8, tmp_path / "bf16", torch.bfloat16).run()
        stored, plain = folder_tensors(fp8), folder_tensors(tmp_path / "bf16")
        for name, weight in stored.items():
            if weight.dtype != torch.float8_e4m3fn:
                continue
            scale, expected = stored[name + SCALE], torch.empty(weight.shape)
            for i in range(weight.shape[0]):
                for j in range(0, weight.shape[1], 128):
                    expected[i, j : j + 128] = (
                        weight[i, j : j + 128].float() * scale[i // 128, j // 128]
                    )
            assert torch.equal(plain[name], expected.bfloat16()), name
        assert not any(name.endswith(SCALE) for name in plain)
        config = json.loads((tmp_path / "bf16" / "config.json").read_text())
        assert "quantization_config" not in config

    def test_kept_blocks_run_like_widened_ones(self, tmp_path: Path) -> None:
        model, fp8 = self.folder(tmp_path)
        kept, widened = load_model(fp8, fp8=True).eval(), load_model(fp8).eval()
        kinds = {type(module) for module in kept.modules()}
        assert {Fp8Linear, Fp8Experts} <= kinds
        tokens, positions = rows()
        with torch.no_grad():
            a, b, plain = (m.logits(m(tokens, positions)) for m in (kept, widened, model.eval()))
        error = float((a - b).norm() / b.norm())
        print(
            f"kept against widened {error:.2e}; fp8 against the original "
            f"{float((b - plain).norm() / plain.norm()):.3f}"
        )
        assert error <= 0.02

    def test_kept_blocks_decode_from_the_cache(self, tmp_path: Path) -> None:
        from tests.models.contiguous import ContiguousCache

        _, fp8 = self.folder(tmp_path)
        model = load_model(fp8, fp8=True).eval()
        tokens, positions = rows(batch=2, time=9)
        with torch.no_grad():
            whole = model(tokens, positions)
            cache = ContiguousCache(model.cache_shapes(), 2, 9)
            parts = [model(tokens[:, t : t + 1], positions[:, t : t + 1], cache) for t in range(9)]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)

    def test_kept_blocks_are_saved_as_they_are(self, tmp_path: Path) -> None:
        _, fp8 = self.folder(tmp_path)
        Conversion(fp8, tmp_path / "again").run()
        assert equal(folder_tensors(fp8), folder_tensors(tmp_path / "again"))
        save_model(load_model(fp8, torch.bfloat16, fp8=True), tmp_path / "saved")
        assert equal(folder_tensors(fp8), folder_tensors(tmp_path / "saved"))

    def test_quantize_fills_the_range(self) -> None:
        weight = torch.randn(130, 257, generator=torch.Generator().manual_seed(0))
        numbers, scale = quantize(weight)
        assert scale.shape == (2, 3)
        assert float(numbers.float().abs().max()) == 448
        error = (dequantize_fp8(numbers, scale, torch.float32) - weight).abs() / weight.abs().max()
        assert float(error.max()) < 2**-4

    def test_a_scale_that_is_not_a_number(self, tmp_path: Path) -> None:
        _, fp8 = self.folder(tmp_path)
        tensors = folder_tensors(fp8)
        name = "model.layers.1.self_attn.o_proj.weight"
        tensors[name + SCALE][0, 0] = float("nan")
        save_file(tensors, fp8 / "model.safetensors")
        for fp8_kept in (False, True):
            with pytest.raises(UserError, match="o_proj.weight_scale_inv.*not a finite number"):
                load_model(fp8, fp8=fp8_kept)


def meta_folder(model: CausalLM, folder: Path, ranks: int) -> None:
    """Write a Llama as Meta's code shards it, rotary pairs side by side (model.py's layout)."""
    config = model.config
    assert isinstance(config, Llama3Config)
    names = {
        "self_attn.q_proj": ("attention.wq", 0),
        "self_attn.k_proj": ("attention.wk", 0),
        "self_attn.v_proj": ("attention.wv", 0),
        "self_attn.o_proj": ("attention.wo", 1),
        "mlp.gate_proj": ("feed_forward.w1", 0),
        "mlp.down_proj": ("feed_forward.w2", 1),
        "mlp.up_proj": ("feed_forward.w3", 0),
        "input_layernorm": ("attention_norm", None),
        "post_attention_layernorm": ("ffn_norm", None),
    }
    outside: dict[str, tuple[str, int | None]] = {
        "model.embed_tokens.weight": ("tok_embeddings.weight", 0),
        "model.norm.weight": ("norm.weight", None),
        "lm_head.weight": ("output.weight", 0),
    }
    shards: list[dict[str, Tensor]] = [{"rope.freqs": torch.ones(4)} for _ in range(ranks)]
    for name, tensor in model.state_dict().items():
        if name in outside:
            target, dim = outside[name]
        else:
            _, _, layer, own = name.split(".", 3)
            theirs, dim = names[own.removesuffix(".weight")]
            target = f"layers.{layer}.{theirs}.weight"
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            half = tensor.unflatten(0, (-1, 2, config.head_dim // 2))
            tensor = half.transpose(1, 2).flatten(0, 2)
        parts = [tensor] * ranks if dim is None else tensor.chunk(ranks, dim)
        for shard, part in zip(shards, parts, strict=True):
            shard[target] = part.clone()
    folder.mkdir()
    for rank, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": 16,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }
    (folder / "params.json").write_text(json.dumps(params))


class TestMeta:
    CHANGES: dict[str, Any] = {"vocab_size": 96, "intermediate_size": 112}

    @pytest.mark.parametrize("ranks", [1, 2])
    @pytest.mark.parametrize("tied", [False, True])
    def test_logits_equal_transformers(self, ranks: int, tied: bool, tmp_path: Path) -> None:
        config = tiny_config("llama3", tie_word_embeddings=tied, **self.CHANGES)
        reference = reference_model(config).eval()
        reference.save_pretrained(tmp_path / "hf")
        meta_folder(load_model(tmp_path / "hf"), tmp_path / "meta", ranks)
        if tied:
            for path in (tmp_path / "meta").glob("*.pth"):
                shard = torch.load(path)
                del shard["output.weight"]
                torch.save(shard, path)
        Conversion(tmp_path / "meta", tmp_path / "converted").run()
        assert equal(folder_tensors(tmp_path / "hf"), folder_tensors(tmp_path / "converted"))
        tokens, positions = rows(vocab=96)
        model = load_model(tmp_path / "converted").eval()
        with torch.no_grad():
            theirs = reference(tokens).logits
            ours = model.logits(model(tokens, positions))
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4

    def test_known_sizes_get_their_scaling(self) -> None:
        from llamaseek.checkpoints.meta import _same_sizes, _sizes
        from llamaseek.herd.published import LLAMA_31_8B, LLAMA_32_1B

        published = {
            LLAMA_32_1B: {"dim": 2048, "n_layers": 16, "n_heads": 32, "ffn_dim_multiplier": 1.5},
            LLAMA_31_8B: {
                "dim": 4096,
                "n_layers": 32,
                "n_heads": 32,
                "ffn_dim_multiplier": 1.3,
                "multiple_of": 1024,
            },
        }
        for known, params in published.items():
            rest = {"n_kv_heads": 8, "vocab_size": 128256, "use_scaled_rope": True}
            assert _same_sizes(known, _sizes({**params, **rest}, tied=False))

    def test_a_pickle_with_code_is_not_run(self, tmp_path: Path) -> None:
        meta_folder(tiny_model("llama3", **self.CHANGES), tmp_path / "meta", 1)
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (marker,))

        torch.save({"tok_embeddings.weight": Evil()}, tmp_path / "meta" / "consolidated.00.pth")
        with pytest.raises(UserError, match="contains objects other than tensors"):
            Conversion(tmp_path / "meta", tmp_path / "out")
        assert not marker.exists()

    def test_a_missing_rank(self, tmp_path: Path) -> None:
        meta_folder(tiny_model("llama3", **self.CHANGES), tmp_path / "meta", 2)
        (tmp_path / "meta" / "consolidated.00.pth").unlink()
        with pytest.raises(UserError, match="lacks consolidated.00.pth"):
            Conversion(tmp_path / "meta", tmp_path / "out")
