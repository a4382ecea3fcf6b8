"""Addresses that say enough: banned sites, pages and words in the URL (FineWeb's rules, §3.2)."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import field_validator

from llamaseek.data.clean.stage import CleaningStage, Reason
from llamaseek.data.documents import Document
from llamaseek.errors import UserError

SEPARATORS = re.compile(r"[^a-z0-9]+")


class Url(CleaningStage):
    """Drops documents by `metadata["url"]`; one without a URL stays.

    Each list holds values, or `@FILE` for the lines of a file. `soft_words` drop a page only when
    `max_soft_words` is exceeded; `subwords` count anywhere, even inside of longer words.
    """

    domains: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    soft_words: tuple[str, ...] = ()
    subwords: tuple[str, ...] = ()
    max_soft_words: int = 1

    @field_validator("domains", "urls", "words", "soft_words", "subwords")
    @classmethod
    def _files_exist(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if entry.startswith("@") and not Path(entry[1:]).is_file():
                raise ValueError(f"{entry[1:]} is not a file")
        return entries

    def __call__(self, document: Document) -> Document | Reason:
        url = document.metadata.get("url")
        return self._judge(url) or document if isinstance(url, str) else document

    def _judge(self, url: str) -> Reason | None:
        for site in _sites(url):
            if site in entries(self.domains):
                return Reason("site", site, "none of the banned domains")
        if url in entries(self.urls):
            return Reason("page", url, "none of the banned pages")
        parts = set(SEPARATORS.split(url.lower()))
        banned = sorted(parts & entries(self.words))
        if banned:
            return Reason("word in the address", banned[0], "none of the banned words")
        soft = sorted(parts & entries(self.soft_words))
        if len(soft) > self.max_soft_words:
            return Reason("words in the address", ", ".join(soft), f"at most {self.max_soft_words}")
        inside = self._inside.search(SEPARATORS.sub("", url.lower()))
        return Reason("part of the address", inside.group(), "none banned") if inside else None

    @cached_property
    def _inside(self) -> re.Pattern[str]:
        parts = [re.escape(entry) for entry in sorted(entries(self.subwords))]
        return re.compile("|".join(parts) or "(?!)")


def _sites(url: str) -> list[str]:
    """`a.b.c` of `https://a.b.c/d`, then `b.c`, then `c`."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:  # brackets that close nothing
        return []
    parts = host.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


@lru_cache(maxsize=16)
def entries(listed: tuple[str, ...]) -> frozenset[str]:
    """The values of a list, those of its files included; `#` begins a comment line."""
    found: set[str] = set()
    for entry in listed:
        found.update(_lines(Path(entry[1:])) if entry.startswith("@") else [entry])
    return frozenset(found)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
