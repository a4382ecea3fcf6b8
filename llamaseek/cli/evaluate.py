"""`eval`: benchmarks of a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamaseek.cli.shared import DEVICE, wide_console
from llamaseek.errors import bad_value

if TYPE_CHECKING:
    from llamaseek.evals.run import Evaluation, Progress

MODEL = typer.Argument(
    help="A model folder, a .gguf file, a published model's name, an adapter's folder, or the "
    "URL of an OpenAI server, as http://127.0.0.1:8000/v1."
)
LECTURE = "mmlu,gpqa,humaneval,gsm8k,math"
TASKS = typer.Option(
    None,
    show_default=LECTURE,
    help="Benchmarks, with commas between: the lecture's names, other names of docs/eval.md, any "
    "task of lm-eval, or a task's YAML file.",
)
DATA = typer.Option(
    [], help="Folder with the benchmarks' files; can be given several times. Else they are fetched."
)
LIMIT = typer.Option(None, help="Only the first items of each task.")
CHAT = typer.Option(
    "auto", help="The chat template: on, off, or auto: on where the task generates text."
)
SHOTS = typer.Option(None, "--num-fewshot", help="Shots, where not those of the protocol.")
MAX_TOKENS = typer.Option(None, "--max-gen-toks", help="Answers' limit, where not the task's own.")
TRUNCATE = typer.Option(
    False, "--truncate", help="Cut prompts that do not fit the context at their beginning."
)
COMPARE = typer.Option([], help="Another model on the same items; can be given several times.")
ADAPTER = typer.Option(None, help="Folder of a LoRA adapter for MODEL.")
ITEMS = typer.Option(
    None,
    help="Items as Meta publishes them (a file of a meta-llama/*-evals data set), asked again in "
    "place of --tasks; verdicts are compared one by one.",
)
OVERLAP = typer.Option(
    None, help="A run's folder, or its training data: a column says how much of the items is in it."
)
OUT = typer.Option(None, help="Folder for results.json, samples.jsonl and what --resume needs.")
RESUME = typer.Option(False, "--resume", help="Go on with the run in --out.")
DTYPE = typer.Option("auto", help="auto, bf16 or fp32.")


def evaluate(
    model: str = MODEL,
    tasks: str | None = TASKS,
    data: list[Path] = DATA,
    limit: int = LIMIT,
    chat: str = CHAT,
    num_fewshot: int = SHOTS,
    max_gen_toks: int = MAX_TOKENS,
    truncate: bool = TRUNCATE,
    compare: list[str] = COMPARE,
    items: Path = ITEMS,
    adapter: Path = ADAPTER,
    overlap: Path = OVERLAP,
    out: Path = OUT,
    resume: bool = RESUME,
    device: str = DEVICE,
    dtype: str = DTYPE,
) -> None:
    """Score a model on benchmarks, by lm-eval's tasks and local files."""
    if items is not None:
        given = {
            "--tasks": tasks, "--data": data, "--num-fewshot": num_fewshot, "--compare": compare,
            "--max-gen-toks": max_gen_toks, "--overlap": overlap, "--resume": resume,
        }  # fmt: skip
        replay_items(model, items, limit, truncate, adapter, out, device, dtype, given)
        return
    from llamaseek.evals.models import evaluate_all
    from llamaseek.evals.run import EvalOptions

    if len({model, *compare}) <= len(compare):
        raise bad_value("--compare", ", ".join(compare), "models that differ from one another")
    options = EvalOptions(
        tasks=[name.strip() for name in (tasks or LECTURE).split(",") if name.strip()],
        data=data,
        limit=limit,
        chat=chat,
        num_fewshot=num_fewshot,
        max_gen_toks=max_gen_toks,
        truncate=truncate,
        overlap=overlap,
        out=out,
        resume=resume,
    )
    with progress_bar() as progress:
        found = evaluate_all(
            [model, *compare],
            options,
            adapter=adapter,
            device=device,
            dtype=dtype,
            progress=progress,
            log=lambda line: print(line, file=sys.stderr),
        )
    show_all(found, out)


def show_all(found: Sequence[Evaluation], out: Path | None) -> None:
    """The tables, and with `out` the page and the picture."""
    for evaluation in found:
        show(evaluation, several=len(found) > 1)
    for other in found[1:]:
        show_differences(found[0], other)
    if out is not None:
        from llamaseek.evals.published import plot_table
        from llamaseek.report.eval_page import write_eval_page

        plot_table(found, out / "table.png")
        print(f"wrote {out}, see {write_eval_page(found, out)}")


def replay_items(
    model: str,
    items: Path,
    limit: int | None,
    truncate: bool,
    adapter: Path | None,
    out: Path | None,
    device: str,
    dtype: str,
    others: Mapping[str, object],
) -> None:
    """`--items`; `others` are options that it has no use for."""
    from rich.table import Table

    from llamaseek.errors import UserError
    from llamaseek.evals.models import is_server, open_engine

    for name, value in others.items():
        if value not in (None, [], False):
            raise UserError(f"{name}: has no meaning with --items, whose file says what is asked")
    if is_server(model):
        raise UserError("--items: is for a model here, not for a server")
    from llamaseek.evals.items import replay, write_items
    from llamaseek.evals.lm import EngineLM

    engine = open_engine(model, adapter, device, dtype)
    assert engine.tokenizer is not None
    lm = EngineLM(engine, engine.tokenizer, model, truncate=truncate)
    with progress_bar() as lm.progress:
        found = replay(lm, items, limit)
    headers = "task", "n", "published", "here", "both", "published only", "here only", "neither"
    table = Table(*headers)
    for each in found:
        counts, total = each.counts, len(each.verdicts)
        both, theirs, ours = counts[True, True], counts[True, False], counts[False, True]
        shares = f"{(both + theirs) / total:.4f}", f"{(both + ours) / total:.4f}"
        figures = map(str, (both, theirs, ours, counts[False, False]))
        table.add_row(each.task, str(total), *shares, *figures)
        print(f"{each.task}: answers read by: {each.reader}, which gives {each.readable} of "
              f"{each.published} published verdicts on the published answers")  # fmt: skip
    wide_console().print(table)
    if out is not None:
        print(f"wrote {write_items(found, out)}")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar of requests done, with the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task, total = bar.add_task("", total=0), 0

        def progress(more: int, done: int) -> None:
            nonlocal total
            total += more
            bar.update(task, total=total, advance=done)

        yield progress


def show(evaluation: Evaluation, several: bool = False) -> None:
    """The table of an evaluation."""
    from rich.table import Table

    from llamaseek.evals.table import HEADERS, rows

    found = [row.cells() for row in rows(evaluation)]
    used = [n for n in range(len(HEADERS)) if any(cells[n] for cells in found)]
    table = Table()
    for place in used:
        table.add_column(HEADERS[place], no_wrap=HEADERS[place] != "warnings")
    for cells in found:
        table.add_row(*(cells[place] for place in used))
    if several:
        print(evaluation.model)
    wide_console().print(table)
    for what, count in evaluation.results["warnings"]["unjudged"].items():
        print(f"not judged, {what}: {count}")


def show_differences(first: Evaluation, second: Evaluation) -> None:
    """The table of paired differences."""
    from rich.table import Table

    from llamaseek.evals.table import differences

    headers = "task", "metric", "filter", "difference", "± s.e.", "n"
    table = Table(*headers)
    for each in differences(first, second):
        figures = f"{each.difference:+.4f}", f"{each.error:.4f}", str(each.items)
        table.add_row(each.task, each.metric, each.filter, *figures)
    print(f"{second.model} minus {first.model}, item by item")
    wide_console().print(table)
