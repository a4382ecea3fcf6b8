"""Text from the Python installation: enough of it, in one order, in whole pieces."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from llamaseek.data.builtin import python_library as machine
from llamaseek.data.builtin.python_library import code_documents, web_documents
from llamaseek.data.documents import Document
from llamaseek.errors import UserError

SOURCE = '"""Doc."""\n\x0c\nimport os\n\n@cache\ndef f(a, *, b=1):\n    "Adds."\n\n'
SOURCE += 'class A:\n    """An A."""\n\n    def g(self):\n        "Gees."\n\n    def h(self): ...\n'


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of three modules, and of files that are not to be read."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    files = {
        "os.py": SOURCE,
        "pack/__init__.py": "x = 1\n",
        "pack/long.py": "y = 2\n" * 3000,
        "huge.py": "z = 3\n" * 20_000,
        "broken.py": "def (\n",
        "_sysconfigdata_x.py": "machine = 1\n",
        "test/a.py": "t = 1\n",
        "site-packages/b.py": "s = 1\n",
        "notes.txt": "no\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_library_gives_megabytes_of_both_kinds() -> None:
    web, code = list(web_documents()), list(code_documents())
    assert sum(len(d.text) for d in web) > 1_000_000
    assert sum(len(d.text) for d in code) > 3_000_000
    assert len({d.id for d in [*web, *code]}) == len(web) + len(code)
    assert all(d.text.strip() for d in [*web, *code])
    assert max(len(d.text) for d in code) <= machine.MAX_CODE_CHARACTERS


def test_the_order_is_always_the_same() -> None:
    for documents in (web_documents, code_documents):
        assert list(islice(documents(), 200)) == list(islice(documents(), 200))


def test_pieces_of_a_file_join_to_the_file() -> None:
    path = Path(ast.__file__)
    source = path.read_text(encoding="utf-8")
    pieces = list(machine._pieces(source, ast.parse(source)))
    assert len(pieces) > 5
    assert "".join(pieces) == source


@pytest.mark.usefixtures("library")
def test_only_whole_short_python_files_are_code() -> None:
    found = {d.id: d.text for d in code_documents()}
    assert [i for i in found if "long" not in i] == ["code:os.py:0", "code:pack/__init__.py:0"]
    assert found["code:os.py:0"] == SOURCE
    long = [text for i, text in found.items() if "long" in i]
    assert "".join(long) == "y = 2\n" * 3000
    assert all(text.endswith("\n") for text in long)


def test_blocks_begin_at_classes_functions_and_their_decorators() -> None:
    blocks = machine._blocks(SOURCE, ast.parse(SOURCE))
    assert [block.split("\n")[0] for block in blocks] == ['"""Doc."""', "@cache", "class A:"]
    assert "".join(blocks) == SOURCE


def test_a_line_beyond_the_limit_is_cut() -> None:
    source = f'x = "{"a" * 9000}"\n'
    pieces = list(machine._pieces(source, ast.parse(source)))
    assert [len(piece) for piece in pieces] == [4000, 4000, 1007]


@pytest.mark.usefixtures("library")
def test_docstrings_are_read_without_importing() -> None:
    found = {d.id: d.text for d in web_documents() if d.id.startswith("docs:")}
    assert found == {
        "docs:os": "os\n\nDoc.\n\nf(a, *, b=1)\nAdds.\n",
        "docs:os.A": "os.A\n\nAn A.\n\ng(self)\nGees.\n",
    }


def test_help_topics_come_first() -> None:
    first = next(web_documents())
    assert first.id.startswith("topic:") and len(first.text) > 100


@pytest.mark.parametrize("documents", [web_documents, code_documents])
def test_a_python_without_source_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: Callable[[], Iterator[Document]]
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with pytest.raises(UserError, match=r"python\.zip: this Python has no source"):
        documents()
