"""Rated answers as pairs for `dpo` and `reward`."""

from __future__ import annotations

from typing import Any

import pytest

from llamaseek.data.bad_rows import BadRows, Row, RowError
from llamaseek.data.formats import RowReader
from llamaseek.data.rankings import scored_answers
from llamaseek.data.ratings import pairs_of_ratings, scaled_ratings
from llamaseek.data.rows import conversations
from llamaseek.errors import UserError
from tests.train.tiny import tiny_tokenizer


def rated(*answers: tuple[str, str, Any], column: str = "label", **more: Any) -> list[Row]:
    return [
        (f"x:{n}", {"prompt": prompt, "completion": text, column: rating, **more})
        for n, (prompt, text, rating) in enumerate(answers, start=1)
    ]


def said_in(pairs: Any) -> list[tuple[str, str]]:
    return [(row["chosen"], row["rejected"]) for _, row in pairs]


@pytest.mark.parametrize("column", ["label", "score", "rating", "reward"])
@pytest.mark.parametrize(("good", "bad"), [(True, False), (4.5, 2), ("True", "False"), ("9", "1")])
def test_a_prompts_better_answers_go_with_its_worse(column: str, good: Any, bad: Any) -> None:
    rows = rated(("a", "no", bad), ("b", "x", good), ("a", "yes", good), column=column)
    pairs, notes = pairs_of_ratings(rows, {})
    assert said_in(pairs) == [("yes", "no")] and pairs[0][0] == "x:3"
    assert notes == [
        "data: 1 pair of 3 rated answers; 1 have no other to the same prompt that is rated "
        "differently"
    ]
    found = RowReader().ranking(*pairs[0])
    assert found.prompt == [{"role": "user", "content": "a"}]


def test_the_best_goes_with_the_worst_and_so_on_inwards() -> None:
    rows = rated(*[("a", str(n), n) for n in (3, 5, 1, 4, 2)], column="score", system="s", id=7)
    pairs, notes = pairs_of_ratings(rows, {})
    assert said_in(pairs) == [("5", "1"), ("4", "2")] and notes
    reader = RowReader()
    assert reader.ranking(*pairs[0]).prompt[0] == {"role": "system", "content": "s"}
    assert reader.unused == {"id": 1}


def test_columns_of_ratings_are_mapped() -> None:
    rows = [("x:1", {"q": "a", "a": "b", "stars": 5}), ("x:2", {"q": "a", "a": "c", "stars": 1})]
    columns = {"prompt": "q", "completion": "a", "rating": "stars"}
    (pair,), _ = pairs_of_ratings(rows, columns)
    assert said_in([pair]) == [("b", "c")]
    reader = RowReader(columns=columns)
    assert reader.ranking(*pair).prompt == [{"role": "user", "content": "a"}]
    assert reader.unused == {
        "a": 1,
        "stars": 1,
    }  # which the job declares: the pair was made of them


def test_what_makes_no_pair_is_said() -> None:
    with pytest.raises(UserError, match="x:1: holds ratings, and no prompt has two answers"):
        pairs_of_ratings(rated(("a", "b", True), ("c", "d", False), ("a", "e", True)), {})
    with pytest.raises(RowError, match="x:2: has no rating in rating or label or score"):
        pairs_of_ratings(rated(("a", "b", True), ("a", "c", None)), {})
    for row in ({"prompt": "a", "chosen": "b", "rejected": "c", "score": 1},
                {"prompt": "a", "completion": "b"}, {"text": "a", "label": 1}):  # fmt: skip
        rows = [("x:1", row)]
        assert pairs_of_ratings(rows, {}) == (rows, [])


def test_rated_answers_that_cannot_be_used_are_named_or_left_out() -> None:
    """By their own place and column, before they are paired."""
    good = [("a", "yes", 5), ("a", "no", 1)]
    for answer, said in ((("a", "", 3), "completion is empty"),
                         (("a", [], 3), "completion is empty"),
                         (("a", 7, 3), "completion is 7, not a text"),
                         (("a", "b", None), "has no rating")):  # fmt: skip
        rows = rated(answer, *good, column="rating")
        with pytest.raises(RowError, match=f"x:1: {said}"):
            pairs_of_ratings(rows, {})
        bad = BadRows(skip=True)
        pairs, notes = pairs_of_ratings(rows, {}, bad)
        assert said_in(pairs) == [("yes", "no")] and notes == ["data: 1 pair of 3 rated answers"]
        assert bad.skipped == 1 and said in bad.summary()[1]
    with pytest.raises(RowError, match="x:2: has no 'completion'; its columns are prompt, score"):
        pairs_of_ratings([*rated(("a", "b", 1), column="score"),
                          ("x:2", {"prompt": "a", "score": 2})], {})  # fmt: skip


@pytest.mark.parametrize("column", ["label", "rating"])
@pytest.mark.parametrize("bad", [False, "False"])
def test_answers_that_are_labelled_bad_are_not_learnt(column: str, bad: Any) -> None:
    good = True if bad is False else "True"
    rows = rated(("a", "yes", good), ("a", "no", bad), column=column)
    with pytest.raises(UserError, match=rf"x:2: {column} is false, so the answer is a bad one"):
        conversations(rows, tiny_tokenizer(), 64)
    skipped, reader = BadRows(skip=True), RowReader()
    batch = conversations(rows, tiny_tokenizer(), 64, reader, skipped)
    learnt = tiny_tokenizer().decode(batch.targets[batch.targets >= 0].tolist())
    assert "yes" in learnt and "no" not in learnt
    assert "1 labelled as bad answers" in skipped.summary()[1] and not reader.unused


def test_graded_answers_are_learnt_and_their_grades_reported() -> None:
    reader = RowReader()
    conversations(rated(("a", "x", 1), column="score"), tiny_tokenizer(), 64, reader)
    assert reader.unused == {"score": 1}


def test_ratings_without_pairs_are_scaled_for_a_reward_model() -> None:
    rows = rated(("a", "bad", 1), ("b", "good", 5), ("c", "fair", "2"), column="score", id=7)
    found, notes = scaled_ratings(rows, {})
    assert notes == ["data: 3 rated answers, ratings from 1 to 5"]
    reader = RowReader()
    batch = scored_answers(found, tiny_tokenizer(), 64, reader)
    assert batch.extra["rating"].tolist() == [[0.0], [1.0], [0.25]]
    ends = batch.tokens.gather(1, batch.extra["ends"])
    assert ends.tolist() == [[tiny_tokenizer().eot_id]] * 3
    assert reader.unused == {"id": 3}
    with pytest.raises(UserError, match="x:1: all ratings are 4, so there is nothing to learn"):
        scaled_ratings(rated(("a", "x", 4), ("b", "y", 4)), {})
