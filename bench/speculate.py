"""Speculative decoding beside decoding without: the same tokens, and how much sooner.

    python bench/speculate.py MODEL [--dtype auto|bf16|fp32] [--depth 15] [--cpu-time] [--json PATH]

A MODEL with a multi-token module, as `llamaseek quickstart --family deepseek_v3` trains one, drafts
by it, and goes on with the first words of held-out stories ("The red fox"). Any other model drafts
by prompt look-up: a chat model is asked to correct, summarize, convert and extend texts, of which
much stands in its answers again (`edits`), and for what no text is given for (`fresh`), both from
edit_prompts.json. Prompts run one at a time and greedily. Both ways must say the same; each run of
one is followed by one of the other, and medians of five are compared. `--cpu-time` counts the
process's processor time instead of the clock's, for a machine that has other things to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, report, row, with_kept
from llamaseek.data.builtin.stories import story
from llamaseek.engine.engine import Engine
from llamaseek.engine.open import DTYPES, open_model, open_tokenizer
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.kernels.build import builder
from llamaseek.text.chat import encode_chat
from llamaseek.text.tokenizer import Tokenizer

REPEATS = 5
STORY, ANSWER = 48, 160  # most tokens of an answer
PROMPTS = Path(__file__).parent / "edit_prompts.json"


def stories(tokenizer: Tokenizer, count: int = 40) -> list[Request]:
    """First words of stories that no model was trained on."""
    rng = Random("speculate")
    openings = [" ".join(story(rng, "test").opening.split()[:3]) for _ in range(count)]
    greedy = SamplingParams(max_tokens=STORY)
    return [
        Request(prompt=[tokenizer.bos_id, *tokenizer.encode(text)], params=greedy)
        for text in openings
    ]


def chats(tokenizer: Tokenizer, name: str) -> list[Request]:
    """The prompts of this name as chats."""
    texts = json.loads(PROMPTS.read_text(encoding="utf-8"))[name]
    greedy = SamplingParams(max_tokens=ANSWER)
    rows = [
        encode_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True).ids
        for text in texts
    ]
    return [Request(prompt=ids, params=greedy) for ids in rows]


class Way:
    """An engine, and the seconds it took for each prompt in each run."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self.engine, self.clock = engine, clock
        self.seconds: list[list[float]] = []

    def run(self, asked: Sequence[Request]) -> list[list[int]]:
        """What is said to each prompt."""
        said, seconds = [], []
        for request in asked:
            start = self.clock()
            said.append(self.engine.generate([replace(request)])[0].answers[0].tokens)
            seconds.append(self.clock() - start)
        self.seconds.append(seconds)
        return said

    def rate(self, tokens: int) -> float:
        """Tokens a second, by the median of all runs but the first, which warms up."""
        return tokens / statistics.median(sum(run) for run in self.seconds[1:])

    def each(self) -> list[float]:
        """The median seconds of each prompt."""
        return [statistics.median(times) for times in zip(*self.seconds[1:], strict=True)]


def compare(case: str, ways: tuple[Way, Way], asked: Sequence[Request], repeats: int) -> list[Row]:
    """Rates without and with drafts, the slowest prompt, and what drafts gave."""
    plain, drafting = ways
    for _ in range(repeats + 1):
        said = plain.run(asked)
        if said != drafting.run(asked):
            raise SystemExit(f"{case}: drafts changed what is said")
    tokens = sum(map(len, said))
    counted = drafting.engine.statistics
    gains = [a / b for a, b in zip(plain.each(), drafting.each(), strict=True)]
    fast, slow = drafting.rate(tokens), plain.rate(tokens)
    return [
        row(case, "tokens/s", fast, "without", slow, None),
        Row(case, "least gain of a prompt", min(gains), "without", 1.0, min(gains), None),
        Row(case, "share accepted", counted.acceptance, "-", None, None, None),
        Row(case, "tokens a forward", counted.tokens_per_forward, "-", None, None, None),
    ]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--depth", type=int, default=Speculation().depth)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    builder().build()
    tokenizer = open_tokenizer(options.model)
    model = open_model(options.model, dtype=options.dtype)
    kind = "mtp" if model.config.multi_token_depth else "lookup"
    cases = (
        {"mtp": stories(tokenizer)}
        if kind == "mtp"
        else {f"lookup {name}": chats(tokenizer, name) for name in ("edits", "fresh")}
    )
    clock = time.process_time if options.cpu_time else time.perf_counter
    for case, asked in cases.items():
        plain, drafting = (
            Way(Engine(model, tokenizer, EngineOptions(max_num_seqs=1, speculation=how)), clock)
            for how in (Speculation(), Speculation(kind=kind, depth=options.depth))
        )
        made = compare(case, (plain, drafting), asked, options.repeats)
        for each in made[1:]:
            print(f"{case:<24} {each.value:>8.2f} {each.metric}")
        report(*with_kept(case, made, [], options.json), options.json)


if __name__ == "__main__":
    main()
