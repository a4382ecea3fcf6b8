"""Models by what the user calls them, evaluated one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from llamaseek.checkpoints.sources import find_source
from llamaseek.engine.engine import Engine
from llamaseek.engine.open import open_model, open_tokenizer
from llamaseek.engine.options import EngineOptions
from llamaseek.errors import UserError
from llamaseek.evals.run import EvalOptions, Evaluation, Progress, evaluate_engine, evaluate_server


def evaluate_all(
    models: Sequence[str],
    options: EvalOptions,
    *,
    adapter: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> list[Evaluation]:
    """The evaluation of each model, the first with the adapter; with several each has a folder of
    its own below `options.out`. UserError for a model that cannot be used.
    """
    for model in models:
        if not is_server(model):
            find_source(Path(model), adapters=True)
    found = []
    for number, model in enumerate(models):
        mine = options
        if options.out is not None and len(models) > 1:
            mine = replace(options, out=options.out / f"{number}-{Path(model).name}")
        lora = adapter if number == 0 else None
        if is_server(model):
            if lora is not None:
                raise UserError("--adapter: is for a model here, not for a server")
            found.append(evaluate_server(model, mine, log=log))
            continue
        engine = open_engine(model, lora, device, dtype)
        name = model if lora is None else f"{model} + {lora}"
        found.append(evaluate_engine(engine, mine, name=name, progress=progress, log=log))
    return found


def open_engine(model: str, adapter: Path | None, device: str, dtype: str) -> Engine:
    """The engine of a model by what the user calls it. UserError where it cannot be used.

    Its cache has small blocks: answers to choose from are short, and share all that is before them.
    """
    source = find_source(Path(model), adapters=True)
    return Engine(
        open_model(source, device=device, dtype=dtype, adapter=adapter),
        open_tokenizer(source, adapter),
        EngineOptions(block_size=8),
    )


def is_server(model: str) -> bool:
    """Whether a model is given as the URL of a server."""
    return urlsplit(model).scheme in ("http", "https")
