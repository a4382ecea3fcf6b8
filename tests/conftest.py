"""A trained tiny model, and the command line as a function."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.cli.run import Cli
from tests.train.tiny import recipe


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("pretrain", …)` → code, out, err."""
    return Cli(monkeypatch, capfd)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made by our own training."""
    folder = tmp_path_factory.mktemp("model")
    return train(build_job(recipe(folder))).final
