"""The size and shape of the package: what makes a code base hard to live in grows unseen."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llamaseek"
SHORT = ("__init__.py", "__main__.py")  # files that may have fewer than LEAST lines
LEAST, MOST_FILES, LONGEST = 20, 20, 60
FILES = sorted(PACKAGE.rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_folder_holds_more_than_twenty_files() -> None:
    found = Counter(str(path.parent.relative_to(PACKAGE)) for path in FILES)
    assert {folder: n for folder, n in found.items() if n > MOST_FILES} == {}


def test_no_file_is_too_short_to_be_one() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in FILES if path.name not in SHORT}
    assert {str(path): n for path, n in lines.items() if n < LEAST} == {}


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=lambda p: p.name)
def test_no_function_is_longer_than_sixty_lines(room: Path) -> None:
    long = {
        f"{path.name}:{node.lineno} {node.name}": size
        for path in sorted(room.glob("*.py"))
        for node in functions(path)
        if (size := (node.end_lineno or 0) - node.lineno + 1) > LONGEST
    }
    assert long == {}


def test_one_class_name_has_one_meaning() -> None:
    """Two rooms may not give two things one name; a private name stays in its file."""
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
