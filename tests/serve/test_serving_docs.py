"""What docs/serving.md shows is what happens: its command, its request, its client, its limits."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai

from llamaseek.checkpoints.hf import save_model
from llamaseek.checkpoints.peft import save_adapter
from llamaseek.models.lora import add_lora
from llamaseek.serve.compiling import LARGEST_REGEX
from llamaseek.serve.options import Limits, ServeOptions
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, make_service, running

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text()


def shown(word: str) -> list[str]:
    """The words of the indented command that begins so."""
    joined = TEXT.replace("\\\n", " ")
    found = re.search(rf"^    ({word} .*)$", joined, re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def test_the_command_the_request_and_the_client(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine-dpo" / "model"
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size)
    save_model(model, folder)
    TOKENIZER.save(folder)
    add_lora(model, 2, 4.0, ["q_proj"])
    save_adapter(model, tmp_path / "runs" / "pirate" / "adapter", str(folder))
    command = [sys.executable, "-m", *shown("llamaseek"), "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving mine at http://127.0.0.1:")
            url = line.split()[-1]
            models = httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
            assert [each["id"] for each in models] == ["mine", "pirate"]
            words = shown("curl")
            place = words[1].replace("http://127.0.0.1:8000", url)
            sent = json.loads(words[words.index("-d") + 1])
            assert httpx.post(place, json=sent, timeout=60).status_code == 200
            block = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
            assert block is not None
            names: dict[str, Any] = {"openai": openai}
            exec(block[1].replace("http://127.0.0.1:8000", url), names)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_the_figures_of_the_limits() -> None:
    limits, options = Limits(), ServeOptions()
    for figure in (
        f"{limits.body_bytes >> 20} MB, {limits.json_depth} levels",
        f"{limits.json_values:,}; {limits.json_containers:,} objects and arrays",
        f"{limits.json_keys:,} keys, {limits.object_keys:,} of one object",
        f"{options.body_timeout:.0f} s to arrive",
        f"{limits.prompts}; `n` {limits.choices}; prompts × `n` {limits.answers}",
        f"{limits.messages:,}; {limits.tools}",
        f"{limits.stops} texts of {limits.stop_length} characters",
        f"| {limits.logprobs} |",
        f"first {limits.internals_tokens} tokens of a text; {limits.internals} requests",
        f"{limits.schema_bytes >> 10} kB, {limits.schema_depth} levels, {LARGEST_REGEX:,}",
        f"{limits.compile_seconds:.0f} s to compile",
        f"{options.timeout:.0f} s",
    ):
        assert figure in TEXT, figure


def test_every_path_and_metric_is_listed() -> None:
    with running(make_service()) as run:
        run.post("/v1/completions", prompt="x")
        for path in run.client.get("/openapi.json").json()["paths"]:
            assert f"`{path.replace('{name}', 'NAME')}`" in TEXT, path
        found = set(re.findall(r"# TYPE llamaseek_(\w+)", run.client.get("/metrics").text))
        for name in found:
            assert name.removesuffix("_created") in TEXT, name
