"""`generate`: text continued, or one message answered."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

MODEL = typer.Argument(help="A model folder.")
CHAT = typer.Option(False, "--chat", help="Answer the prompt as a user's message.")
TEMPERATURE = typer.Option(0.0, help="0 takes the likeliest token each time.")
TOP_P = typer.Option(1.0, help="Keep the likeliest tokens up to this much probability.")
TOP_K = typer.Option(0, help="Keep this many tokens; 0 keeps all.")
MAX_TOKENS = typer.Option(128, help="Stop after this many tokens.")
SEED = typer.Option(0, help="For temperatures above 0.")


def generate(
    model: Path = MODEL,
    prompt: str = typer.Argument("-", help="The text to continue; - reads standard input."),
    chat: bool = CHAT,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    top_k: int = TOP_K,
    max_tokens: int = MAX_TOKENS,
    seed: int = SEED,
) -> None:
    """Continue a text, streaming; with --chat, answer a message."""
    from llamaseek.engine.generate import stream
    from llamaseek.engine.sampler import Sampling
    from llamaseek.models.checkpoint import load_model
    from llamaseek.text.chat import encode_chat
    from llamaseek.text.tokenizer import StreamDecoder, Tokenizer
    from llamaseek.train.machine import pick_device

    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    tokenizer = Tokenizer.load(model)
    loaded = load_model(model).to(pick_device("auto"))
    if chat:
        messages = [{"role": "user", "content": text}]
        ids = encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    else:
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        print(text, end="")
    decoder = StreamDecoder(tokenizer)
    for token in stream(loaded, ids, tokenizer.stop_ids, sampling):
        print(decoder.push(token), end="", flush=True)
    print(decoder.flush())
