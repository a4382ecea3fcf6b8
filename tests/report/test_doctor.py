"""`llamaseek doctor`: what is there, and the command for what is not."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llamaseek.kernels.build import library_path
from llamaseek.report import doctor
from llamaseek.workers.sandbox import LETS_THROUGH, Confinement, Sandbox
from tests.cli.run import Cli


def facts(cli: Cli) -> dict[str, list[dict[str, Any]]]:
    done = cli("doctor", "--json")
    assert done.code == 0, done.err
    found: dict[str, list[dict[str, Any]]] = {}
    for fact in json.loads(done.out):
        found.setdefault(fact["subject"], []).append(fact)
    return found


def test_it_says_what_this_machine_has(cli: Cli) -> None:
    found = facts(cli)
    torch = metadata.version("torch")
    assert f"torch {torch}" in found["packages"][0]["found"]
    compiled = library_path().exists()
    assert ("compiled (" in found["C++ kernels"][0]["found"]) == compiled
    sandbox = Sandbox()
    mode = sandbox.confinement()
    sandbox.close()
    assert found["sandbox"][0]["found"].endswith(mode.mode)
    assert found["sandbox"][0]["good"] == (not mode.lets_through)
    assert {"llamaseek", "processor", "memory", "cache folder", "extra data"} <= found.keys()
    assert not {"extra test", "extra dev"} & found.keys()
    text = cli("doctor").out
    assert all(subject in text for subject in found) and "Traceback" not in text


def test_what_is_missing_comes_with_its_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASEEK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "trafilatura")
    monkeypatch.setattr(Sandbox, "_try_modes", lambda self: Confinement("limits", ("bwrap: no",)))
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else which(name))
    found = facts(cli)
    assert found["extra data"][0] == {
        "subject": "extra data", "found": "lacks trafilatura", "good": False,
        "command": "pip install 'llamaseek[data]'",
    }  # fmt: skip
    first, why, *through = found["sandbox"]
    assert first["command"] == "apt install bubblewrap" and "bwrap: no" in why["found"]
    assert [each["found"] for each in through] == [
        f"lets through: {what}" for what in LETS_THROUGH["limits"]
    ]
    assert found["cache folder"][0]["found"].startswith(str(tmp_path / "cache"))
    assert "--  extra data" in cli("doctor").out
