"""How answers are judged where lm-eval's own way needs the network, a thread's alarm or luck.

Programs run in `workers.sandbox`, formulas are compared in processes that can be killed, and
GPQA's options have an order that depends on nothing but the question.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random
from typing import Any

from llamaseek.errors import UserError
from llamaseek.workers.pool import WorkerPool
from llamaseek.workers.sandbox import FENCE, Sandbox, SandboxLimits
from llamaseek.workers.worker import WorkerError

PROGRAM = SandboxLimits(seconds=10.0, memory=1 << 30)
FORMULA_SECONDS = 20.0
FORMULA_MEMORY = 4 << 30
OPTIONS = ("choice1", "choice2", "choice3", "choice4")
NEEDS_SENTENCES = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
Results = dict[str, Any]
unjudged: Counter[str] = Counter()
"""Answers whose comparison failed or was ended, by metric; they count as wrong."""


@cache
def _sandbox() -> Sandbox:
    return Sandbox()


@cache
def _formulas() -> WorkerPool:
    cpu = int(FORMULA_SECONDS)
    return WorkerPool("llamaseek.workers.formulas", memory=FORMULA_MEMORY, cpu=cpu, idle=1)


def check_sandbox() -> None:
    """UserError where no program can be run here."""
    try:
        _sandbox().confinement()
    except RuntimeError as error:
        raise UserError(f"humaneval, mbpp: {error}") from None


def humaneval(doc: Mapping[str, Any], results: Sequence[Any]) -> Results:
    """Whether a completion passes its tests; the share of a problem's several ones that do."""
    programs = results[0] if isinstance(results[0], list) else [results[0]]
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    passed = [_passes(one, tests, doc["entry_point"]) for one in programs]
    return {"pass@1": sum(passed) / len(passed)}


def mbpp(doc: Mapping[str, Any], results: Sequence[Any]) -> Results:
    """Whether a program passes its three assertions."""
    program = results[0][0] if isinstance(results[0], list) else results[0]
    tests = "\n".join([doc.get("test_setup_code") or "", *doc["test_list"]])
    return {"pass@1": float(_passes(program, tests, None))}


def _passes(program: str, tests: str, entry_point: str | None) -> bool:
    verdict = _sandbox().run(program, tests, PROGRAM, entry_point)
    unjudged["sandbox"] += verdict.broken
    return verdict.passed


def completed(prompt: str, completion: str, entry_point: str) -> str:
    """The program that a completion of a prompt makes.

    A fenced block that defines the function anew follows the prompt's imports; otherwise the
    completion follows the prompt, up to a fence.
    """
    for block in FENCE.findall(completion):
        if f"def {entry_point}(" in block:
            lines = prompt.splitlines()
            imports = [line for line in lines if line.startswith(("import ", "from "))]
            return "\n".join([*imports, block])
    return prompt + completion.partition("```")[0]


def complete_prompts(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> Any:
    """lm-eval's filter of HumanEval: programs of completions."""
    return [
        [completed(doc["prompt"], answer, doc["entry_point"]) for answer in answers]
        for answers, doc in zip(resps, docs, strict=True)
    ]


def minerva(own: Callable[..., Results]) -> Callable[..., Results]:
    """lm-eval's verdicts on MATH (`own`, whose file normalizes answers), and Hendrycks's."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    helpers = own.__globals__

    def judge(doc: Mapping[str, Any], results: Sequence[str]) -> Results:
        text = results[0]
        answer = helpers["normalize_final_answer"](helpers["get_unnormalized_answer"](text))
        return {
            "exact_match": int(_equal("exact_match", doc["answer"], answer)),
            "math_verify": int(_equal("math_verify", doc["solution"], text)),
            "hendrycks": int(is_equiv(answer, doc["answer"])),
        }

    return judge


def _equal(metric: str, gold: str, answer: str) -> bool:
    try:
        job = {"metric": metric, "gold": gold, "answer": answer}
        return bool(_formulas().run(job, FORMULA_SECONDS).value["equal"])
    except (WorkerError, TimeoutError):
        unjudged[metric] += 1
        return False


def ordered_options(dataset: Any) -> Any:
    """GPQA's rows with their options in an order drawn from the question's own hash."""
    from lm_eval.tasks.gpqa.zeroshot.utils import preprocess

    def order(doc: Mapping[str, Any]) -> dict[str, Any]:
        right = preprocess(doc["Correct Answer"])
        options = [preprocess(doc[f"Incorrect Answer {n}"]) for n in (1, 2, 3)] + [right]
        Random(hashlib.sha256(doc["Question"].encode()).digest()).shuffle(options)
        letter = "ABCD"[options.index(right)]
        named = dict(zip(OPTIONS, options, strict=True))
        return {**named, "choices": options, "answer": f"({letter})"}

    return dataset.map(order)


def judged_instructions(dataset: Any) -> Any:
    """IFEval's rows whose instructions can be judged: two kinds need NLTK's sentence splitter."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        kept = dataset.filter(lambda doc: NEEDS_SENTENCES.isdisjoint(doc["instruction_id_list"]))
        unjudged["no punkt_tab in NLTK_DATA: prompts left out"] = len(dataset) - len(kept)
        return kept
    return dataset


def quiet_nltk() -> None:
    """Keep lm-eval's IFEval from reaching for the network where NLTK_DATA has what it needs not."""
    import nltk

    if not os.environ.get("NLTK_DATA"):
        nltk.download = lambda *names, **options: False


def boxed(doc: Mapping[str, Any], results: Sequence[str]) -> Results:
    """Whether an answer's text has the value of the solution, by math-verify."""
    return {"math_verify": int(_equal("math_verify", doc["solution"], results[0]))}
