"""From a model folder to a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.errors import UserError, bad_value
from llamaseek.models import CausalLM
from llamaseek.models.adapter import Adapter, read_adapter
from llamaseek.models.checkpoint import load_model
from llamaseek.parallel.narrow import load_share
from llamaseek.parallel.tensor_group import TensorGroup
from llamaseek.safety.guard import load_guard
from llamaseek.serve.guard import ServedGuard
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import Service
from llamaseek.text.guard_prompt import Category
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.machine import pick_device, pick_dtype

DTYPES = ("auto", "bf16", "fp32")


def load_weights(
    folder: Path, device: str, dtype: str, group: TensorGroup | None = None
) -> CausalLM:
    """The model of a folder, or this rank's share of it. UserError as the loaders raise it."""
    if dtype not in DTYPES:
        raise bad_value("--dtype", dtype, ", ".join(DTYPES))
    place = pick_device(device, "--device")
    precision = pick_dtype(dtype, place)
    if group is not None:
        return load_share(folder, precision, group, place)
    return load_model(folder, precision, fp8=place.type == "cuda", mapped=True, device=place)


def make_service(
    model: CausalLM,
    folder: Path,
    options: ServeOptions,
    engine: EngineOptions,
    adapters: Sequence[str] = (),
    group: TensorGroup | None = None,
) -> Service:
    """A folder's model with adapters as `name=folder`, ready to be served.

    UserError for an adapter's name that is not there or taken, and for any beside a `group`.
    """
    if adapters and group is not None:
        raise UserError(
            f"--adapter: {adapters[0]} is not for several ranks; fold it in with: "
            "llamaseek convert --adapter"
        )
    tokenizer = Tokenizer.load(folder)
    found = read_adapters(adapters, options.name)
    return Service(Engine(model, tokenizer, engine, found, group), tokenizer, options)


def read_adapters(given: Sequence[str], base: str) -> dict[str, Adapter]:
    """Adapters by name; UserError for what is not `name=folder`, and a name given twice."""
    found: dict[str, Adapter] = {}
    for each in given:
        name, _, folder = each.partition("=")
        if not name or not folder:
            raise bad_value("--adapter", each, "NAME=FOLDER")
        if name == base or name in found:
            raise bad_value("--adapter", name, "a name that is not taken")
        found[name] = read_adapter(Path(folder))
    return found


def load_served_guard(
    folder: Path,
    device: str,
    categories: Sequence[Category],
    options: ServeOptions,
    engine: EngineOptions,
) -> ServedGuard:
    """A guard to stand before a service; its cache takes half of what the model's may."""
    limits = replace(engine, cache_bytes=engine.cache_bytes // 2)
    guard = load_guard(folder, categories, pick_device(device, "--device"), limits)
    return ServedGuard(guard, options.guard_timeout)
