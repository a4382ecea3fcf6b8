"""The engine's tests run on the C++ kernels wherever they can be built."""

from __future__ import annotations

import pytest

from llamaseek.kernels.build import builder


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    builder().build()
