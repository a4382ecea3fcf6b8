"""Bad input: one line that says what and where, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.models.score import reward_model
from llamaseek.recipe.load import save_recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.saving import state
from tests.cli.run import Cli, Result
from tests.train.tiny import recipe


def refused(result: Result, *parts: str) -> None:
    """Exit code 2, one line on stderr that names every part."""
    assert result.code == 2, result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err, result.err


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A good recipe on disk; its run folder is `run` beside it."""
    save_recipe(recipe(tmp_path), tmp_path / "recipe.yaml")
    return str(tmp_path / "recipe.yaml")


@pytest.fixture
def nothing_written(tmp_path: Path) -> Any:
    """Checks afterwards that no run folder appeared."""
    yield
    assert not (tmp_path / "run" / "model").exists()
    assert not list((tmp_path / "run").rglob("step-*"))


@pytest.mark.usefixtures("nothing_written")
class TestRecipe:
    def test_unknown_key_names_the_nearest(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "train.learning=1"), "train.learning")
        refused(cli("pretrain", path, "train.warmups=1"), "train.warmups", "'warmup'")

    def test_wrong_type(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "train.steps=many"), "train.steps", "'many'", "integer")

    def test_out_of_range(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "data.holdout=1.5"), "data.holdout", "1.5", "less than 1")

    def test_numbers_that_no_run_can_use(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "train.lr=.inf"), "train.lr", "finite")
        refused(cli("pretrain", path, "train.betas=[0.9, 1.0]"), "train.betas.1", "less than 1")
        refused(cli("pretrain", path, "seed=99999999999999999999"), "seed", "4294967296")
        refused(cli("pretrain", path, "data.length=100000000"), "data.length", "at most")

    def test_an_objective_of_another_stage(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "train.objective=dpo"), "train.objective dpo", "stage dpo")

    def test_a_layout_without_its_ranks(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "parallel.data=2"), "2 ranks", "torchrun --nproc-per-node 2")

    def test_a_model_field_that_does_not_exist(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "model.config.hidden=3"), "hidden")

    def test_missing_recipe(self, cli: Cli) -> None:
        refused(cli("pretrain", "nowhere/recipe.yaml"), "nowhere/recipe.yaml")
        refused(cli("pretrain", "quickstart-lama3"), "quickstart-llama3.yaml")

    def test_not_yaml(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("a: [1")
        refused(cli("pretrain", str(tmp_path / "bad.yaml")), "bad.yaml", "not YAML")

    def test_a_recipe_of_another_stage(self, cli: Cli, path: str) -> None:
        refused(cli("dpo", path), "stage", "pretrain")

    def test_override_without_a_value(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "train.steps"), "'train.steps'", "key=value")


@pytest.mark.parametrize("verb", ["generate", "chat", "guard", "serve"])
@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_devices_that_are_not_there(cli: Cli, model: Path, verb: str, device: str) -> None:
    words = ["a text"] if verb in ("generate", "guard") else []
    done = cli(verb, str(model), *words, "--device", device)
    refused(done, "--device", f"'{device}'", "allowed: auto, cpu")


@pytest.mark.parametrize("verb", ["generate", "chat", "guard", "serve", "inspect"])
def test_what_is_no_model_folder_says_where_the_model_is(
    cli: Cli, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(cli(verb, "nowhere"), "nowhere: no such folder\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(cli(verb, "Llama-3.2-1B"), "meta-llama/Llama-3.2-1B: is not on this machine")
    for file, said in (
        ("model/config.json", f"its model is {tmp_path}/model"),
        ("adapter_config.json", f"llamaseek convert BASE NEW --adapter {tmp_path}"),
        ("consolidated.00.pth", f"llamaseek convert {tmp_path} NEW"),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
        if file == "adapter_config.json" and verb in ("generate", "chat", "serve"):
            # They take an adapter that names its base.
            refused(cli(verb, str(tmp_path)), f"{tmp_path}/{file}: is not JSON")
        else:
            refused(cli(verb, str(tmp_path)), f"{tmp_path}: is", said)
        (tmp_path / file).unlink()


def test_a_draft_model_that_is_not_there(cli: Cli, model: Path) -> None:
    done = cli("generate", str(model), "a", "--speculate", "nowhere")
    refused(done, "--speculate: 'nowhere'", "none, mtp, lookup, a model folder or a .gguf file")


def test_what_serve_cannot_do_is_told_before_a_model_is_loaded(cli: Cli, tmp_path: Path) -> None:
    folder = str(tmp_path)  # without a model
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(cli("serve", folder, "--port", port), f"--port {port}", "already in use")
    refused(cli("serve", folder, "--cache-gb", "nan"), "--cache-gb: nan")
    refused(cli("serve", folder, "--guard-drop", "S1"), "--guard-drop", "--guard is not given")


@pytest.mark.usefixtures("nothing_written")
class TestData:
    def test_missing_file(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "data.sources=[nowhere.txt]"), "nowhere.txt")

    def test_empty_corpus(self, cli: Cli, path: str, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_text("")
        refused(cli("pretrain", path, f"data.sources=[{tmp_path / 'empty.txt'}]"), "empty")

    def test_row_without_text(self, cli: Cli, path: str, tmp_path: Path) -> None:
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"text": "fine"}\n{"title": "no text here"}\n')
        refused(cli("pretrain", path, f"data.sources=[{rows}]"), "rows.jsonl:2", "title")

    def test_nothing_at_all(self, cli: Cli, path: str) -> None:
        refused(cli("pretrain", path, "data.sources=[]"), "data.sources", "data.mix")

    def test_two_answers_to_where_text_comes_from(self, cli: Cli, path: str) -> None:
        for field in ("data.mix.stories=1", "data.corpora.web=[pages]"):
            told = cli("pretrain", path, field)
            refused(told, f"data: sources and {field.split('.')[1]} are both given", "one of them")


def sft(tmp_path: Path, model: Path, rows: list[dict[str, Any]], **more: Any) -> list[str]:
    """An sft command on these rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_recipe(recipe(tmp_path, stage="sft"), tmp_path / "sft.yaml")
    settings = {"data.sources": f"[{file}]", "model.init_from": model, "data.length": 128, **more}
    return ["sft", str(tmp_path / "sft.yaml"), *(f"{k}={v}" for k, v in settings.items())]


GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
MASKED = {"messages": [{"role": "user", "content": "only a question"}]}


def test_all_masked_row_is_shown_and_may_be_skipped(cli: Cli, model: Path, tmp_path: Path) -> None:
    words = sft(tmp_path, model, [GOOD, MASKED])
    refused(cli(*words), "rows.jsonl:2", "only a question")
    assert not (tmp_path / "run" / "model").exists()
    assert cli(*words, "data.bad_rows=skip").code == 0


def test_row_of_no_known_shape(cli: Cli, model: Path, tmp_path: Path) -> None:
    refused(cli(*sft(tmp_path, model, [{"question": "a"}])), "rows.jsonl:1", "messages", "question")


def test_message_of_no_known_role(cli: Cli, model: Path, tmp_path: Path) -> None:
    row = {"messages": [{"role": "bot", "content": "a"}]}
    refused(cli(*sft(tmp_path, model, [row])), "rows.jsonl:1", "role", "bot", "assistant")


def test_row_longer_than_the_length(cli: Cli, model: Path, tmp_path: Path) -> None:
    words = sft(tmp_path, model, [GOOD], **{"data.length": 5})
    refused(cli(*words), "rows.jsonl:1", "data.length allows 5")


def test_rows_longer_than_the_context(cli: Cli, model: Path, tmp_path: Path) -> None:
    words = sft(tmp_path, model, [GOOD], **{"data.length": 100_000})
    refused(cli(*words), "data.length", "100000", "max_position_embeddings")


def test_a_reward_model_does_not_chat(cli: Cli, model: Path, tmp_path: Path) -> None:
    save_model(reward_model(load_model(model)), tmp_path / "judge")
    Tokenizer.load(model).save(tmp_path / "judge")
    for words in (["chat"], ["generate", "Hello"]):
        refused(cli(words[0], str(tmp_path / "judge"), *words[1:]), "reward model")


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to break."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


def test_truncated_checkpoint(cli: Cli, broken: Path) -> None:
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(cli("generate", str(broken), "a"), "model.safetensors")


def test_checkpoint_of_a_wrong_shape(cli: Cli, broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, broken / "model.safetensors")
    refused(cli("generate", str(broken), "a"), "model.norm.weight", "7", "32")


def test_checkpoint_without_a_tensor(cli: Cli, broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors")
    refused(cli("generate", str(broken), "a"), "model.norm.weight")


def test_no_checkpoint_at_all(cli: Cli, tmp_path: Path) -> None:
    refused(cli("chat", str(tmp_path)), str(tmp_path))
    refused(cli("generate", str(tmp_path / "nothing"), "a"), "nothing")


def test_broken_state_cannot_be_resumed(cli: Cli, path: str, tmp_path: Path) -> None:
    assert cli("pretrain", path).code == 0
    refused(cli("pretrain", path, "--resume", "train.steps=5"), "train.steps: 5", "at least the 6")
    state = tmp_path / "run" / "checkpoints" / "step-6" / "state" / "weights"
    for newest in state.glob("*.distcp"):
        newest.write_bytes(newest.read_bytes()[:50])
    refused(cli("pretrain", path, "--resume"), "step-6")


def test_vocabulary_mismatch(cli: Cli, path: str, model: Path) -> None:
    refused(cli("pretrain", path, "model.config.vocab_size=390"), "model.config.vocab_size", "390")


def test_no_disk_space(
    cli: Cli, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state.dcp, "save", full)
    done = cli("pretrain", path)
    last = done.err.splitlines(keepends=True)[-1]  # the progress lines come before it
    refused(Result(done.code, done.out, last), "step-6", "No space left on device")
    assert not list((tmp_path / "run").rglob("step-*"))
    assert not list((tmp_path / "run").rglob(".partial*"))


def test_a_run_that_is_there_is_kept(cli: Cli, path: str) -> None:
    assert cli("pretrain", path, "--auto-resume").code == 0  # nothing there: it begins
    refused(cli("pretrain", path), "--resume", "--overwrite")
    refused(cli("pretrain", path, "--auto-resume", "--overwrite"), "exclude each other")
    again = cli("pretrain", path, "--auto-resume")
    assert again.code == 0 and "1/6" not in again.err
    assert cli("pretrain", path, "--overwrite").code == 0


def test_folder_without_a_run_has_no_report(cli: Cli, tmp_path: Path) -> None:
    refused(cli("report", str(tmp_path)), "holds no run")


def test_settings_out_of_range(cli: Cli, model: Path) -> None:
    refused(cli("generate", str(model), "a", "--temperature", "-1"), "temperature", "-1.0")
    refused(cli("generate", str(model), "a", "--top-p", "0"), "top_p")
    refused(cli("generate", str(model), "word " * 400), "context")
