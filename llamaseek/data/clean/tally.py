"""What came in, what left and why: counts that add up over shards, with a few examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.clean.stage import Reason
from llamaseek.data.documents import Document

READ = "read"
"""In place of a stage: what left before the first one."""

EXAMPLES = 3
EXCERPT = 300  # characters

Counts = dict[str, int]


@dataclass
class CleaningStats:
    """Counts of one shard, or of many added up. JSON in and out."""

    read: Counts = field(default_factory=dict)  # documents read, by source
    entered: Counts = field(default_factory=dict)  # documents, by stage
    changed: Counts = field(default_factory=dict)
    removed: dict[str, Counts] = field(default_factory=dict)  # by stage and rule
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # by stage and rule
    kept: dict[str, Counts] = field(default_factory=dict)  # documents and characters, by source
    languages: Counts = field(default_factory=dict)
    lengths: dict[str, Counts] = field(default_factory=dict)  # by power of two, before and after

    def leave(self, stage: str, reason: Reason, document: Document) -> None:
        """One document left."""
        _add(self.removed.setdefault(stage, {}), reason.rule)
        shown = self.examples.setdefault(f"{stage}: {reason.rule}", [])
        if len(shown) < EXAMPLES:
            text = document.text[:EXCERPT]
            shown.append({"id": document.id, "reason": str(reason), "text": text})

    def leave_unread(self, source: str, bad: BadRows) -> None:
        """Rows of a source that hold no text left at once, by the stage `READ`."""
        for rule, count in bad.reasons.items():
            _add(self.read, source, count)
            _add(self.removed.setdefault(READ, {}), rule, count)
            shown = self.examples.setdefault(f"{READ}: {rule}", [])
            shown += [{"id": "", "reason": bad.first[rule], "text": ""}][: EXAMPLES - len(shown)]

    def keep(self, document: Document) -> None:
        """One document stays to the end."""
        source = self.kept.setdefault(str(document.metadata.get("source", "")), {})
        _add(source, "documents")
        _add(source, "characters", len(document.text))
        _add(self.languages, str(document.metadata.get("language", "not asked")))
        self.length("after", document)

    def length(self, when: str, document: Document) -> None:
        """Count a document's length in characters."""
        _add(self.lengths.setdefault(when, {}), str(max(len(document.text), 1).bit_length() - 1))

    def count(self, kind: str, name: str) -> None:
        """One more of `read`, `entered` or `changed`."""
        _add(getattr(self, kind), name)


def _add(counts: Counts, name: str, amount: int = 1) -> None:
    counts[name] = counts.get(name, 0) + amount


def total(parts: Iterable[dict[str, Any]]) -> CleaningStats:
    """Tallies added up in order; of the examples the first few."""
    result = CleaningStats()
    for part in parts:
        for name, value in part.items():
            _merge(getattr(result, name), value)
    return result


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        elif isinstance(value, list):
            into[key] = (into.get(key, []) + value)[:EXAMPLES]
        else:
            into[key] = into.get(key, 0) + value
