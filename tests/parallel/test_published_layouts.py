"""The layouts of Llama 3.1 405B and DeepSeek-V3, whole: as docs/train-plan.md shows them."""

from __future__ import annotations

import os
import re
import resource
import shlex
import time
from pathlib import Path

import pytest

from tests.cli.run import process

DOCUMENT = Path(__file__).parents[2] / "docs" / "train-plan.md"
BLOCK = re.compile(r"```text\n\$ llamaseek (.*?)\n(.*?)```", re.DOTALL)
COMMANDS = [found[1] for found in BLOCK.finditer(DOCUMENT.read_text())]


@pytest.mark.parallel
@pytest.mark.parametrize("command", COMMANDS)
def test_a_published_layout_fits_and_is_what_the_docs_say(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    start = time.monotonic()
    done = process(*shlex.split(command))
    assert done.code == 0, done.err
    assert time.monotonic() - start < 300
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 24e9
    assert "fits 80 GB" in done.out
    printed = "".join(line.rstrip() + "\n" for line in done.out.splitlines())
    text = DOCUMENT.read_text()
    renewed = BLOCK.sub(
        lambda found: (
            f"```text\n$ llamaseek {command}\n{printed}```" if found[1] == command else found[0]
        ),
        text,
    )
    if os.environ.get("LLAMASEEK_WRITE_DOCS"):
        DOCUMENT.write_text(renewed)
    assert renewed == text, "LLAMASEEK_WRITE_DOCS=1 writes the blocks anew"
