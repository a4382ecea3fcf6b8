"""Where an answer ends: at its last token, a stop token, a stop string, or its grammar's end.

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
    text = answer.text
    if finish is not None and text is not None:
        delta.text += text.flush()
        finish = "stop" if text.stopped else finish
    return finish


def _append_one(answer: SequenceState, token: int, delta: Delta) -> str | None:
    """`append` for one token."""
    tokens, text, matcher = answer.tokens, answer.text, answer.matcher
    if len(tokens) >= answer.limit:  # only the prompt was to be read
        return "length"
    if token in answer.params.stop_ids:
        answer.stop_id = token
        return "stop"
    tokens.append(token)
    delta.tokens.append(token)
    ended = matcher is not None and matcher.accept(token)
    if text is not None:
        delta.text += text.push([token])
        ended = ended or text.stopped
    if ended:
        return "stop"
    return "length" if len(tokens) >= answer.limit else None
