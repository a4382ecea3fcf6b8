"""What is stored in whole numbers has no gradients: no stage starts from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.errors import UserError
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.reading import find_recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.start import trainable
from tests.cli.run import Cli


@pytest.mark.parametrize("bits", ["8", "4"])
def test_training_from_a_packed_folder_is_refused(bits: str, model: Path, tmp_path: Path) -> None:
    packed, wide, fp8 = (tmp_path / name for name in ("packed", "wide", "fp8"))
    Quantization(model, packed, bits, 0).run()
    start = [f"model.init_from={packed}", "data.length=64", f"out={tmp_path / 'run'}"]
    said = f"^model.init_from: {packed} holds weights in 4 or 8 bits, which cannot be trained; "
    for name, more in (
        ("quickstart-sft", []),
        ("quickstart-sft", ["lora={rank: 4}"]),
        ("quickstart-dpo", []),
        ("quickstart-reward", []),
        ("arithmetic-grpo", []),
    ):
        recipe = load_recipe(find_recipe(name), [*start, *more])
        with pytest.raises(UserError, match=said + "allowed: .*llamaseek convert"):
            build_job(recipe)
    assert not (tmp_path / "run").exists()
    Conversion(packed, wide, torch.bfloat16).run()
    Quantization(wide, fp8, "fp8").run()
    for folder in (wide, fp8):  # fp8 is widened
        assert all(p.dtype == torch.float32 for p in trainable(folder).parameters())


def test_pretraining_from_one_is_one_line(model: Path, cli: Cli, tmp_path: Path) -> None:
    Quantization(model, tmp_path / "packed", "8").run()
    text = tmp_path / "text.txt"
    text.write_text("The red fox. " * 400)
    data = (f"data.sources=[{text}]", "data.length=64", f"tokenizer.path={tmp_path / 'packed'}")
    out = (f"model.init_from={tmp_path / 'packed'}", f"out={tmp_path / 'run'}")
    done = cli("pretrain", "tiny-shakespeare", *data, *out)
    assert done.code == 2, done.out
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "which cannot be trained" in lines[0]
