"""Log-probabilities of the tokens of prompts and answers.

R rows of logits, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from llamaseek.engine.forward.runner import Runner
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


def score_prompt(runner: Runner, chunk: Chunk, hidden: Tensor) -> None:
    """Log-probabilities of prompt tokens from hidden (at least the chunk's, D).

    The logits are made for some places at a time: whole, they would be (N, V).
    """
    answer = chunk.answer
    scores = answer.prompt_logprobs
    start = min(answer.scored_from + 1, answer.prompt_length)
    scores += [] if scores else [None] * start
    wanted = answer.params.prompt_logprobs or 0
    rows = max(1, PROMPT_LOGITS // runner.model.config.vocab_size)
    first = max(chunk.start, len(scores) - 1)
    last = min(chunk.start + chunk.count, answer.prompt_length - 1)
    for at in range(first, last, rows):
        end = min(at + rows, last)
        logits = runner.logits(hidden[at - chunk.start : end - chunk.start])
        scores += log_probabilities(logits, answer.tokens[at + 1 : end + 1], [wanted] * (end - at))


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
