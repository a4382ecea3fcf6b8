"""The judge's filter: sample, grades, classifier, agreement, what is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from llamaseek.data.clean.classifier import agreement, load_classifier
from llamaseek.data.clean.engine import CleaningWorkers
from llamaseek.data.documents import Document, read_documents
from llamaseek.data.quality.flow import filter_by_judge, sample
from llamaseek.data.quality.recipe import QualityRecipe
from llamaseek.errors import UserError
from llamaseek.report.data_page import write_data_report
from tests.data.planted import gibberish, prose, write_rows

BEST = 3


def grade_of(text: str) -> int:
    """The judge of these tests: how many of the three lines are prose."""
    return sum("#" not in line and "%" not in line for line in text.split("\n"))


class Judge:
    """Grades by `grade_of`; counts what it was asked, and may stop working."""

    def __init__(self, fails_after: int = 10**9) -> None:
        self.asked = 0
        self.fails_after = fails_after

    def __call__(self, texts: Sequence[str]) -> list[int | None]:
        self.asked += len(texts)
        if self.asked > self.fails_after:
            raise KeyboardInterrupt
        return [grade_of(text) for text in texts]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = Random(2)
    rows = []
    for number in range(900):
        lines = [" ".join(prose(rng, 2)) for _ in range(3)]
        for line in range(rng.randrange(4)):
            lines[line] = "# % " + gibberish(rng)[:150]
        rows.append({"id": str(number), "text": "\n".join(lines)})
    path = tmp_path_factory.mktemp("quality") / "web.jsonl"
    write_rows(path, rows)
    return path


def recipe(source: Path, out: Path, **changes: Any) -> QualityRecipe:
    judge = {"model": "none", "best": BEST, "sample": 400, "at_once": 50}
    fields = {"name": "good", "out": str(out), "sources": [str(source)], "judge": judge}
    return QualityRecipe.model_validate(fields | {"keep": {"at_least": 2.5}} | changes)


def test_the_corpus_is_filtered_as_the_judge_would(source: Path, tmp_path: Path) -> None:
    judge = Judge()
    found = filter_by_judge(recipe(source, tmp_path / "out"), judge, CleaningWorkers(1))
    assert judge.asked == 400
    assert found.documents == 80 and sum(map(sum, found.confusion)) == 80
    assert found.correlation > 0.9 and found.f1 > 0.9 and found.exact > found.majority
    documents = {d.id: d.text for d in read_documents([source])}
    kept = [d.id for d in read_documents([tmp_path / "out" / "documents"])]
    good = {name for name, text in documents.items() if grade_of(text) == BEST}
    assert len(good & set(kept)) > 0.9 * len(good)
    assert len(good & set(kept)) > 0.9 * len(kept)
    page = write_data_report(tmp_path / "out").read_text()
    assert "most frequent grade" in page and "quality" in page
    # the same again asks nothing; other limits ask nothing either, and filter anew
    filter_by_judge(recipe(source, tmp_path / "out"), judge, CleaningWorkers(1))
    filter_by_judge(
        recipe(source, tmp_path / "out", keep={"share": 0.1}), judge, CleaningWorkers(1)
    )
    assert judge.asked == 400
    fewer = list(read_documents([tmp_path / "out" / "documents"]))
    assert len(fewer) == pytest.approx(0.1 * len(documents), rel=0.5)


def test_a_stopped_run_asks_for_no_document_twice(source: Path, tmp_path: Path) -> None:
    first, second, whole = Judge(fails_after=200), Judge(), Judge()
    with pytest.raises(KeyboardInterrupt):
        filter_by_judge(recipe(source, tmp_path / "cut"), first, CleaningWorkers(1))
    filter_by_judge(recipe(source, tmp_path / "cut"), second, CleaningWorkers(1))
    filter_by_judge(recipe(source, tmp_path / "whole"), whole, CleaningWorkers(1))
    assert second.asked == 200
    for name in ("weights.safetensors", "agreement.json", "grades.jsonl"):
        files = [tmp_path / run / "classifier" / name for run in ("cut", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_judge_of_one_opinion_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="graded 400 of 400 documents, 1 different"):
        filter_by_judge(
            recipe(source, tmp_path / "a"), lambda texts: [1] * len(texts), CleaningWorkers(1)
        )
    with pytest.raises(UserError, match="graded 0 of 400 documents"):
        filter_by_judge(
            recipe(source, tmp_path / "b"), lambda texts: [None] * len(texts), CleaningWorkers(1)
        )
    with pytest.raises(ValueError, match="give either at_least or share"):
        recipe(source, tmp_path, keep={})


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no quality classifier"):
        load_classifier(str(tmp_path))


def test_a_sample_is_uniform_and_the_same_in_any_order() -> None:
    documents = [Document("", str(number)) for number in range(3000)]
    chosen = sample(documents, 300, 1)
    assert [d.id for d in chosen] == [d.id for d in sample(documents[::-1], 300, 1)]
    assert chosen != sample(documents, 300, 2)
    numbers = np.array([int(d.id) for d in chosen])
    assert len(set(numbers.tolist())) == 300 and 1350 < numbers.mean() < 1650
    assert len(sample(documents[:10], 300, 1)) == 10


def test_agreement_by_hand() -> None:
    found = agreement([0, 1, 2, 3, 3], [0.2, 2.4, 1.9, 2.2, 3.0], at_least=2, best=3)
    assert (found.exact, found.within_one, found.majority) == (0.6, 1.0, 0.4)
    assert (found.precision, found.recall) == (2 / 3, 2 / 3)
    assert found.confusion == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert json.dumps(found.f1)
