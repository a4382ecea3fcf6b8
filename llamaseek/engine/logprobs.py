"""Log-probabilities of the tokens of prompts and answers.

R rows of logits, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from llamaseek.engine.forward.runner import Runner
from llamaseek.engine.forward.step_layout import some_rows
from llamaseek.engine.request import Delta, Logprob, SequenceState
from llamaseek.engine.scheduler import Chunk

PROMPT_LOGITS = 1 << 24  # of a prompt that is scored, held at once


def log_probabilities(
    logits: Tensor,
    tokens: Sequence[int],
    most: Sequence[int],
    named: Sequence[Sequence[int]] = (),
) -> list[Logprob]:
    """Logits (R, V), the tokens (R) that stand there and how many alternatives to name (R).

    One float32 log-softmax serves both a token's own figure and the list of the likeliest, which
    those of the `named` tokens (R lists) follow.
    """
    scores = logits.float().log_softmax(-1)
    own = scores.gather(1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    top = scores.topk(min(max(most), scores.shape[-1]), dim=-1)
    ranked = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    found = zip(tokens, own, ranked, most, strict=True)
    logprobs = [
        Logprob(token, value, list(zip(ids[:count], values[:count], strict=True)))
        for token, value, (ids, values), count in found
    ]
    for row, ids in enumerate(named):
        logprobs[row].top.extend((token, scores[row, token].item()) for token in ids)
    return logprobs


def score_prompts(runner: Runner, plan: Sequence[Chunk], hidden: Tensor, ends: list[int]) -> None:
    """Log-probabilities of the prompts' tokens that a step computed: hidden (N, D).

    `ends` holds, for each chunk of the plan, the row after its last. The logits are made for some
    rows at a time, of several prompts together: whole, they would be (N, V).
    """
    rows: list[int] = []
    tokens: list[int] = []
    most: list[int] = []
    lists: list[list[Logprob | None]] = []
    for chunk, end in zip(plan, ends, strict=True):
        answer, scores = chunk.answer, chunk.answer.prompt_logprobs
        if not answer.unscored:
            continue
        scores += [] if scores else [None] * min(answer.scored_from + 1, answer.prompt_length)
        first = max(chunk.start, len(scores) - 1)
        last = min(chunk.start + chunk.count, answer.prompt_length - 1)
        begin = end - chunk.count - chunk.start  # the row of the prompt's first token
        rows += range(begin + first, begin + last)
        tokens += answer.tokens[first + 1 : last + 1]
        most += repeat(answer.params.prompt_logprobs or 0, max(last - first, 0))
        lists += repeat(scores, max(last - first, 0))
    at_once = max(1, PROMPT_LOGITS // runner.model.config.vocab_size)
    for at in range(0, len(rows), at_once):
        part = slice(at, at + at_once)
        logits = runner.logits(some_rows(hidden, rows[part]))
        found = log_probabilities(logits, tokens[part], most[part])
        for scores, logprob in zip(lists[part], found, strict=True):
            scores.append(logprob)


def score_tokens(logits: Tensor, scored: Sequence[tuple[SequenceState, Delta, int]]) -> None:
    """Give deltas the log-probabilities of their tokens; each starts at its row of logits."""
    rows: list[int] = []
    tokens: list[int] = []
    most: list[int] = []
    named: list[Sequence[int]] = []
    for answer, delta, start in scored:
        rows += range(start, start + len(delta.tokens))
        tokens += delta.tokens
        most += repeat(answer.params.logprobs or 0, len(delta.tokens))
        named += repeat(answer.params.logprob_token_ids, len(delta.tokens))
    if not rows:
        return
    chosen = logits[torch.tensor(rows, device=logits.device)]
    found = iter(log_probabilities(chosen, tokens, most, named))
    for answer, delta, _ in scored:
        delta.logprobs = [next(found) for _ in delta.tokens]
        answer.logprobs += delta.logprobs
