"""A sample of a corpus, every document as likely as any other, in one pass and bounded memory."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

from llamaseek.data.documents import Document


def sample(documents: Iterable[Document], count: int, seed: int) -> list[Document]:
    """The `count` documents whose hashed ids are least: the same whatever their order."""
    kept: list[tuple[int, int, Document]] = []  # (-hash, place, document), the largest hash on top
    for place, document in enumerate(documents):
        digest = hashlib.blake2b(f"{seed}/{document.id}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), -place, document)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        elif entry[:2] > kept[0][:2]:
            heapq.heapreplace(kept, entry)
    return [document for _, _, document in sorted(kept, key=lambda entry: entry[:2], reverse=True)]
