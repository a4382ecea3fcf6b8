"""What to type: examples of each command for its help, and what to type here for the commands and
options of other tools."""

from __future__ import annotations

import inspect
import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

from llamaseek.errors import UserError

BREAK = re.compile(r"(?<!\n)\n(?!\n)")  # of a line, not of a paragraph
TUNE = "llamaseek finetune MODEL DATA fine-tunes a model"
MERGE = "llamaseek convert BASE OUT --adapter FOLDER merges an adapter"
HERD = "llamaseek herd lists the published models"
RANKS = "torchrun --nproc-per-node N -m llamaseek serve MODEL splits a model over N ranks"
RATE = "train.lr=1e-4 sets the learning rate, as any field of a recipe"
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
    "--batch-size": "train.batch=8 sets the rows of a step, as any field of a recipe",
    "--ctx-size": CACHE,
    "--learning-rate": RATE,
    "--learning_rate": RATE,
    "--lr": RATE,
    "--max-model-len": CACHE,
    "--max-new-tokens": "--max-tokens sets the longest answer",
    "--max_new_tokens": "--max-tokens sets the longest answer",
    "--max_tokens": "--max-tokens sets the longest answer",
    "--num-train-epochs": "--epochs sets the passes over the rows, train.epochs=2 in a recipe",
    "--output-dir": "--out names the folder, out=FOLDER in a recipe",
    "--output_dir": "--out names the folder, out=FOLDER in a recipe",
    "--model": "the model folder is the first argument",
    "--quantization": "llamaseek quantize MODEL OUT writes a quantized folder to use instead",
    "--served-model-name": "--name sets the name that clients ask for",
    "--tensor-parallel-size": RANKS,
    "--tp": RANKS,
}
"""Of vLLM, llama.cpp, Ollama, transformers and TRL."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": ("quickstart", "quickstart --family deepseek_v3"),
    "download": (
        "download smollm2-135m-instruct",
        "download meta-llama/Llama-3.2-1B-Instruct --dry-run",
    ),
    "doctor": ("doctor",),
    "finetune": (
        "finetune smollm2-135m-instruct tickets.csv --dry-run",
        "finetune smollm2-135m-instruct tickets.csv --epochs 3 --out runs/tickets",
        "finetune models/my-llama docs/*.md train.lr=1e-4",
    ),
    "pretrain": (
        "pretrain quickstart-llama3",
        "pretrain tiny-shakespeare data.sources=[tinyshakespeare.txt]",
        "pretrain my-recipe.yaml --resume",
    ),
    "sft": (
        "sft smollm2-135m-lora data.sources=[conversations.jsonl]",
        "sft llama-3.1-8b-qlora data.sources=[conversations.jsonl] --dry-run",
    ),
    "reward": ("reward quickstart-reward", "reward my-recipe.yaml data.sources=[pairs.jsonl]"),
    "dpo": ("dpo quickstart-dpo", "dpo smollm2-135m-dpo data.sources=[pairs.jsonl]"),
    "grpo": ("grpo arithmetic-grpo", "grpo smollm2-135m-grpo data.sources=[gsm8k/train.jsonl]"),
    "ppo": ("ppo quickstart-ppo",),
    "recipes": ("recipes",),
    "report": ("report runs/quickstart-llama3",),
    "generate": (
        'generate smollm2-135m-instruct --chat "What is the capital of France?"',
        'generate runs/quickstart-llama3/pretrain/model "The red fox" --temperature 0.8 --stats',
    ),
    "chat": (
        "chat smollm2-135m-instruct",
        'chat runs/quickstart-llama3/dpo/model --system "Answer in one sentence."',
    ),
    "serve": (
        "serve smollm2-135m-instruct",
        "serve models/my-llama --adapter tickets=runs/tickets/adapter --port 8080",
    ),
    "fill": ('fill runs/masked/model "The red [MASK] chased"',),
    "eval": (
        "eval smollm2-135m-instruct --tasks gsm8k,piqa --data benchmarks --limit 100",
        "eval runs/tickets/model --compare smollm2-135m-instruct --tasks mmlu --out runs/scores",
    ),
    "guard": (
        'guard llama-guard-3-1b "How do I pick a lock?"',
        "guard runs/guard/model --held-out 1000",
    ),
    "inspect": ("inspect smollm2-135m-instruct", "inspect models/my-llama --json"),
    "convert": (
        "convert smollm2-135m-instruct models/smollm2 --dtype bfloat16",
        "convert models/my-llama my-llama.gguf --dtype q8_0 --modelfile",
        "convert models/my-llama models/merged --adapter runs/tickets/adapter",
    ),
    "quantize": ("quantize models/my-llama models/my-llama-4bit --bits 4",),
    "average": ("average models/averaged runs/a/model runs/b/model",),
    "push": ("push runs/tickets/adapter me/tickets --private --dry-run",),
    "plan": (
        "plan llama-3.1-70b --gpu h100-80gb",
        "plan --params 1e12 --gpu h100-80gb --dtype fp16",
        "plan --recipe llama-3.1-8b-qlora --gpu rtx4090",
    ),
    "train-plan": ("train-plan cluster-llama-3.1-405b", "train-plan my-recipe.yaml --gpu h200"),
    "study": ("study size --smoke", "study parallelism"),
    "questions": ("questions", "questions 4"),
    "tokenize": ('tokenize --tokenizer smollm2-135m-instruct "The red fox"',),
    "tokenizer get": ("tokenizer get llama3 --to models/tokenizer",),
    "data clean": ("data clean web-text out=data/web",),
    "data inspect": (
        "data inspect tickets.csv --model smollm2-135m-instruct",
        "data inspect quickstart-sft --rows 5",
    ),
    "herd show": ("herd show llama-3.1-405b", "herd show deepseek-v3 --diagram v3.svg"),
}
"""By command. `tests/cli/test_examples.py` parses each; the names of recipes and models exist."""


def epilog(command: str) -> str | None:
    """The text after a command's options in rich's markup, one line an example."""
    from rich.markup import escape

    lines = [f"  llamaseek {line}" for line in EXAMPLES.get(command, ())]
    return escape("\n".join(["Examples:", *lines])) if lines else None


class Group(TyperGroup):
    """The program: a command of another tool is answered with the one to use."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """UserError for the name of another tool's command; otherwise as typer resolves it."""
        if args and args[0] in COMMANDS:
            raise UserError(f"{args[0]}: no such command; {COMMANDS[args[0]]}")
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command: an option of another tool is answered with the one to use, and examples end its
    help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, its paragraphs as wide as the terminal, then examples of `EXAMPLES`."""
        self.help = BREAK.sub(" ", inspect.cleandoc(self.help or ""))
        self.epilog = epilog(ctx.command_path.partition(" ")[2])
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """UserError for the name of another tool's option; otherwise as typer parses it."""
        own = {name for parameter in self.params for name in parameter.opts}
        for word in args[: args.index("--")] if "--" in args else args:
            name = word.partition("=")[0]
            if name in OPTIONS and name not in own:
                raise UserError(f"{name}: no such option; {OPTIONS[name]}")
        return super().parse_args(ctx, args)
