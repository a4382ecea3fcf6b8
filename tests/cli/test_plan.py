"""`llamaseek plan` on the command line: JSON, table, plot, speed, and errors of one line."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run import Cli
from tests.cli.test_errors import refused


def test_json_has_the_promised_keys(cli: Cli) -> None:
    done = cli("plan", "llama-3.1-8b", "--gpu", "h100-80gb", "--task", "sft", "--json")
    found = json.loads(done.out)
    assert {"weights", "gradients", "optimizer", "activations", "cache"} <= set(found["bytes"])
    wanted = {"cache_bytes_per_token", "gpus_for_weights", "gpus_for_task", "layout", "gpu_hours"}
    assert wanted <= set(found)
    assert {"data", "tensor", "pipeline", "expert", "bytes_per_gpu"} <= set(found["layout"])
    assert (
        found["activation_bytes"]["checkpointing_none"]
        > 9 * (found["activation_bytes"]["checkpointing_full"])
    )


def test_the_table_says_what_was_asked_and_what_is_needed(cli: Cli) -> None:
    done = cli("plan", "llama-3.1-70b", "--gpu", "h100", "--batch", "64", "--price", "2")
    assert done.code == 0 and done.err == ""
    for said in (
        "Llama 3.1 70B: inference, bf16, 64 rows of 8,192 tokens",
        "327,680 B",
        "8 × h100",
    ):
        assert said in done.out
    assert "a million tokens" in done.out


def test_tokens_are_trained_on_or_written(cli: Cli) -> None:
    words = ("plan", "llama-3.1-8b", "--gpu", "h100", "--tokens", "1e9", "--task")
    assert "\ntraining  " in cli(*words, "sft").out
    written = cli(*words, "inference").out
    assert "\nwriting  " in written and "training" not in written


def test_params_need_no_model(cli: Cli) -> None:
    done = cli("plan", "--params", "1e12", "--gpu", "h100-80gb")
    assert "GPUs for weights alone  25" in done.out


@pytest.mark.parametrize("model", ["llama-3.1-405b", "deepseek-v3"])
def test_answers_at_once_without_torch(model: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['llamaseek', 'plan', {model!r}, '--gpu', 'h800', '--task', 'pretrain']\n"
        "from llamaseek.cli.main import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'imports torch'\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # The processor's time: what the clock says depends on what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot(cli: Cli, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"memory.{ending}"
    done = cli("plan", "llama-3.1-70b", "--gpu", "h100", "--task", "sft", "--plot", str(path))
    assert done.code == 0 and f"wrote {path}" in done.out
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") if ending == "png" else b"<svg" in data
    assert list(tmp_path.iterdir()) == [path]


BAD = [
    (["llama-3.1-8", "--gpu", "h100"], ["model 'llama-3.1-8'", "'llama-3.1-8b'"]),
    (["llama-3.1-8b", "--gpu", "h100-8gb"], ["gpu 'h100-8gb'", "'h100-80gb'"]),
    (["llama-3.1-8b", "--gpu", ""], ["gpu ''"]),
    (["llama-3.1-8b", "--gpu", "h100", "--task", "inferense"], ["task", "'inference'"]),
    (["llama-3.1-8b", "--gpu", "h100", "--dtype", "bf61"], ["dtype", "'bf16'"]),
    (["llama-3.1-8b", "--gpu", "a100", "--dtype", "fp8"], ["dtype", "fp8", "a100-80gb"]),
    (["llama-3.1-8b", "--gpu", "h100", "--dtype", "int4", "--task", "sft"], ["int4", "bf16"]),
    (["llama-3.1-8b", "--gpu", "h100", "--dtype", "fp8", "--task", "lora"], ["fp8", "bf16"]),
    (["llama-3.1-8b", "--gpu", "h100", "--batch", "0"], ["batch: 0", "above 0"]),
    (["llama-3.1-8b", "--gpu", "h100", "--context", "-1"], ["context: -1"]),
    (["llama-3.1-8b", "--gpu", "h100", "--context", "200000"], ["context", "131,072"]),
    (["llama-3.1-8b", "--gpu", "h100", "--gpus", "0"], ["gpus: 0"]),
    (["llama-3.1-405b", "--gpu", "h100", "--gpus", "8"], ["gpus: 8", "16"]),
    (["llama-3.1-8b", "--gpu", "h100", "--utilization", "1.5"], ["utilization: 1.5"]),
    (["llama-3.1-8b", "--gpu", "h100", "--tokens", "nan"], ["tokens: nan"]),
    (["llama-3.1-8b", "--gpu", "h100", "--price", "-2"], ["price: -2"]),
    (["llama-3.1-8b", "--gpu", "h100", "--checkpointing", "ful"], ["checkpointing", "'full'"]),
    (["--gpu", "h100"], ["model", "--params"]),
    (["llama-3.1-8b", "--params", "1e9", "--gpu", "h100"], ["--params"]),
    (["--params", "inf", "--gpu", "h100"], ["params: inf"]),
    (["--params", "1e12", "--gpu", "h100", "--gpus", "3"], ["gpus: 3", "28"]),
    (["--params", "1e12", "--gpu", "h100", "--plot", "x.png"], ["plot"]),
    (["llama-3.1-8b", "--gpu", "h100", "--plot", "x.txt"], ["plot", "x.txt", ".png"]),
    (["llama-3.1-8b", "--gpu", "h100", "--plot", "nowhere/x.png"], ["nowhere/x.png"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_line(cli: Cli, words: list[str], parts: list[str]) -> None:
    done = cli("plan", *words)
    refused(done, *parts)
    assert done.out == ""


def test_a_terminal_of_80_columns_cuts_no_numbers(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes what it writes to for a terminal
    lines = cli("train-plan", "quickstart-llama3").out.splitlines()
    assert max(map(len, map(plain, lines[2:4]))) <= 80
    assert sum("total" in line for line in lines) == 2


def plain(line: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line)
