"""Every command in the README runs: the long ones at smoke size."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.run import Cli
from tests.train.tiny import corpus

ROOT = Path(__file__).parents[1]
SMALL = {
    "pretrain": "train.steps=2 train.batch=2 data.mix_bytes=150000 data.length=64 "
    "tokenizer.vocab_size=350 train.warmup=1",
    "sft": "train.steps=2 train.batch=2 'data.rows={tasks: 40}'",
    "dpo": "train.steps=2 train.batch=2 'data.rows={preferences: 20}' data.length=400",
    "quickstart": "--smoke",
    "finetune": "train.steps=2 train.samples=2",
    "generate": "--max-tokens 4",
    "chat": "--max-tokens 4",
}


def commands(document: str) -> list[str]:
    """The lines of a document's sh blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = "".join(blocks).splitlines()
    return [line.partition("  # ")[0].partition("   #")[0].strip() for line in lines if line]


def test_the_readme_opens_with_what_it_is_two_commands_and_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert commands("README.md")[:2] == ["make quickstart", "make test"]
    picture = re.search(r"!\[.*?\]\((.*?)\)", text)
    assert picture is not None and text.index(picture.group()) < 1500
    assert (ROOT / picture.group(1)).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / document).read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_every_llamaseek_command_of_the_readme_runs_in_order(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(corpus(tmp_path)).rename(tmp_path / "tinyshakespeare.txt")
    shutil.copy(ROOT / "tests" / "data" / "tickets" / "tickets.csv", tmp_path)
    wanted = [line for line in commands("README.md") if line.startswith("llamaseek ")]
    assert len(wanted) >= 10
    for line in wanted:
        words = shlex.split(line)[1:]
        small = SMALL.get(words[0], "")
        if "data.sources" in line:
            small = small.replace("data.mix_bytes=150000", "")
        done = cli(*words, *shlex.split(small), stdin="hello\n")
        assert done.code == 0, f"{line}\n{done.err}"
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_make_targets_exist_and_make_what_they_say() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "chat", "test", "lint", "bench"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
