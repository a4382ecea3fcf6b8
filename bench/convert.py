"""Memory and rate of converting a checkpoint, beside transformers' load and save.

`python bench/convert.py [--gb 5] [--json PATH]` makes a bf16 folder of that size in a temporary
place and converts it in processes of their own: with dtypes kept, to float32, and through
transformers. The figure is the peak of anonymous memory (RssAnon) above a bare `import torch`;
pages of mapped files do not count, the system takes them back whenever it wants.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, installed, report  # noqa: E402
from llamaseek.checkpoints.convert import Conversion  # noqa: E402
from llamaseek.checkpoints.shards import write_tensors  # noqa: E402
from llamaseek.files import write_json  # noqa: E402
from llamaseek.herd import Llama3Config  # noqa: E402
from llamaseek.herd.published import ENTRIES  # noqa: E402
from llamaseek.herd.tensors import count_parameters, model_tensors
from llamaseek.models.lazy import Lazy  # noqa: E402

ALLOWED_GB = 1.3


def make_folder(folder: Path, gigabytes: float) -> None:
    """A Llama of 3.2 3B's width with as many layers as the size asks for, seeded random weights."""
    base = ENTRIES["llama-3.2-3b"].config
    assert isinstance(base, Llama3Config)
    one, two = (
        count_parameters(replace(base, num_hidden_layers=layers)).total for layers in (1, 2)
    )
    layers = max(1, round((gigabytes * 1e9 / 2 - one) / (two - one)) + 1)
    config = replace(base, num_hidden_layers=layers)
    folder.mkdir()
    write_json(folder / "config.json", config.to_dict())
    write_tensors(folder, {name: random(shape) for name, shape in model_tensors(config)})


def random(shape: tuple[int, ...]) -> Lazy:
    """Seeded rows, the same at every reading."""

    def rows(start: int, stop: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(start)
        return torch.randn(stop - start, *shape[1:], generator=generator).mul_(0.02)

    return Lazy(torch.bfloat16, shape, rows)


def anonymous_bytes() -> int:
    """This process's RssAnon."""
    return read_anonymous(Path("/proc/self/status").read_text())


def read_anonymous(status: str) -> int:
    """The bytes of RssAnon in a process's status."""
    for line in status.splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon; this bench needs Linux")


def bare_torch() -> int:
    """RssAnon of a process that has only imported torch."""
    code = "import torch; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return read_anonymous(done.stdout)


def measured(work: Callable[[Path, Path], None], source: Path, target: Path, queue: Any) -> None:
    """Run `work` and report seconds and the peak above a bare torch, sampled every 2 ms."""
    base, peak, done = bare_torch(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work(source, target)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    queue.put((seconds, (peak - base) / 1e9))


def keep(source: Path, target: Path) -> None:
    """Ours, dtypes kept."""
    Conversion(source, target).run()


def widen(source: Path, target: Path) -> None:
    """Ours, to float32."""
    Conversion(source, target, torch.float32).run()


def peer(source: Path, target: Path) -> None:
    """transformers' way: the model in memory, then saved."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    model.save_pretrained(target)


def alone(work: Callable[[Path, Path], None], source: Path, target: Path) -> tuple[float, float]:
    """`measured` in a fresh process: seconds, GB."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measured, args=(work, source, target, queue))
    process.start()
    found: tuple[float, float] = queue.get(timeout=1800)
    process.join()
    return found


def main() -> None:
    """Make, convert, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    skipped = [] if installed("transformers") else ["transformers is not installed"]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        make_folder(source, asked.gb)
        theirs = None if skipped else alone(peer, source, Path(place) / "peer")
        for name, work in (("dtype kept", keep), ("to float32", widen)):
            target = Path(place) / name.replace(" ", "-")
            seconds, memory = alone(work, source, target)
            limit = f"{asked.gb:g} GB, {name}"
            print(f"{limit}: {seconds:.1f} s, peak {memory:.2f} GB (allowed {ALLOWED_GB})")
            ratio = round(theirs[1] / memory, 2) if theirs else None
            peak = round(1000 * theirs[1]) if theirs else None
            peer_name = "transformers load and save"
            row = Row(limit, "MB RssAnon", round(1000 * memory), peer_name, peak, ratio, None)
            rows.append(row)
    report(rows, skipped, asked.json)


if __name__ == "__main__":
    main()
