"""Console blocks in the docs are what the commands print; their sh blocks run."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from random import Random

import pytest

from llamaseek.checkpoints.hf import save_model
from llamaseek.herd import config_from_sizes
from llamaseek.herd.published import ENTRIES
from llamaseek.models import build_model
from llamaseek.train.saving.state import save_folder
from tests.cli.run import Cli
from tests.data.planted import page, write_rows
from tests.train.tiny import LLAMA_SIZES, tiny_tokenizer

ROOT = Path(__file__).parents[1]
DOCS = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
CONSOLE = re.compile(r"```console\n\$ (.*?)\n(.*?)```", re.DOTALL)
WIDTH = "100"  # columns, as the blocks are written


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the folders that the docs speak of."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("tiny-llama3", "tiny-deepseek-v3"):
        save_model(build_model(ENTRIES[name].config), folder / "models" / name)
    save_base(folder / "runs" / "quickstart-llama3" / "pretrain" / "model")
    (folder / "pages").mkdir()
    rng = Random(3)
    write_rows(folder / "pages" / "a.jsonl", [{"text": page(rng)} for _ in range(60)])
    return folder


def save_base(folder: Path) -> None:
    """A model that has been pre-trained, as far as its files say."""
    tokenizer = tiny_tokenizer()
    config = config_from_sizes("llama3", LLAMA_SIZES | {"vocab_size": tokenizer.vocab_size})
    save_folder(folder, build_model(config), tokenizer)


def printed(command: str, cli: Cli) -> str:
    """What a command prints, without the blanks that pad a table's lines."""
    program, *words = shlex.split(command)
    assert program == "llamaseek"
    done = cli(*words)
    assert done.code == 0, f"{command}\n{done.err}"
    return "".join(line.rstrip() + "\n" for line in done.out.splitlines())


@pytest.mark.parametrize("document", DOCS)
def test_console_blocks_are_what_is_printed(
    document: str, cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", WIDTH)
    path = ROOT / "docs" / document
    text = path.read_text()
    renewed = CONSOLE.sub(
        lambda found: f"```console\n$ {found[1]}\n{printed(found[1], cli)}```", text
    )
    if os.environ.get("LLAMASEEK_WRITE_DOCS"):
        path.write_text(renewed)
    assert renewed == text, "LLAMASEEK_WRITE_DOCS=1 writes the blocks anew"


@pytest.mark.parametrize("document", DOCS)
def test_sh_blocks_run(
    document: str, cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL):
        for line in block.splitlines():
            printed(line.partition("   #")[0], cli)


@pytest.mark.parametrize("document", DOCS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / "docs" / document
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        made = document == "landing.md" and target.startswith("course/")  # by notebooks/site.py
        assert made or "://" in target or (path.parent / target).exists(), target


def test_the_drawn_diagram_is_the_command_s(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "again.svg"
    done = cli("herd", "show", "deepseek-v3", "--diagram", str(target))
    assert done.code == 0
    assert target.read_text() == (ROOT / "docs" / "deepseek-v3.svg").read_text()
