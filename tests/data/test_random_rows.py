"""Random rows through every format and every kind of file: no key is dropped without a word.

`LLAMASEEK_RANDOM_ROWS` is how many of each test are drawn: `make test-rows` draws 2,000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaseek.data.bad_rows import Row as Placed
from llamaseek.data.columns import KNOWN
from llamaseek.data.detect import detect
from llamaseek.data.documents import read_documents
from llamaseek.data.formats import RowReader
from llamaseek.data.ratings import PAIRED, pairs_of_ratings
from llamaseek.data.row_sources import read_rows
from llamaseek.errors import UserError
from tests.data.test_row_files import FILES, GOOD, NESTED, Row

RANDOM_ROWS = int(os.environ.get("LLAMASEEK_RANDOM_ROWS", "60"))
OTHERS = ("id", "weight", "name", "train", "answer", "question", "sys", "xyz", "score", "Prompt")
NAMES = st.sampled_from([*KNOWN, *OTHERS])
RATED: Row = {"prompt": "a", "completion": "b", "rating": 3}
FORMS: list[Row] = [row for row, _ in {**GOOD, **NESTED}.values()] + [RATED]
drawn = settings(
    max_examples=RANDOM_ROWS, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def rows(draw: st.DrawFn, forms: Any = FORMS) -> Row:
    """A row of some format with columns and keys beside, each value found nowhere else."""
    counter = iter(range(1000))

    def mark(value: Any) -> Any:
        if isinstance(value, list):
            return [mark(one) for one in value]
        if isinstance(value, int):
            return value
        if not isinstance(value, dict):
            return f"mark{next(counter)}."
        return {k: v if k in ("role", "from") else mark(v) for k, v in value.items()}

    row = mark(draw(st.sampled_from(forms)))
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        row.setdefault(name, mark("") if draw(st.booleans()) else mark({"k": ["v"]}))
    for value in [one for one in row.values() if isinstance(one, list)]:
        for message in [one for one in value if isinstance(one, dict)]:
            for name in draw(st.lists(NAMES, max_size=2, unique=True)):
                message.setdefault(name, mark(""))
    if "rejected" in row and draw(st.booleans()):
        row["prompt"] = mark("")
    return row


def marks(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [mark for one in inner for mark in marks(one)]
    return [value] if isinstance(value, str) and value.startswith("mark") else []


def lost(row: Row, kept: str, unused: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The columns and keys whose values are neither in what was read nor reported."""
    for column, value in row.items():
        if column in unused:
            continue
        for one in value if isinstance(value, list) else [value]:
            inside = one.items() if isinstance(one, dict) else [("", one)]
            for key, held in inside:
                if f"{column}.{key}" not in unused and any(m not in kept for m in marks(held)):
                    yield column, key


def written(folder: pytest.TempPathFactory, name: str, *row: Row) -> list[Placed]:
    path = folder.getbasetemp() / name
    path.write_bytes(FILES[name](list(row)))
    return list(read_rows(path))


@drawn
@given(row=rows(), way=st.sampled_from(["learn", "prompt"]))
def test_no_key_of_a_row_is_lost_without_a_word(
    tmp_path_factory: pytest.TempPathFactory, row: Row, way: str
) -> None:
    """Each value is in what was read, or its column or key is reported, or the row is refused:
    from every kind of file. An answer may be left out of a prompt.
    """
    answers = {"completion", "output", "answer", "response", "label", "chosen", "rejected"}
    answers |= {"edited", "messages", "conversations"}
    for name in FILES:
        reader = RowReader()
        ((place, found),) = written(tmp_path_factory, name, row)
        try:
            if way == "prompt" or "rejected" not in row:
                read = reader.prompt if way == "prompt" else reader.conversation
                talk = read(place, found)
                kept = repr((talk.messages, talk.tools))
            else:
                ranking = reader.ranking(place, found)
                kept = repr((ranking.prompt, ranking.answers, ranking.tools))
        except UserError:
            continue
        gone = {column for column, _ in lost(row, kept, reader.unused)}
        assert gone <= (answers if way == "prompt" else set()), (name, gone, kept)


@drawn
@given(one=rows(forms=[RATED]), two=rows(forms=[RATED]), name=st.sampled_from(sorted(FILES)))
def test_no_key_of_rated_answers_is_lost_without_a_word(
    tmp_path_factory: pytest.TempPathFactory, one: Row, two: Row, name: str
) -> None:
    """As pairs: the better row's columns are in the pair or reported; the worse gives its answer
    alone, and which rows have been paired is said.
    """
    one |= {"prompt": "the same", "rating": 2}
    two = {**one, "completion": two["completion"] + "other", "rating": 1}
    placed = written(tmp_path_factory, name, one, two)
    reader = RowReader(ignore=PAIRED)
    try:
        pairs, notes = pairs_of_ratings(placed, {})
        ranking = reader.ranking(*pairs[0])
    except UserError:
        return
    if pairs == placed:  # rows that hold pairs already
        return
    assert notes == ["data: 1 pair of 2 rated answers"]
    kept = repr((ranking.prompt, ranking.answers, ranking.tools))
    assert not list(lost(one, kept, reader.unused)), kept
    assert two["completion"] in kept


@drawn
@given(row=rows(), name=st.sampled_from(sorted(FILES)))
def test_what_rows_are_taken_for_names_the_columns_that_are_read(
    tmp_path_factory: pytest.TempPathFactory, row: Row, name: str
) -> None:
    """`detect` says "not used" of the columns that the reader then reports, and of no other."""
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(FILES[name]([row]))
    try:
        found = detect([path])
        reader = RowReader(found.format, found.columns)
        for place, each in read_rows(path):
            if found.kind == "preferences":
                reader.ranking(place, each)
            elif found.kind == "ratings":
                reader.rated(place, each)
            elif found.kind != "text":
                reader.conversation(place, each)
    except UserError:
        return
    if found.kind != "text":
        columns = {name for name in reader.unused if "." not in name}
        assert columns == {name for name, count in found.unused.items() if count}, found.sentence
    assert set(found.uses) == set(row)


@drawn
@given(row=rows(forms=[{"text": "a"}]), name=st.sampled_from(sorted(FILES)))
def test_a_document_keeps_what_its_row_held(
    tmp_path_factory: pytest.TempPathFactory, row: Row, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(FILES[name]([row]))
    (document,) = read_documents([path])
    kept = repr((document.text, document.id, document.metadata))
    assert not list(lost(row, kept, {})), kept
