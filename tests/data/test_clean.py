"""A corpus with planted defects through the whole pipeline: what goes, what stays, and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from llamaseek.data.clean.engine import CleaningWorkers
from llamaseek.data.clean.recipe import CleanRecipe
from llamaseek.data.clean.run import clean
from llamaseek.data.documents import read_documents
from llamaseek.errors import UserError
from tests.data.planted import BOILERPLATE, page, write_planted, write_rows

STAGES = [
    "url_dedup",
    "exact_dedup",
    {"line_dedup": {"bucket": 5000}},
    "language",
    "gopher_repetition",
    "gopher_quality",
    "c4",
    "fineweb",
    "minhash",
    {"decontaminate": {"files": ["benchmark.jsonl"]}},
    "personal",
]


class Outcome:
    """The planted rows and what became of them."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.rows = {row["id"]: row for row in rows}
        kept = pq.read_table(folder / "documents").to_pylist()
        self.kept = {row["id"]: row["text"] for row in kept}
        removed = pq.read_table(folder / "removed").to_pylist()
        self.removed = {row["id"]: row for row in removed}
        self.stats = json.loads((folder / "stats.json").read_text())

    def of_kind(self, kind: str) -> list[str]:
        return [name for name in self.rows if name.startswith(f"{kind}-")]

    def survivors(self, kind: str) -> int:
        """Pairs of a document of this kind and the one it was made of that are both left."""
        return sum(n in self.kept and self.rows[n]["of"] in self.kept for n in self.of_kind(kind))


def recipe_of(folder: Path, out: Path, **changes: Any) -> CleanRecipe:
    stages = json.loads(json.dumps(STAGES).replace("benchmark.jsonl", f"{folder}/benchmark.jsonl"))
    fields = {"sources": {"web": f"{folder}/corpus"}, "stages": stages, "shard_bytes": 2_000_000}
    return CleanRecipe.model_validate({"name": "planted", "out": str(out), **fields, **changes})


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("planted")
    rows = write_planted(folder)
    assert len(rows) == 20_000
    return Outcome(clean(recipe_of(folder, folder / "out"), CleaningWorkers(2)), rows)


def test_exact_duplicates_leave(outcome: Outcome) -> None:
    left, all_of_them = outcome.survivors("exact"), len(outcome.of_kind("exact"))
    print(f"exact duplicates: {left} of {all_of_them} left")
    assert left <= 0.01 * all_of_them


def test_near_duplicates_leave(outcome: Outcome) -> None:
    def left(low: float, high: float) -> float:
        names = [n for n in outcome.of_kind("near") if low <= outcome.rows[n]["similarity"] < high]
        assert len(names) > 500
        both = sum(n in outcome.kept and outcome.rows[n]["of"] in outcome.kept for n in names)
        print(f"near duplicates from {low} to {high}: {both} of {len(names)} left")
        return both / len(names)

    assert left(0.85, 1.0) <= 0.05
    assert left(0.8, 0.85) <= 0.1  # 14 bands of 8 find 92.4% at 0.8


def test_of_one_url_the_newest_stays(outcome: Outcome) -> None:
    assert not set(outcome.of_kind("oldurl")) & set(outcome.kept)
    assert {outcome.removed[name]["stage"] for name in outcome.of_kind("oldurl")} == {"url_dedup"}


def test_footers_leave_and_their_documents_stay(outcome: Outcome) -> None:
    assert sum(name in outcome.kept for name in outcome.of_kind("footer")) >= 0.99 * 1500
    assert not any(line in text for text in outcome.kept.values() for line in BOILERPLATE)
    shown = outcome.rows[outcome.of_kind("footer")[0]]
    lines = [line for line in shown["text"].split("\n") if line not in BOILERPLATE]
    assert outcome.kept[shown["id"]] == "\n".join(lines)


@pytest.mark.parametrize("kind", ["gibberish", "foreign", "leaked"])
def test_bad_documents_leave(outcome: Outcome, kind: str) -> None:
    assert not set(outcome.of_kind(kind)) & set(outcome.kept)


def test_leaks_leave_for_the_item_they_hold(outcome: Outcome) -> None:
    reasons = [outcome.removed[name]["reason"] for name in outcome.of_kind("leaked")]
    found = [reason for reason in reasons if "benchmark.jsonl:" in reason]
    assert len(found) >= 0.98 * len(reasons)


def test_clean_documents_stay(outcome: Outcome) -> None:
    """A clean document is lost if neither it nor one made of it is left."""
    left = set(outcome.kept) | {
        outcome.rows[name]["of"] for name in outcome.kept if "of" in outcome.rows[name]
    }
    lost = set(outcome.of_kind("clean")) - left
    print(f"clean documents: {len(lost)} of {len(outcome.of_kind('clean'))} lost")
    assert len(lost) <= 0.01 * len(outcome.of_kind("clean"))


def test_everything_is_kept_or_removed_for_a_reason(outcome: Outcome) -> None:
    assert set(outcome.kept) | set(outcome.removed) == set(outcome.rows)
    assert not set(outcome.kept) & set(outcome.removed)
    assert all("allowed: " in row["reason"] for row in outcome.removed.values())
    counts = {stage: sum(rules.values()) for stage, rules in outcome.stats["removed"].items()}
    assert counts == Counter(row["stage"] for row in outcome.removed.values())
    assert outcome.stats["read"] == {"web": 20_000}
    assert outcome.stats["kept"]["web"]["documents"] == len(outcome.kept)


def test_the_result_can_be_read_again(outcome: Outcome) -> None:
    found = {document.id for document in read_documents([outcome.folder / "documents"])}
    assert found == set(outcome.kept)


# The bytes of a result


FEW = ["url_dedup", {"line_dedup": {"bucket": 200}}, "gopher_quality", "minhash"]


def small(folder: Path, out: str, **changes: Any) -> CleanRecipe:
    """A recipe of 400 documents in shards of different make: parts of a file, and files."""
    if not (folder / "corpus").exists():
        rng = Random(5)
        rows: list[dict[str, Any]] = []
        for number in range(400):
            again = rows[rng.randrange(len(rows))]["text"] if rows and number % 4 == 0 else ""
            lines = (again or page(rng)).split("\n") + BOILERPLATE[: number % 2]
            url = f"https://site.example/{number % 350}"
            rows.append({"id": str(number), "text": "\n".join(lines), "url": url, "date": number})
        (folder / "corpus").mkdir()
        write_rows(folder / "corpus" / "a.jsonl", rows[:300])
        write_rows(folder / "corpus" / "b.jsonl", rows[300:380])
        write_rows(folder / "corpus" / "c.jsonl", rows[380:])
    return recipe_of(folder, folder / out, **{"shard_bytes": 60_000, "stages": FEW, **changes})


def content(folder: Path) -> dict[str, bytes]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "recipe.yaml"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def whole(corpus: Path) -> dict[str, bytes]:
    """What one worker makes of it."""
    return content(clean(small(corpus, "one"), CleaningWorkers(1)))


def test_two_workers_give_the_same_bytes(corpus: Path, whole: dict[str, bytes]) -> None:
    assert len([name for name in whole if name.startswith("documents/")]) > 5
    assert content(clean(small(corpus, "two"), CleaningWorkers(2))) == whole


def on_machine(corpus: str, machine: int) -> None:
    """What one of two machines runs over their shared folder."""
    clean(small(Path(corpus), "machines"), CleaningWorkers(1, machine, 2))


def started(function: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """A function of this module in a process and a group of its own."""
    code = f"from tests.data import test_clean; test_clean.{function}(*{arguments!r})"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)


def test_two_machines_give_the_same_bytes(corpus: Path, whole: dict[str, bytes]) -> None:
    for process in [started("on_machine", str(corpus), n) for n in (0, 1)]:
        assert process.wait(200) == 0
    assert content(corpus / "machines") == whole


KILLS = ["url_dedup: decide 1", "line_dedup, gopher_quality", "minhash: decide 2"]


class Killed(BaseException):
    """Where a run is about to be killed."""


def until_a_new_step(corpus: str) -> None:
    """Run until one of KILLS begins that no run before has come to; then SIGKILL."""
    seen = Path(corpus) / "seen.txt"

    def kill(step: str, tasks: int) -> None:
        if step in KILLS and step not in (seen.read_text().splitlines() if seen.exists() else []):
            with seen.open("a") as file:
                file.write(step + "\n")
            raise Killed

    try:
        clean(small(Path(corpus), "killed"), CleaningWorkers(2), on_step=kill)
    except Killed:
        os.killpg(0, signal.SIGKILL)


def test_killed_runs_go_on_to_the_same_bytes(corpus: Path, whole: dict[str, bytes]) -> None:
    runs, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        code, runs = started("until_a_new_step", str(corpus)).wait(200), runs + 1
    assert code == 0 and runs == 1 + len(KILLS)
    assert content(corpus / "killed") == whole


def test_a_run_takes_away_no_folder_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    write_rows(tmp_path / "documents" / "a.jsonl", [{"text": "mine"}])
    write_rows(tmp_path / "pages.jsonl", [{"text": "a page"}])
    for source, said in (
        ("documents", "would replace its source"),
        ("pages.jsonl", "not created by a run"),
    ):
        recipe = CleanRecipe(
            name="r", sources={"web": [str(tmp_path / source)]}, out=str(tmp_path), stages=["c4"]
        )
        with pytest.raises(UserError, match=said):
            clean(recipe, CleaningWorkers(1), overwrite=True)
    assert (tmp_path / "documents" / "a.jsonl").is_file()


def test_a_run_is_not_lost_by_accident(corpus: Path, whole: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match="holds another run; --overwrite replaces it"):
        clean(small(corpus, "one", stages=["c4"]), CleaningWorkers(1))
    assert content(corpus / "one") == whole
    before = (corpus / "one" / "stats.json").stat().st_mtime_ns
    clean(small(corpus, "one"), CleaningWorkers(1))  # the same again: nothing to do
    assert (corpus / "one" / "stats.json").stat().st_mtime_ns == before


def test_rows_without_a_text_leave_by_name_and_empty_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    rows: list[dict[str, Any]] = [{"text": f"page {n}"} for n in range(20)]
    gaps = [{"text": None}, {"text": ""}, {"title": "x"}]
    write_rows(tmp_path / "corpus" / "a.jsonl", rows + gaps)
    (tmp_path / "corpus" / "0.jsonl").touch()
    for parts in (60, 2_000_000):  # lines of a file, and whole
        out = clean(
            recipe_of(tmp_path, tmp_path / f"{parts}", stages=[], shard_bytes=parts),
            CleaningWorkers(1),
        )
        stats = json.loads((out / "stats.json").read_text())
        assert stats["read"] == {"web": 23} and stats["kept"]["web"]["documents"] == 20
        assert set(stats["removed"]["read"].values()) == {1} and stats["stages"] == ["read"]
    write_rows(tmp_path / "corpus" / "a.jsonl", [{"body": "a"}, {"body": "b"}])
    with pytest.raises(UserError, match="a.jsonl:1: no field 'text'; fields: body"):
        clean(recipe_of(tmp_path, tmp_path / "body", stages=[]), CleaningWorkers(1))
    (tmp_path / "corpus" / "a.jsonl").write_text("")
    with pytest.raises(UserError, match="every file is empty"):
        clean(recipe_of(tmp_path, tmp_path / "none", stages=[]), CleaningWorkers(1))
