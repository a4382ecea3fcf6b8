"""Models that know what to answer, through lm-eval's interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llamaseek.evals.lm import Likelihood
from llamaseek.evals.run import EvalOptions, Evaluation, make_plan, run_plan
from tests.evals.benchmarks import right_choice, right_text


class Oracle(LM):  # type: ignore[misc]
    """Answers with `text(task, doc)`, and gives the option `choice(task, doc, count)` the best."""

    def __init__(self, choice: Callable[[str, Any], int], text: Callable[[str, Any], str]) -> None:
        super().__init__()
        self.choice, self.text = choice, text
        self.prompts: list[str] = []

    tokenizer_name = "oracle"

    def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in history)

    def loglikelihood(self, requests: list[Instance]) -> list[Likelihood]:
        self.prompts += [request.args[0] for request in requests]
        found = []
        for request in requests:
            best = self.choice(request.task_name, request.doc)
            value = -1.0 if request.idx == best else -99.0
            found.append(Likelihood.of([request.idx], [value], request.idx == best))
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-1.0 for _ in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        return [self.text(request.task_name, request.doc) for request in requests]


def gold() -> Oracle:
    """Knows everything."""
    return Oracle(right_choice, right_text)


def empty() -> Oracle:
    """Gives a wrong option, and says nothing."""
    return Oracle(lambda task, doc: (right_choice(task, doc) + 1) % 2, lambda task, doc: "")


def guessing(seed: int) -> Oracle:
    """Picks one of the first four options."""
    rng = Random(seed)
    return Oracle(lambda task, doc: rng.randrange(4), lambda task, doc: "")


def asked(lm: Any, data: Path, *tasks: str, chat: str = "auto", **options: Any) -> Evaluation:
    """What a model gets on tasks."""
    given = EvalOptions(tasks=list(tasks), data=[data], chat=chat, **options)
    manager, plan = make_plan(given, chat == "on", lambda line: None)
    return run_plan(lm, manager, plan, given, "oracle")
