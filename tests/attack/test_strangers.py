"""Each malformed file, and the limits that sound files must not reach."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml

from llamaseek.data.documents import read_documents
from llamaseek.recipe.plain import load_yaml
from llamaseek.recipe.reading import bundled
from tests.attack.strangers import SECONDS, measured


def test_malformed_files_end_in_one_line() -> None:
    found = measured(40)  # of all kinds; `make attack WHAT=files` takes all of them
    assert len(found) == 40
    for each in found:
        print(f"{each.seconds:.1f} s {each.megabytes} MB {each.name}: {each.error.strip()[:100]}")
        assert each.kept or (each.seconds > SECONDS and each.code == 2), each  # on a busy machine


@pytest.mark.parametrize("path", bundled().values(), ids=lambda path: path.name)
def test_bundled_recipes_are_read_as_yaml_reads_them(path: Path) -> None:
    assert load_yaml(path.read_text()) == yaml.safe_load(path.read_text())


def test_aliases_and_repetitive_packed_rows_are_read(tmp_path: Path) -> None:
    assert load_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}") == {
        "a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2},
    }  # fmt: skip
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "hello"}\n' * 100_000))
    assert sum(1 for _ in read_documents([path])) == 100_000
    (tmp_path / "b.json").write_text(json.dumps([{"text": "a," * 100}] * 50_000))
    assert sum(1 for _ in read_documents([tmp_path / "b.json"])) == 50_000
