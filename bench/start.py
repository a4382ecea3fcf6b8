"""From a process's start to its first token, its folder in the page cache (warm) or not (cold).

    python bench/start.py [--json PATH] [--folder PATH]

Llama 3.2 1B's shape in bf16 with random weights, as `bench/decode.py` makes it: ours, llama.cpp and
transformers, each a fresh process a time, medians of five. Cold, the file's pages are dropped
before each start, and the limit is a plain read of the whole file from the disk. What a process
needs before it can read anything, importing torch, is a row of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, installed, report

FOLDER = Path(__file__).resolve().parents[1] / "runs" / "bench-1b"
REPEATS = 5
PROMPT = [128000, 791, 2579, 39935]
PACKAGES = {"llama.cpp": "llama-cpp-python", "transformers": "transformers"}


def say_ours(folder: Path) -> None:
    """The first token through the engine."""
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.open import open_model
    from llamaseek.engine.options import EngineOptions
    from llamaseek.engine.request import Request, SamplingParams
    from llamaseek.text.tokenizer import Tokenizer

    path = folder / "bf16"
    model, options = open_model(path, device="cpu"), EngineOptions(max_num_seqs=1)
    engine = Engine(model, Tokenizer.load(path), options)
    engine.generate([Request(prompt=PROMPT, params=SamplingParams(max_tokens=1))])


def say_llama_cpp(folder: Path) -> None:
    """The first token through llama-cpp-python, which maps its file as well."""
    from llama_cpp import Llama

    model = Llama(str(folder / "bf16.gguf"), n_ctx=512, verbose=False)
    next(model.generate(PROMPT, temp=0.0))


def say_transformers(folder: Path) -> None:
    """The first token through transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    path = folder / "bf16"
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model.generate(torch.tensor([PROMPT]), max_new_tokens=1, do_sample=False)


def import_torch(folder: Path) -> None:
    """What every side but llama.cpp pays first."""
    import torch  # noqa: F401


SIDES: dict[str, Callable[[Path], None]] = {
    "ours": say_ours,
    "llama.cpp": say_llama_cpp,
    "transformers": say_transformers,
    "import torch": import_torch,
}
FILES = {"ours": "bf16/model.safetensors", "llama.cpp": "bf16.gguf"}


def drop(path: Path) -> None:
    """Take a file's pages out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> float:
    """Seconds of a plain read of a file."""
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    return time.perf_counter() - start


def started(side: str, folder: Path) -> float:
    """Seconds from a fresh process's start to the end of its first token."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        said = process.stdout.readline()
        seconds = time.perf_counter() - start
    if not said:
        raise SystemExit(f"{side} did not start")
    return seconds


def times(side: str, folder: Path, cold: bool) -> float:
    """The median of a side's starts."""
    taken = []
    path = folder / FILES.get(side, FILES["ours"])
    for _ in range(REPEATS):
        if cold:
            drop(path)
        taken.append(started(side, folder))
    return statistics.median(taken)


def cold_read(path: Path) -> float:
    """The median of plain reads from the disk."""
    taken = []
    for _ in range(REPEATS):
        drop(path)
        taken.append(read(path))
    return statistics.median(taken)


def compare(folder: Path, peers: list[str]) -> list[Row]:
    """Warm and cold starts of every side; a ratio is the peer's seconds over ours."""
    rows = [Row("import torch", "s", times("import torch", folder, False), "-", None, None, None)]
    for cold in (False, True):
        case = "cold" if cold else "warm"
        ours = times("ours", folder, cold)
        for peer in peers:
            theirs = times(peer, folder, cold)
            rows.append(Row(case, "s", ours, peer, theirs, theirs / ours, None))
        if cold:
            disk = cold_read(folder / FILES["ours"])
            rows.append(Row(case, "s", ours, "plain read", disk, disk / ours, None))
    for each in rows:
        print(f"{each.case}: {each.value:.2f} s, {each.peer} {each.peer_value or 0:.2f} s")
    return rows


def main() -> None:
    """Parse, measure, print; or be one side of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        SIDES[options.side](options.folder)
        print("said", flush=True)
        return
    from bench.shape_1b import make_gguf, make_ours

    peers = [name for name, package in PACKAGES.items() if installed(package)]
    options.folder.mkdir(parents=True, exist_ok=True)
    make_ours(options.folder)
    if "llama.cpp" in peers:
        make_gguf(options.folder)
    rows = compare(options.folder, peers)
    absent = [f"{name} (not installed)" for name in PACKAGES if name not in peers]
    report(rows, absent, options.json)


if __name__ == "__main__":
    main()
