"""A short form of `make check-smollm2`: each stage moves its held-out figure, and peers agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints.gguf_files import needs_smollm2
from tests.smollm2.campaign import GSM8K, PEERS, measure

pytestmark = [needs_smollm2, pytest.mark.slow]
no_gsm8k = pytest.mark.skipif(not GSM8K.is_file(), reason="LLAMASEEK_SHARED_DATA has no gsm8k")


def check_peers(found: dict[str, object]) -> None:
    for peer in PEERS:
        assert str(found[peer]).split(":")[0] in ("equal", "skipped"), found


@no_gsm8k
def test_sft_lowers_the_held_out_loss(tmp_path: Path) -> None:
    found = measure("sft", tmp_path, 0.1)
    assert found["after"] < 0.97 * found["before"], found
    check_peers(found)


def test_dpo_learns_the_preference(tmp_path: Path) -> None:
    found = measure("dpo", tmp_path, 0.3)
    assert found["before"] <= 0.65 and found["after"] >= found["before"] + 0.2, found
    check_peers(found)


def test_grpo_shortens_the_answers(tmp_path: Path) -> None:
    found = measure("grpo", tmp_path, 0.1)
    assert found["before"] <= 0.2 and found["after"] >= found["before"], found
    check_peers(found)
