"""The recipe of a cleaning run: sources, and the stages that documents go through in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from llamaseek.data.clean.classifier import Quality
from llamaseek.data.clean.dedup.exact import ExactDedup, UrlDedup
from llamaseek.data.clean.dedup.lines import LineDedup
from llamaseek.data.clean.dedup.near import MinHashDedup
from llamaseek.data.clean.dedup.stage import CorpusStage
from llamaseek.data.clean.filters.c4 import C4, FineWeb
from llamaseek.data.clean.filters.decontaminate import Decontaminate
from llamaseek.data.clean.filters.gopher import GopherQuality, GopherRepetition
from llamaseek.data.clean.filters.language import Language, Personal
from llamaseek.data.clean.filters.url import Url
from llamaseek.data.clean.stage import CleaningStage
from llamaseek.recipe.reading import Section, read_mapping, validated


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


STAGES: dict[str, type[CleaningStage | CorpusStage]] = {
    "url": Url,
    "language": Language,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4": C4,
    "fineweb": FineWeb,
    "personal": Personal,
    "decontaminate": Decontaminate,
    "quality": Quality,
    "line_dedup": LineDedup,
    "url_dedup": UrlDedup,
    "exact_dedup": ExactDedup,
    "minhash": MinHashDedup,
}


class Named(Section):
    """A stage and the name it has in the recipe."""

    name: str
    settings: SerializeAsAny[Section]


class CleanRecipe(CorpusRecipe):
    """One cleaning run."""

    stage: Literal["data"] = "data"
    stages: tuple[Named, ...] = ()

    @field_validator("stages", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """`name`, or `name: {setting: value}`, in order."""
        return [_named(entry) for entry in value] if isinstance(value, list) else value


def _named(entry: Any) -> Named:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"{entry!r} is not one stage; write - name or - name: {{setting: value}}")
    ((name, settings),) = entry.items()
    return Named(name=name, settings=make_stage(str(name), settings or {}))


def make_stage(name: str, settings: dict[str, Any]) -> CleaningStage | CorpusStage:
    """A stage with its settings; raises UserError naming what is unknown or not allowed."""
    from llamaseek.errors import unknown_name

    if name not in STAGES:
        raise unknown_name("stage", name, list(STAGES))
    return validated(STAGES[name], settings, f"stages.{name}")


def load_clean_recipe(path: Path, overrides: list[str]) -> CleanRecipe:
    """The recipe of a YAML file with dotted overrides; raises UserError for what is wrong."""
    return validated(CleanRecipe, read_mapping(path, overrides))


def dump(recipe: CleanRecipe) -> dict[str, Any]:
    """The resolved recipe as plain data, which `load_clean_recipe` reads again."""
    plain = recipe.model_dump(mode="json")
    plain["stages"] = [{stage["name"]: stage["settings"]} for stage in plain["stages"]]
    return plain
