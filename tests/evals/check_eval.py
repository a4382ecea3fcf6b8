"""`make check-eval`: a real model through `llamaseek eval` and lm-eval's `hf`, item by item.

    python -m tests.evals.check_eval MODEL_FOLDER DATA… [--share 0.1 --matrix --gguf MODEL]

Log-likelihoods to 1e-4, the same greedy flags and texts; a text may differ from where the two
likeliest tokens are within 1e-3. `--matrix` asks in batches of 1, 8 and 64, with the prefix cache
and without; `--gguf`, the file that the folder was made of, adds it widened to float32, which must
give the same, and with its blocks packed, of which the differences are reported. A line for each
task; the exit code is 1 where one fails.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaseek.checkpoints.sources import find_source
from llamaseek.engine.engine import Engine
from llamaseek.engine.open import open_model, open_tokenizer
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.evals.run import EvalOptions, Evaluation, evaluate_engine, make_plan, run_plan

SUBJECTS = (
    "anatomy", "astronomy", "college_physics", "econometrics", "global_facts", "jurisprudence",
    "marketing", "philosophy", "sociology", "virology",
)  # fmt: skip
BBH = ("boolean_expressions", "navigate", "web_of_lies")
ITEMS: list[tuple[list[str], int, int | None]] = [
    (["piqa"], 300, None),
    (["hellaswag"], 100, None),
    (["winogrande"], 200, None),
    ([f"lm-eval:mmlu_{subject}" for subject in SUBJECTS], 10, 5),
    (["lm-eval:gsm8k"], 20, 5),
    (["ifeval"], 20, None),
    ([f"lm-eval:bbh_cot_fewshot_{name}" for name in BBH], 10, None),
]
"""Tasks, items of each, and shots."""
TOKENS, MARGIN, CLOSE = 256, 1e-3, 1e-4


@dataclass(frozen=True)
class Way:
    """How our side answers; `exact` where it must be what `hf` answers."""

    name: str
    model: str
    dtype: str = "fp32"
    batch: int = 64
    cached: bool = True
    exact: bool = True

    def engine(self) -> Engine:
        """An engine that answers so."""
        how = EngineOptions(max_num_seqs=self.batch, enable_prefix_caching=self.cached)
        source = find_source(Path(self.model))
        return Engine(open_model(source, dtype=self.dtype), open_tokenizer(source), how)


def main() -> int:
    """Compare all tasks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--share", type=float, default=1.0, help="of the items")
    parser.add_argument("--only", help="the first task of a line of ITEMS")
    parser.add_argument("--matrix", action="store_true", help="batches, with and without cache")
    parser.add_argument("--gguf", help="the GGUF file, or its model's name, of the folder")
    given = parser.parse_args()
    reference, seen, failed = hf_model(given.model), {}, 0
    for way in ways(given):
        engine = way.engine()
        for tasks, count, shots in ITEMS:
            if given.only not in (None, tasks[0]):
                continue
            options = EvalOptions(
                tasks=tasks, data=given.data, limit=max(1, round(count * given.share)), chat="off",
                num_fewshot=shots, max_gen_toks=TOKENS,
            )  # fmt: skip
            start = time.perf_counter()
            ours = evaluate_engine(engine, options)
            taken = time.perf_counter() - start
            if tasks[0] not in seen:
                seen[tasks[0]] = answers_of(reference, options)
            theirs, seconds = seen[tasks[0]]
            wrong = report(f"{way.name}, {tasks[0]}", engine, ours, theirs, (taken, seconds))
            failed += wrong if way.exact else 0
    return int(failed > 0)


def ways(given: argparse.Namespace) -> list[Way]:
    """What is asked for."""
    folder = str(given.model)
    found = [Way("float32", folder)]
    if given.matrix:
        found = [
            Way(f"batch {batch}, cache {'on' if cached else 'off'}", folder, "fp32", batch, cached)
            for batch in (1, 8, 64)
            for cached in (True, False)
        ]
    if given.gguf:
        found += [Way("GGUF in float32", given.gguf)]
        found += [Way("GGUF packed", given.gguf, "auto", exact=False)]
    return found


def answers_of(lm: Any, options: EvalOptions) -> tuple[Evaluation, float]:
    """What `hf` says, and the seconds that it takes."""
    start = time.perf_counter()
    manager, plan = make_plan(options, False, lambda line: None)
    found = run_plan(lm, manager, plan, options, "hf")
    return found, time.perf_counter() - start


def hf_model(folder: Path) -> Any:
    """lm-eval's own model, in float32."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    return HFLM(pretrained=model, tokenizer=str(folder), batch_size=1)


def report(
    name: str, engine: Engine, ours: Evaluation, theirs: Evaluation, seconds: tuple[float, float]
) -> int:
    """Print a line on a task; how many items differ."""
    values, differences, texts, ties, wrong = 0, [0.0], 0, 0, 0
    for task, rows in ours.samples.items():
        for row, match in zip(rows, theirs.samples[task], strict=True):
            for index, (a, b) in enumerate(zip(row["resps"], match["resps"], strict=True)):
                if isinstance(a[0], str):
                    texts += 1
                    same = a[0] == b[0]
                    tie = not same and is_tie(engine, row["arguments"][index][0], a[0], b[0])
                    ties += tie
                    wrong += not same and not tie
                    continue
                values += 1
                differences.append(abs(a[0][0] - b[0][0]))
                wrong += differences[-1] > CLOSE or a[0][1] != b[0][1]
    print(
        f"{name}: {values} log-likelihoods, largest difference {max(differences):.1e}, "
        f"mean {sum(differences) / max(values, 1):.1e}; {texts} "
        f"texts, {ties} split at a tie; {wrong} differ; {seconds[0]:.0f} s, hf {seconds[1]:.0f} s",
        flush=True,
    )
    return wrong


def is_tie(engine: Engine, prompt: str, one: str, other: str) -> bool:
    """Whether two answers part where the two likeliest tokens are within `MARGIN`."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    a, b = tokenizer.encode(one), tokenizer.encode(other)
    common = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if common is None:
        common = min(len(a), len(b))
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(prompt), *a[:common]]
    params = SamplingParams(max_tokens=1, logprobs=2, ignore_eos=True)
    (output,) = engine.generate([Request(prompt=ids, params=params)])
    scores = output.answers[0].logprobs
    assert scores is not None
    (_, best), (_, second) = scores[0].top
    return math.isclose(best, second, abs_tol=MARGIN)


if __name__ == "__main__":
    sys.exit(main())
