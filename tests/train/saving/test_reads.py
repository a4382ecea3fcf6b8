"""What a run reads is never where it removes or replaces files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import save_model
from llamaseek.errors import UserError
from llamaseek.recipe.load import make_recipe, save_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.study.quickstart import quickstart
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.saving.reads import check_reads, read_by
from llamaseek.train.saving.run_folder import RunFolder
from tests.cli.run import Cli
from tests.models.shapes import tiny_model
from tests.train.tiny import recipe

OTHER_TEXT = {
    "tokenizer.chat_template_kwargs",
    "name", "out", "model.family", "model.config", "train.device", "data.columns",
    "lora.targets", "rollout.rewards.column", "rollout.rewards.pattern",
    "sampling.rewards.column", "sampling.rewards.pattern",
    "data.mix", "data.budgets", "data.phases.mix", "data.rows", "data.encoding", "data.ignore",
}  # fmt: skip
"""Keys whose values are text and name nothing that is read."""


def keys_of_text(kind: type[BaseModel], within: str = "") -> Iterator[str]:
    """Every key of a recipe whose value may be any text, or hold some."""
    for name, field in kind.model_fields.items():
        yield from _of(field.annotation, f"{within}{name}")


def _of(kind: Any, key: str) -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from keys_of_text(kind, f"{key}.")
    elif kind in (str, dict[str, Any]):
        yield key
    else:
        yield from dict.fromkeys(found for part in get_args(kind) for found in _of(part, key))


def reading_all(folder: str) -> Recipe:
    """A recipe that reads `folder` by every key there is."""
    reward = {"kind": "model", "model": folder}
    return make_recipe(
        {
            "name": "all", "stage": "sft", "out": "elsewhere",
            "model": {"init_from": folder},
            "tokenizer": {"path": folder, "chat_template": folder},
            "data": {"corpora": {"a": [folder]}},
            "sampling": {"teacher": folder, "rewards": [reward]},
            "distill": {"teacher": folder},
            "rollout": {"rewards": [reward]},
            "train": {"evaluate": {"tasks": [f"{folder}/task.yaml"], "data": [folder]}},
        }
    )  # fmt: skip


def test_every_key_of_text_is_known_to_be_read_or_not() -> None:
    read = {key.replace(".0.", ".") for key, _ in read_by(reading_all("x"))}
    read |= {key for key, _ in read_by(recipe_of_sources(["x"]))}
    assert set(keys_of_text(Recipe)) == OTHER_TEXT | read
    assert not read & OTHER_TEXT and len(read) == 11


def recipe_of_sources(sources: list[str], **more: Any) -> Recipe:
    return make_recipe({"name": "a", "stage": "pretrain", "data": {"sources": sources}, **more})


KEYS = {
    "model.init_from": lambda path: {"model": {"init_from": path}},
    "tokenizer.path": lambda path: {"tokenizer": {"path": path}},
    "tokenizer.chat_template": lambda path: {"tokenizer": {"chat_template": path}},
    "data.corpora": lambda path: {"data": {"corpora": {"a": [path]}}},
    "data.sources": lambda path: {"data": {"sources": [path]}},
    "sampling.teacher": lambda path: {"sampling": {"teacher": path}},
    "train.evaluate.data": lambda path: {
        "train": {"evaluate": {"tasks": ["mmlu"], "data": [path]}}
    },
    "train.evaluate.tasks": lambda path: {"train": {"evaluate": {"tasks": [f"{path}/task.yaml"]}}},
    "distill.teacher": lambda path: {"distill": {"teacher": path}},
    "rollout.rewards.0.model": lambda path: {
        "rollout": {"rewards": [{"kind": "model", "model": path}]}
    },
    "sampling.rewards.0.model": lambda path: {
        "sampling": {"rewards": [{"kind": "model", "model": path}]}
    },
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("within", ["model", "checkpoints/step-4", "adapter", "tokens-x/text"])
def test_refused_by_name(key: str, within: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / within).mkdir(parents=True)
    made = make_recipe(
        {"name": "a", "stage": "sft", "out": str(out), **KEYS[key](str(out / within))}
    )
    with pytest.raises(UserError, match=f"^{key}: .*{within}(/task.yaml)? is where the run writes"):
        check_reads(made)
    beside = KEYS[key](str(tmp_path / "other" / within))
    check_reads(make_recipe({"name": "a", "stage": "sft", "out": str(out), **beside}))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run folder with a model in it."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.safetensors").touch()
    return tmp_path / "run"


def refuses(made: Recipe) -> None:
    with pytest.raises(UserError, match="is where the run writes and replaces files"):
        check_reads(made)


def test_symbolic_links_are_followed(out: Path, tmp_path: Path) -> None:
    """Relatives: a link to the folder, a folder of links, an `out` that is a link."""
    (tmp_path / "link").symlink_to(out / "model")
    refuses(recipe(tmp_path, out=str(out), model={"init_from": str(tmp_path / "link")}))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "model.safetensors").symlink_to(out / "model" / "model.safetensors")
    refuses(recipe(tmp_path, out=str(out), model={"init_from": str(tmp_path / "links")}))
    (tmp_path / "alias").symlink_to(out)
    refuses(recipe(tmp_path, out=str(tmp_path / "alias"), model={"init_from": str(out / "model")}))


def test_what_leads_into_the_run(out: Path, tmp_path: Path) -> None:
    """Relatives: a glob, a folder of data around the run, paths through `..`."""
    (out / "metrics.jsonl").write_text("{}\n")
    refuses(recipe_of_sources([f"{tmp_path}/*/metrics.jsonl"], out=str(out)))
    refuses(recipe_of_sources([str(tmp_path)], out=str(out)))
    refuses(recipe_of_sources([f"{tmp_path}/x/../run/model"], out=str(out)))
    refuses(recipe_of_sources([f"hf://{out}/model?split=train"], out=str(out)))
    (tmp_path / "text").mkdir()
    check_reads(recipe_of_sources([f"{tmp_path}/text", "hf://org/name"], out=str(out)))
    check_reads(recipe(tmp_path, out=str(out), model={"init_from": str(tmp_path)}))


def test_overwriting_keeps_the_base(cli: Cli, model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base" / "model"
    base.parent.mkdir()
    base.symlink_to(model)  # even so it is not to be removed
    made = recipe(tmp_path, out=str(base.parent), model={"init_from": str(base)})
    save_recipe(made, tmp_path / "r.yaml")
    result = cli("pretrain", str(tmp_path / "r.yaml"), "--overwrite")
    assert result.code == 2 and result.err.startswith("error: model.init_from: ")
    assert result.err.count("\n") == 1
    assert (base / "model.safetensors").is_file() and not (base.parent / "recipe.yaml").exists()


def test_a_link_is_removed_and_not_what_it_points_to(model: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path, train__steps=1)
    made.folder.mkdir()
    (made.folder / "model").symlink_to(model)
    (made.folder / "tokens-of-mine").mkdir()
    (made.folder / "notes" / ".partial-draft").mkdir(parents=True)
    train(build_job(made))
    assert (model / "model.safetensors").is_file() and not (made.folder / "model").is_symlink()
    assert (made.folder / "tokens-of-mine").is_dir()
    assert (made.folder / "notes" / ".partial-draft").is_dir()


def test_a_written_recipe_is_not_replaced(cli: Cli, tmp_path: Path) -> None:
    made = recipe(tmp_path, train__steps=1)
    made.folder.mkdir()
    text = f"# my notes\nname: tiny\nstage: pretrain\nout: {made.folder}\n"
    (made.folder / "recipe.yaml").write_text(text)
    result = cli("pretrain", str(made.folder / "recipe.yaml"), "--dry-run")
    assert result.code == 2 and "would be replaced" in result.err
    assert (made.folder / "recipe.yaml").read_text() == text
    save_recipe(made, made.folder / "recipe.yaml")
    assert cli("pretrain", str(made.folder / "recipe.yaml"), "--dry-run").code == 0


def test_quickstart_keeps_another_run(model: Path, tmp_path: Path) -> None:
    other = recipe(tmp_path, out=str(tmp_path / "quick" / "pretrain"), train__steps=1)
    train(build_job(other))
    with pytest.raises(UserError, match="--overwrite starts again"):
        quickstart("llama3", tmp_path / "quick", True, False, lambda stage, found: None)
    assert RunFolder(other.folder).saved_steps() == [1] and (other.folder / "model").is_dir()


def test_converting_keeps_what_it_reads(cli: Cli, tmp_path: Path) -> None:
    """Relatives: an adapter within the target, a source of links into it, the source itself."""
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        save_model(tiny_model("llama3"), folder)
    (target / "adapter").mkdir()
    with pytest.raises(UserError, match=f"contains {target}/adapter, which it is made from"):
        Conversion(source, target, adapter=target / "adapter")
    links = tmp_path / "links"
    links.mkdir()
    (links / "config.json").write_text((source / "config.json").read_text())
    (links / "model.safetensors").symlink_to(target / "model.safetensors")
    for verb in ("convert", "quantize"):
        result = cli(verb, str(links), str(target), "--overwrite")
        assert result.code == 2 and f"contains {links}, which it is made from" in result.err
        result = cli(verb, str(target), str(target), "--overwrite")
        assert result.code == 2 and "it is made from" in result.err
    assert (target / "model.safetensors").is_file()


CLEAN = "name: c\nstage: data\nout: {out}\nsources: {sources}\nstages: {stages}\n"


def test_cleaning_keeps_what_it_reads(cli: Cli, tmp_path: Path) -> None:
    """Relatives: a glob, a folder around the run, a benchmark's and a list's file."""
    out = tmp_path / "web"
    (out / "documents").mkdir(parents=True)
    (out / "stats.json").write_text("{}")  # a run has been here
    text = out / "documents" / "a.txt"
    text.write_text("words " * 100)
    (tmp_path / "b.txt").write_text("words " * 100)
    cases = [
        (f"['{tmp_path}/*/documents/*.txt']", "[]"),
        (f"['{tmp_path}']", "[]"),
        (f"['{tmp_path}/b.txt']", f"[{{decontaminate: {{files: ['{text}']}}}}]"),
        (f"['{tmp_path}/b.txt']", f"[{{url: {{domains: ['@{text}']}}}}]"),
    ]
    for sources, stages in cases:
        (tmp_path / "r.yaml").write_text(CLEAN.format(out=out, sources=sources, stages=stages))
        result = cli("data", "clean", str(tmp_path / "r.yaml"), "--overwrite", "--workers", "1")
        assert result.code == 2 and "would replace its source" in result.err, result.err
        assert text.is_file()
