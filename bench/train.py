"""Training speed: our loop against transformers, both families, each case in its own process.

    python bench/train.py [--json PATH] [--shape "dim layers heads kv ffn vocab length batch"]

Both sides do the whole step in bf16 autocast with fp32 weights: forward, loss, backward, clip,
fused AdamW. The share is of the bf16 matrix peak measured in the same process, by the FLOPs a token
of `plan/flops.py`; transformers' Llama has our Llama 3's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.common import Row, installed, median_seconds, report, row

SHAPE = "512 8 8 4 1536 8192 512 8"
SPARSE = "deepseek_v3 compiled"
DENSE = "deepseek_v3-dense compiled"
OURS = ("llama3 eager", "llama3 compiled", SPARSE, DENSE)
PEERS = ("transformers eager", "transformers compiled")


@dataclass(frozen=True)
class Shape:
    """Sizes of the compared model and of one step."""

    dim: int
    layers: int
    heads: int
    kv: int
    ffn: int
    vocab: int
    length: int
    batch: int


def sizes(family: str, shape: Shape) -> dict[str, Any]:
    """Our config; DeepSeek-V3 with the same activated parameters as Llama 3, to 2%.

    `deepseek_v3-dense` has one feed-forward in place of the experts, as wide as those that a token
    goes through.
    """
    common = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "tie_word_embeddings": True,
    }
    if family == "llama3":
        return common | {"num_key_value_heads": shape.kv}
    head = shape.dim // shape.heads
    return common | {
        "moe_intermediate_size": shape.ffn // 3,  # two routed and one shared expert a token
        "first_k_dense_replace": shape.layers if family.endswith("-dense") else 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "kv_lora_rank": shape.dim // 4,
        "qk_nope_head_dim": head * 3 // 4,
        "qk_rope_head_dim": head // 4,
        "v_head_dim": head,
    }


def ours(case: str, shape: Shape) -> dict[str, float]:
    """Tokens a second of `Trainer.step`, and its share of the peak."""
    from llamaseek.data.batch import Batch
    from llamaseek.data.source import Rows
    from llamaseek.herd import config_from_sizes
    from llamaseek.herd.tensors import count_parameters
    from llamaseek.models import build_model
    from llamaseek.plan.flops import recipe_flops
    from llamaseek.recipe.load import make_recipe
    from llamaseek.runtime.device import peak_rate
    from llamaseek.text.train_bpe import train_bpe
    from llamaseek.train.job import Job
    from llamaseek.train.jobs.pretrain import make_objective
    from llamaseek.train.loop import Trainer

    family, mode = case.split()
    torch.manual_seed(0)
    model = build_model(config_from_sizes(family.removesuffix("-dense"), sizes(family, shape)))
    tokens = torch.randint(0, shape.vocab, (4 * shape.batch, shape.length))
    positions = torch.arange(shape.length).expand_as(tokens)
    settings = {
        "batch": shape.batch,
        "precision": "bf16",
        "compile": mode == "compiled",
        "steps": 99,
    }
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(
            {"name": "bench", "stage": "pretrain", "out": folder, "train": settings}
        )
        tokenizer = train_bpe(["any text does"], 270)
        objective = make_objective(recipe, model, tokenizer)
        rows = Rows(Batch(tokens, positions, tokens.roll(-1, 1)), 0)
        trainer = Trainer(Job(recipe, model, tokenizer, objective, rows))
        seconds = median_seconds(lambda: trainer.step(0))
    rate = shape.batch * shape.length / seconds
    flops = recipe_flops(recipe, model.config, shape.length)
    peak = peak_rate(torch.bfloat16, trainer.device)
    activated = count_parameters(model.config).activated
    return {"rate": rate, "share": rate * flops / peak, "activated": activated}


def peer(case: str, shape: Shape) -> dict[str, float]:
    """Tokens a second of transformers' Llama with its own loss, as its users train it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llamaseek.herd import config_from_sizes
    from llamaseek.plan.flops import training_flops
    from llamaseek.runtime.device import peak_rate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.dim,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(model) if case.endswith("compiled") else model
    tokens = torch.randint(0, shape.vocab, (shape.batch, shape.length), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    rate = shape.batch * shape.length / median_seconds(step)
    parameters = sum(p.numel() for p in model.parameters())
    flops = training_flops(config_from_sizes("llama3", sizes("llama3", shape)), shape.length)
    share = rate * flops / peak_rate(torch.bfloat16, device)
    return {"rate": rate, "share": share, "activated": parameters}


def measure(case: str, shape: str) -> dict[str, float]:
    """One case in a process of its own, so that no case warms or crowds another."""
    command = [sys.executable, __file__, "--case", case, "--shape", shape]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(shape: str) -> tuple[list[Row], list[str]]:
    """All cases in turn."""
    peers = PEERS if installed("transformers") else ()
    found = {case: measure(case, shape) for case in (*OURS, *peers)}
    rate = "tokens/s"
    rows = [
        row(case, rate, found[case]["rate"], name, found[name]["rate"], found[case]["share"])
        for case in OURS[:2]
        for name in peers
    ]
    sparse = found[SPARSE]
    for name in ("llama3 compiled", DENSE):
        against = (SPARSE, rate, sparse["rate"], f"our {name}", found[name]["rate"])
        rows.append(row(*against, sparse["share"]))
    for name in peers:  # what the peers reach of the machine, for scale
        rows.append(Row(name, rate, found[name]["rate"], "-", None, None, found[name]["share"]))
    return rows, [] if peers else ["transformers (not installed)"]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", default=SHAPE)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        shape = Shape(*map(int, options.shape.split()))
        run = peer if options.case.startswith("transformers") else ours
        print(json.dumps(run(options.case, shape)))
        return
    report(*compare(options.shape), options.json)


if __name__ == "__main__":
    main()
