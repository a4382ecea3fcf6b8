"""`serve`: serve a model over OpenAI's API."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamaseek.cli.shared import (
    CHAT_TEMPLATE,
    DEVICE,
    MODEL_NAMES,
    TEMPLATE_KWARGS,
    load_tokenizer,
    model_folder,
    model_or_adapter,
)
from llamaseek.errors import UserError, bad_value

if TYPE_CHECKING:
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.options import EngineOptions
    from llamaseek.engine.ranks.tensor_group import TensorGroup
    from llamaseek.models import CausalLM
    from llamaseek.serve.options import ServeOptions
    from llamaseek.text.guard_prompt import Category
    from llamaseek.text.tokenizer import Tokenizer

MODEL = typer.Argument(help=MODEL_NAMES, callback=model_or_adapter)
NAME = typer.Option(
    None, help="Model name in requests.", show_default="the run's or folder's name, or the Hub's id"
)
ADAPTER = typer.Option(
    [], "--adapter", help="NAME=FOLDER: a PEFT LoRA adapter, or its Hub id, served under NAME."
)
HOST = typer.Option("127.0.0.1", help="Address to listen on.")
ALLOWED = typer.Option(
    [],
    "--allowed-host",
    help="Also accept this Host header, as a proxy sends it; * accepts all.",
)
CORS = typer.Option(
    [], "--cors", help="Let web pages of this origin read answers, e.g. https://example.com; * all."
)
PORT = typer.Option(8000, help="Port to listen on; 0 chooses a free one.")
API_KEY = typer.Option(
    [],
    "--api-key",
    envvar="LLAMASEEK_API_KEY",
    help="Require this API key, or one of several; the environment variable keeps them out of "
    "process lists.",
)
KEY_FILE = typer.Option(
    None,
    "--api-key-file",
    help="A file of API keys, one a line, each with limits of its own, e.g. KEY rpm_limit=60.",
)
RPM = typer.Option(None, "--rpm-limit", help="Maximum requests per minute of each API key.")
TPM = typer.Option(None, "--tpm-limit", help="Maximum tokens per minute of each API key.")
PARALLEL = typer.Option(
    None, "--max-parallel-requests", help="Maximum requests at once of each API key."
)
DTYPE = typer.Option(
    "auto",
    help="fp32 or bf16; auto is bf16 if the weights are stored in 16 bits or fewer and the "
    "hardware supports it, else fp32.",
)
CACHE = typer.Option(
    None,
    "--cache-gb",
    help="Size of the KV cache in GB.",
    show_default="1; on a GPU what is free",
)
UTILIZATION = typer.Option(
    0.9, help="Share of a GPU's memory that weights and cache may take, where no --cache-gb is."
)
CACHE_DTYPE = typer.Option("auto", help="auto or int8; int8 halves the KV cache of a bf16 model.")
RUNNING = typer.Option(64, "--max-num-seqs", help="Maximum number of sequences computed at once.")
QUEUE = typer.Option(64, "--queue", help="Maximum number of waiting requests; more get status 429.")
STEP = typer.Option(
    512, "--max-num-batched-tokens", help="Maximum number of tokens per forward pass."
)
COMPILE = typer.Option(False, "--compile", help="Compile decoding steps on a GPU; takes minutes.")
TIMEOUT = typer.Option(600.0, help="Maximum seconds per request.")
GUARD = typer.Option(
    None,
    help="A guard model that checks messages and answers of chats; a folder or name as MODEL.",
    callback=model_folder,
)
DROP = typer.Option([], "--guard-drop", help="Remove a category from the guard's policy, e.g. S13.")
CATEGORIES = typer.Option(None, "--guard-categories", help="A JSON file with your own categories.")
SYSTEM = typer.Option(
    False, "--guard-system", help="The guard also checks system messages, as the user's."
)
DRAIN = typer.Option(30.0, help="Seconds that running answers may take after a stop signal.")


def serve(
    model: Path = MODEL,
    name: str = NAME,
    adapter: list[str] = ADAPTER,
    host: str = HOST,
    allowed_host: list[str] = ALLOWED,
    cors: list[str] = CORS,
    port: int = PORT,
    api_key: list[str] = API_KEY,
    api_key_file: Path = KEY_FILE,
    rpm_limit: int = RPM,
    tpm_limit: int = TPM,
    max_parallel_requests: int = PARALLEL,
    device: str = DEVICE,
    dtype: str = DTYPE,
    cache_gb: float | None = CACHE,
    gpu_memory_utilization: float = UTILIZATION,
    cache_dtype: str = CACHE_DTYPE,
    max_num_seqs: int = RUNNING,
    queue: int = QUEUE,
    max_num_batched_tokens: int = STEP,
    compile_steps: bool = COMPILE,
    timeout: float = TIMEOUT,
    drain: float = DRAIN,
    guard: Path = GUARD,
    guard_drop: list[str] = DROP,
    guard_categories: Path = CATEGORIES,
    guard_system: bool = SYSTEM,
    chat_template: str = CHAT_TEMPLATE,
    chat_template_kwargs: str = TEMPLATE_KWARGS,
) -> None:
    """Serve a model over OpenAI's API; Ctrl-C or SIGTERM shuts down gracefully."""
    from llamaseek.engine.options import EngineOptions
    from llamaseek.serve.keys import KeyLimits, all_keys
    from llamaseek.serve.options import ServeOptions
    from llamaseek.serve.server import check_address

    limits = KeyLimits(rpm_limit, tpm_limit, max_parallel_requests)
    options = ServeOptions(
        name=name or _shown_name(model),
        host=host,
        allowed_hosts=tuple(allowed_host),
        cors=tuple(cors),
        port=port,
        api_keys=all_keys(api_key, api_key_file, limits),
        timeout=timeout,
        drain=drain,
        guard_system=guard_system,
    )
    engine = EngineOptions(
        **_cache(cache_gb, cache_dtype, gpu_memory_utilization, guard),
        max_num_seqs=max_num_seqs,
        most_waiting=queue,
        max_num_batched_tokens=max_num_batched_tokens,
        compile=compile_steps,
    )
    judge = guard, _policy(guard, guard_categories, guard_drop, guard_system)
    check_address(host, port)
    tokenizer = load_tokenizer(model, chat_template, chat_template_kwargs)
    _run(model, (device, dtype), options, engine, adapter, judge, tokenizer)


def _run(
    model: Path,
    place: tuple[str, str],
    options: ServeOptions,
    engine: EngineOptions,
    adapters: list[str],
    judge: tuple[Path | None, tuple[Category, ...]],
    tokenizer: Tokenizer | None,
) -> None:
    """Load the model to `place`, a device and a dtype, and serve it with the guard of `judge`."""
    from llamaseek.engine.leader import answer
    from llamaseek.serve.server import serve
    from llamaseek.serve.service import load_served_guard, make_service

    device, dtype = place
    guard, categories = judge

    def use(loaded: CausalLM, group: TensorGroup | None) -> None:
        service = make_service(loaded, model, options, engine, adapters, group, tokenizer)
        if guard:
            service.guard = load_served_guard(guard, device, categories, options, engine)
        _capture_graphs(service.engine)
        serve(service)

    answer(model, device, partial(_load, model, device, dtype), use)


def _capture_graphs(engine: Engine) -> None:
    """Every decoding step's CUDA graph, under a bar, before the server listens."""
    if engine.runner.graphs is None:
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = "CUDA graphs", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    off = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = None
        for done, total in engine.capture_graphs():
            task = bar.add_task("", total=total) if task is None else task
            bar.update(task, completed=done)


def _shown_name(model: Path) -> str:
    from llamaseek.checkpoints.sources import shown_name

    return shown_name(model)


def _load(model: Path, device: str, dtype: str, group: TensorGroup | None) -> CausalLM:
    from llamaseek.engine.open import open_model
    from llamaseek.runtime.device import pick_device

    place = pick_device(device, "--device")
    return open_model(model, device=place, dtype=dtype, group=group)


def _cache(gb: float | None, dtype: str, utilization: float, guard: Path | None) -> dict[str, Any]:
    """The cache's options: bytes None for what the engine finds free; a guard wants memory too."""
    size = (1 << 30 if guard else None) if gb is None else _cache_bytes(gb)
    return {"cache_bytes": size, "cache_dtype": dtype, "gpu_memory_utilization": utilization}


def _cache_bytes(gb: float) -> int:
    if not 0 < gb < float("inf"):
        raise bad_value("--cache-gb", gb, "a number above 0")
    return int(gb * (1 << 30))


def _policy(
    guard: Path | None, file: Path | None, dropped: list[str], system: bool
) -> tuple[Category, ...]:
    """The guard's categories; UserError if its policy is changed without a guard."""
    from llamaseek.cli.guard import policy

    fields = {"--guard-drop": dropped, "--guard-categories": file, "--guard-system": system}
    for field, given in fields.items():
        if given and guard is None:
            raise UserError(f"{field}: changes the policy of a guard, but --guard is not given")
    return policy(file, dropped)
