"""The end of an answer: the last token, a stop token, a stop string, or the end of its grammar.

Token by token, so that drafts which come after an end are no part of the answer.
"""

from __future__ import annotations

from llamaseek.engine.request import Delta, SequenceState


def append(answer: SequenceState, generated: list[int], delta: Delta) -> str | None:
    """Move tokens from `generated` into the answer and its delta; why it ended, if it did."""
    for token in generated:
        finish = _append_one(answer, token, delta)
        if finish is not None:
            break
    return None if finish is None else end_text(answer, delta, finish)


def end_text(answer: SequenceState, delta: Delta, finish: str) -> str:
    """Add the text that was held back at an answer's end; why it ended."""
    if answer.text is None:
        return finish
    delta.text += answer.text.flush()
    delta.stop_reason = answer.text.stop
    return "stop" if answer.text.stopped else finish


def _append_one(answer: SequenceState, token: int, delta: Delta) -> str | None:
    """`append` for one token. Whether a grammar ends there is known once its next mask is."""
    tokens, text, matcher = answer.tokens, answer.text, answer.matcher
    if len(tokens) >= answer.limit:  # only the prompt was to be read
        return "length"
    if token in answer.stop_token_ids:
        answer.stop_id = token
        return "stop"
    tokens.append(token)
    delta.tokens.append(token)
    if text is not None:
        delta.text += text.push([token])
        if text.stopped:
            return "stop"
    if matcher is not None:
        matcher.accept(token)
        return None
    return "length" if len(tokens) >= answer.limit else None
