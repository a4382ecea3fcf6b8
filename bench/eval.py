"""Seconds of benchmarks through `llamaseek eval` and through lm-eval's `hf`, side by side.

    python bench/eval.py MODEL_FOLDER DATA… [--items 200 100 20] [--repeats 1] [--json PATH]
        [--server URL]

The same float32 weights, files, items and prompts: MMLU 5-shot, HellaSwag, GSM8K 8-shot. `hf` keeps
its cache of single-token continuations (`logits_cache`), and the better of its batch sizes 1 and 8
counts, found on a fifth of the items. Each is run in turn, `--repeats` times; the median counts.
With `--server`, an OpenAI server of the same weights (llama.cpp's, as `http://127.0.0.1:8080/v1`)
answers GSM8K too, through lm-eval's `local-completions`; llama.cpp's gives no log-probabilities of
a prompt's tokens, which MMLU and HellaSwag need.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.common import Row, report, row
from llamaseek.evals.models import open_engine
from llamaseek.evals.run import EvalOptions, evaluate_engine, make_plan, run_plan, served_name

SUBJECTS = ("anatomy", "astronomy", "econometrics", "marketing", "philosophy")
TOKENS = 256


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--items", type=int, nargs=3, default=(200, 100, 20))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--server", help="the address of an OpenAI server of the same weights")
    given = parser.parse_args()
    engine = open_engine(str(given.model), None, "cpu", "fp32")
    rows: list[Row] = []
    lms = {batch: hf_model(given.model, batch) for batch in (1, 8)}
    for name, options in cases(given.data, given.items).items():
        few = replace(options, limit=max(1, options.limit // 5))
        tried = {batch: seconds(lambda lm=lm, few=few: by_lm(lm, few)) for batch, lm in lms.items()}
        batch = min(tried, key=tried.__getitem__)
        lm, ours, theirs = lms[batch], list[float](), list[float]()
        for _ in range(given.repeats):
            ours.append(seconds(lambda options=options: evaluate_engine(engine, options)))
            theirs.append(seconds(lambda lm=lm, options=options: by_lm(lm, options)))
        mine, peers = statistics.median(ours), statistics.median(theirs)
        peer, items = f"lm-eval hf, batch {batch}", 60 * count(options)
        rows.append(row(name, "items/min", items / mine, peer, items / peers, None))
        print(f"{name}: {mine:.1f} s, {peer}: {peers:.1f} s", flush=True)
        if given.server and "GSM8K" in name:
            lm = served_model(given.server, given.model)
            taken = statistics.median(
                seconds(lambda lm=lm, options=options: by_lm(lm, options))
                for _ in range(given.repeats)
            )
            rows.append(row(name, "items/min", items / mine, given.server, items / taken, None))
    report(rows, [], given.json)


def cases(data: list[Path], items: tuple[int, int, int]) -> dict[str, EvalOptions]:
    """The three comparisons."""
    mmlu, hellaswag, gsm8k = items
    subjects = [f"lm-eval:mmlu_{name}" for name in SUBJECTS]
    same: dict[str, Any] = {"data": data, "chat": "off"}
    return {
        "MMLU 5-shot": EvalOptions(
            tasks=subjects, limit=max(1, mmlu // len(subjects)), num_fewshot=5, **same
        ),
        "HellaSwag": EvalOptions(tasks=["hellaswag"], limit=hellaswag, **same),
        "GSM8K 8-shot": EvalOptions(tasks=["gsm8k"], limit=gsm8k, max_gen_toks=TOKENS, **same),
    }


def count(options: EvalOptions) -> int:
    """Items of a case."""
    return (options.limit or 0) * len(options.tasks)


def seconds(run: Any) -> float:
    """What one run takes, prompts built and verdicts given."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def hf_model(folder: Path, batch: int) -> Any:
    """lm-eval's own model, in float32."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    return HFLM(pretrained=model, tokenizer=str(folder), batch_size=batch)


def served_model(url: str, folder: Path) -> Any:
    """lm-eval's own client of an OpenAI server."""
    from lm_eval.api.registry import get_model

    base = url.rstrip("/")
    args = {"model": served_name(base), "base_url": f"{base}/completions"}
    args |= {"tokenizer": str(folder), "tokenizer_backend": "huggingface"}
    args |= {"tokenized_requests": False}  # llama-cpp-python's server takes texts alone
    return get_model("local-completions").create_from_arg_obj(args, {"batch_size": 1})


def by_lm(lm: Any, options: EvalOptions) -> None:
    """The same tasks and files, by another model of lm-eval's."""
    manager, plan = make_plan(options, False, lambda line: None)
    run_plan(lm, manager, plan, options, "hf")


if __name__ == "__main__":
    main()
