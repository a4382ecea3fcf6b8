"""The recipe of a quality filter: who judges, by what rubric, how many documents, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from llamaseek.data.clean.recipe import CorpusRecipe
from llamaseek.recipe.reading import Section, read_mapping, validated
from llamaseek.recipe.schema import Device

RUBRIC = """\
Grade how much a reader learns from the text, from 0 to 5. Add a point for each of these: it is
about something; it is written in whole sentences; its facts follow from each other; it explains
rather than advertises; it could stand in a textbook as it is. Gibberish, lists of links and menus
get 0."""


class JudgeRecipe(Section):
    """A chat model and its instructions. `model` is a folder, or with `url` a served model's name.

    The defaults for what is graded are FineWeb-Edu's scale (Penedo et al. 2024, §4): 0 to 5.
    """

    model: str
    url: str | None = None  # of an OpenAI-compatible API, as in http://127.0.0.1:8000/v1
    rubric: str = RUBRIC
    best: int = Field(default=5, ge=1, le=9)  # grades are 0 … best
    sample: int = Field(default=2000, ge=20)  # documents graded
    held_out: float = Field(default=0.2, gt=0, lt=1)  # of these, for the agreement
    characters: int = Field(default=3000, ge=1)  # of a document that the judge reads
    at_once: int = Field(default=64, ge=1)  # questions under way
    device: Device = "auto"  # where a folder's model runs

    @field_validator("rubric")
    @classmethod
    def _from_file(cls, rubric: str) -> str:
        """`@FILE` is the text of a file."""
        if not rubric.startswith("@"):
            return rubric
        try:
            return Path(rubric[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{rubric[1:]} cannot be read ({error.strerror})") from None


class KeepRecipe(Section):
    """What stays: documents of at least a score, or the best share of them."""

    at_least: float | None = None
    share: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one(self) -> KeepRecipe:
        if (self.at_least is None) == (self.share is None):
            raise ValueError("give either at_least or share")
        return self


class QualityRecipe(CorpusRecipe):
    """One run: grade a sample, train a classifier on the grades, score and filter the corpus."""

    stage: Literal["judge"] = "judge"
    seed: int = Field(default=0, ge=0)
    judge: JudgeRecipe
    keep: KeepRecipe


def load_quality_recipe(path: Path, overrides: list[str]) -> QualityRecipe:
    """The recipe of a YAML file with dotted overrides; raises UserError for what is wrong."""
    return validated(QualityRecipe, read_mapping(path, overrides))
