"""`generate`: text continued, or one message answered; `fill`: masked words of a text."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamaseek.cli.shared import (
    CHAT_TEMPLATE,
    DEVICE,
    MODEL_NAMES,
    TEMPLATE_KWARGS,
    load_tokenizer,
    model_folder,
    model_or_adapter,
    read_stdin,
)
from llamaseek.errors import UserError, bad_value

if TYPE_CHECKING:
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.options import Speculation
    from llamaseek.engine.ranks.tensor_group import TensorGroup
    from llamaseek.engine.request import SamplingParams
    from llamaseek.engine.statistics import Statistics
    from llamaseek.models import CausalLM

MODEL = typer.Argument(help=MODEL_NAMES, callback=model_or_adapter)
CHAT = typer.Option(False, "--chat", help="Treat the prompt as a user's message.")
TEMPERATURE = typer.Option(0.0, help="Sampling temperature; 0 is greedy decoding.")
TOP_P = typer.Option(1.0, help="Nucleus sampling: keep the most probable tokens up to this total.")
TOP_K = typer.Option(0, help="Sample from this many most probable tokens; 0 is all.")
MAX_TOKENS = typer.Option(128, help="Maximum number of tokens to generate.")
SEED = typer.Option(0, help="Random seed for temperatures above 0.")
STATS = typer.Option(False, "--stats", help="Print the speed to standard error afterwards.")
SPECULATE = typer.Option(
    "none",
    help="Speculative decoding: mtp (DeepSeek-V3's own module), lookup (n-grams of the text), "
    "or a draft model, as MODEL. The output does not change.",
)
DRAFT_TOKENS = typer.Option(15, help="Most tokens to draft ahead; fewer where drafts fail.")
MASKED_MODEL = typer.Argument(help="The folder of a masked language model.", callback=model_folder)
MASKED_TEXT = typer.Argument(
    help='A text with [MASK] for each word to fill in: "The red [MASK] chased".'
)
CANDIDATES = typer.Option(5, min=1, help="How many words to print for each place.")


def generate(
    model: Path = MODEL,
    prompt: str = typer.Argument("-", help="The prompt; - reads standard input."),
    chat: bool = CHAT,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    top_k: int = TOP_K,
    max_tokens: int = MAX_TOKENS,
    seed: int = SEED,
    stats: bool = STATS,
    speculate: str = SPECULATE,
    draft_tokens: int = DRAFT_TOKENS,
    device: str = DEVICE,
    chat_template: str = CHAT_TEMPLATE,
    chat_template_kwargs: str = TEMPLATE_KWARGS,
) -> None:
    """Generate text from a prompt; with --chat, answer a message."""
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.leader import answer
    from llamaseek.engine.open import open_model
    from llamaseek.engine.options import EngineOptions
    from llamaseek.engine.request import SamplingParams
    from llamaseek.runtime.device import pick_device

    tokenizer = load_tokenizer(model, chat_template, chat_template_kwargs)
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
    )

    def use(loaded: CausalLM, group: TensorGroup | None) -> None:
        drafts = speculation(speculate, draft_tokens, device)
        options = EngineOptions(max_num_seqs=1, speculation=drafts)
        engine = Engine(loaded, tokenizer, options, group=group)
        say(engine, read_stdin() if prompt == "-" else prompt, chat, params, stats)

    def load(group: TensorGroup | None) -> CausalLM:
        return open_model(model, device=pick_device(device, "--device"), group=group)

    answer(model, device, load, use)


def say(engine: Engine, text: str, chat: bool, params: SamplingParams, stats: bool) -> None:
    """Print the generated text as a stream."""
    from llamaseek.engine.request import Request
    from llamaseek.text.chat import encode_chat

    assert engine.tokenizer is not None
    if chat:
        messages = [{"role": "user", "content": text}]
        ids = encode_chat(engine.tokenizer, messages, add_generation_prompt=True).ids
    else:
        ids = [*engine.tokenizer.prefix_ids, *engine.tokenizer.encode(text)]
    request = Request(prompt=ids, params=params)
    engine.check(request)
    print("" if chat else text, end="")
    start = time.perf_counter()
    for delta in engine.stream(request):
        if delta.error is not None:
            raise RuntimeError(delta.error)
        print(delta.text, end="", flush=True)
    print()
    if stats:
        print(describe(engine.statistics, time.perf_counter() - start), file=sys.stderr)


def speculation(source: str, depth: int, device: str) -> Speculation:
    """The drafter of `--speculate`; a name that is not a method is a draft model's folder."""
    from llamaseek.checkpoints.sources import find_source
    from llamaseek.engine.open import open_model
    from llamaseek.engine.options import DRAFTERS, Speculation

    methods = [kind for kind in DRAFTERS if kind != "model"]  # that one goes by its folder
    if source in methods:
        return Speculation(kind=source, depth=depth)
    try:
        draft = open_model(find_source(source), device=device)
    except UserError as error:
        allowed = f"{', '.join(methods)}, a model folder or a .gguf file or a name ({error})"
        raise bad_value("--speculate", source, allowed) from None
    return Speculation(kind="model", depth=depth, draft_model=draft)


def describe(statistics: Statistics, seconds: float) -> str:
    """One line: tokens, speed, and accepted drafts."""
    parts = [
        f"{statistics.output} tokens in {seconds:.2f} s",
        f"{statistics.output / max(seconds, 1e-9):.1f} a second",
        f"{statistics.tokens_per_forward:.2f} tokens per forward",
    ]
    if statistics.drafted:
        parts.append(f"{statistics.acceptance:.1%} of {statistics.drafted} drafts accepted")
    return "  ·  ".join(parts)


def fill(
    model: Path = MASKED_MODEL, text: str = MASKED_TEXT, top: int = CANDIDATES, device: str = DEVICE
) -> None:
    """Print the likely words of each [MASK] in a text, by a masked language model."""
    from llamaseek.engine.open import open_tokenizer
    from llamaseek.engine.uncached import fill as candidates
    from llamaseek.engine.uncached import open_masked

    found = candidates(open_masked(model, device), open_tokenizer(model), text, top)
    for number, place in enumerate(found, 1):
        print(f"[MASK] {number}:" if len(found) > 1 else "[MASK]:")
        for word, share in place:
            print(f"{share:8.1%}  {word.strip() or repr(word)}")
