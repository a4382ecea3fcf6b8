"""What may change between a run and its resumption: every key, data, tokenizer, models, code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaseek.errors import UserError
from llamaseek.recipe.keys import (
    BY_CONTENT,
    CONTENTS,
    FIXED,
    FREE,
    check_allowed,
    leaf_keys,
    value_at,
)
from llamaseek.recipe.load import load_recipe, make_recipe, save_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.saving import pins
from llamaseek.train.saving.pins import compare, files_fingerprint, read_pins, rows_fingerprint
from tests.cli.run import Cli
from tests.models.shapes import tiny_model
from tests.train.saving.runs import FEW, copied_run
from tests.train.tiny import recipe

REWARD = {"kind": "model", "model": "judge", "pattern": "a", "weight": 1.0}
EVERYTHING: dict[str, Any] = {
    "name": "all",
    "stage": "sft",
    "model": {"init_from": "base", "extend": {"to": 64}},
    "data": {"phases": [{"start": 0.5, "mix": {"a": 1.0}}], "long": {"tokens": 9, "times": 2}},
    "train": {"evaluate": {"tasks": ["piqa"]}},
    "lora": {},
    "rollout": {"rewards": [REWARD]},
    "sampling": {"teacher": "wise", "rewards": [REWARD]},
    "distill": {"teacher": "wise"},
}


def test_every_key_is_in_exactly_one_class() -> None:
    classes = [*FIXED, *FREE, *BY_CONTENT]
    assert sorted(classes) == sorted(set(classes)) == sorted(leaf_keys())
    assert {key for key in leaf_keys() if key.startswith("parallel.")} <= set(FREE)


def plain(changed: dict[str, Any] = EVERYTHING) -> dict[str, Any]:
    return make_recipe(changed).model_dump(mode="json")


def pinned(data: dict[str, Any]) -> dict[str, Any]:
    return {"recipe": data, "contents": {}, "code": {}, "device": "cpu"}


def changed(key: str) -> dict[str, Any]:
    """The recipe with another value at a key, whatever it is."""
    data = plain()
    *parents, last = key.split(".")
    found: Any = data
    for part in parents:
        found = found[part][0] if isinstance(found[part], list) else found[part]
    found[last] = "another"
    return data


@pytest.mark.parametrize("key", leaf_keys())
def test_a_change_of_a_key_is_told_or_refused(key: str) -> None:
    before, now = pinned(plain()), pinned(changed(key))
    if key in FIXED:
        with pytest.raises(UserError) as error:
            compare(before, now, [])
        assert f"another {key} (" in str(error.value) and "\n" not in str(error.value)
        assert str(error.value).endswith(f"--allow-change {key}")
        section = key.split(".")[0]
        for allowed in ([key], [section]):
            assert [change.key for change in compare(before, now, allowed)] == [key]
        with pytest.raises(UserError):
            compare(before, now, ["train.steps"])
    else:
        assert [change.key for change in compare(before, now, [])] == [key]


def test_a_section_that_comes_or_goes_is_refused() -> None:
    """Relatives: adapters, a teacher, a longer context, one reward more."""
    for key, value in (("lora", None), ("distill", None), ("sampling", None)):
        with pytest.raises(UserError, match=f"another {key}\\."):
            compare(pinned(plain()), pinned(plain({**EVERYTHING, key: value})), [])
    shorter = {**EVERYTHING, "model": {"init_from": "base"}}
    with pytest.raises(UserError, match="another model.extend.to"):
        compare(pinned(plain()), pinned(plain(shorter)), [])
    more = {**EVERYTHING, "rollout": {"rewards": [REWARD, REWARD]}}
    with pytest.raises(UserError, match="another rollout.rewards.kind"):
        compare(pinned(plain()), pinned(plain(more)), [])


@pytest.mark.parametrize("key", CONTENTS)
def test_another_content_is_refused(key: str) -> None:
    before, now = pinned(plain()), pinned(plain())
    before["contents"][key], now["contents"][key] = "sha256:1", "sha256:2"
    with pytest.raises(UserError, match=rf"another {key} \(other content\); allowed: the same"):
        compare(before, now, [])
    assert [change.key for change in compare(before, now, [key])] == [key]


def test_names_to_allow_are_checked() -> None:
    check_allowed(["data", "data.mix", "tokenizer", "train.lr", "rollout.rewards"])
    with pytest.raises(UserError, match="--allow-change 'train.lrs' is unknown; did you mean"):
        check_allowed(["train.lrs"])


def resume(made: Recipe, *allowed: str) -> None:
    train(build_job(made, resume=True), resume=True, allow_change=allowed)


CHANGES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "learning rate": (lambda folder: {"train__lr": 1e-2}, "train.lr"),
    "seed": (lambda folder: {"seed": 1}, "seed"),
    "objective": (lambda folder: {"train__objective": "masked"}, "train.objective"),
    "precision": (lambda folder: {"train__precision": "fp64"}, "train.precision"),
    "batch": (lambda folder: {"train__batch": 2}, "train.batch"),
    "optimizer": (lambda folder: {"train__moments": "bf16"}, "train.moments"),
    "average": (lambda folder: {"train__ema": 0.5}, "train.ema"),
    "rotary base": (
        lambda folder: {"model__config": {**config(folder), "rope_theta": 20000.0}},
        "model.config",
    ),
    "mix": (lambda folder: {"data__holdout": 0.2}, "data.holdout"),
}


def config(folder: Path) -> dict[str, Any]:
    return dict(recipe(folder).model.config)


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_of_another_recipe_is_refused(name: str, tmp_path: Path) -> None:
    change, key = CHANGES[name]
    made = copied_run(tmp_path, train__steps=8)
    other = recipe(tmp_path, **{**FEW, "train__steps": 8, **change(tmp_path)})
    kept = (made.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=f"another {key} .*--allow-change {key}"):
        resume(other)
    assert (made.folder / "metrics.jsonl").read_bytes() == kept  # nothing was written
    assert load_recipe(made.folder / "recipe.yaml", []).train.steps == 6


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_other_text_is_refused_and_may_be_allowed(tmp_path: Path) -> None:
    """One letter of it; the tokenizer stays the one that the weights know."""
    made = copied_run(tmp_path, train__steps=8)
    source = Path(made.data.sources[0])
    edit(source, "the", "thy")
    before = (made.folder / "checkpoints/step-6/tokenizer.json").read_bytes()
    with pytest.raises(UserError, match=r"another data \(other content\); .*--allow-change data$"):
        resume(made)
    resume(made, "data.sources")
    assert (made.folder / "model" / "tokenizer.json").read_bytes() == before
    lines = [json.loads(x) for x in (made.folder / "metrics.jsonl").read_text().splitlines()]
    changes = next(line["changed"] for line in lines if "changed" in line)
    assert "data (other content)" in changes and "train.steps (6 before, 8 now)" in changes


def test_the_same_text_under_another_name_is_taken(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = copied_run(tmp_path, train__steps=8)
    moved = tmp_path / "moved.txt"
    Path(made.data.sources[0]).rename(moved)
    other = recipe(tmp_path, **{**FEW, "train__steps": 8, "data__sources": [str(moved)]})
    resume(other)
    said = next(
        x for x in capfd.readouterr().err.splitlines() if x.startswith("resuming with changes: ")
    )
    assert "data.sources (" in said and "moved.txt" in said and "train.steps (6 before" in said


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    made = copied_run(tmp_path, train__steps=8)
    config = made.folder / "checkpoints" / "step-6" / "tokenizer_config.json"
    edit(config, '"<|end_of_text|>"', '"<|eot_id|>"')
    with pytest.raises(UserError, match=r"another tokenizer \(other content\)"):
        resume(made)


def test_another_version_is_taken_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = copied_run(tmp_path, train__steps=7)
    monkeypatch.setattr(pins, "code_version", lambda: "9.9")
    resume(made)
    assert "now)" in (said := capfd.readouterr().err) and '"llamaseek": "9.9"' in said


def test_a_checkpoint_without_pins_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = copied_run(tmp_path, train__steps=7)
    (made.folder / "checkpoints/step-6/state/pins.json").unlink()
    resume(made)
    assert "does not say what it was trained with" in capfd.readouterr().err


def test_broken_pins_are_a_broken_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Relatives: cut short, no object, a file of the state that is gone."""
    for number, text in enumerate(("{", "[]", "{}")):
        made = copied_run(tmp_path / str(number))
        (made.folder / "checkpoints/step-6/state/pins.json").write_text(text)
        resume(made)
        assert "going on from 4" in capfd.readouterr().err
    made = copied_run(tmp_path / "gone")
    state = made.folder / "checkpoints/step-6/state"
    found = read_pins(state.parent)
    assert {"progress.json", "data.json"} <= found["files"].keys()
    (state / "data.json").write_text("{}")
    with pytest.raises(UserError, match="data.json: is not as it was written"):
        read_pins(state.parent)


def test_models_are_told_apart_by_any_training(tmp_path: Path) -> None:
    """Relatives: a weight, the config, a file more; not the readme."""
    from llamaseek.checkpoints.hf import save_model

    model = tiny_model("llama3")
    save_model(model, tmp_path / "a")
    first = files_fingerprint(tmp_path / "a")
    save_model(model, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("a note")
    assert files_fingerprint(tmp_path / "b") == first
    edit(tmp_path / "b" / "config.json", '"rms_norm_eps": ', '"rms_norm_eps": 1')
    assert files_fingerprint(tmp_path / "b") != first
    for parameter in model.parameters():
        parameter.data += 1e-4
    save_model(model, tmp_path / "c")
    assert files_fingerprint(tmp_path / "c") != first


def test_rows_are_told_apart_by_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' * 100)
    data = {"sources": [str(path)]}
    made = make_recipe({"name": "a", "stage": "sft", "data": data})
    first = rows_fingerprint(made)
    edit(path, '"a"', '"b"')
    assert rows_fingerprint(made) != first
    few, more = (
        make_recipe({"name": "a", "stage": "sft", "data": {"rows": {"tasks": count}}})
        for count in (3, 4)
    )
    assert rows_fingerprint(few) != rows_fingerprint(more)
    assert rows_fingerprint(few) == rows_fingerprint(few)


def test_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    made = copied_run(tmp_path)
    save_recipe(made, tmp_path / "r.yaml")
    words = ["pretrain", str(tmp_path / "r.yaml"), "train.lr=1e-2", "train.steps=7"]
    result = cli(*words, "--allow-change", "train.lr")
    assert result.code == 2 and "--allow-change: is for --resume" in result.err
    result = cli(*words, "--resume", "--allow-change", "train.rate")
    assert result.code == 2 and "'train.rate' is unknown" in result.err
    result = cli(*words, "--resume")
    assert result.code == 2 and result.err.count("error: ") == 1
    assert "another train.lr (0.003 before, 0.01 now)" in result.err.splitlines()[-1]
    assert cli(*words, "--resume", "--allow-change", "train.lr").code == 0
    saved = yaml.safe_load((made.folder / "recipe.yaml").read_text())
    assert value_at(saved, "train.lr") == 0.01
