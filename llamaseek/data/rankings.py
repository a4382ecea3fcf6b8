"""Ranked answers to a prompt as tokens, for DPO and reward models.

B rows, T time, S answers a row, best first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from llamaseek.data.bad_rows import BadRows, Row, RowError
from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.formats import Ranking, RowReader
from llamaseek.data.pack import Example, pack_apart
from llamaseek.data.ratings import are_rated
from llamaseek.data.rows import check_length, encode, shifted
from llamaseek.text.chat import ANSWER, PROMPT, ChatIds
from llamaseek.text.tokenizer import Tokenizer

PAIR = ("chosen", "rejected")


def preferences(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    length: int,
    form: str,
    reader: RowReader | None = None,
    bad: BadRows | None = None,
) -> Batch:
    """Pairs of whole answers for DPO. Each row of the batch holds one pair.

    `form` "llama3" counts only an answer's content for the preference; "plain" counts its
    end-of-turn as well.
    """
    reader, bad = reader or RowReader(), bad or BadRows()

    def pair(place: str, row: dict[str, Any]) -> list[Example]:
        found = reader.ranking(place, row)
        chats = _chats(place, found, tokenizer, PAIR, length)
        return [_side(place, chat, sequence, form) for sequence, chat in enumerate(chats)]

    batch = pack_apart(list(bad.keep(rows, pair)))
    batch.extra["counts_for_preference"].clamp_(min=0)
    batch.extra["pairs"] = torch.ones(batch.tokens.shape[0], 1, dtype=torch.int64)
    return batch


def rankings(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    length: int,
    reader: RowReader | None = None,
    bad: BadRows | None = None,
) -> Batch:
    """Two or three answers a row, best first, for reward models.

    `extra["ends"]` (B, S) is where each answer's last token stands, -1 where there is none. What a
    template writes after that token is left out: no answer is scored that goes on after its end.
    """
    reader, bad = reader or RowReader(), bad or BadRows()

    def ranked(place: str, row: dict[str, Any]) -> list[Example]:
        found = reader.ranking(place, row)
        chats = _chats(place, found, tokenizer, tuple(found.answers), length)
        return [_scored(place, *named) for named in zip(found.answers, chats, strict=True)]

    items = list(bad.keep(rows, ranked))
    batch = pack_apart(items)
    most = max(map(len, items))
    batch.extra["ends"] = torch.tensor([_ends(row) + [-1] * (most - len(row)) for row in items])
    return batch


def rated_answers(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    length: int,
    reader: RowReader | None = None,
    bad: BadRows | None = None,
) -> Batch:
    """One answer a row, for reward models that learn from ratings.

    `extra["ends"]` (B, 1) is where its last token stands, `extra["rating"]` (B, 1) its rating.
    """
    reader, bad = reader or RowReader(), bad or BadRows()

    def rated(place: str, row: dict[str, Any]) -> tuple[Example, float]:
        talk, rating = reader.rated(place, row)
        chat = encode(place, talk.messages, tokenizer, talk.tools)
        check_length(place, len(chat.ids), length)
        return _scored(place, "the answer", chat), rating

    items = list(bad.keep(rows, rated))
    batch = pack_apart([[example] for example, _ in items])
    batch.extra["ends"] = torch.tensor([_ends([example]) for example, _ in items])
    batch.extra["rating"] = torch.tensor([[rating] for _, rating in items])
    return batch


def scored_answers(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    length: int,
    reader: RowReader | None = None,
    bad: BadRows | None = None,
) -> Batch:
    """What a reward model learns from: rated answers, or rankings."""
    rows, columns = list(rows), reader.columns if reader else {}
    pack = rated_answers if are_rated(rows, columns) else rankings
    return pack(rows, tokenizer, length, reader, bad)


def _scored(place: str, name: str, chat: ChatIds) -> Example:
    """One answer with what comes before it, up to its end."""
    end = last_answer(chat)[1]
    if end == 0:
        raise RowError(place, "without an answer", f"{name} is empty")
    return Example(chat.ids[:end], [IGNORE] * end)


def _ends(row: list[Example]) -> list[int]:
    ends, at = [], 0
    for item in row:
        at += len(item.tokens)
        ends.append(at - 1)
    return ends


def _chats(
    place: str, ranking: Ranking, tokenizer: Tokenizer, names: tuple[str, ...], length: int
) -> list[ChatIds]:
    """The named answers, each with its prompt; RowError where they are over `length` together."""
    chats = [
        encode(place, [*ranking.prompt, *ranking.answers[name]], tokenizer, ranking.tools)
        for name in names
    ]
    check_length(place, sum(len(chat.ids) for chat in chats), length)
    return chats


def _side(place: str, chat: ChatIds, sequence: int, form: str) -> Example:
    """One answer; only the last assistant turn is in the loss."""
    begin, end = last_answer(chat)
    kinds = [kind if begin <= i < end else PROMPT for i, kind in enumerate(chat.kinds)]
    chat = replace(chat, kinds=kinds)
    counted = shifted(chat, lambda kind: kind == ANSWER or (form == "plain" and kind != PROMPT))
    if all(target == IGNORE for target in counted):
        message = f"no token of {PAIR[sequence]} would be in the loss; is it empty?"
        raise RowError(place, "without an answer", message)
    extra = {
        "sequence": [sequence] * len(chat.ids),
        "counts_for_preference": [int(target != IGNORE) for target in counted],
    }
    return Example(chat.ids, shifted(chat, lambda kind: kind != PROMPT), extra)


def last_answer(chat: ChatIds) -> tuple[int, int]:
    """Where the last run of tokens that the assistant says begins and ends; (0, 0) if none is."""
    end = max((i + 1 for i, kind in enumerate(chat.kinds) if kind != PROMPT), default=0)
    begin = end
    while begin > 0 and chat.kinds[begin - 1] != PROMPT:
        begin -= 1
    return begin, end
