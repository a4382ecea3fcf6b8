"""Text that every machine has: the documentation and source of the Python it runs.

Enough to try the whole pipeline without a network: about 2 MB of prose and 6 MB of code, under
the Python Software Foundation's licence. Nothing is imported or executed to read it, except the
table of help topics. The same Python gives the same documents in the same order.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from llamaseek.data.documents import Document
from llamaseek.errors import UserError

SKIPPED_FOLDERS = frozenset(
    ["test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "encodings"]
)
"""Tests hold broken code on purpose; `encodings` is mostly tables of character codes."""

MAX_FILE_BYTES = 64_000
MAX_CODE_CHARACTERS = 4_000

Function = ast.FunctionDef | ast.AsyncFunctionDef


def web_documents() -> Iterator[Document]:
    """Prose, in the place of web text: Python's help topics, then the library's docstrings.

    A document is a topic, a module with its functions, or a class with its methods.
    Raises UserError at once if this Python comes without its source.
    """
    return _prose(_library())


def code_documents() -> Iterator[Document]:
    """Source of the standard library, at most MAX_CODE_CHARACTERS a document.

    Files are cut between top-level classes and functions, longer ones of these at blank lines.
    Raises UserError at once if this Python comes without its source.
    """
    return _code(_library())


def _prose(library: Path) -> Iterator[Document]:
    yield from _topics()
    for path in _source_files(library):
        yield from _documents_of(path, library)[0]


def _code(library: Path) -> Iterator[Document]:
    for path in _source_files(library):
        yield from _documents_of(path, library)[1]


@cache
def _documents_of(path: Path, library: Path) -> tuple[list[Document], list[Document]]:
    """Prose and code of one file. Parsing is what takes time, so it is done once for both and kept:
    some 8 MB of all files together.
    """
    parsed = _parsed(path)
    if parsed is None:
        return [], []
    source, tree = parsed
    prose = list(_docstring_documents(_module_name(path, library), tree))
    if path.stat().st_size > MAX_FILE_BYTES:
        return prose, []
    return prose, list(_code_documents(path.relative_to(library).as_posix(), source, tree))


# The library's files


def _library() -> Path:
    """The folder of the standard library's source."""
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "os.py").is_file():
        raise UserError(f"{folder}: this Python has no source of its standard library to read")
    return folder


def _source_files(library: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(library):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        yield from (Path(root, name) for name in sorted(names) if _is_source(name))


def _is_source(name: str) -> bool:
    """Python files, without those that list how this one Python was built."""
    return name.endswith(".py") and not name.startswith("_sysconfig")


def _parsed(path: Path) -> tuple[str, ast.Module] | None:
    """A file's source and syntax tree; None for the odd template that is not Python."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        return source, ast.parse(source)
    except (SyntaxError, ValueError, OSError):
        return None


def _document(kind: str, name: str, text: str) -> Document:
    return Document(text, f"{kind}:{name}", {"kind": kind, "place": name})


def _module_name(path: Path, library: Path) -> str:
    return ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")


# Prose


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(topics):
        if topics[name].strip():
            yield _document("topic", name, topics[name].strip() + "\n")


def _docstring_documents(module: str, tree: ast.Module) -> Iterator[Document]:
    yield from _docstring_document(module, tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _docstring_document(f"{module}.{node.name}", node)


def _docstring_document(name: str, node: ast.Module | ast.ClassDef) -> Iterator[Document]:
    """The docstring of a module or class and of the functions directly in it, if there is any."""
    own = ast.get_docstring(node)
    parts = [] if own is None else [own]
    functions = [child for child in node.body if isinstance(child, Function)]
    parts += [entry for function in functions for entry in _function_entry(function)]
    text = "\n\n".join(parts).strip()
    if text:
        yield _document("docs", name, f"{name}\n\n{text}\n")


def _function_entry(function: Function) -> list[str]:
    text = ast.get_docstring(function)
    return [f"{function.name}({ast.unparse(function.args)})\n{text}"] if text else []


# Code


def _code_documents(name: str, source: str, tree: ast.Module) -> Iterator[Document]:
    for number, text in enumerate(_pieces(source, tree)):
        if text.strip():
            yield _document("code", f"{name}:{number}", text)


def _pieces(source: str, tree: ast.Module) -> Iterator[str]:
    """The source in pieces of at most MAX_CODE_CHARACTERS, filled with whole blocks in turn."""
    return _filled(part for block in _blocks(source, tree) for part in _short_enough(block))


def _blocks(source: str, tree: ast.Module) -> list[str]:
    """The source cut before each top-level class and function, decorators and all."""
    lines = _lines(source)
    starts = [
        _first_line(node) - 1 for node in tree.body if isinstance(node, ast.ClassDef | Function)
    ]
    edges = [0, *starts, len(lines)]
    return ["".join(lines[a:b]) for a, b in zip(edges, edges[1:], strict=False) if a < b]


def _first_line(node: ast.ClassDef | Function) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _short_enough(block: str) -> Iterator[str]:
    """A block; if it is too long its paragraphs, and of those that still are, the lines."""
    if len(block) <= MAX_CODE_CHARACTERS:
        yield block
        return
    for paragraph in re.split(r"(?<=\n\n)", block):
        fits = len(paragraph) <= MAX_CODE_CHARACTERS
        yield from [paragraph] if fits else (p for line in _lines(paragraph) for p in _cut(line))


def _lines(text: str) -> list[str]:
    """Lines as the parser counts them; `splitlines` would also cut at form feeds."""
    return io.StringIO(text).readlines()


def _cut(line: str) -> list[str]:
    step = MAX_CODE_CHARACTERS
    return [line[start : start + step] for start in range(0, len(line), step)]


def _filled(parts: Iterator[str]) -> Iterator[str]:
    """Parts joined for as long as the limit allows."""
    piece = ""
    for part in parts:
        if piece and len(piece) + len(part) > MAX_CODE_CHARACTERS:
            yield piece
            piece = ""
        piece += part
    if piece:
        yield piece
