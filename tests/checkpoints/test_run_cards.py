"""The model cards of runs of every kind, read back whole by huggingface_hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaseek.checkpoints.sources import shown_name
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.checkpoints.test_push import read_back
from tests.cli.run import Cli
from tests.train.tiny import recipe

STAGES: dict[str, dict[str, Any]] = {
    "sft": {"rows": {"tasks": 16}},
    "dpo": {"rows": {"preferences": 16}},
    "reward": {"rows": {"preferences": 16}},
    "grpo": {"rows": {"arithmetic": 16}},
}
OBJECTIVES = {"sft": "sft", "dpo": "dpo"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_card_of_a_stage(stage: str, model: Path, tmp_path: Path) -> None:
    changed = recipe(
        tmp_path,
        stage=stage,
        name=f"card-{stage}",
        model={"init_from": str(model)},
        data={**STAGES[stage], "length": 256, "holdout": 0.25},
        rollout={
            "samples": 2,
            "max_tokens": 4,
            "eval_prompts": 2,
            "rewards": [{"kind": "numeric"}],
        },
        train__steps=2,
        train__warmup=0,
        train__eval_every=2,
        train__objective=OBJECTIVES.get(stage, "next_token"),
    )
    card = read_back(train(build_job(changed)).final)
    assert card.data.pipeline_tag == (
        "text-classification" if stage == "reward" else "text-generation"
    )
    assert stage in card.data.tags and card.data.eval_results
    kind = next(iter(STAGES[stage]["rows"]))
    assert f"{kind}: 16" in card.text and f"'{kind}': 16" in card.text  # recipe, and data
    assert all(one.metric_args["protocol"] for one in card.data.eval_results)
    for runs_in in () if stage == "reward" else ("llamaseek", "transformers", "vllm"):
        assert runs_in in card.text.lower()


def test_the_cards_of_pretraining_and_of_finetune(model: Path, tmp_path: Path, cli: Cli) -> None:
    assert read_back(model).data.tags == ["llamaseek", "pretrain"]
    rows = tmp_path / "rows.jsonl"
    said = [("user", "What is it?"), ("assistant", "A fox.")]
    row = {"messages": [{"role": role, "content": text} for role, text in said]}
    rows.write_text((json.dumps(row) + "\n") * 24)
    done = cli("finetune", str(model), str(rows), "--out", str(tmp_path / "run"), "train.steps=2")
    assert done.code == 0, done.err
    card = read_back(tmp_path / "run" / "model")
    assert shown_name(tmp_path / "run" / "model") == "run"  # as it is served
    assert "sha256 `" in card.text and "rows.jsonl" in card.text and card.data.eval_results
