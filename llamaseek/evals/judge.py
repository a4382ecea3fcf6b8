"""A chat model that grades texts by a rubric: through the engine, or behind an OpenAI API.

For the win rate of a run's answers over those before it the judge sees both answers to a request
twice, each one first once, so that a liking for a place cancels out (Zheng et al. 2023, "Judging
LLM-as-a-Judge", §3.4).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

from llamaseek.engine.constrain import Constraint
from llamaseek.engine.engine import Engine
from llamaseek.engine.open import open_model, open_tokenizer
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError, shorten
from llamaseek.evals.compare import JUDGED
from llamaseek.files import read_jsonl, write_jsonl
from llamaseek.models import CausalLM
from llamaseek.runtime.device import pick_device
from llamaseek.text.chat import encode_chat
from llamaseek.text.tokenizer import Tokenizer

SECONDS = 120  # that an endpoint may take for one answer
BETTER = (
    "A request and two answers to it follow. Which answer is better: right, helpful and to the "
    "point? The grade is 0 if answer 0 is better and 1 if answer 1 is better."
)
Judge = Callable[[Sequence[str]], list[int | None]]
Answers = Sequence[Mapping[str, Any]]
AT_ONCE = 8  # questions to an endpoint
TRIES = 4  # with a second, two and four between them


def judge_prompt(rubric: str, text: str, best: int) -> str:
    """The judge's prompt: the rubric, the text, and the request for a number only."""
    return f"{rubric.strip()}\n\nText:\n{text.strip()}\n\nAnswer with the grade alone, 0 to {best}."


def read_grade(answer: str, best: int) -> int | None:
    """The first number of an answer, if it is a grade."""
    found = re.search(r"\d+", answer)
    return int(found.group()) if found and int(found.group()) <= best else None


class EngineJudge:
    """A model through the engine. Its answer can be nothing but a grade.

    A text too long for the model's context is cut at its end.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, rubric: str, best: int) -> None:
        self.tokenizer, self.rubric, self.best = tokenizer, rubric, best
        self.engine = Engine(model, tokenizer, EngineOptions(max_num_seqs=64))
        self.params = SamplingParams(
            max_tokens=4,
            constraint=Constraint("regex", f"[0-{best}]"),
        )

    def __call__(self, texts: Sequence[str]) -> list[int | None]:
        """The grade of each text."""
        asked = [Request(prompt=self._prompt(text), params=self.params) for text in texts]
        outputs = self.engine.generate(asked)
        return [read_grade(output.answers[0].text, self.best) for output in outputs]

    def _prompt(self, text: str) -> list[int]:
        """The longest beginning of the text that leaves room for a grade."""
        room = self.engine.context - 4
        while len(ids := self._encoded(text)) > room:
            if not text:
                raise UserError(f"judge.rubric: does not fit the judge's context of {room} tokens")
            text = text[: min(len(text) * room // len(ids), len(text) - 1)]
        return ids

    def _encoded(self, text: str) -> list[int]:
        content = judge_prompt(self.rubric, text, self.best)
        messages = [{"role": "user", "content": content}]
        return encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids


class EndpointJudge:
    """A served model, asked over HTTP; `OPENAI_API_KEY` is sent where it is set."""

    def __init__(self, url: str, model: str, rubric: str, best: int, at_once: int = 8) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"judge.url: {url!r} is not an http address")
        self.url = url.rstrip("/") + "/chat/completions"
        self.model, self.rubric, self.best, self.at_once = model, rubric, best, at_once

    def __call__(self, texts: Sequence[str]) -> list[int | None]:
        """The grade of each text, `at_once` questions under way."""
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self._grade, texts))

    def _grade(self, text: str) -> int | None:
        prompt = judge_prompt(self.rubric, text, self.best)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 16,
        }
        answer = self._post(body)
        try:
            return read_grade(str(answer["choices"][0]["message"]["content"]), self.best)
        except (KeyError, IndexError, TypeError):
            raise UserError(f"judge.url: {self.url} answered {shorten(str(answer))}") from None

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = HttpRequest(self.url, json.dumps(body).encode(), headers)
        for attempt in range(TRIES):
            time.sleep(2 ** (attempt - 1) if attempt else 0)
            try:
                with urlopen(request, timeout=SECONDS) as reply:
                    return json.load(reply)
            except HTTPError as error:
                detail = shorten(error.read(500).decode("utf-8", "replace"))
                if error.code < 500 or attempt == TRIES - 1:
                    raise UserError(f"judge.url: {self.url} says {error.code}: {detail}") from None
            except (URLError, OSError, ValueError) as error:
                if attempt == TRIES - 1:
                    raise UserError(f"judge.url: {self.url}: {error}") from None
        raise AssertionError("every try returns or raises")


def open_judge(
    model: str, url: str | None, rubric: str, best: int, at_once: int, device: str = "auto"
) -> EngineJudge | EndpointJudge:
    """The judge that a recipe names; a folder's model in the precision it is stored in."""
    if url is not None:
        return EndpointJudge(url, model, rubric, best, at_once)
    tokenizer, place = open_tokenizer(model), pick_device(device, "judge.device")
    return EngineJudge(open_model(model, device=place), tokenizer, rubric, best)


def judge_run(folder: Path, model: str, url: str | None) -> None:
    """Compare the answers before and after a run, which lie in its folder, and add the wins.

    `model` is the judge's folder or name, or at `url` its name there. UserError where the run has
    no answers.
    """
    before, after = (read_jsonl(folder / f"{moment}.jsonl") for moment in ("before", "after"))
    if not after or "answer" not in after[0]:
        raise UserError(f"--judge: {folder} holds no answers to held-out rows")
    won = wins(open_judge(model, url, BETTER, 1, AT_ONCE), before, after)
    write_jsonl(folder / JUDGED, [{"win": one} for one in won])


def wins(judge: Judge, before: Answers, after: Answers) -> list[float]:
    """For each row the share of both orders in which the later answer won; a half where the judge
    gave no grade.
    """
    pairs = list(zip(before, after, strict=True))
    straight = judge([asked(one["prompt"], one["answer"], two["answer"]) for one, two in pairs])
    turned = judge([asked(one["prompt"], two["answer"], one["answer"]) for one, two in pairs])
    return [
        ((0.5 if first is None else first) + (0.5 if second is None else 1 - second)) / 2
        for first, second in zip(straight, turned, strict=True)
    ]


def asked(prompt: str, first: str, second: str) -> str:
    """What the judge reads of one row."""
    return f"Request: {prompt}\n\nAnswer 0: {first}\n\nAnswer 1: {second}"
