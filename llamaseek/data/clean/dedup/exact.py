"""Documents whose text is the same, and pages that were fetched more than once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from llamaseek.data.clean.dedup.duplicates import Duplicates, Keys
from llamaseek.data.clean.hashing import text_hash
from llamaseek.data.clean.stage import Reason
from llamaseek.data.documents import Document


class ExactDedup(Duplicates):
    """Keeps the first document of those with one text, but for space around it."""

    def keys(self, documents: Sequence[Document]) -> Keys:
        found = [[text_hash(document.text.strip())] for document in documents]
        rows = np.arange(len(found))
        return Keys(np.array(found, dtype=np.uint64), rows, np.zeros_like(rows))

    def reason(self, kept: str, bands: int) -> Reason:
        return Reason("same text", f"as {kept}", "one document a text")


class UrlDedup(Duplicates):
    """Keeps the newest document of each URL (Llama 3 §3.1.1); one without a URL stays.

    `date` names the metadata field with an ISO date or a number; a document without is the oldest.
    """

    date: str = "date"

    def keys(self, documents: Sequence[Document]) -> Keys:
        rows = [i for i, d in enumerate(documents) if isinstance(d.metadata.get("url"), str)]
        found = [[text_hash(plain_url(documents[row].metadata["url"]))] for row in rows]
        dates = [-seconds(documents[row].metadata.get(self.date)) for row in rows]
        keys = np.array(found, dtype=np.uint64).reshape(-1, 1)
        return Keys(keys, np.array(rows, dtype=np.int64), np.array(dates, dtype=np.int64))

    def reason(self, kept: str, bands: int) -> Reason:
        return Reason("same URL", f"as {kept}", "the newest of each")


def plain_url(url: str) -> str:
    """An address without scheme, `www.`, fragment and last slash, which lead to one page."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return url
    host = parts.netloc.lower().removeprefix("www.")
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{parts.path.rstrip('/')}{query}"


def seconds(date: Any) -> int:
    """Seconds since 1970 of an ISO date or a number; without a zone it is UTC."""
    if isinstance(date, int | float):
        return int(date)
    if isinstance(date, datetime):
        moment = date
    else:
        try:
            moment = datetime.fromisoformat(str(date))
        except ValueError:
            return -(1 << 62)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
