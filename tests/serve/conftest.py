"""A server whose model generates what a test sets, and a tab of the chat page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.browser import Tab, chromium, tab
from tests.serve.running import Running, running
from tests.serve.spoken import STORY, Speech, spoken_service


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def speech() -> Speech:
    return Speech()


@pytest.fixture(scope="module")
def server(speech: Speech) -> Iterator[Running]:
    with running(spoken_service(speech)) as run:
        yield run
        assert run.idle()


@pytest.fixture
def page(browser: Any, server: Running, speech: Speech) -> Iterator[Tab]:
    speech.pause = 0.0
    speech.say(STORY)
    with tab(browser, server.url) as opened:
        yield opened
