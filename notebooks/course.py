"""The course's two editions, executed: `python -m notebooks.course build/course [--full]`.

A notebook's source is a py:percent file. Cells with the tag `solution` define what an exercise asks
for; the student edition keeps their signatures and takes their bodies out. Cells with the tag
`check` fail until the exercise is solved.
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
LARGEST = 150_000  # bytes of an executed notebook


def read(source: Path) -> NotebookNode:
    """The solved edition, not executed. Cell ids follow from their places."""
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.from_dict(METADATA)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
    return notebook


def tagged(notebook: NotebookNode, tag: str) -> Iterator[NotebookNode]:
    """The cells with a tag."""
    return (cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))


def student(notebook: NotebookNode) -> NotebookNode:
    """The edition without the solutions' bodies."""
    found = nbformat.from_dict(notebook)
    for cell in tagged(found, "solution"):
        cell.source = without_bodies(cell.source)
    return found


def without_bodies(code: str) -> str:
    """Functions keep signature and docstring; what is assigned becomes `...`."""
    tree = ast.parse(code)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None
            node.body = [*node.body[:documented], ast.Expr(ast.Constant(...))]
        elif isinstance(node, ast.Assign):
            node.value = ast.Constant(...)
    return "# Your turn: replace the dots.\n" + ast.unparse(ast.fix_missing_locations(tree))


def execute(notebook: NotebookNode, allow_errors: bool = False, seconds: int = 600) -> None:
    """Run every cell in a kernel of its own, in the current folder; keeps the outputs."""
    client = NotebookClient(
        notebook, timeout=seconds, startup_timeout=seconds, allow_errors=allow_errors
    )
    client.create_kernel_manager()
    client.km.transport = "ipc"
    client.execute()


def failures(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that ended with an exception."""
    return [
        cell
        for cell in notebook.cells
        if any(output.output_type == "error" for output in cell.get("outputs", ()))
    ]


def shared_outputs(solved: NotebookNode, without: NotebookNode) -> None:
    """Give the student edition the outputs of the cells before the exercise, which are the same."""
    for done, cell in zip(solved.cells, without.cells, strict=True):
        if done.source != cell.source:
            return
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count


def processor_seconds() -> float:
    """What kernels that have ended, and processes of theirs, took of the processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train_shared() -> str:
    """Train the models that the notebooks share, those that are not there yet; nothing to say."""
    code = (
        "from notebooks.kit import STAGES, trained\n"
        "for stage in STAGES: trained(stage)\n"
        "trained('pretrain', 'deepseek_v3')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return ""


def timed(name: str, done: Callable[[], str]) -> None:
    """Print what something took, of the clock and of the processors, and what it says of itself."""
    started, used = monotonic(), processor_seconds()
    said = done()
    seconds = f"{monotonic() - started:6.1f} s {processor_seconds() - used:6.1f} s CPU"
    print(f"{name:42} {seconds} {said}".rstrip(), flush=True)


def build(target: Path, sources: list[Path]) -> None:
    """Write both editions of each notebook with the outputs of the solved one's run."""
    for edition in ("solved", "student"):
        (target / edition).mkdir(parents=True, exist_ok=True)
    for source in sources:
        timed(source.with_suffix(".ipynb").name, partial(build_one, target, source))


def build_one(target: Path, source: Path) -> str:
    """Both editions of one notebook; the size of the solved one."""
    notebook = read(source)
    without = student(notebook)
    execute(notebook)
    shared_outputs(notebook, without)
    name = source.with_suffix(".ipynb").name
    nbformat.write(notebook, target / "solved" / name)
    nbformat.write(without, target / "student" / name)
    size = (target / "solved" / name).stat().st_size
    note = "" if size <= LARGEST else f"  over {LARGEST} bytes"
    return f"{size / 1000:6.0f} kB{note}"


def main() -> None:
    """Build the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("sources", nargs="*", type=Path, default=SOURCES)
    parser.add_argument("--full", action="store_true", help="the sizes of the text: minutes each")
    arguments = parser.parse_intermixed_args()
    os.environ["LLAMASEEK_COURSE"] = "full" if arguments.full else "smoke"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), *sys.path[1:]])
    timed("the models that the notebooks share", train_shared)
    build(arguments.target, arguments.sources)


if __name__ == "__main__":
    main()
