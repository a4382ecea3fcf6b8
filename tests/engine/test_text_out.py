"""Text as it comes: whole characters, no stop strings, and in sum what decoding gives."""

from __future__ import annotations

from random import Random

import pytest

from llamaseek.engine.text_out import TextOut, overlap
from tests.train.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def stream(text: str, stops: list[str], at_once: int = 1) -> tuple[list[str], bool]:
    """The pieces that come of a text's tokens, and whether a stop string ended them."""
    out, ids, pieces = TextOut(TOKENIZER, stops), TOKENIZER.encode(text), []
    for start in range(0, len(ids), at_once):
        pieces.append(out.push(ids[start : start + at_once]))
        if out.stopped:
            break
    return [*pieces, out.flush()], out.stopped


@pytest.mark.parametrize("text", ["Once upon a time", "naïve 🦊🦊 fox — 狐", "é" * 20])
def test_no_half_characters_and_nothing_lost(text: str) -> None:
    pieces, stopped = stream(text, [])
    assert "".join(pieces) == text and not stopped
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_stop_strings_across_tokens_never_show(at_once: int) -> None:
    for text, stops, left in [
        ("Once upon a time the end", [" a time"], "Once upon"),
        ("Once upon a time the end", ["nothing like it", "ends"], "Once upon a time the end"),
        ("abcabcabd", ["abcabd"], "abc"),
        ("one two three", ["three", "two"], "one "),
        ("stop", ["stop"], ""),
        ("a 🦊 fox", ["🦊"], "a "),
    ]:
        pieces, stopped = stream(text, stops, at_once)
        assert "".join(pieces) == left and stopped == (left != text)


def test_random_stops_cut_where_the_text_first_has_them() -> None:
    rng = Random(0)
    for _ in range(300):
        text = "".join(rng.choice("aab é") for _ in range(30))
        stops = ["".join(rng.choice("aab é") for _ in range(rng.randint(1, 5))) for _ in range(2)]
        places = [text.find(stop) for stop in stops if stop in text]
        pieces, stopped = stream(text, stops, rng.randint(1, 3))
        joined = "".join(pieces)
        assert stopped == bool(places)
        assert joined == (text[: min(places)] if places else text)


def test_a_character_that_never_became_whole_is_replaced_at_the_end() -> None:
    out = TextOut(TOKENIZER)
    assert out.push(TOKENIZER.encode("🦊")[:2]) == "" and out.flush() == "\ufffd"


def test_overlap() -> None:
    assert overlap("abc a t", " a time") == 4
    assert overlap("abc", "x") == 0
    assert overlap("aaa", "aaa") == 2
