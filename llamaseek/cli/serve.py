"""`serve`: a model behind OpenAI's API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamaseek.cli.shared import (
    CHAT_TEMPLATE,
    DEVICE,
    TEMPLATE_KWARGS,
    load_tokenizer,
    model_folder,
)
from llamaseek.errors import UserError, bad_value

if TYPE_CHECKING:
    from llamaseek.engine.ranks.tensor_group import TensorGroup
    from llamaseek.models import CausalLM
    from llamaseek.text.guard_prompt import Category

MODEL = typer.Argument(help="A model folder.", callback=model_folder)
NAME = typer.Option(None, help="What requests call the model.", show_default="the folder's name")
ADAPTER = typer.Option(
    [], "--adapter", help="NAME=FOLDER: a LoRA in PEFT's format, served under its own name."
)
HOST = typer.Option("127.0.0.1", help="The address to listen on; only this machine by default.")
PORT = typer.Option(8000, help="The port; 0 takes a free one.")
API_KEY = typer.Option(
    None,
    envvar="LLAMASEEK_API_KEY",
    help="Ask clients for this key; the environment keeps it out of process lists.",
)
DTYPE = typer.Option("auto", help="fp32 or bf16; auto takes bf16 where the machine has it.")
CACHE = typer.Option(1.0, "--cache-gb", help="Memory for the cache of running answers.")
CACHE_DTYPE = typer.Option("auto", help="int8 halves the cache of a bf16 model.")
RUNNING = typer.Option(64, "--max-num-seqs", help="Answers computed at once.")
QUEUE = typer.Option(64, "--queue", help="Requests that may wait; more are told to come later.")
STEP = typer.Option(512, "--max-num-batched-tokens", help="Tokens of one forward.")
COMPILE = typer.Option(
    False, "--compile", help="Compile decoding steps for the GPU; takes minutes."
)
TIMEOUT = typer.Option(600.0, help="Seconds that a request may take.")
GUARD = typer.Option(
    None, help="The folder of a guard model that judges both sides of chats.", callback=model_folder
)
DROP = typer.Option([], "--guard-drop", help="Leave a category out of its policy, as in S13.")
CATEGORIES = typer.Option(None, "--guard-categories", help="A JSON file of categories of your own.")
DRAIN = typer.Option(30.0, help="Seconds that answers may take after a signal to stop.")


def serve(
    model: Path = MODEL,
    name: str = NAME,
    adapter: list[str] = ADAPTER,
    host: str = HOST,
    port: int = PORT,
    api_key: str = API_KEY,
    device: str = DEVICE,
    dtype: str = DTYPE,
    cache_gb: float = CACHE,
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
    chat_template: str = CHAT_TEMPLATE,
    chat_template_kwargs: str = TEMPLATE_KWARGS,
) -> None:
    """Answer requests of OpenAI's API; Ctrl-C or SIGTERM lets running answers end."""
    try:
        from llamaseek.serve.server import check_address
        from llamaseek.serve.server import serve as run
    except ImportError as error:
        raise UserError(f"serve: {error.name} is missing; pip install 'llamaseek[serve]'") from None
    from llamaseek.engine.leader import answer
    from llamaseek.engine.open import load_weights
    from llamaseek.engine.options import EngineOptions
    from llamaseek.serve.options import ServeOptions
    from llamaseek.serve.service import load_served_guard, make_service

    options = ServeOptions(
        name=name or model.resolve().name,
        host=host,
        port=port,
        api_key=api_key,
        timeout=timeout,
        drain=drain,
    )
    engine = EngineOptions(
        cache_bytes=_cache_bytes(cache_gb),
        cache_dtype=cache_dtype,
        max_num_seqs=max_num_seqs,
        most_waiting=queue,
        max_num_batched_tokens=max_num_batched_tokens,
        compile=compile_steps,
    )
    tokenizer = load_tokenizer(model, chat_template, chat_template_kwargs)
    categories = _policy(guard, guard_categories, guard_drop)
    check_address(host, port)

    def use(loaded: CausalLM, group: TensorGroup | None) -> None:
        service = make_service(loaded, model, options, engine, adapter, group, tokenizer)
        if guard:
            service.guard = load_served_guard(guard, device, categories, options, engine)
        run(service)

    answer(model, device, lambda group: load_weights(model, device, dtype, group), use)


def _cache_bytes(gb: float) -> int:
    if not 0 < gb < float("inf"):
        raise bad_value("--cache-gb", gb, "a number above 0")
    return int(gb * (1 << 30))


def _policy(guard: Path | None, file: Path | None, dropped: list[str]) -> tuple[Category, ...]:
    """The guard's categories; UserError where they are changed and no guard is there to ask."""
    from llamaseek.cli.guard import policy

    for field, given in (("--guard-drop", dropped), ("--guard-categories", file)):
        if given and guard is None:
            raise UserError(f"{field}: changes the policy of a guard, and no --guard is given")
    return policy(file, dropped)
