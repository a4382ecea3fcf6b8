"""What held-out rows come out as before and after a run: answers, texts gone on with, margins.

The model is the one in training, as it is at that moment; the loop writes what is found here into
the run folder, where the report and `finetune` compare both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llamaseek.data.bad_rows import BadRows, Row
from llamaseek.data.batch import Batch
from llamaseek.data.columns import label_of
from llamaseek.data.formats import RowReader
from llamaseek.data.rows import encode
from llamaseek.models import CausalLM
from llamaseek.models.loss import sum_by_sequence, target_log_probs
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.device import autocast
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.rollouts.answers import AnswerSampler, Prompt, asked, text_of

Examine = Callable[[CausalLM, bool], list[dict[str, Any]]]
LONGEST_ANSWER = 256  # tokens, of one that is only shown
TEXT_BEFORE, TEXT_AFTER = 48, 32  # tokens of a held-out text that are given, and gone on with
INSTRUCTION = (
    "{text}\n\nClassify the text above. Answer with one of these labels and nothing else: {labels}"
)
"""How a model that has not been trained on labels is asked for one."""


@dataclass
class HeldOutAnswers:
    """Greedy answers to held-out prompts, beside the answers that were wanted.

    `first` are the prompts of a model that has not been trained yet.
    """

    sampler: AnswerSampler
    prompts: Sequence[Prompt]
    wanted: Sequence[str]
    first: Sequence[Prompt]
    is_text: bool = False  # prompts are beginnings of texts

    def __call__(self, model: CausalLM, before: bool) -> list[dict[str, Any]]:
        """One line for each prompt."""
        moment = "before the run" if before else "after the run"
        drawn = self.sampler.draw(self.first if before else self.prompts, 1, 0.0, moment)
        self.sampler.engine = None  # gives back its cache
        kind = {"text": True} if self.is_text else {}
        return [
            {"prompt": asked(prompt), "wanted": wanted, "answer": episode.text.strip(), **kind}
            for prompt, wanted, episode in zip(self.prompts, self.wanted, drawn, strict=True)
        ]


def held_out_answers(
    recipe: Recipe, model: CausalLM, tokenizer: Tokenizer, rows: Sequence[Row]
) -> Examine | None:
    """Of the first `train.samples` held-out conversations; None where the layout cannot answer."""
    if not rows or not recipe.train.samples or not answers_here(recipe):
        return None
    found = _asked_and_wanted(recipe, tokenizer, rows)
    if not found:
        return None
    prompts, wanted = zip(*found, strict=True)
    longest = max(len(tokenizer.encode(text)) for text in wanted)
    sampler = AnswerSampler(
        model, tokenizer, min(longest + longest // 4 + 8, LONGEST_ANSWER), recipe.seed
    )
    labelled = rows if recipe.data.format == "labels" else []
    given = (label_of(*row, recipe.data.columns) for row in labelled)
    labels = sorted({str(label) for label in given if label is not None})
    first = [_with_labels(prompt, tokenizer, labels) for prompt in prompts] if labels else prompts
    return HeldOutAnswers(sampler, prompts, wanted, first)


def answers_here(recipe: Recipe) -> bool:
    """Whether each rank has whole matrices, which the engine answers from."""
    plan = recipe.parallel
    return plan.tensor * plan.pipeline * plan.context * plan.expert == 1


def _asked_and_wanted(
    recipe: Recipe, tokenizer: Tokenizer, rows: Sequence[Row]
) -> list[tuple[Prompt, str]]:
    """Prompts with the text that each row answers them with, of rows that have one."""
    reader, found = RowReader.of(recipe.data), list[tuple[Prompt, str]]()
    room = recipe.data.length

    def make(place: str, row: dict[str, Any]) -> None:
        talk = reader.conversation(place, row)
        *start, last = talk.messages
        wanted = text_of(last.get("content"))
        chat = encode(place, start, tokenizer, talk.tools, add_generation_prompt=True)
        if wanted and start and len(chat.ids) < room:
            found.append((Prompt(place, row, chat.ids, start, talk.tools), wanted))

    for row in rows:
        if len(found) == recipe.train.samples:
            break
        list(BadRows(skip=True).usable([row], make))
    return found


def _with_labels(prompt: Prompt, tokenizer: Tokenizer, labels: Sequence[str]) -> Prompt:
    *before, last = prompt.messages
    text = INSTRUCTION.format(text=text_of(last.get("content")), labels=", ".join(labels))
    messages = [*before, {**last, "content": text}]
    chat = encode(prompt.place, messages, tokenizer, prompt.tools, add_generation_prompt=True)
    return replace(prompt, ids=chat.ids)


def held_out_text(
    recipe: Recipe, model: CausalLM, tokenizer: Tokenizer, held_out: Batch
) -> Examine | None:
    """How held-out texts are gone on with; None for masked models."""
    if not recipe.train.samples or not model.config.is_causal or not answers_here(recipe):
        return None
    prompts, wanted = list[Prompt](), list[str]()
    for row in held_out.tokens[: recipe.train.samples].tolist():
        given = min(TEXT_BEFORE, len(row) // 2)
        text = tokenizer.decode(row[:given])
        message = {"role": "user", "content": text}
        prompts.append(Prompt("held-out text", {}, row[:given], [message]))
        wanted.append(tokenizer.decode(row[given : given + TEXT_AFTER]))
    sampler = AnswerSampler(model, tokenizer, TEXT_AFTER, recipe.seed)
    return HeldOutAnswers(sampler, prompts, wanted, prompts, is_text=True)


@dataclass
class HeldOutPairs:
    """The margin of each held-out pair: log p(chosen) - log p(rejected), in nats.

    Before the run it is the reference's, whose log-probabilities the batch holds.
    """

    recipe: Recipe
    tokenizer: Tokenizer
    held_out: Batch

    @torch.no_grad()
    def __call__(self, model: CausalLM, before: bool) -> list[dict[str, Any]]:
        """One line for each pair."""
        sums = self.held_out.extra["reference"] if before else self._sums(model)
        found = list[dict[str, Any]]()
        for row, pairs in enumerate(self.held_out.extra["pairs"].tolist()):
            for number, there in enumerate(pairs):
                if there:
                    found.append(self._pair(row, number, sums[row].tolist()))
        return found

    def _sums(self, model: CausalLM) -> torch.Tensor:
        """log p of each answer: (B, S)."""
        device, trained = model.model.norm.weight.device, model.training
        model.eval()
        rows = self.recipe.train.micro_batch or self.recipe.train.batch
        with autocast(self.recipe.train, device):
            parts = (part.to(device) for part in self.held_out.split(rows))
            sums = [sum_by_sequence(target_log_probs(model, part), part).cpu() for part in parts]
        model.train(trained)
        return torch.cat(sums)

    def _pair(self, row: int, number: int, sums: list[float]) -> dict[str, Any]:
        chosen, rejected = 2 * number, 2 * number + 1
        return {
            "prompt": self._text(row, chosen, answer=False),
            "chosen": self._text(row, chosen),
            "rejected": self._text(row, rejected),
            "margin": sums[chosen] - sums[rejected],
        }

    def _text(self, row: int, sequence: int, answer: bool = True) -> str:
        """The answer of a sequence of a row, or what stands before it."""
        mine = self.held_out.extra["sequence"][row] == sequence
        answered = mine & (self.held_out.targets[row] >= 0)
        if answer:
            return self.tokenizer.decode(self.held_out.targets[row][answered].tolist()).strip()
        first = int(answered.nonzero()[0]) if bool(answered.any()) else 0
        begin = int(mine.nonzero()[0]) if bool(mine.any()) else 0
        return self.tokenizer.decode(self.held_out.tokens[row][begin : first + 1].tolist()).strip()
