"""MinHash deduplication beside datatrove's: speed a core, memory by corpus size, the same bytes.

`python bench/dedup.py [--large-mb 2000] [--only speed|memory|bytes] [--json PATH]` times the
signatures of both on one core with the same documents, runs the pipeline with one worker, with two
and after three kills, and weighs two workers on a small and a large corpus. The figure is the peak
of anonymous memory (RssAnon) of all processes together; 2 GB take ten minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, installed, median_seconds, report  # noqa: E402
from llamaseek.data.clean.dedup.near import MinHashDedup  # noqa: E402
from llamaseek.data.clean.engine import CleaningWorkers  # noqa: E402
from llamaseek.data.clean.recipe import CleanRecipe  # noqa: E402
from llamaseek.data.clean.run import clean  # noqa: E402
from llamaseek.data.documents import Document, read_documents  # noqa: E402

DOCUMENTS = 2000  # timed; about 4 MB
VOCABULARY = 50_000
POLL = 0.05  # seconds between looks at memory


def texts(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Documents of some 2 kB: words of a Zipf law, lines, full stops; a tenth are near copies."""
    rng = np.random.Generator(np.random.PCG64(seed))
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(VOCABULARY)]
    chances = 1 / np.arange(1, VOCABULARY + 1)
    bounds = np.cumsum(chances / chances.sum())
    left, before = megabytes * 1e6, ""
    while left > 0:
        if before and rng.random() < 0.1:
            text = before.rsplit(" ", 1)[0] + " changed."
        else:
            count = int(rng.integers(150, 550))
            drawn = [words[i] for i in np.searchsorted(bounds, rng.random(count)).tolist()]
            lines = [" ".join(drawn[i : i + 12]).capitalize() for i in range(0, count, 12)]
            text = ".\n".join(lines) + "."
        left -= len(text)
        before = text
        yield text


def write_corpus(path: Path, megabytes: float) -> int:
    """The documents as JSON lines; returns how many."""
    count = 0
    with path.open("w") as file:
        for count, text in enumerate(texts(megabytes), 1):
            file.write(json.dumps({"text": text, "id": str(count)}) + "\n")
    return count


# Speed


def ours(documents: list[Document]) -> Any:
    """Band keys of all documents, as the cleaning run makes them."""
    stage = MinHashDedup()
    batch = 240  # the 512 k characters that a run computes at once
    return [stage.keys(documents[i : i + batch]) for i in range(0, len(documents), batch)]


def theirs(documents: list[Document], folder: Path) -> None:
    """datatrove's signature step in this process, written as it writes them."""
    from loguru import logger

    logger.disable("datatrove")
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    step = MinhashDedupSignature(str(folder), MinhashConfig())
    step.run((Theirs(text=d.text, id=d.id) for d in documents), 0, 1)


def speed(folder: Path, skipped: list[str]) -> list[Row]:
    """Megabytes a second on one core; both read the same documents from memory."""
    write_corpus(folder / "speed.jsonl", DOCUMENTS * 0.002)
    documents = list(read_documents([folder / "speed.jsonl"]))
    size = sum(len(d.text.encode()) for d in documents) / 1e6
    rate = size / median_seconds(lambda: ours(documents), warm=1)
    if not installed("datatrove"):
        skipped.append("datatrove is not installed")
        return [Row("signatures, one core", "kB/s", rate * 1000, "datatrove", None, None, None)]
    peer = size / median_seconds(lambda: theirs(documents, folder / "peer"), warm=1)
    ratio = round(rate / peer, 3)
    return [Row("signatures, one core", "kB/s", rate * 1000, "datatrove", peer * 1000, ratio, None)]


# Memory, and the bytes of the result


def recipe(source: Path, out: Path) -> CleanRecipe:
    """Exact and near deduplication of one file."""
    fields = {"name": "bench", "out": str(out), "sources": {"web": [str(source)]}}
    stages = ["exact_dedup", "minhash"]
    return CleanRecipe.model_validate(fields | {"stages": stages, "shard_bytes": 16_000_000})


def start(source: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """A cleaning run in a process of its own, and its workers under it."""
    command = [sys.executable, __file__, "--child", str(source), str(out), str(workers)]
    return subprocess.Popen(command, start_new_session=True)


def family_bytes(group: int) -> int:
    """Anonymous memory of every process of a group, added up."""
    total = 0
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            if os.getpgid(int(place.name)) == group:
                status = (place / "status").read_text()
                total += int(status.split("RssAnon:")[1].split()[0]) * 1024
        except (OSError, IndexError):
            continue  # it ended while we looked
    return total


def peak_bytes(run: subprocess.Popen[bytes]) -> int:
    """The most memory a run had until it ended."""
    peak = 0
    while run.poll() is None:
        peak = max(peak, family_bytes(run.pid))
        time.sleep(POLL)
    if run.returncode:
        raise RuntimeError(f"the run failed with code {run.returncode}")
    return peak


def digest(folder: Path) -> str:
    """One number for all bytes of a result."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "recipe.yaml":
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def memory(folder: Path, small: float, large: float) -> list[Row]:
    """Peaks of two corpora; a ratio of 1 is flat."""
    peaks = []
    for megabytes in (small, large):
        source = folder / f"{megabytes:g}.jsonl"
        count = write_corpus(source, megabytes)
        began = time.perf_counter()
        peaks.append(peak_bytes(start(source, folder / f"out-{megabytes:g}", 2)) / 1e6)
        seconds = time.perf_counter() - began
        print(
            f"{megabytes:g} MB, {count:,} documents, 2 workers: peak {peaks[-1]:.0f} MB, "
            f"{seconds:.0f} s, {megabytes / seconds:.1f} MB/s"
        )
    case = f"memory, {large:g} MB of text"
    peer = f"memory, {small:g} MB of text"
    return [Row(case, "MB RssAnon", peaks[1], peer, peaks[0], round(peaks[0] / peaks[1], 3), None)]


def same_bytes(folder: Path, source: Path) -> None:
    """One worker, two workers, and a run killed three times, all with one result."""
    results = {}
    for workers in (1, 2):
        run = start(source, folder / f"workers-{workers}", workers)
        began = time.perf_counter()
        peak_bytes(run)
        results[f"{workers} workers"] = digest(folder / f"workers-{workers}")
        seconds = time.perf_counter() - began
    for kill in range(3):
        run = start(source, folder / "killed", 2)
        time.sleep(seconds * (0.3 + 0.2 * kill))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    peak_bytes(start(source, folder / "killed", 2))
    results["after 3 SIGKILLs"] = digest(folder / "killed")
    print("bytes of the result: " + ", ".join(f"{k} {v}" for k, v in results.items()))
    if len(set(results.values())) != 1:
        raise RuntimeError("the results differ")


def main() -> None:
    """Time, weigh, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small-mb", type=float, default=100)
    parser.add_argument("--large-mb", type=float, default=400)
    parser.add_argument("--only", choices=["speed", "memory", "bytes"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        source, out, workers = asked.child
        clean(recipe(Path(source), Path(out)), CleaningWorkers(int(workers)))
        return
    skipped: list[str] = []
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if asked.only in (None, "speed"):
            rows += speed(folder, skipped)
        if asked.only in (None, "bytes"):
            source = folder / "bytes.jsonl"
            write_corpus(source, asked.small_mb)
            same_bytes(folder, source)
        if asked.only in (None, "memory"):
            rows += memory(folder, asked.small_mb, asked.large_mb)
    report(rows, skipped, asked.json)


if __name__ == "__main__":
    main()
