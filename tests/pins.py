"""Pins the numbers that a change of structure must not move, for both model families.

    python -m tests.pins --write tests/pins.json
    python -m tests.pins --check tests/pins.json --only tokens

Pinned are SHA-256 digests of trained weights, greedy tokens of the engine in four precisions,
losses of parallel layouts, the ids of the lecture, and the figures of the smoke quickstarts.
Values are equal bit by bit only on the same processor, PyTorch and Python, which the file's header
names. Everything runs on one CPU thread a process (the layouts on two processes), through the
command line of the tree that this file lies in.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "GLOO_SOCKET_IFNAME": "lo",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "RAYON_NUM_THREADS": "1",
}
FAMILIES = ("llama3", "deepseek_v3")
SIZES = {
    "llama3": "intermediate_size=128 num_key_value_heads=2",
    "deepseek_v3": "intermediate_size=128 moe_intermediate_size=64 first_k_dense_replace=1 "
    "n_group=4 topk_group=2 q_lora_rank=32 kv_lora_rank=32 qk_nope_head_dim=16 "
    "qk_rope_head_dim=16 v_head_dim=16",
}
SHARED_SIZES = "hidden_size=64 num_hidden_layers=2 num_attention_heads=4"
LOOP = ("seed=0", "train.batch=8", "train.warmup=2", "train.precision=fp32", "train.device=cpu")
TEXT = (
    "data.mix={stories: 0.4, knowledge: 0.4, math: 0.2}",
    "data.mix_bytes=100000",
    "data.length=64",
    "tokenizer.vocab_size=400",
)
STAGES = {
    # stage: (recipe, the stage whose model it starts from, overrides)
    "sft": ("quickstart-sft", "pretrain", ("data.rows={tasks: 120}",)),
    "dpo": ("quickstart-dpo", "sft", ("data.rows={preferences: 60}",)),
    "reward": ("quickstart-reward", "sft", ("data.rows={preferences: 60}",)),
    "grpo": ("arithmetic-grpo", "sft", ("rollout.samples=4", "grpo.beta=0.04")),
    "ppo": ("quickstart-ppo", "sft", ("rollout.samples=1", "rollout.epochs=2")),
}
ROLLOUT = (
    "data.rows={preferences: 60}",
    "rollout.max_tokens=12",
    "rollout.missing_end=-2.0",
    "rollout.eval_prompts=4",
    "train.lr=1e-3",
    "train.micro_batch=8",
)
LAYOUTS = {
    # name: (overrides of both families, of DeepSeek-V3 alone), for two ranks
    "data 2": (("parallel.data=2", "parallel.zero=true"), ()),
    "shard 2": (("parallel.shard=2",), ("parallel.expert=2",)),
    "tensor 2": (("parallel.tensor=2",), ()),
    "pipeline 2": (("parallel.pipeline=2", "train.micro_batch=1"), ()),
}
PROMPTS = [
    " ".join(words) + end
    for words in product(
        ("The red fox", "A small boat", "One day the king", "2 + 3 =", "Where is"),
        ("went to the", "said that", "of a", "found 12 apples in the", "is the capital"),
    )
    for end in ("", " old house. Then")
]
STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
LECTURE = (
    "<|begin_of_text|><|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Based on the information provided, rewrite the sentence by changing its tense from past to "
    "future.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "She played the piano beautifully for hours and then stopped as it was midnight.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def llamaseek(*words: str, ranks: int = 1) -> str:
    """What the command prints on standard output; with several `ranks`, under torchrun."""
    command = [sys.executable, "-m", "llamaseek", *words]
    if ranks > 1:
        torchrun = ["torch.distributed.run", f"--nproc-per-node={ranks}", "--max-restarts=0"]
        torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--monitor-interval=0.1"]
        command[2:2] = [*torchrun, "-m"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def pretrain(family: str, out: Path, steps: int, *overrides: str, ranks: int = 1) -> None:
    """Train a new tiny model on generated text."""
    sizes = [f"model.config.{size}" for size in f"{SHARED_SIZES} {SIZES[family]}".split()]
    last = [f"out={out}", f"train.steps={steps}", *overrides]
    llamaseek("pretrain", f"quickstart-{family}", *sizes, *TEXT, *LOOP, *last, ranks=ranks)


@cache
def trained(work: Path, family: str, stage: str) -> Path:
    """The model folder of a stage's 30 steps, trained after the stages that it needs."""
    out = work / family / stage
    if stage == "pretrain":
        pretrain(family, out, 30)
        return out / "model"
    recipe, before, overrides = STAGES[stage]
    start = [f"model.init_from={trained(work, family, before)}"]
    if stage in ("grpo", "ppo"):
        model = trained(work, family, "reward")
        start += [*ROLLOUT, f"rollout.rewards=[{{kind: model, model: {model}}}]"]
    llamaseek(stage, recipe, f"out={out}", "train.steps=30", *LOOP, "data.length=256", *start,
              *overrides)  # fmt: skip
    return out / "model"


def tensors(folder: Path) -> Iterator[tuple[str, str, list[int], bytes]]:
    """Name, dtype, shape and bytes of each tensor of a folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:begin]).items():
            if name != "__metadata__":
                first, last = (begin + offset for offset in entry["data_offsets"])
                yield name, entry["dtype"], entry["shape"], data[first:last]


def digest(folder: Path) -> str:
    """SHA-256 of a folder's tensors in the order of their names."""
    found = hashlib.sha256()
    for name, dtype, shape, data in sorted(tensors(folder)):
        found.update(f"{name} {dtype} {shape}\n".encode() + data)
    return found.hexdigest()


def weights(work: Path, family: str) -> dict[str, str]:
    """Digests of the final weights of every stage."""
    return {stage: digest(trained(work, family, stage)) for stage in ("pretrain", *STAGES)}


def tokens(work: Path, family: str) -> dict[str, dict[str, str]]:
    """Greedy tokens in four precisions: what follows each prompt, as ids.

    Wide initial weights, trained for one step, answer every prompt differently.
    """
    import torch

    out = work / family / "wide"
    pretrain(family, out, 1, "model.config.initializer_range=0.3")
    plain = out / "model"
    found = {
        "fp32": continued(plain, torch.float32),
        "bf16": continued(plain, torch.bfloat16),
    }
    for bits in ("8", "4"):
        folder = work / family / f"int{bits}"
        llamaseek("quantize", str(plain), str(folder), "--bits", bits)
        found[folder.name] = continued(folder, torch.float32)
    return found


def continued(folder: Path, dtype: Any) -> dict[str, str]:
    """Each prompt's greedy continuation, at most 24 ids and none of `STOPS`."""
    from tokenizers import Tokenizer

    from llamaseek.checkpoints.hf import load_model
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.request import Request, SamplingParams

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin, *stops = map(tokenizer.token_to_id, ("<|begin_of_text|>", *STOPS))
    params = SamplingParams(temperature=0.0, max_tokens=24, stop_token_ids=stops)
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    requests = [Request(prompt=[begin, *ids], params=params) for ids in encoded]
    outputs = Engine(load_model(folder, dtype)).generate(requests)
    answers = [" ".join(map(str, output.answers[0].tokens)) for output in outputs]
    return dict(zip(PROMPTS, answers, strict=True))


def layouts(work: Path, family: str) -> dict[str, list[float]]:
    """Losses and gradient norms of three steps under each layout."""
    found = {}
    for name, (both, deepseek) in LAYOUTS.items():
        out = work / family / name
        pretrain(family, out, 3, *both, *(deepseek if family == "deepseek_v3" else ()), ranks=2)
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        steps = [line for line in lines if "loss" in line]
        found[name] = [line[key] for line in steps for key in ("loss", "grad_norm")]
    return found


def quickstart(work: Path, family: str) -> dict[str, Any]:
    """`figures.json` of the smoke quickstart without its seconds, and its stages' weights."""
    out = work / family / "quickstart"
    llamaseek("quickstart", "--family", family, "--smoke", "--out", str(out))
    figures = json.loads((out / "figures.json").read_text())
    del figures["seconds"]
    models = {path.parent.name: digest(path) for path in sorted(out.glob("*/model"))}
    return dict(flat(figures | {"weights": models}))


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under dotted names."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from flat(inner, f"{path}.{key}" if path else key)


def lecture(work: Path) -> str:
    """The ids of the lecture's conversation, by Meta's tokenizer from PyPI's llama-models."""
    spec = importlib.util.find_spec("llama_models")
    assert spec is not None and spec.submodule_search_locations
    folder = work / "tokenizer"
    folder.mkdir()
    shutil.copy(Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model", folder)
    return llamaseek("tokenize", LECTURE, "--tokenizer", str(folder), "--ids").strip()


PARTS: dict[str, Callable[[Path], Any]] = {"lecture": lecture}
for _part, _family in product((weights, tokens, layouts, quickstart), FAMILIES):
    PARTS[f"{_part.__name__}-{_family}"] = partial(_part, family=_family)


def header() -> dict[str, str]:
    """What the values depend on beside the code."""
    import torch

    from llamaseek.kernels.build import builder

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": cpu.partition(": ")[2],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": "C++" if builder().build() else "PyTorch",  # compiled before use
    }


def differences(part: str, pinned: Any, found: Any) -> list[str]:
    """One line for each value that moved; a quickstart's renamed keys are compared by value."""
    if part.startswith("quickstart") and pinned and pinned.keys() != found.keys():
        same = sorted(map(repr, pinned.values())) == sorted(map(repr, found.values()))
        return [] if same else [f"{part}: pinned {pinned}\n  found {found}"]
    old, new = dict(flat(pinned)), dict(flat(found))
    return [
        f"{part} {name}: pinned {old.get(name)}, found {new.get(name)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def measured(only: list[str]) -> dict[str, Any]:
    """The values of the parts whose names begin with one of `only`; all parts without it."""
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name, part in PARTS.items():
            if not only or name.startswith(tuple(only)):
                start = time.perf_counter()
                found[name] = part(Path(work))
                print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Write the values, or compare them with a file; the exit code is 1 where any differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--check", type=Path, metavar="FILE", help="compare with the file's values")
    way.add_argument("--write", type=Path, metavar="FILE", help="write or renew the file's values")
    names = ", ".join(PARTS)
    parser.add_argument("--only", nargs="+", default=[], help=f"parts by their beginnings: {names}")
    asked = parser.parse_args()
    for name in asked.only:
        if not any(part.startswith(name) for part in PARTS):
            parser.error(f"--only {name}: no such part; allowed: {names}")
    os.environ.update(ENVIRONMENT)  # before torch starts its threads
    import torch

    torch.set_num_threads(1)
    here, found = header(), measured(asked.only)
    path = asked.check or asked.write
    file = json.loads(path.read_text()) if path.exists() else {"header": here, "values": {}}
    pinned = file["values"]
    if asked.write:
        path.write_text(json.dumps({"header": here, "values": pinned | found}, indent=1) + "\n")
        return 0
    if here != file["header"]:
        print(f"another machine: pinned on {file['header']}, this is {here}")
    moved = [x for name in found for x in differences(name, pinned.get(name, {}), found[name])]
    print("\n".join(moved) if moved else f"{', '.join(found)}: nothing moved")
    return int(bool(moved))


if __name__ == "__main__":
    sys.exit(main())
