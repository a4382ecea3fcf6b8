"""Headless Chromium before a server of ours, watching what it asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page of a fresh profile; nothing it asks for may leave the server's host."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(20_000)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)

    def say(self, text: str) -> None:
        """Type a message and send it."""
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def answered(self, count: int = 1) -> str:
        """Wait for so many whole answers; the text of the last."""
        self.page.locator("article.assistant .figures").nth(count - 1).wait_for()
        return str(self.page.locator("article.assistant .text").last.text_content())

    def ask(self, text: str, count: int = 1) -> str:
        """Send a message and wait for its answer."""
        self.say(text)
        return self.answered(count)

    def close(self) -> None:
        """End, with nothing asked of others and no script failed."""
        self.context.close()
        assert self.asked
        assert [url for url in self.asked if not url.startswith(self.url)] == []
        assert self.errors == []


@contextmanager
def tab(browser: Any, url: str, **context: Any) -> Iterator[Tab]:
    """A tab, checked at its end."""
    opened = Tab(browser, url, **context)
    yield opened
    opened.close()
