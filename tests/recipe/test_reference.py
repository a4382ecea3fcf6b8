"""docs/recipes.md is what the schema gives, and no field of the schema lacks a description."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from llamaseek.data.builtin.documents import NAMES
from llamaseek.data.builtin.rows import GENERATORS
from llamaseek.recipe.reference import MODULES, field_docstrings, reference

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_schema_gives() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert page == reference(), "python -m llamaseek.recipe.reference > docs/recipes.md writes it"


def test_every_field_of_every_section_is_described_and_listed() -> None:
    meanings = field_docstrings()
    page = reference()
    for name, section in [pair for module in MODULES for pair in vars(module).items()]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            assert set(meanings.get(name, {})) == set(section.model_fields), name
            for field in section.model_fields:
                assert f"{field}` | " in page, f"{name}.{field}"


def test_types_bounds_and_defaults_are_those_of_the_schema() -> None:
    page = reference()
    for row in (
        "| `stage` | `pretrain`, `sft`, `dpo`, `reward`, `grpo`, `ppo` | required |",
        "| `train.ema` | number > 0, < 1 or none | none |",
        "| `train.betas` | list of 2 × number ≥ 0, < 1 | `[0.9, 0.95]` |",
        "| `data.phases` | list of [data.phases](#dataphases) | `[]` |",
        "| `data.corpora` | mapping to list of string | `{}` |",
        "| `parallel.pipeline` | integer ≥ 1 | `1` |",
    ):
        assert row in page


def test_the_built_in_generators_and_sources_are_named() -> None:
    meanings = field_docstrings()["DataRecipe"]
    for name in GENERATORS:
        assert f"`{name}`" in meanings["rows"], name
    for name in NAMES:
        assert f"`{name}`" in meanings["mix"], name
