"""From a judge to a filtered corpus: grades, classifier, agreement, then the cleaning run.

The judge is passed in: texts to grades, None where it gave none.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llamaseek.data.clean.classifier import (
    Agreement,
    Classifier,
    agreement,
    train_classifier,
)
from llamaseek.data.clean.engine import CleaningWorkers
from llamaseek.data.clean.plan import fingerprint, make_plan
from llamaseek.data.clean.recipe import CleanRecipe
from llamaseek.data.clean.run import OnStep, clean
from llamaseek.data.documents import Document
from llamaseek.data.quality.recipe import QualityRecipe
from llamaseek.errors import UserError
from llamaseek.files import write_json


def sample(documents: Iterable[Document], count: int, seed: int) -> list[Document]:
    """The `count` documents whose hashed ids are least: the same whatever their order."""
    kept: list[tuple[int, int, Document]] = []  # (-hash, place, document), the largest hash on top
    for place, document in enumerate(documents):
        digest = hashlib.blake2b(f"{seed}/{document.id}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), -place, document)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        elif entry[:2] > kept[0][:2]:
            heapq.heapreplace(kept, entry)
    return [document for _, _, document in sorted(kept, key=lambda entry: entry[:2], reverse=True)]


Grader = Callable[[Sequence[str]], list[int | None]]
Watch = Callable[[int, int], None]
"""Called with documents graded, documents in all."""

FEWEST = 20  # grades that a classifier can be trained on


def filter_by_judge(
    recipe: QualityRecipe,
    grade: Grader,
    pool: CleaningWorkers,
    on_grade: Watch | None = None,
    on_step: OnStep | None = None,
) -> Agreement:
    """Run or continue a recipe; its folder holds the kept documents and `classifier/`.

    Grades are kept as they come, so that a run that was stopped asks for no document twice.
    Raises UserError if the judge grades too few documents, or all of them the same.
    """
    folder = recipe.folder / "classifier"
    mark = _mark(recipe)
    found = _settled(recipe, folder, mark)
    anew = found is None
    if found is None:
        _make_folder(folder, mark)
        documents, grades = _graded(recipe, grade, folder, on_grade or (lambda done, total: None))
        found = _learn(recipe, documents, grades, folder)
    _filter(recipe, folder, found["at_least"], pool, anew, on_step)
    return Agreement(**{name: found[name] for name in Agreement.__dataclass_fields__})


def _mark(recipe: QualityRecipe) -> str:
    """Changes with what is judged, by whom and how; not with what is kept of it."""
    asked = recipe.judge.model_dump() | {"seed": recipe.seed}
    plain = json.dumps([asked, fingerprint(recipe.sources, None)], sort_keys=True)
    return hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()


def _settled(recipe: QualityRecipe, folder: Path, mark: str) -> dict[str, Any] | None:
    """What an earlier run of this recipe found out, if it came so far."""
    if not _marked(folder, mark):
        return None
    try:
        found: dict[str, Any] = json.loads((folder / "agreement.json").read_text())
    except (OSError, ValueError):
        return None
    return found if found["keep"] == recipe.keep.model_dump() else None


def _marked(folder: Path, mark: str) -> bool:
    """Whether the folder is about this very judgment."""
    try:
        return (folder / "mark").read_text() == mark
    except OSError:
        return False


def _make_folder(folder: Path, mark: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _marked(folder, mark):
            for name in ("grades.jsonl", "agreement.json"):
                (folder / name).unlink(missing_ok=True)
            (folder / "mark").write_text(mark)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def _graded(
    recipe: QualityRecipe, grade: Grader, folder: Path, watch: Watch
) -> tuple[list[Document], list[int]]:
    """The sampled documents that got a grade, and their grades, asked for in batches."""
    judge = recipe.judge
    units = chain.from_iterable(make_plan(recipe.sources, recipe.shard_bytes))
    documents = sample(
        chain.from_iterable(unit.documents() for unit in units), judge.sample, recipe.seed
    )
    path = folder / "grades.jsonl"
    grades = _read_grades(path)
    left = [document for document in documents if document.id not in grades]
    for at in range(0, len(left), judge.at_once):
        watch(len(documents) - len(left) + at, len(documents))
        batch = left[at : at + judge.at_once]
        found = grade([document.text[: judge.characters] for document in batch])
        with path.open("a") as file:
            for document, given in zip(batch, found, strict=True):
                grades[document.id] = given
                file.write(json.dumps({"id": document.id, "grade": given}) + "\n")
    watch(len(documents), len(documents))
    kept = [(d, g) for d in documents if (g := grades[d.id]) is not None]
    if len(kept) < FEWEST or len({g for _, g in kept}) < 2:
        raise UserError(
            f"judge: graded {len(kept)} of {len(documents)} documents, "
            f"{len({g for _, g in kept})} different grades; a classifier needs at least {FEWEST} "
            "grades, two of them different"
        )
    return [d for d, _ in kept], [g for _, g in kept]


def _read_grades(path: Path) -> dict[str, int | None]:
    """Grades given before; a last line cut short by a kill is left out."""
    found: dict[str, int | None] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            found[row["id"]] = row["grade"]
        except (ValueError, KeyError):
            break
    return found


def _learn(
    recipe: QualityRecipe, documents: list[Document], grades: list[int], folder: Path
) -> dict[str, Any]:
    """Train on the first part of the sample, measure on the rest; the sample is shuffled."""
    judge = recipe.judge
    held = max(round(len(documents) * judge.held_out), 1)
    texts = [document.text[: judge.characters] for document in documents]
    classifier = train_classifier(texts[:-held], grades[:-held], judge.best)
    scores = classifier.scores(texts[-held:])
    at_least = recipe.keep.at_least
    if at_least is None:
        assert recipe.keep.share is not None
        at_least = round(float(np.quantile(scores, 1 - recipe.keep.share)), 3)
    found = agreement(grades[-held:], scores.tolist(), at_least, judge.best)
    classifier.save(folder)
    summary = _summary(recipe, found, at_least, classifier)
    write_json(folder / "agreement.json", summary)
    return summary


def _summary(
    recipe: QualityRecipe, found: Agreement, at_least: float, classifier: Classifier
) -> dict[str, Any]:
    """The agreement as the report page and a later run read it."""
    shown = [
        ("held-out documents", f"{found.documents:,}"),
        ("grade the same", f"{found.exact:.1%} (most frequent grade: {found.majority:.1%})"),
        ("within one", f"{found.within_one:.1%}"),
        ("correlation", f"{found.correlation:.3f}"),
        (f"kept from {at_least:g} on, F1", f"{found.f1:.3f}"),
    ]
    return {
        **asdict(found),
        "at_least": at_least,
        "keep": recipe.keep.model_dump(),
        "shown": shown,
        "grades": list(range(classifier.best + 1)),
        "rubric": recipe.judge.rubric,
    }


def _filter(
    recipe: QualityRecipe,
    folder: Path,
    at_least: float,
    pool: CleaningWorkers,
    anew: bool,
    on_step: OnStep | None,
) -> None:
    stage = {"quality": {"classifier": str(folder), "at_least": at_least}}
    fields = {"sources": recipe.sources, "stages": [stage], "shard_bytes": recipe.shard_bytes}
    cleaning = CleanRecipe.model_validate(
        {"name": recipe.name, "out": str(recipe.folder), **fields}
    )
    clean(cleaning, pool, overwrite=anew, on_step=on_step)
