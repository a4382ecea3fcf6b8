"""`--dry-run` of the training verbs opens every input, and ends as the run itself would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.train.saving.state import save_folder
from tests.cli.run import Cli
from tests.train.tiny import LLAMA_SIZES, tiny_tokenizer

TALK = {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant")]}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("dry"), tiny_tokenizer()
    config = config_from_sizes("llama3", LLAMA_SIZES | {"vocab_size": tokenizer.vocab_size})
    save_folder(folder / "model", build_model(config), tokenizer)
    (folder / "talks.jsonl").write_text((json.dumps(TALK | {"id": 7}) + "\n") * 50)
    (folder / "pairs.jsonl").write_text((json.dumps(PAIR) + "\n") * 50)
    (folder / "sums.csv").write_text("question,answer\n" + "2+2?,4\n" * 50)
    (folder / "story.txt").write_text("Once.")
    return folder


def dry(cli: Cli, place: Path, stage: str, source: str, *more: str) -> list[str]:
    """The command's error stream, line by line, after its exit code."""
    recipe: dict[str, Any] = {"name": "x", "stage": stage, "data": {"length": 128}}
    trained = {"init_from": str(place / "model")}
    recipe["model"] = {"config": LLAMA_SIZES} if stage == "pretrain" else trained
    if stage in ("sft", "dpo"):
        recipe["train"] = {"objective": stage}
    if stage == "grpo":
        recipe["rollout"] = {"rewards": [{"kind": "numeric"}]}
    path = place / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    source = source if source.startswith("[") else f"[{place / source}]"
    done = cli(stage, str(path), f"data.sources={source}", *more, "--dry-run")
    if done.code == 0:
        assert yaml.safe_load(done.out)["name"] == "x"
    else:
        assert done.out == "" and done.err.count("\n") == 1
    return [str(done.code), *done.err.splitlines()]


def test_it_says_what_it_found(cli: Cli, place: Path) -> None:
    code, model, tokenizer, data, unused = dry(cli, place, "sft", "talks.jsonl")
    assert code == "0" and model.startswith(f"model.init_from: {place}/model, 2 layers, ")
    assert tokenizer.endswith("400 ids")
    assert data.startswith("data.sources: 50 rows, ") and "packed rows of 128 tokens" in data
    assert unused.startswith("data: not used, with the count of each: id (50)")
    assert "50 rows" in dry(cli, place, "dpo", "pairs.jsonl")[3]
    assert "50 rows" in dry(cli, place, "reward", "pairs.jsonl")[3]
    found = dry(cli, place, "grpo", "sums.csv")
    assert found[0] == "0" and "49 prompts" in found[3] and len(found) == 4
    assert dry(cli, place, "pretrain", "story.txt") == ["0", "data.sources: 1 file of text"]


@pytest.mark.parametrize(
    ("stage", "source", "more", "message"),
    [
        ("sft", "none.jsonl", [], "none.jsonl: no such file"),
        ("sft", "story.txt", [], "story.txt: not rows; allowed: .jsonl"),
        ("sft", "pairs.jsonl", [], "holds pairs of answers (chosen, rejected), for `dpo`"),
        ("dpo", "talks.jsonl", [], "has no 'chosen'; its columns are messages, id"),
        ("sft", "[]", [], "data.sources: is empty"),
        ("sft", "talks.jsonl", ["model.init_from=nowhere"], "nowhere"),
        ("sft", "talks.jsonl", ["tokenizer.path=nowhere"], "nowhere"),
        ("sft", "talks.jsonl", ["distill.teacher=nowhere"], "nowhere"),
        (
            "grpo",
            "sums.csv",
            ["data.ignore=[a]", "rollout.rewards=[{kind: model, model: no}]"],
            "no",
        ),
        ("pretrain", "none.txt", [], "none.txt: no such file"),
        ("pretrain", "pairs.jsonl", [], "no field 'text'; fields: prompt, chosen, rejected"),
        ("pretrain", "[]", [], "data.sources: is empty"),
    ],
)
def test_what_the_run_would_refuse_is_refused(
    cli: Cli, place: Path, stage: str, source: str, more: list[str], message: str
) -> None:
    code, line = dry(cli, place, stage, source, *more)
    assert code == "2" and message in line


# `data inspect FILE`


def test_a_file_of_rows_is_explained(cli: Cli, place: Path) -> None:
    done = cli("data", "inspect", str(place / "sums.csv"), "--rows", "1")
    assert done.code == 0, done.err
    assert "50 prompts with answers (question as prompt, answer as completion)" in done.out
    assert "user: 2+2?\nassistant: 4\n" in done.out and f"{place}/sums.csv:2" in done.out
    model = ["--model", str(place / "model")]
    for name, text in (("talks.jsonl", "a<|eot_id|>"), ("pairs.jsonl", "c<|eot_id|>")):
        shown = cli("data", "inspect", str(place / name), *model)
        assert shown.code == 0 and text in shown.out and "tokens a row: " in shown.out
    unused = cli("data", "inspect", str(place / "talks.jsonl"), "data.ignore=[id]")
    assert "not used" in unused.out and "data: not used" not in unused.out
    text = cli("data", "inspect", str(place / "story.txt"), *model)
    assert "1 document of plain text" in text.out and "Once." in text.out


def test_what_is_learnt_is_coloured(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = cli("data", "inspect", str(place / "pairs.jsonl"), "--rows", "1")
    assert "\x1b[32mb" in shown.out and "\x1b[32mc" in shown.out and "\x1b[32ma" not in shown.out


def test_columns_of_a_file_can_be_mapped(cli: Cli, place: Path) -> None:
    path = place / "odd.jsonl"
    path.write_text('{"frage": "x", "antwort": "y"}\n')
    refused = cli("data", "inspect", str(path))
    assert refused.code == 2 and "its columns are frage, antwort" in refused.err
    mapped = cli("data", "inspect", str(path), "data.columns={prompt: frage, completion: antwort}")
    assert mapped.code == 0 and "user: x\nassistant: y" in mapped.out
    assert cli("data", "inspect", "quickstart-sft", "--model", "x").code == 2
