"""`inspect`: what a model folder holds, and what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from llamaseek.cli.console import wide_console
from llamaseek.cli.load import model_folder

FOLDER = typer.Argument(..., help="A Hugging Face model folder.", callback=model_folder)
JSON = typer.Option(False, "--json", help="Print JSON, for programs.")


def inspect(folder: Path = FOLDER, json: bool = JSON) -> None:
    """A folder's tensors, dtypes and sizes; how it compares with the herd; what does not fit."""
    from llamaseek.errors import UserError
    from llamaseek.herd.inspection import inspect_folder

    facts = inspect_folder(folder)
    if json:
        import json as library

        print(library.dumps(facts, indent=2))
    else:
        _print(facts)
    if count := len(facts["problems"]):
        first = facts["problems"][0]["message"]
        raise UserError(f"{count:,} tensors do not fit config.json, the first: {first}")


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from llamaseek.herd.describe import short_count
    from llamaseek.plan.text import size

    console = wide_console()
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in facts["dtypes"].items())
    files = f"{facts['files']:,} file{'s' * (facts['files'] > 1)}"
    lines = {
        "architecture": facts["architecture"],
        "in the herd": _herd(facts["herd"]),
        "parameters": f"{facts['parameters']:,} ({short_count(facts['parameters'])})",
        "multi-token": _module(facts["multi_token_parameters"]),
        "stored": f"{size(facts['bytes'])} in {files}; {dtypes}",
        "tokenizer": _tokenizer(facts["tokenizer"]),
        "second copies": ", ".join(facts["second_copies"]),
    }
    for label, value in lines.items():
        if value:
            console.print(f"  {label:<15}{value}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for title in ("times", "shape", "dtype", "size"):
        table.add_column(title, justify="right")
    for group in facts["tensors"]:
        shape = " × ".join(f"{n:,}" for n in group["shape"])
        nbytes = short_count(group["nbytes"]) + "B"
        table.add_row(group["name"], f"{group['times']:,}", shape, group["dtype"], nbytes)
    console.print(table)
    for problem in facts["problems"][:20]:
        console.print(f"  [red]{problem['kind']}[/]: {problem['message']}", soft_wrap=True)
    if len(facts["problems"]) > 20:
        console.print(f"  … and {len(facts['problems']) - 20:,} more")


def _module(parameters: int) -> str:
    from llamaseek.herd.describe import short_count

    return f"{parameters:,} ({short_count(parameters)}) in modules beside" if parameters else ""


def _herd(near: dict[str, Any]) -> str:
    if near["name"] is None:
        return "no model of these sizes"
    differences = [f"{k} {here} (not {there})" for k, (here, there) in near["differences"].items()]
    return f"as {near['name']}" + (f" but for {', '.join(differences)}" if differences else "")


def _tokenizer(facts: dict[str, Any]) -> str:
    if not facts["files"]:
        return "none in this folder"
    text = ", ".join(facts["files"])
    if facts["ids"] is not None:
        text += f"; {facts['ids']:,} ids, the model has {facts['vocab_size']:,}"
        if facts["ids"] > facts["vocab_size"]:
            text += " [red](too few)[/]"
    return text + ("" if facts["chat_template"] else "; no chat template")
