"""What every recipe that reads a corpus and leaves a folder of documents has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from llamaseek.section import Section


class CorpusRecipe(Section):
    """Named sources in, a folder out (`out`). `shard_bytes` is about what one task reads."""

    name: str
    out: str | None = None
    sources: dict[str, tuple[str, ...]] = Field(min_length=1)
    shard_bytes: int = Field(default=64_000_000, ge=1)

    @property
    def folder(self) -> Path:
        """Where the documents and the statistics go."""
        return Path(self.out or f"data/{self.name}")

    @field_validator("sources", mode="before")
    @classmethod
    def _as_lists(cls, value: Any) -> Any:
        """`name: path` and `name: [paths]` as the latter; a list alone is a source, `text`."""
        if isinstance(value, list | str):
            value = {"text": value}
        if not isinstance(value, dict):
            return value
        return {name: [paths] if isinstance(paths, str) else paths for name, paths in value.items()}
