"""The pages on post-training: their commands run, in their order, at a size of seconds."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.train.saving.state import save_folder
from tests.cli.run import Cli
from tests.train.tiny import LLAMA_SIZES, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "post-training"
ORDER = ("sft", "lora", "reward", "dpo", "rejection-sampling", "ppo", "grpo", "distillation",
         "averaging")  # fmt: skip
SMALL = [
    "train.steps=2",
    "train.batch=8",
    "train.micro_batch=8",
    "train.warmup=1",
    "train.eval_every=2",
]
SAMPLED = ["rollout.eval_prompts=4", "rollout.max_tokens=4"]
GSM8K = {"question": "How many are 2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}
SEED = {"instruction": "Sort.", "instances": [{"input": "3 1", "output": "1 3"}]}


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)
    return [shlex.split(line)[1:] for line in "".join(blocks).splitlines()]


def smaller(words: list[str]) -> list[str]:
    """What makes a command short without changing what it does."""
    verb, recipe = words[0], words[1]
    if verb == "average":
        return []
    if "sources" in " ".join(words):
        return SMALL
    rows = "preferences" if recipe.startswith("quickstart") else "arithmetic"
    small = [*SMALL, f"data.rows={{{rows}: 24}}"]
    if verb == "pretrain":
        return [*SMALL, "data.mix_bytes=20000"]
    if "rejection" in recipe:  # a model of two steps has no answer that is right
        return [*small, "sampling.least=null"]
    return small + (SAMPLED if verb in ("grpo", "ppo") else [])


def make_place(folder: Path) -> None:
    """The files that the pages speak of, and an instruct model to begin with."""
    (folder / "gsm8k").mkdir()
    (folder / "gsm8k" / "train.jsonl").write_text((json.dumps(GSM8K) + "\n") * 9)
    (folder / "alpaca_seed_tasks.jsonl").write_text((json.dumps(SEED) + "\n") * 9)
    tokenizer = tiny_tokenizer()
    sizes = {**LLAMA_SIZES, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 512}
    model = build_model(config_from_sizes("llama3", sizes))
    save_folder(folder / "runs/quickstart-llama3/instruct/model", model, tokenizer)


@pytest.mark.slow
def test_every_command_runs_in_order(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_place(tmp_path)
    assert {path.stem for path in PAGES.glob("*.md")} == {*ORDER, "index"}
    for page in ORDER:
        for words in commands(page):
            done = cli(*words, *smaller(words))
            assert done.code == 0, f"{page}: {words}\n{done.err}"


def test_links_lead_somewhere() -> None:
    for path in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
