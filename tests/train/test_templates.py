"""Training with a folder's own template and tokenizer: what is in the loss, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.data.batch import IGNORE
from llamaseek.data.mix.encode import Encoder
from llamaseek.data.rankings import preferences, rankings
from llamaseek.data.rows import conversations
from llamaseek.errors import UserError
from llamaseek.text.templates.stored import ChatTemplates
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Trainer, train
from llamaseek.train.rewards.model import RewardModel
from llamaseek.train.saving.state import save_folder
from tests.models.shapes import tiny_model
from tests.text.styles import made, say, source, tokenizer
from tests.train import tiny
from tests.train.test_post import lines, recipe

PAIR = {"prompt": "Sky?", "chosen": "blue", "rejected": "green"}
TALK = {"messages": [say("user", "Sky?"), say("assistant", "blue")]}
TEMPLATES = ChatTemplates({"default": source("smollm2"), "tool_use": "{{ tools }}"})


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A model folder as SmolLM2's, with more end tokens than its tokenizer names."""
    ours, folder = made("smollm2", TEMPLATES), tmp_path / "start"
    sizes = {"vocab_size": ours.vocab_size, "max_position_embeddings": 512}
    save_folder(folder, tiny_model("llama3", **sizes), ours)
    generation = {"eos_token_id": [257, 259], "temperature": 0.2}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def rows_of(at: Path, rows: list[dict[str, Any]]) -> str:
    """A file of rows."""
    path = at / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def from_rows(stage: str, start: Path, row: dict[str, Any], **train: Any) -> Any:
    """A recipe over one row, many times."""
    sources = {"sources": [rows_of(start.parent, [row] * 8)], "rows": {}, "length": 512}
    out = start.parent / stage
    return recipe(stage, str(start), out, "arithmetic", data=sources, train=train)


def text(ours: Tokenizer, batch: Any, kept: torch.Tensor) -> str:
    """The tokens of the first row of which `kept` says the target's place."""
    ids = [int(token) for token, one in zip(batch.targets[0], kept[0], strict=True) if one]
    return ours.decode(ids, skip_special=False)


@pytest.mark.parametrize("style", ["chatml", "smollm2", "zephyr", "llama2", "llama3"])
def test_the_end_of_a_turn_is_in_the_loss_and_what_follows_is_not(style: str) -> None:
    ours = tokenizer(style)
    end = ours.token_text(ours.eos_id)
    answers = (" blue ", " green ") if style == "llama2" else ("blue", "green")
    batch = conversations([("here", TALK)], ours, 400)
    assert text(ours, batch, batch.targets != IGNORE) == answers[0] + end
    for form, ends in (("plain", end), ("llama3", "")):
        pairs = preferences([("here", PAIR)], ours, 400, form)
        assert text(ours, pairs, pairs.targets != IGNORE) == end.join(answers) + end
        counted = pairs.extra["counts_for_preference"] > 0
        assert text(ours, pairs, counted) == ends.join(answers) + ends
    ranked = rankings([("here", PAIR)], ours, 400)
    assert ranked.tokens[0, ranked.extra["ends"][0]].tolist() == [ours.eos_id] * 2


def test_dpo_on_chatml_learns(start: Path) -> None:
    logged = lines(train(build_job(from_rows("dpo", start, PAIR, steps=6, lr=1e-2))).path)
    steps = [line for line in logged if "grad_norm" in line]
    assert steps[0]["loss/dpo"] == pytest.approx(0.6931, abs=1e-3)
    assert steps[0]["grad_norm"] > 0.01 and steps[-1]["loss/dpo"] < 0.6


def test_what_the_folder_says_is_kept_by_training(start: Path) -> None:
    run = train(build_job(from_rows("sft", start, TALK)))
    before, after = Tokenizer.load(start), Tokenizer.load(run.final)
    assert after.chat_templates.named == TEMPLATES.named
    stored = json.loads((run.final / "generation_config.json").read_text())
    assert stored["temperature"] == 0.2 and set(stored["eos_token_id"]) == {257, 259}
    assert after.stop_ids == before.stop_ids
    assert (run.final / "additional_chat_templates" / "tool_use.jinja").is_file()


def test_a_base_model_takes_the_recipes_template(start: Path) -> None:
    (start / "chat_template.jinja").unlink()
    (start / "additional_chat_templates" / "tool_use.jinja").unlink()
    (start / "generation_config.json").write_text("{}")
    config = json.loads((start / "tokenizer_config.json").read_text())
    (start / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<tool_call>"}))
    plain = from_rows("sft", start, TALK)
    with pytest.raises(UserError, match="start: has no chat template"):
        build_job(plain)
    given = plain.model_copy(
        update={"tokenizer": plain.tokenizer.model_copy(update={"chat_template": "chatml"})}
    )
    run = train(build_job(given))
    ours = Tokenizer.load(run.final)
    assert ours.id_of("<|im_end|>") in ours.stop_ids  # or a tuned model would never stop
    stored = json.loads((run.final / "generation_config.json").read_text())
    assert ours.id_of("<|im_end|>") in stored["eos_token_id"]


def test_a_step_whose_batch_has_nothing_in_the_loss_is_an_error(start: Path) -> None:
    job = build_job(from_rows("sft", start, TALK))
    batch = job.train.batch  # type: ignore[attr-defined]
    targets = torch.full_like(batch.targets, IGNORE)
    job.train = replace(job.train, batch=replace(batch, targets=targets))  # type: ignore[type-var]
    with pytest.raises(UserError, match="step 1: no token of its batch is in the loss"):
        Trainer(job).step(0)


def test_a_reward_model_closes_an_answer_as_its_template_does(start: Path) -> None:
    run = train(build_job(from_rows("reward", start, PAIR, steps=1)))
    ours = Tokenizer.load(start)
    assert RewardModel(str(run.final), ours).end == ours.id_of("<|im_end|>")


def test_pretraining_with_another_models_tokenizer(start: Path, tmp_path: Path) -> None:
    """One that has no padding of its own and puts no beginning before texts."""
    changes = {"tokenizer": {"path": str(start)}, "train__steps": 2}
    job = build_job(tiny.recipe(tmp_path, **changes))
    ours = Tokenizer.load(start)
    assert list(Encoder(ours)(iter(["ab"]))) == [[*ours.encode("ab"), 257]]
    assert 256 not in job.train.step(0, 4).tokens
    config = json.loads((train(job).final / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (256, 257)
    assert config.get("pad_token_id") is None
