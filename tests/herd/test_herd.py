"""The herd: counts against built models and published numbers, tensors against real folders."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from llamaseek.checkpoints.hf import to_hf
from llamaseek.herd.published import ENTRIES
from llamaseek.herd.show import outline
from llamaseek.herd.tensors import PARTS, cache_numbers_per_token, count_parameters, model_tensors
from llamaseek.models import build_model
from llamaseek.units import count
from tests.cli.run import Cli
from tests.models.shapes import tiny_config

# The number of parameters that the Hub shows for each Llama folder (its safetensors index).
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
}
# The same for deepseek-ai/DeepSeek-V3: F8_E4M3 and BF16 numbers, scales and bias (F32) apart.
DEEPSEEK_STORED = 680_571_043_840 + 3_918_786_560


@pytest.mark.parametrize("name", ENTRIES)
def test_counts_equal_a_model_on_the_meta_device(name: str) -> None:
    config = ENTRIES[name].config
    with torch.device("meta"):
        model = build_model(config)
    count = count_parameters(config)
    assert count.total + count.multi_token == sum(p.numel() for p in model.parameters())
    assert tuple(count.parts) == PARTS
    assert {n: tuple(t.shape) for n, t in to_hf(model)} == dict(model_tensors(config))


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_llama_counts_are_the_published_ones(name: str, published: int) -> None:
    for entry in (name, name.replace("3.1", "3"), f"{name}-instruct"):
        if entry in ENTRIES:
            count = count_parameters(ENTRIES[entry].config)
            assert (
                count.total == count.activated == published == ENTRIES[entry].published_parameters
            )


def test_deepseek_counts_are_the_published_ones() -> None:
    config = ENTRIES["deepseek-v3"].config
    count = count_parameters(config)
    assert round(count.total / 1e9) == 671
    assert round(count.activated / 1e9) == 37
    # The release counts its module with the embedding and head that it shares: 14B, README.
    again = 2 * config.vocab_size * config.hidden_size
    assert count.total + count.multi_token + again == DEEPSEEK_STORED


@pytest.mark.parametrize(
    ("name", "expected"), [("llama-3.1-8b", 131_072), ("llama-3.1-405b", 516_096)]
)
def test_cache_bytes_of_keys_and_values(name: str, expected: int) -> None:
    assert 2 * cache_numbers_per_token(ENTRIES[name].config) == expected


def test_cache_bytes_of_the_latent() -> None:
    assert 2 * cache_numbers_per_token(ENTRIES["deepseek-v3"].config) == 70_272


@pytest.mark.parametrize(
    "config",
    [
        tiny_config("llama3", tie_word_embeddings=True),
        tiny_config("deepseek_v3", num_nextn_predict_layers=2, q_lora_rank=8),
        tiny_config("deepseek_v3", first_k_dense_replace=0, n_shared_experts=0),
        tiny_config("deepseek_v3", first_k_dense_replace=3),
    ],
)
def test_tensors_of_any_config_are_those_of_its_model(config: object) -> None:
    model = build_model(config)  # type: ignore[arg-type]
    assert {n: tuple(t.shape) for n, t in to_hf(model)} == dict(model_tensors(config))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENTRIES)
def test_an_outline_holds_every_number(name: str) -> None:
    config = ENTRIES[name].config
    stored = sum(torch.Size(shape).numel() for _, shape in model_tensors(config))
    assert outline(config).parameters == stored


def test_numbers_for_people() -> None:
    assert [count(n) for n in (8_030_261_248, 405_853_388_800, 1e12, 512)] == [
        "8.03B",
        "406B",
        "1T",
        "512",
    ]


class TestCommands:
    def test_table_lists_every_model(self, cli: Cli) -> None:
        result = cli("herd")
        assert result.code == 0
        assert all(name in result.out for name in ENTRIES)
        assert max(map(len, result.out.splitlines())) <= 80

    def test_json_for_programs(self, cli: Cli) -> None:
        shown = json.loads(cli("herd", "show", "llama-3.1-8b", "--json").out)
        assert shown["parameters"] == shown["activated_parameters"] == PUBLISHED["llama-3.1-8b"]
        assert shown["cache_bytes_per_token"] == 131_072
        assert shown["classes"] == 128_256
        assert len(json.loads(cli("herd", "--json").out)) == len(ENTRIES)

    def test_outline(self, cli: Cli) -> None:
        out = cli("herd", "show", "deepseek-v3").out
        for part in ("671,026,404,352", "11,610,067,968", "kv_a_proj_with_mqa", "experts × 256"):
            assert part in out

    def test_a_drawing_leaves_the_json_alone_and_is_an_svg(self, cli: Cli, tmp_path: Path) -> None:
        drawn = cli("herd", "show", "llama-3.2-1b", "--json", "--diagram", str(tmp_path / "a.svg"))
        assert json.loads(drawn.out)["parameters"] == PUBLISHED["llama-3.2-1b"]
        other = cli("herd", "show", "llama-3.2-1b", "--diagram", str(tmp_path / "a.png"))
        assert other.code == 2 and "--diagram" in other.err and ".svg" in other.err
        assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]

    def test_a_name_that_is_begun_is_completed(self, cli: Cli) -> None:
        assert (
            "did you mean 'llama-3.2-1b', 'llama-3.2-1b-i" in cli("herd", "show", "llama-3.2").err
        )
        assert "did you mean 'llama-3.1-8b'?" in cli("herd", "show", "lama-3.1-8b").err
        assert "known: deepseek-lite, " in cli("herd", "show", "gpt-2").err

    def test_diagram_of_a_folder(self, cli: Cli, tmp_path: Path) -> None:
        config = tiny_config("deepseek_v3", num_nextn_predict_layers=1)
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        picture = tmp_path / "it.svg"
        assert cli("herd", "show", str(tmp_path), "--diagram", str(picture)).code == 0
        root = ElementTree.parse(picture).getroot()
        words = " ".join(root.itertext())
        for part in ("Latent attention", "20 numbers cached", "3 of 8", "Multi-token"):
            assert part in words

    def test_unknown_name_names_the_nearest(self, cli: Cli) -> None:
        result = cli("herd", "show", "lama-3.1-8b")
        assert result.code == 2
        assert "llama-3.1-8b" in result.err and result.err.count("\n") == 1

    def test_broken_config(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
        result = cli("herd", "show", str(tmp_path))
        assert result.code == 2
        assert "mamba" in result.err and "config.json" in result.err

    def test_diagram_that_cannot_be_written(self, cli: Cli, tmp_path: Path) -> None:
        target = tmp_path / "nowhere" / "it.svg"
        result = cli("herd", "show", "tiny-llama3", "--diagram", str(target))
        assert result.code == 2
        assert str(target) in result.err

    def test_answers_without_torch(self) -> None:
        code = (
            "import sys; sys.argv=['llamaseek','herd','show','deepseek-v3','--json'];"
            "from llamaseek.cli.main import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
        )
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        print(f"herd show answered in {time.perf_counter() - started:.2f} s")
