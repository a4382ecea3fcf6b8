"""Serving 64 chats: ours against llama.cpp's server and transformers' continuous batching.

    LLAMA_SERVER=…/llama-server LLAMA_CPP_SOURCE=…/vendor/llama.cpp \\
        python bench/serve.py [--shape tiny|smollm2|1b] [--model FOLDER] \\
        [--part burst|poisson|highest] [--json PATH]

One random bf16 checkpoint, or for smollm2 a folder of SmolLM2 135M, which is read as bf16; prompts
and answers of lengths from a fixed seed, greedy, no end token; each server in its own process with
all cores, one at a time. Prompts are new in every run, so that no prompt cache answers. Chats of
the 1B shape are short (16 to 48 tokens of prompt, 4 to 24 of answer), so that one part with all
servers takes under 200 s on two cores. `burst`: all chats arrive at once; tokens said a second, the
median of the shape's repeats. `poisson`: one arrival rate, the same for all; seconds to the first
token and between tokens. `highest`: the highest arrival rate, in steps below the server's own rate
when all arrive at once, at which the slowest first token comes within the shape's patience. Parts
of one shape add their rows to one JSON file. A server that takes longer than `--limit` over a part
is ended and named beside the rows, as is one that is absent. `--work` keeps the models between
calls; `--prepare` only makes them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, report, with_kept
from bench.serving.contenders import NAMES, Contender, skipped, started
from bench.serving.folders import prepare
from bench.serving.workload import SHAPES, Chat, Shape, Timing, arrivals, chats, quantile

PARTS = ("burst", "poisson", "highest")
WARM = -1  # the run that counts nothing
STEPS = (0.9, 0.75, 0.6, 0.45, 0.3)  # of the rate when all arrive at once
Figures = dict[str, float]


def burst(contender: Contender, shape: Shape) -> Figures:
    """Tokens said and chats answered a second when all arrive at once."""
    runs = [chats(shape, run) for run in range(shape.repeats)]
    took = statistics.median(seconds_at_once(contender, asked) for asked in runs)
    tokens = sum(chat.answer for chat in runs[0])
    return {"tokens/s": tokens / took, "chats/s": len(runs[0]) / took}


def seconds_at_once(contender: Contender, asked: list[Chat]) -> float:
    """Seconds to the last token when all arrive at once."""
    return max(timing.end for timing in contender.run(asked, [0.0] * len(asked)))


def poisson(contender: Contender, shape: Shape) -> Figures:
    """Quantiles of the times to the first token and per token, in milliseconds."""
    asked = chats(shape, 0)
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


def highest(contender: Contender, shape: Shape) -> Figures:
    """The highest sustained rate of arrivals, 0 where none of the steps is."""
    whole = seconds_at_once(contender, chats(shape, 0))
    for run, step in enumerate(STEPS, start=1):
        asked = chats(shape, run)
        rate = step * len(asked) / whole
        timings = contender.run(asked, arrivals(rate, len(asked)))
        if quantile([timing.first for timing in timings], 0.99) <= shape.patience:
            return {"chats/s sustained": rate}
    return {"chats/s sustained": 0.0}


def measure(part: str, shape: Shape, folder: Path, limit: float, name: str) -> Figures:
    """One contender's figures of one part."""
    with started(name, folder, limit) as contender:
        contender.run(chats(shape, WARM)[:4], [0.0] * 4)
        return {"burst": burst, "poisson": poisson, "highest": highest}[part](contender, shape)


def compare(
    case: str, names: Sequence[str], figures: Callable[[str], Figures]
) -> tuple[list[Row], list[str]]:
    """The rows of one part, and the servers that gave none."""
    found, failed = {}, []
    for name in names:
        try:
            found[name] = figures(name)
        except (ConnectionError, OSError) as error:
            failed.append(f"{case}: {name} ({error})")
    return rows(case, found) if "ours" in found else [], failed


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
    parser.add_argument("--model", type=Path, help="a folder of SmolLM2, for its shape")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--only", choices=NAMES, action="append", help="these alone")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one server")
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)) / options.shape
        folder.mkdir(parents=True, exist_ok=True)
        prepare(shape, folder, options.model)
        if options.prepare:
            return
        names = options.only or NAMES
        absent = {name: why for name in names if (why := skipped(name)) is not None}
        here = [name for name in names if name not in absent]
        for part in options.part or PARTS:
            case = f"{options.shape} {part}"
            figures = partial(measure, part, shape, folder, options.limit)
            made, failed = compare(case, here, figures)
            left_out = [f"{case}: {why}" for why in absent.values()] + failed
            report(*with_kept(case, made, left_out, options.json), options.json)


if __name__ == "__main__":
    main()
