"""`download`: a model from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import typer

REPO = typer.Argument(..., help="A repository of the Hub, or a name of the herd.")
TO = typer.Option(None, help="The folder to make; by default models/NAME.")
REVISION = typer.Option("main", help="A branch, tag or commit.")
DRY = typer.Option(False, "--dry-run", help="Say what would be fetched, and fetch nothing.")

# Weights as safetensors and what a model needs beside them; never a pickle, never code.
PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]


def download(
    repo: str = REPO, to: Path = TO, revision: str = REVISION, dry_run: bool = DRY
) -> None:
    """Fetch a model; what an interrupted run fetched is kept and not fetched again."""
    from llamaseek.errors import UserError
    from llamaseek.herd.published import ENTRIES

    entry = ENTRIES.get(repo.lower())
    name = entry.repo if entry is not None else repo
    if name is None or name.count("/") != 1:
        raise UserError(f"{repo!r} is neither OWNER/NAME nor a published model of the herd")
    target = to or Path("models") / name.split("/")[1]
    if dry_run:
        print(f"would fetch {name} ({revision}): {', '.join(PATTERNS)} → {target}")
        return
    _fetch(name, revision, target)
    print(f"wrote {target}\ncheck it: llamaseek inspect {target}")


def _fetch(name: str, revision: str, target: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    from llamaseek.errors import UserError, shorten

    try:
        snapshot_download(name, revision=revision, local_dir=target, allow_patterns=PATTERNS)
    except (HTTPError, OSError, ValueError) as error:
        hint = "; accept its licence on the Hub and run `hf auth login`" if _denied(error) else ""
        raise UserError(f"{name}: cannot be fetched ({shorten(str(error))}){hint}") from None


def _denied(error: object) -> bool:
    return getattr(getattr(error, "response", None), "status_code", 0) in (401, 403)
