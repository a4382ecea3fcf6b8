"""One model's facts as plain values, for programs; and how large numbers are written for people."""

from __future__ import annotations

from typing import Any

from llamaseek.herd.count import cache_numbers_per_token, count_parameters
from llamaseek.herd.published import Entry

BF16_BYTES = 2


def describe(entry: Entry) -> dict[str, Any]:
    """What `herd show --json` prints. `cache_bytes_per_token` is for a bf16 cache."""
    count = count_parameters(entry.config)
    return {
        "name": entry.name,
        "title": entry.title,
        "family": entry.family,
        "repo": entry.repo,
        "parameters": count.total,
        "activated_parameters": count.activated,
        "embedding_parameters": count.embedding,
        "multi_token_parameters": count.multi_token,
        "multi_token_activated_parameters": count.multi_token_activated,
        "published_parameters": entry.published_parameters,
        "parts": count.parts,
        "classes": entry.config.vocab_size,
        "cache_bytes_per_token": BF16_BYTES * cache_numbers_per_token(entry.config),
        "context": entry.context,
        "fine_tuned": entry.fine_tuned,
        "multilingual": entry.multilingual,
        "long_context": entry.long_context,
        "tool_use": entry.tool_use,
        "release": entry.release.isoformat() if entry.release else None,
        "licence": entry.licence,
        "config": entry.config.to_dict(),
    }


def short_count(number: float) -> str:
    """8030261248 → 8.03B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            digits = ".0f" if number >= 100 * size else ".3g"
            return f"{number / size:{digits}}{unit}"
    return f"{number:.0f}"
