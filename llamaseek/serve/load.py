"""From a model folder to a service."""

from __future__ import annotations

from pathlib import Path

from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.errors import bad_value
from llamaseek.models.checkpoint import load_model
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import Service
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.machine import pick_device, pick_dtype

DTYPES = ("auto", "bf16", "fp32")


def load_service(folder: Path, dtype: str, options: ServeOptions, engine: EngineOptions) -> Service:
    """The model of a folder, ready to be served. UserError as the loaders raise it."""
    if dtype not in DTYPES:
        raise bad_value("--dtype", dtype, ", ".join(DTYPES))
    device = pick_device("auto")
    tokenizer = Tokenizer.load(folder)
    model = load_model(folder, pick_dtype(dtype, device)).to(device)
    return Service(Engine(model, tokenizer, engine), tokenizer, options)
