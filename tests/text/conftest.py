"""The two published tokenizers, from the packages that the test extra installs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaseek.text.published import get
from llamaseek.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Meta's tokenizer.model and nothing else."""
    return get("llama3", tmp_path_factory.mktemp("llama3"))[0].parent


@pytest.fixture(scope="session")
def deepseek_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with DeepSeek-V3's tokenizer.json and its config."""
    return get("deepseek_v3", tmp_path_factory.mktemp("deepseek_v3"))[0].parent


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> Tokenizer:
    return Tokenizer.load(llama_folder)


@pytest.fixture(scope="session")
def deepseek(deepseek_folder: Path) -> Tokenizer:
    return Tokenizer.load(deepseek_folder)
