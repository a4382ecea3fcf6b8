"""`make check-eval`: a real model through `llamaseek eval` and lm-eval's `hf`, item by item.

    python -m tests.evals.check_eval MODEL_FOLDER DATA… [--share 0.1]

Log-likelihoods to 1e-4, the same greedy flags and texts; a text may differ from where the two
likeliest tokens are within 1e-3. The last lines are a table; the exit code is 1 where it fails.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

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


def main() -> int:
    """Compare all tasks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--share", type=float, default=1.0, help="of the items")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--no-cache", action="store_true")
    given = parser.parse_args()
    how = EngineOptions(max_num_seqs=given.batch, enable_prefix_caching=not given.no_cache)
    engine = Engine(open_model(given.model, dtype="fp32"), open_tokenizer(given.model), how)
    reference = hf_model(given.model)
    failed = 0
    for tasks, count, shots in ITEMS:
        options = EvalOptions(
            tasks=tasks, data=given.data, limit=max(1, round(count * given.share)), chat="off",
            num_fewshot=shots, max_gen_toks=TOKENS,
        )  # fmt: skip
        start = time.perf_counter()
        ours = evaluate_engine(engine, options)
        middle = time.perf_counter()
        manager, plan = make_plan(options, False, lambda line: None)
        theirs = run_plan(reference, manager, plan, options, "hf")
        seconds = middle - start, time.perf_counter() - middle
        failed += report(tasks[0], engine, ours, theirs, seconds)
    return int(failed > 0)


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
        f"{name}: {values} log-likelihoods, largest difference {max(differences):.1e}; {texts} "
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
