"""Near duplicates, by the bands of their MinHash signatures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from llamaseek.data.dedup.duplicates import Duplicates, Keys
from llamaseek.data.dedup.minhash import keys as minhash_keys
from llamaseek.data.documents import Document
from llamaseek.data.stage import Reason


class MinHashDedup(Duplicates):
    """Keeps the first document of each cluster; one of fewer than n words has no near duplicate."""

    n: int = Field(default=5, ge=1)  # words a shingle
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1)  # hashes a band
    seed: int = Field(default=1, ge=0)

    @property
    def band_count(self) -> int:
        return self.bands

    def keys(self, documents: Sequence[Document]) -> Keys:
        texts = [document.text for document in documents]
        found, rows = minhash_keys(texts, self.n, self.bands, self.rows, self.seed)
        return Keys(found, rows, np.zeros_like(rows))

    def reason(self, kept: str, bands: int) -> Reason:
        met = f"{bands} of {self.bands} bands with earlier ones, first {kept}"
        return Reason("near duplicate", met, "no band in common")
