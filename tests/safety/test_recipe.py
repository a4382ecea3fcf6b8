"""The recipes of the tiny guard, at smoke size: what they make is a guard, if not a good one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.run import Cli

SMALL = ("train.steps=2", "train.batch=2", "train.warmup=1")


def test_the_recipes_make_a_guard(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("data.mix_bytes=120000", "tokenizer.vocab_size=600")
    assert cli("pretrain", "guard-pretrain", *SMALL, *small).code == 0
    assert cli("sft", "guard-policies", *SMALL, "data.rows={policies: 40}").code == 0
    assert cli("sft", "guard", *SMALL, "data.rows={guard: 12}").code == 0
    scored = cli("guard", "runs/guard/model", "--held-out", "6", "--json")
    assert scored.code == 0
    score = json.loads(scored.out)
    assert score["items"] == 6
    assert set(score) == {"items", "verdicts", "exact", "dropped", "alarms"}
    shown = cli("guard", "runs/guard/model", "--held-out", "3")
    assert shown.out.startswith("held-out conversations          3\n")
