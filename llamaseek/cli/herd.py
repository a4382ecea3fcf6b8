"""`herd`: the published models; `herd show`: one model's architecture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamaseek.cli.shared import MODEL_NAMES
from llamaseek.cli.words import Command

if TYPE_CHECKING:
    from rich.tree import Tree

    from llamaseek.herd.show import Node

app = typer.Typer(
    help="List the published models, or show the architecture of one.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
JSON = typer.Option(False, "--json", help="Print JSON.")
DIAGRAM = typer.Option(
    None, "--diagram", help="Write a diagram of the architecture to this SVG file instead."
)


@app.callback()
def herd(context: typer.Context, json: bool = JSON) -> None:
    """List the published models with their capabilities and sizes."""
    if context.invoked_subcommand is not None:
        return
    from llamaseek.herd.published import ENTRIES
    from llamaseek.herd.show import describe

    described = [describe(entry) for entry in ENTRIES.values()]
    if json:
        _print_json(described)
        return
    _print_table(described)


@app.command(cls=Command)
def show(
    model: str = typer.Argument(..., help=MODEL_NAMES),
    json: bool = JSON,
    diagram: Path = DIAGRAM,
) -> None:
    """Show a model's modules, shapes and parameter counts."""
    from llamaseek.checkpoints.sources import find_entry
    from llamaseek.errors import bad_value
    from llamaseek.herd.show import describe

    entry = find_entry(model)
    if diagram is not None:
        if diagram.suffix != ".svg":
            raise bad_value("--diagram", str(diagram), "a name that ends in .svg")
        from llamaseek.files import write_text
        from llamaseek.herd.diagram import draw

        write_text(diagram, draw(entry.config, entry.title))
        if not json:
            print(f"wrote {diagram}")
    if json:
        _print_json(describe(entry))
    elif diagram is None:
        _print_model(entry)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(described: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from llamaseek.units import count

    table = Table("model", box=None, pad_edge=False, header_style="bold")
    for title in ("fine-\ntuned", "multi-\nlingual", "long\ncontext", "tool\nuse"):
        table.add_column(title, justify="center")
    table.add_column("release")
    for title in ("size", "tokens"):
        table.add_column(title, justify="right")
    for row in described:
        marks = ["✓" if row[key] else "·" for key in CAPABILITIES]
        context = f"{row['context'] // 1024}k" if row["context"] >= 1024 else str(row["context"])
        release = (row["release"] or "")[:7]
        table.add_row(row["name"], *marks, release, count(row["parameters"]), context)
    Console().print(table)


CAPABILITIES = ("fine_tuned", "multilingual", "long_context", "tool_use")


def _print_model(entry: Any) -> None:
    from rich.console import Console

    from llamaseek.herd.show import describe, outline
    from llamaseek.units import count

    facts = describe(entry)
    console = Console(highlight=False)
    console.print(f"[bold]{entry.title}[/]  ({entry.name})")
    lines = {
        "parameters": f"{facts['parameters']:,} ({count(facts['parameters'])})",
        "activated a token": f"{facts['activated_parameters']:,}",
        "embedding": f"{facts['embedding_parameters']:,}",
        "multi-token module": f"{facts['multi_token_parameters']:,}",
        "head chooses among": f"{facts['classes']:,} classes",
        "cache a token": f"{facts['cache_bytes_per_token']:,} bytes in bf16",
        "context": f"{facts['context']:,} tokens",
        "release, license": f"{facts['release'] or '-'}, {facts['license']}",
    }
    for label, value in lines.items():
        if not (label == "multi-token module" and not facts["multi_token_parameters"]):
            console.print(f"  {label:<20}{value}")
    console.print(_tree(outline(entry.config)))


def _tree(node: Node) -> Tree:
    from rich.tree import Tree

    found = Tree(_label(node))
    found.children.extend(_tree(child) for child in node.children)
    return found


def _label(node: Node) -> str:
    from llamaseek.units import count

    times = f" [bold]× {node.times:,}[/]" if node.times > 1 else ""
    shape = f" [cyan]\\[{' × '.join(f'{n:,}' for n in node.shape)}][/]" if node.shape else ""
    parameters = f" [green]{count(node.parameters)}[/]" if node.parameters else ""
    note = f" [dim]{node.note}[/]" if node.note else ""
    return f"{node.name}{times}{shape}{parameters}{note}"
