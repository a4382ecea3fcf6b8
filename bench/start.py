"""From a process's start to its first token, its folder in the page cache (warm) or not (cold).

    python bench/start.py [--json PATH] [--folder PATH] [--model MODEL]

Llama 3.2 1B's shape in bf16 with random weights, as `bench/decode.py` makes it, and a published
GGUF file: ours, llama.cpp and transformers (the shape alone), each a fresh process a time, medians
of five, in seconds and in seconds of processor time, which other processes hardly change. Cold,
the file's pages are dropped before each start, and the limit is a plain read of the whole file from
the disk. What a process needs before it can read anything, importing torch, is a row of its own,
and is compared with 1.3 times llama.cpp's start as a sum.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
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
PROMPT = [1, 791, 2579, 39935]
PUBLISHED = "smollm2-135m-instruct"
UNITS = ("s", "CPU s")
BESIDE = 1.3  # times llama.cpp's start, beside PyTorch's import
PACKAGES = {"llama.cpp": "llama-cpp-python", "transformers": "transformers"}


def say_ours(folder: Path) -> None:
    """The first token through the engine."""
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.open import open_model
    from llamaseek.engine.options import EngineOptions
    from llamaseek.engine.request import Request, SamplingParams
    from llamaseek.text.tokenizer import Tokenizer

    gc.set_threshold(50_000, 20, 100)  # as the command line does
    path = folder if folder.is_file() else folder / "bf16"
    model, options = open_model(path, device="cpu"), EngineOptions(max_num_seqs=1)
    tokenizer = Tokenizer.load(path) if path.is_file() else None  # the shape has no vocabulary
    engine = Engine(model, tokenizer, options)
    engine.generate([Request(prompt=PROMPT, params=SamplingParams(max_tokens=1))])


def say_llama_cpp(folder: Path) -> None:
    """The first token through llama-cpp-python, which maps its file as well."""
    from llama_cpp import Llama

    path = folder if folder.is_file() else folder / "bf16.gguf"
    model = Llama(str(path), n_ctx=512, verbose=False)
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


def started(side: str, folder: Path) -> tuple[float, float]:
    """Seconds from a fresh process's start to the end of its first token, and of its processors."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        said = process.stdout.readline()
        seconds = time.perf_counter() - start
    if not said:
        raise SystemExit(f"{side} did not start")
    return seconds, float(said)


def times(side: str, folder: Path, cold: bool) -> tuple[float, float]:
    """The medians of a side's starts."""
    taken = []
    path = folder if folder.is_file() else folder / FILES.get(side, FILES["ours"])
    for _ in range(REPEATS):
        if cold:
            drop(path)
        taken.append(started(side, folder))
    seconds, processors = zip(*taken, strict=True)
    return statistics.median(seconds), statistics.median(processors)


def cold_read(path: Path) -> float:
    """The median of plain reads from the disk."""
    taken = []
    for _ in range(REPEATS):
        drop(path)
        taken.append(read(path))
    return statistics.median(taken)


def imports(folder: Path) -> tuple[tuple[float, float], list[Row]]:
    """Seconds of PyTorch's bare import, and their rows."""
    found = times("import torch", folder, False)
    pairs = zip(UNITS, found, strict=True)
    return found, [Row("import torch", unit, value, "-", None, None, None) for unit, value in pairs]


def compare(name: str, folder: Path, peers: list[str], imported: tuple[float, float]) -> list[Row]:
    """Warm and cold starts of every side; a ratio is the peer's seconds over ours."""
    rows = []
    for cold in (False, True):
        case = f"{name} {'cold' if cold else 'warm'}"
        ours = times("ours", folder, cold)
        found = {peer: times(peer, folder, cold) for peer in peers}
        if "llama.cpp" in found:
            both = zip(found["llama.cpp"], imported, strict=True)
            found["1.3 x llama.cpp + import"] = tuple(BESIDE * one + two for one, two in both)
        for peer, theirs in found.items():
            for unit, mine, value in zip(UNITS, ours, theirs, strict=True):
                rows.append(Row(case, unit, mine, peer, value, value / mine, None))
        if cold:
            disk = cold_read(folder if folder.is_file() else folder / FILES["ours"])
            rows.append(Row(case, "s", ours[0], "plain read", disk, disk / ours[0], None))
    return rows


def main() -> None:
    """Parse, measure, print; or be one side of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--model", default=PUBLISHED, help="the GGUF file beside the 1B shape")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        SIDES[options.side](options.folder)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, flush=True)
        return
    from bench.shape_1b import make_gguf, make_ours
    from llamaseek.checkpoints.sources import find_source

    file = find_source(options.model)
    peers = [name for name, package in PACKAGES.items() if installed(package)]
    options.folder.mkdir(parents=True, exist_ok=True)
    make_ours(options.folder)
    if "llama.cpp" in peers:
        make_gguf(options.folder)
    imported, rows = imports(options.folder)
    rows += compare("1B", options.folder, peers, imported)
    rows += compare(file.stem, file, [name for name in peers if name == "llama.cpp"], imported)
    absent = [f"{name} (not installed)" for name in PACKAGES if name not in peers]
    report(rows, absent, options.json)


if __name__ == "__main__":
    main()
