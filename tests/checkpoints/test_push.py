"""Model cards read back by huggingface_hub, and uploads to a server that speaks its protocol."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from llamaseek.checkpoints.card import FILE, hub_base, license_of
from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.saving.run_folder import RunFolder
from tests.checkpoints.test_hub import environment, one_line, wait_for
from tests.cli.run import Cli, Result
from tests.hub_server import TOKEN, Hub, running_hub
from tests.train.tiny import recipe

ID = "tester/tuned"


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """LoRA on the shared model's folder, with rows of a file."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = folder / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows.write_text((json.dumps(row) + "\n") * 16)
    changed = recipe(
        folder,
        stage="sft",
        model={"init_from": str(model)},
        lora={"rank": 2},
        data={"sources": [str(rows)], "length": 64, "holdout": 0.25},
        train__steps=2,
        train__warmup=0,
        train__objective="sft",
    )
    return train(build_job(changed))


def read_back(folder: Path) -> ModelCard:
    """A folder's card, which huggingface_hub reads whole: header, figures, text."""
    text = (folder / FILE).read_text()
    card = ModelCard.load(folder / FILE)
    assert str(card.content) == text
    header = yaml.safe_load(text.split("---\n")[1])
    assert card.data.to_dict() == header
    if "model-index" in header:
        name, results = model_index_to_eval_results(header["model-index"])
        assert name == header["model-index"][0]["name"] and results == card.data.eval_results
    assert "## License" in card.text and "## How to run it" in card.text
    return card


def test_the_card_of_a_run_has_its_recipe_data_and_figures(tuned: RunFolder, model: Path) -> None:
    last = json.loads((tuned.path / "metrics.jsonl").read_text().splitlines()[-1])
    for place in (tuned.final, tuned.adapter):
        card = read_back(place)
        figures = {one.metric_name: one.metric_value for one in card.data.eval_results}
        assert figures["val_loss"] == last["val_loss"]
        assert all(one.metric_args["protocol"] for one in card.data.eval_results)
        rows = tuned.path.parent / "rows.jsonl"
        assert sha256(rows.read_bytes()).hexdigest() in card.text
        shown = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
        assert shown["model"]["init_from"] == str(model) and shown["lora"] == {"rank": 2}
    assert card.data.library_name == "peft" and card.data.base_model == str(model)
    assert "vllm serve" in card.text and "--lora-modules" in card.text


def test_cards_of_what_is_made_from_it(tuned: RunFolder, model: Path, tmp_path: Path) -> None:
    assert read_back(model).data.tags == ["llamaseek", "pretrain"]
    Conversion(model, tmp_path / "merged", adapter=tuned.adapter).run()
    Quantization(model, tmp_path / "int8", 8).run()
    for place, what in (("merged", "merged."), ("int8", "matrices in 8 bits.")):
        card = read_back(tmp_path / place)
        assert what in card.text and "### Recipe" in card.text and card.data.eval_results is None


@pytest.mark.parametrize(
    ("base", "repo", "license"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "apache-2.0"),
        ("meta-llama/Llama-3.1-8B@main", "meta-llama/Llama-3.1-8B", "llama3.1"),
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3", "other"),
        ("someone/unknown", "someone/unknown", None),
    ],
)
def test_base_and_license(base: str, repo: str, license: str | None) -> None:
    assert hub_base(base) == repo and license_of(base).get("license") == license


def pushed(hub: Hub, folder: Path, *words: str, **env: str) -> Result:
    command = [sys.executable, "-m", "llamaseek", "push", *words]
    own = environment(hub, folder) | {"HF_TOKEN": TOKEN} | env
    done = subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True)
    return Result(done.returncode, done.stdout, done.stderr)


def test_push_a_model_an_adapter_and_a_gguf_file(
    tuned: RunFolder, model: Path, tmp_path: Path
) -> None:
    GgufConversion(model, tmp_path / "tiny.gguf").run()
    with running_hub() as hub:
        done = pushed(hub, tmp_path, str(tuned.final), ID, "--private")
        assert done.code == 0, done.err
        repo = hub.repos[ID]
        files = repo.commits[repo.refs["main"]]
        assert repo.private and files.pop(".gitattributes") == b""
        assert {name: (tuned.final / name).read_bytes() for name in files} == files
        assert {"config.json", "model.safetensors", "tokenizer.json", FILE} <= set(files)
        done = pushed(hub, tmp_path, str(tuned.adapter), ID, "--revision", "adapter")
        assert done.code == 0, done.err
        branch = repo.commits[repo.refs["adapter"]]
        assert "adapter_model.safetensors" in branch and repo.refs["main"] != repo.refs["adapter"]
        done = pushed(hub, tmp_path, "tiny.gguf", "tester/tiny-GGUF")
        assert done.code == 0, done.err
        gguf = hub.repos["tester/tiny-GGUF"]
        made = gguf.commits[gguf.refs["main"]]
        assert made["tiny.gguf"] == (tmp_path / "tiny.gguf").read_bytes()
        assert b"tags:\n- llamaseek\n- gguf\n" in made[FILE]
        line = one_line(pushed(hub, tmp_path, str(tuned.final), "tester/x", HF_TOKEN=""))
        assert "answers 401" in line and "hf auth login" in line


def test_dry_run_asks_nothing(cli: Cli, tuned: RunFolder) -> None:
    done = cli("push", str(tuned.final), ID, "--dry-run")
    assert done.code == 0 and f"to {ID} (public if it is new)" in done.out
    assert "model.safetensors" in done.out and "state" not in done.out
    assert "OWNER/NAME" in cli("push", str(tuned.final), "no-owner").err
    assert cli("push", str(tuned.path), ID).code == 2


def test_an_upload_that_was_killed_is_gone_on_with(tmp_path: Path, model: Path) -> None:
    """What was stored before the kill is not sent again."""
    Conversion(model, tmp_path / "parts", shard_bytes=60_000).run()
    with running_hub() as hub:
        hub.rate = 40_000  # bytes a second
        words = ["push", str(tmp_path / "parts"), ID]
        own = environment(hub, tmp_path) | {"HF_TOKEN": TOKEN}
        first = subprocess.Popen(
            [sys.executable, "-m", "llamaseek", *words], env=own, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: bool(hub.stored))
        first.send_signal(signal.SIGKILL)
        first.wait()
        kept = set(hub.stored)
        hub.rate = float("inf")
        assert len(hub.repos[ID].commits) == 1  # no commit yet
        hub.asked.clear()
        done = pushed(hub, tmp_path, *words[1:])
        assert done.code == 0, done.err
        sent = {Path(one.path).name for one in hub.asked if one.method == "PUT"}
        files = hub.repos[ID].commits[hub.repos[ID].refs["main"]]
        shards = {sha256(d).hexdigest() for n, d in files.items() if n.endswith(".safetensors")}
        assert len(shards) > 2 and kept and not sent & kept and sent | set(kept) >= shards
