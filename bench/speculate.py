"""Decoding with DeepSeek-V3's own multi-token module as drafter, beside decoding without.

    python bench/speculate.py MODEL [--json PATH] [--stories 40]

MODEL is a folder with a multi-token module, as `llamaseek quickstart --family deepseek_v3` trains
one. It goes on with the first words of held-out stories ("The red fox"), greedily and one at a
time; both ways must say the same. A run is all stories; runs alternate, and their medians of five
are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, report, row
from llamaseek.checkpoints.hf import load_model
from llamaseek.data.builtin.stories import story
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.kernels.build import builder
from llamaseek.text.tokenizer import Tokenizer

REPEATS = 5
LENGTH = 48  # most tokens of an answer


def prompts(tokenizer: Tokenizer, count: int) -> list[Request]:
    """First words of stories that no model was trained on."""
    rng = Random("speculate")
    openings = [" ".join(story(rng, "test").opening.split()[:3]) for _ in range(count)]
    greedy = SamplingParams(max_tokens=LENGTH)
    return [
        Request(prompt=[tokenizer.bos_id, *tokenizer.encode(text)], params=greedy)
        for text in openings
    ]


def run(engine: Engine, asked: list[Request]) -> tuple[list[list[int]], float]:
    """What is said to each prompt, and tokens a second of all."""
    start = time.perf_counter()
    said = [engine.generate([request])[0].answers[0].tokens for request in asked]
    return said, sum(map(len, said)) / (time.perf_counter() - start)


def compare(folder: Path, count: int) -> list[Row]:
    """Rates with and without drafts, the share of drafts that stood, tokens a forward."""
    tokenizer, model = Tokenizer.load(folder), load_model(folder).eval()
    asked = prompts(tokenizer, count)
    plain, drafting = (
        Engine(model, tokenizer, EngineOptions(max_num_seqs=1, speculation=Speculation(kind=kind)))
        for kind in ("none", "mtp")
    )
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(REPEATS + 1):
        (said, alone), (same, drafted) = run(plain, asked), run(drafting, asked)
        if said != same:
            raise SystemExit("drafts changed what is said")
        if turn:  # the first warms up
            rates[0].append(alone)
            rates[1].append(drafted)
    slow, fast = map(statistics.median, rates)
    counted = drafting.statistics
    accepted, gained = counted.acceptance, counted.tokens_per_forward
    print(f"{accepted:.1%} of drafts stood, {gained:.2f} tokens a forward")
    return [
        row("mtp", "tokens/s", fast, "without", slow, None),
        Row("mtp", "share accepted", accepted, "asked", 0.8, None, None),
        Row("mtp", "tokens a forward", gained, "asked", 1.75, None, None),
    ]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stories", type=int, default=40)
    options = parser.parse_args()
    builder().build()
    report(compare(options.model, options.stories), [], options.json)


if __name__ == "__main__":
    main()
