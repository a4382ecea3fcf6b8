"""Serving 64 chats: ours against llama.cpp's server and transformers' continuous batching.

    LLAMA_SERVER=…/llama-server LLAMA_CPP_SOURCE=…/vendor/llama.cpp \\
        python bench/serve.py [--shape tiny|1b] [--part burst|poisson|highest] [--json PATH]

One random bf16 checkpoint, prompts and answers of lengths from a fixed seed, greedy, no end
token; each server in its own process with all cores, one at a time. `burst`: all chats arrive at
once; tokens said a second, the median of the shape's repeats. `poisson`: one arrival rate, the
same for all; seconds to the first token and between tokens. `highest`: the highest arrival rate,
in steps below the server's own rate when all arrive at once, at which the slowest first token
comes within the shape's patience. Parts of one shape add their rows to one JSON file.
`--work` keeps the models between calls; `--prepare` only makes them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, report
from bench.serving.contenders import NAMES, Contender, skipped, started
from bench.serving.folders import prepare
from bench.serving.workload import SHAPES, Chat, Shape, Timing, arrivals, chats, quantile

PARTS = ("burst", "poisson", "highest")
STEPS = (0.9, 0.75, 0.6, 0.45, 0.3)  # of the rate when all arrive at once
Figures = dict[str, float]


def burst(contender: Contender, shape: Shape, asked: list[Chat]) -> Figures:
    """Tokens said and chats answered a second when all arrive at once."""
    seconds = [
        max(timing.end for timing in contender.run(asked, [0.0] * len(asked)))
        for _ in range(shape.repeats)
    ]
    took = statistics.median(seconds)
    tokens = sum(chat.answer for chat in asked)
    return {"tokens/s": tokens / took, "chats/s": len(asked) / took}


def poisson(contender: Contender, shape: Shape, asked: list[Chat]) -> Figures:
    """Quantiles of the times to the first token and per token, in milliseconds."""
    timings = contender.run(asked, arrivals(shape.rate, len(asked)))
    first = [1000 * timing.first for timing in timings]
    each = [1000 * per_token(timing, chat) for timing, chat in zip(timings, asked, strict=True)]
    found = {}
    for share in (0.5, 0.99):
        found[f"ms to first token p{share * 100:.0f}"] = quantile(first, share)
        found[f"ms per token p{share * 100:.0f}"] = quantile(each, share)
    return found


def per_token(timing: Timing, chat: Chat) -> float:
    """Mean seconds of a token after the first."""
    return (timing.last - timing.first) / (chat.answer - 1)


def highest(contender: Contender, shape: Shape, asked: list[Chat]) -> Figures:
    """The highest sustained rate of arrivals, 0 where none of the steps is."""
    whole = max(timing.end for timing in contender.run(asked, [0.0] * len(asked)))
    for step in STEPS:
        rate = step * len(asked) / whole
        timings = contender.run(asked, arrivals(rate, len(asked)))
        if quantile([timing.first for timing in timings], 0.99) <= shape.patience:
            return {"chats/s sustained": rate}
    return {"chats/s sustained": 0.0}


def measure(name: str, part: str, shape: Shape, folder: Path) -> Figures:
    """One contender's figures of one part."""
    asked = chats(shape)
    with started(name, folder) as contender:
        contender.run(asked[:4], [0.0] * 4)  # warm
        return {"burst": burst, "poisson": poisson, "highest": highest}[part](
            contender, shape, asked
        )


def rows(case: str, found: dict[str, Figures]) -> list[Row]:
    """Ours beside each peer, figure by figure; times count the other way round."""
    made = []
    for metric, value in found["ours"].items():
        for peer in (name for name in NAMES[1:] if name in found):
            other = found[peer][metric]
            less, more = (value, other) if metric.startswith("ms") else (other, value)
            ratio = round(more / less, 3) if less else None
            made.append(Row(case, metric, round(value, 3), peer, round(other, 3), ratio, None))
        if len(found) == 1:
            made.append(Row(case, metric, round(value, 3), "-", None, None, None))
    return made


def main() -> None:
    """Parse, prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--only", choices=NAMES, action="append", help="these alone")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)) / options.shape
        folder.mkdir(parents=True, exist_ok=True)
        prepare(shape, folder)
        if options.prepare:
            return
        names = options.only or NAMES
        absent = {name: why for name in names if (why := skipped(name)) is not None}
        made: list[Row] = []
        for part in options.part or PARTS:
            case = f"{options.shape} {part}"
            here = [name for name in names if name not in absent]
            found = {name: measure(name, part, shape, folder) for name in here}
            made += rows(case, found)
    report(with_kept(made, options.json), list(absent.values()), options.json)


def with_kept(made: list[Row], path: Path | None) -> list[Row]:
    """These rows after those of other cases that the file already has."""
    if path is None or not path.exists():
        return made
    cases = {row.case for row in made}
    kept = [Row(**each) for each in json.loads(path.read_text())["rows"]]
    return [row for row in kept if row.case not in cases] + made


if __name__ == "__main__":
    main()
