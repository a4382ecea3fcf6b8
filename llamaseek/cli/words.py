"""Commands and options that other tools have under other names, and what to type here instead."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from llamaseek.errors import UserError

TUNE = "llamaseek finetune MODEL DATA fine-tunes a model"
MERGE = "llamaseek convert BASE OUT --adapter FOLDER merges an adapter"
HERD = "llamaseek herd lists the published models"
RANKS = "torchrun --nproc-per-node N -m llamaseek serve MODEL splits a model over N ranks"
CACHE = "the context length is the model's own, and --cache-gb bounds the memory of the cache"
COMMANDS = {
    "adapter": MERGE,
    "api": "llamaseek serve MODEL serves a model",
    "export": "llamaseek convert MODEL OUT writes another format or dtype",
    "fine-tune": TUNE,
    "info": "llamaseek inspect MODEL shows a model folder",
    "list": HERD,
    "ls": HERD,
    "merge": MERGE,
    "models": HERD,
    "pull": "llamaseek download NAME downloads a published model",
    "run": "llamaseek chat MODEL talks to a model",
    "show": "llamaseek inspect MODEL shows a model folder",
    "train": "llamaseek pretrain, sft, reward, dpo, grpo and ppo train by a recipe",
}
OPTIONS = {
    "--allowed-origins": "--cors ORIGIN lets web pages of an origin read answers",
    "--ctx-size": CACHE,
    "--gpu-memory-utilization": CACHE,
    "--max-model-len": CACHE,
    "--max-new-tokens": "--max-tokens sets the longest answer",
    "--max_new_tokens": "--max-tokens sets the longest answer",
    "--max_tokens": "--max-tokens sets the longest answer",
    "--model": "the model folder is the first argument",
    "--quantization": "llamaseek quantize MODEL OUT writes a quantized folder to use instead",
    "--served-model-name": "--name sets the name that clients ask for",
    "--tensor-parallel-size": RANKS,
    "--tp": RANKS,
}
"""Of vLLM, llama.cpp, Ollama and transformers."""


class Group(TyperGroup):
    """The program: a command of another tool is answered with the one to use."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """UserError for the name of another tool's command; otherwise as typer resolves it."""
        if args and args[0] in COMMANDS:
            raise UserError(f"{args[0]}: no such command; {COMMANDS[args[0]]}")
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command: an option of another tool is answered with the one to use."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """UserError for the name of another tool's option; otherwise as typer parses it."""
        own = {name for parameter in self.params for name in parameter.opts}
        for word in args[: args.index("--")] if "--" in args else args:
            name = word.partition("=")[0]
            if name in OPTIONS and name not in own:
                raise UserError(f"{name}: no such option; {OPTIONS[name]}")
        return super().parse_args(ctx, args)
