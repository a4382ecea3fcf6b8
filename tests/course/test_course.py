"""The course: both editions at smoke size, exercises whose checks notice mistakes, the slides."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="the extra course is not installed")

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from notebooks import site
from notebooks.course import (
    LARGEST,
    SOURCES,
    build,
    execute,
    failures,
    read,
    student,
    tagged,
    without_bodies,
)

ROOT = Path(__file__).parents[2]
LECTURE = Path(os.environ.get("LLAMASEEK_SHARED_DATA", "/nowhere")).parent / "lecture.txt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all notebooks: they find each other's trained models there."""
    folder = tmp_path_factory.mktemp("course")
    before = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMASEEK_COURSE", "smoke")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield folder
    os.chdir(before)


def drawn() -> list[Path]:
    """Three notebooks, others at each commit."""
    asked = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout
    key = lambda source: zlib.crc32((commit + source.name).encode())  # noqa: E731
    return sorted(SOURCES, key=key)[:3]


def test_there_are_fourteen() -> None:
    assert [source.name[:2] for source in SOURCES] == [f"{n:02}" for n in range(1, 15)]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_solved_edition_runs_and_its_checks_notice_mistakes(source: Path, place: Path) -> None:
    """The whole notebook passes; then, in the same kernel, each broken solution fails a check."""
    notebook = read(source)
    client = NotebookClient(notebook, timeout=300, startup_timeout=300)
    client.create_kernel_manager()
    client.km.transport = "ipc"
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        (solution,), (check,) = tagged(notebook, "solution"), tagged(notebook, "check")
        places = [notebook.cells.index(cell) for cell in (solution, check)]
        for broken in mutants(solution.source):
            again = copy.deepcopy(solution)
            again.source = broken
            with pytest.raises(CellExecutionError):
                for cell, index in zip((again, copy.deepcopy(check)), places, strict=True):
                    client.execute_cell(cell, index)


@pytest.mark.slow
@pytest.mark.parametrize("source", drawn(), ids=lambda source: source.stem)
def test_the_student_edition_fails_at_its_checks_alone(source: Path, place: Path) -> None:
    notebook = student(read(source))
    execute(notebook, allow_errors=True)
    checks = list(tagged(notebook, "check"))
    assert len(checks) == 1
    assert failures(notebook) == checks


@pytest.mark.slow
def test_both_editions_are_written(place: Path) -> None:
    build(place / "out", SOURCES[8:9])
    solved = place / "out" / "solved" / "09-herd-and-guard.ipynb"
    assert 10_000 < solved.stat().st_size <= LARGEST
    path = place / "out" / "student" / "09-herd-and-guard.ipynb"
    without = path.read_text()
    assert "Your turn" in without and "heads = config" not in without
    assert path.stat().st_size <= LARGEST
    codes = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    given = [bool(cell.outputs) for cell in codes]
    assert given[1:-2] == [True] * len(given[1:-2]) and given[-2:] == [False, False]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(place: Path) -> None:
    """From the docs and one notebook that is not executed; links inside it lead somewhere."""
    pytest.importorskip("myst_nb", reason="the extra course is not installed")
    (place / "plain").mkdir()
    nbformat.write(read(SOURCES[8]), place / "plain" / "09-herd-and-guard.ipynb")
    assert site.build(place / "plain", place / "site") == 0
    page = (place / "site" / "course" / "09-herd-and-guard.html").read_text()
    assert "8_030_261_248" in re.sub("<[^>]+>", "", page) and "search.html" in page
    assert "The course" in (place / "site" / "landing.html").read_text()
    pages = sum(len(site.Page(path).links) for path in (place / "site").rglob("*.html"))
    assert pages > 1000 and site.broken_links(place / "site") == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here"><a href="b.html#gone"><a href="c.html"><a href="https://x.org/">'
        '<a href="#top"><img src="d%20e.png"><img src="f.png"><h1 id="top">'
    )
    (tmp_path / "b.html").write_text('<p id="here"><a href="a.html"></p>')
    (tmp_path / "d e.png").touch()
    assert [line.split()[3] for line in site.broken_links(tmp_path)] == [
        "b.html#gone",
        "c.html",
        "f.png",
    ]


def test_solutions_lose_their_bodies_alone() -> None:
    code = 'def f(x: int) -> int:\n    """What it does."""\n    return x + 1\n\nanswer = "equal"\n'
    found = without_bodies(code)
    assert "def f(x: int) -> int:" in found and "What it does" in found
    assert "x + 1" not in found and "equal" not in found


def mutants(code: str) -> Iterator[str]:
    """The code with each of its functions broken in one place, and each of its answers changed."""
    for node in ast.parse(code).body:
        tree = ast.parse(code)
        (same,) = (each for each in tree.body if ast.dump(each) == ast.dump(node))
        if isinstance(same, ast.FunctionDef):
            returned = next(each for each in ast.walk(same) if isinstance(each, ast.Return))
            returned.value = wrong(returned.value)
        elif isinstance(same, ast.Assign):
            same.value = ast.Constant("something else")
        else:
            continue
        yield ast.unparse(ast.fix_missing_locations(tree))


def wrong(value: ast.expr | None) -> ast.expr:
    """An expression of the same kind with another value."""
    assert value is not None
    if isinstance(value, ast.List | ast.ListComp | ast.Subscript):
        return ast.BinOp(value, ast.Add(), ast.List([ast.Constant(0)], ast.Load()))
    if isinstance(value, ast.Name):  # a list or a number that was built above
        code = f"({value.id} + [0]) if isinstance({value.id}, list) else {value.id} + 1"
        return ast.parse(code, mode="eval").body
    if isinstance(value, ast.IfExp):
        return ast.IfExp(value.test, wrong(value.body), value.orelse)
    return ast.BinOp(value, ast.Add(), ast.Constant(0.5))


def test_the_values_of_dpo_are_still_trl_s() -> None:
    """Notebook 6 checks its solution against them."""
    pytest.importorskip("trl", reason="needs TRL")
    from notebooks.trl_dpo import VALUES, values

    kept, found = json.loads(VALUES.read_text(encoding="utf-8")), values()
    assert (kept["beta"], kept["nll_weight"]) == (found["beta"], found["nll_weight"])
    for ours, theirs in zip(kept["pairs"], found["pairs"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        for side in ("policy", "reference"):
            for a, b in zip(ours[side], theirs[side], strict=True):
                assert a == pytest.approx(b, abs=1e-5)


def test_every_slide_has_its_notebook() -> None:
    lines = (ROOT / "notebooks" / "slides.txt").read_text().splitlines()
    slides = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    numbers = {source.name[:2]: source.read_text() for source in SOURCES}
    assert {number for number, _ in slides} == set(numbers)
    for number, title in slides:
        question = re.match(r"ICE #(\d)", title)
        wanted = f"question {question[1]}" if question else re.split(r" \(|:|/", title)[0]
        assert wanted.lower() in numbers[number].lower(), (number, title)


@pytest.mark.skipif(not LECTURE.is_file(), reason="the lecture's text is not at hand")
def test_the_slides_are_the_lectures() -> None:
    text = re.sub(r"\s+", " ", LECTURE.read_text(encoding="utf-8")).lower()
    for line in (ROOT / "notebooks" / "slides.txt").read_text().splitlines():
        if not line.startswith("#"):
            title = re.split(r" \(|: ", line.split(" ", 1)[1])[0]
            assert title.lower() in text, title


def prose(source: Path) -> str:
    """A notebook's text without its code, its references and what it names in code."""
    cells = [cell.source for cell in read(source).cells if cell.cell_type == "markdown"]
    text = "\n\n".join(cells).partition("## Read next")[0]
    parts = re.sub(r"`[^`]*`", "", text).split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts if not part.startswith("Slides:"))


def test_no_term_is_used_before_it_is_explained() -> None:
    """A term stands in bold in its notebook; an earlier use points to the notebook by number."""
    table = (ROOT / "docs" / "glossary.md").read_text()
    rows = re.findall(r"^\| (.+?) \| .+ \| (\d+) \|$", table, re.MULTILINE)
    assert len(rows) > 30
    early = []
    for term, number in rows:
        assert f"**{term.lower()}" in prose(SOURCES[int(number) - 1]).lower(), term
        for source in SOURCES[: int(number) - 1]:
            for part in prose(source).split("\n\n"):
                used = re.search(rf"\b{re.escape(term)}s?\b", part, re.IGNORECASE)
                if used and "(notebook" not in part and not part.startswith("#"):
                    early.append((term, source.stem, part[:90]))
    assert early == []
