"""Conversations and preference pairs, from users' files or the built-in generators, as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import torch

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.documents import read_rows
from llamaseek.data.pack import Packable, pack_whole
from llamaseek.data.synthetic.guard import guard_item
from llamaseek.data.synthetic.instructions import KINDS, instruction_item
from llamaseek.data.synthetic.preferences import preference_item
from llamaseek.data.synthetic.splits import Split
from llamaseek.data.synthetic.tasks import TASKS, task_item
from llamaseek.errors import UserError, shorten, unknown_name
from llamaseek.text.chat import ANSWER, PROMPT, ChatIds, encode_chat
from llamaseek.text.tokenizer import Tokenizer

Row = tuple[str, dict[str, Any]]  # where it stands, what it says


def turn(role: str, content: str) -> dict[str, str]:
    """One message."""
    return {"role": role, "content": content}


def generated_rows(wanted: dict[str, int], seed: int | str, split: Split) -> Iterator[Row]:
    """Rows of the built-in generators: `tasks`, `instructions`, `preferences`, `guard`."""
    for name, count in wanted.items():
        if name not in GENERATORS:
            raise unknown_name("data.rows generator", name, list(GENERATORS))
        rng = Random(f"{seed}/{name}/{split}")
        for number in range(count):
            yield f"{name}:{number}", GENERATORS[name](rng, split)


def _task_row(rng: Random, split: Split) -> dict[str, Any]:
    item = task_item(rng.choice(TASKS), rng, split)
    return {"messages": [turn("user", item.input), turn("assistant", item.output)]}


def _instruction_row(rng: Random, split: Split) -> dict[str, Any]:
    item = instruction_item(rng.choice(KINDS), rng, split)
    return {"messages": [turn("user", item.input), turn("assistant", item.output)]}


def _preference_row(rng: Random, split: Split) -> dict[str, Any]:
    item = preference_item(rng, split)
    return {"prompt": item.prompt, "chosen": item.chosen, "rejected": item.rejected}


def _guard_row(rng: Random, split: Split) -> dict[str, Any]:
    item = guard_item(rng, split)
    return {"messages": [turn("user", item.prompt), turn("assistant", item.verdict)]}


GENERATORS = {
    "tasks": _task_row,
    "instructions": _instruction_row,
    "preferences": _preference_row,
    "guard": _guard_row,
}


def file_rows(sources: list[str]) -> Iterator[Row]:
    """Rows of the user's jsonl or parquet files, each with its place."""
    for source in sources:
        yield from read_rows(source)


def conversations(
    rows: Iterable[Row], tokenizer: Tokenizer, length: int, skip_bad: bool = False
) -> Batch:
    """`messages`, or `prompt` and `completion`, packed whole; loss on answers and their end."""
    items: list[Packable] = []
    skipped = 0
    for place, row in rows:
        try:
            items.append(_conversation(place, row, tokenizer, length))
        except UserError:
            if not skip_bad:
                raise
            skipped += 1
    if not items:
        raise UserError(f"data: no usable rows ({skipped} skipped)")
    return pack_whole(items, length)


def _conversation(place: str, row: dict[str, Any], tokenizer: Tokenizer, length: int) -> Packable:
    chat = _encode(place, _messages(place, row), tokenizer, row.get("tools"))
    _check_length(place, chat, length)
    targets = _shifted(chat, lambda kind: kind != PROMPT)
    if all(target == IGNORE for target in targets):
        raise UserError(f"{place}: nothing to learn, no assistant answer in {_show(row)}")
    return Packable(chat.ids, targets)


def _messages(place: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(row.get("messages"), list):
        return list(row["messages"])
    if "prompt" in row and "completion" in row:
        return [*_as_messages(row["prompt"], "user"), *_as_messages(row["completion"], "assistant")]
    raise UserError(
        f"{place}: has neither messages nor prompt and completion; its keys are {sorted(row)}"
    )


def _as_messages(value: Any, role: str) -> list[dict[str, Any]]:
    return list(value) if isinstance(value, list) else [turn(role, value)]


def _encode(
    place: str, messages: list[dict[str, Any]], tokenizer: Tokenizer, tools: Any = None
) -> ChatIds:
    try:
        return encode_chat(tokenizer, messages, tools=tools)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _check_length(place: str, chat: ChatIds, length: int) -> None:
    if len(chat.ids) > length:
        raise UserError(f"{place}: has {len(chat.ids)} tokens; data.length allows {length}")


def _shifted(chat: ChatIds, learn: Any) -> list[int]:
    """Targets: the next token where its kind is to be learnt, else -100."""
    pairs = zip(chat.ids[1:], chat.kinds[1:], strict=True)
    return [token if learn(kind) else IGNORE for token, kind in pairs] + [IGNORE]


def _show(row: dict[str, Any]) -> str:
    return shorten(str(row))


def preferences(
    rows: Iterable[Row], tokenizer: Tokenizer, length: int, form: str, skip_bad: bool = False
) -> Batch:
    """Pairs of whole answers for DPO. Each row of the batch holds one pair.

    `form` "llama3" counts only an answer's content for the preference; "plain" counts its
    end-of-turn as well.
    """
    packed = []
    skipped = 0
    for place, row in rows:
        try:
            packed.append(_pair(place, row, tokenizer, length, form))
        except UserError:
            if not skip_bad:
                raise
            skipped += 1
    if not packed:
        raise UserError(f"data: no usable pairs ({skipped} skipped)")
    return _stack(packed)


Pair = tuple[Packable, Packable]


def _pair(place: str, row: dict[str, Any], tokenizer: Tokenizer, length: int, form: str) -> Pair:
    for key in ("prompt", "chosen", "rejected"):
        if key not in row:
            raise UserError(f"{place}: has no {key!r}; its keys are {sorted(row)}")
    start = _as_messages(row["prompt"], "user")
    sides = []
    for sequence, key in enumerate(("chosen", "rejected")):
        messages = [*start, *_as_messages(row[key], "assistant")]
        chat = _encode(place, messages, tokenizer)
        answers = sum(kind == ANSWER for kind in chat.kinds)
        if answers == 0:
            raise UserError(f"{place}: {key} is empty")
        sides.append(_side(chat, sequence, form))
    if sum(len(side.tokens) for side in sides) > length:
        total = sum(len(side.tokens) for side in sides)
        raise UserError(f"{place}: both answers have {total} tokens; data.length allows {length}")
    return sides[0], sides[1]


def _side(chat: ChatIds, sequence: int, form: str) -> Packable:
    """One answer; only the last assistant turn is learnt."""
    last = max(i for i, kind in enumerate(chat.kinds) if kind == PROMPT)
    learnt = [kind if i > last else PROMPT for i, kind in enumerate(chat.kinds)]
    chat = replace(chat, kinds=learnt)
    counted = _shifted(chat, lambda kind: kind == ANSWER or (form == "plain" and kind != PROMPT))
    targets = _shifted(chat, lambda kind: kind != PROMPT)
    extra = {
        "sequence": [sequence] * len(chat.ids),
        "counts_for_preference": [int(target != IGNORE) for target in counted],
    }
    return Packable(chat.ids, targets, extra)


def _stack(pairs: list[Pair]) -> Batch:
    """Chosen then rejected in one row, as wide as the longest pair."""
    width = max(len(a.tokens) + len(b.tokens) for a, b in pairs)
    rows = [pack_whole(pair, width) for pair in pairs]
    names = rows[0].extra
    extra = {name: torch.cat([row.extra[name] for row in rows]) for name in names}
    extra["counts_for_preference"] = extra["counts_for_preference"].clamp(min=0)
    extra["pairs"] = torch.ones(len(rows), 1, dtype=torch.int64)
    return Batch(
        torch.cat([row.tokens for row in rows]),
        torch.cat([row.positions for row in rows]),
        torch.cat([row.targets for row in rows]),
        extra,
    )
