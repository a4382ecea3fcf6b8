"""The recipe of a cleaning run: sources, and the stages that documents go through in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import SerializeAsAny, field_validator

from llamaseek.data.corpus_recipe import CorpusRecipe
from llamaseek.data.dedup.exact import ExactDedup, UrlDedup
from llamaseek.data.dedup.lines import LineDedup
from llamaseek.data.dedup.near import MinHashDedup
from llamaseek.data.dedup.stage import CorpusStage
from llamaseek.data.filters.c4 import C4
from llamaseek.data.filters.decontaminate import Decontaminate
from llamaseek.data.filters.fineweb import FineWeb
from llamaseek.data.filters.gopher import GopherQuality
from llamaseek.data.filters.language import Language
from llamaseek.data.filters.personal import Personal
from llamaseek.data.filters.repetition import GopherRepetition
from llamaseek.data.filters.url import Url
from llamaseek.data.quality.stage import Quality
from llamaseek.data.stage import Stage
from llamaseek.recipe import Section, read_mapping, validated

STAGES: dict[str, type[Stage | CorpusStage]] = {
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


def make_stage(name: str, settings: dict[str, Any]) -> Stage | CorpusStage:
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
