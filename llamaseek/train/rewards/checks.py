"""Programs that say whether an answer is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from llamaseek.errors import bad_value

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?|-?\.\d+")


def exact(answer: str, wanted: str) -> bool:
    """The same text, but for blanks around it."""
    return answer.strip() == wanted.strip()


def numeric(answer: str, wanted: str) -> bool:
    """The last number of the answer is the last number wanted: `#### 1,200` is `$1200.00`."""
    said, right = last_number(answer), last_number(wanted)
    return said is not None and said == right


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without thousands commas and dollar signs."""
    found = NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def pattern(text: str) -> Callable[[str, str], bool]:
    """A check that finds a regular expression in the answer; UserError where it is none."""
    try:
        compiled = re.compile(text, re.DOTALL)
    except re.error as error:
        raise bad_value("rewards.pattern", text, f"a regular expression ({error})") from None
    return lambda answer, wanted: compiled.search(answer) is not None
