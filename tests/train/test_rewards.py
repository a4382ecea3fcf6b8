"""Rewards by program: what counts as right, and what generated code may not do."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import pytest

from llamaseek.errors import UserError
from llamaseek.recipe.post_training import RewardRecipe
from llamaseek.train.rewards import Episode, check_columns, exact, make_rewards, numeric
from llamaseek.train.rollouts.answers import judge
from llamaseek.workers.sandbox import code_of
from tests.train.tiny import tiny_tokenizer


@pytest.mark.parametrize(
    "answer, wanted, right",
    [
        ("72", "Natalia sold 48+24 = <<48+24=72>>72 clips.\n#### 72", True),
        ("So it is $1,200.00.", "#### 1200", True),
        ("The answer is 7", "17", False),
        ("-5", "5", False),
        ("5 apples, then 3", "3", True),
        ("none", "3", False),
        ("0.50", ".5", True),
        ("12.", "12", True),
    ],
)
def test_numbers(answer: str, wanted: str, right: bool) -> None:
    assert numeric(answer, wanted) == right


def test_exact_texts_and_patterns() -> None:
    assert exact(" Paris\n", "Paris") and not exact("paris", "Paris")
    found = scored({"kind": "regex", "pattern": r"\\boxed\{.+\}"}, ["\\boxed{7}", "7"], {})
    assert found == [1.0, 0.0]
    with pytest.raises(UserError, match="rewards.pattern"):
        scored({"kind": "regex", "pattern": "("}, [], {})
    with pytest.raises(ValueError, match="needs pattern"):
        RewardRecipe(kind="regex")


def scored(recipe: dict[str, Any], texts: list[str], row: dict[str, Any]) -> list[float]:
    reward = make_rewards([RewardRecipe(**recipe)], tiny_tokenizer())[0]
    return reward.score([Episode("x:1", row, [1], [2], text, True) for text in texts])


GOOD = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
TESTS = "assert add(2, 3) == 5"
HOSTILE = {
    "wrong": "def add(a, b): return a - b",
    "leaves early": "import os\ndef add(a, b): return 5\nos._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "syntax": "def add(a, b) return",
    "loops": "while True: pass",
    "eats memory": "x = 'a' * (1 << 31)\ndef add(a, b): return a + b",
    "forks": "import subprocess\nsubprocess.run(['true'])\ndef add(a, b): return a + b"
    if sys.platform == "linux"
    else "raise SystemExit",
    "fills the disk": "open('f', 'w').write('a' * (1 << 22))\ndef add(a, b): return a + b",
    "reads the environment": "import os\nassert 'PATH' in os.environ\ndef add(a, b): return a + b",
}


def test_code_passes_its_tests_or_does_not() -> None:
    assert code_of(GOOD) == "def add(a, b):\n    return a + b\n"
    answers = {"good": GOOD, **HOSTILE}
    recipe = {"kind": "unit_tests", "column": "tests", "timeout": 2.0}
    found = dict(
        zip(answers, scored(recipe, list(answers.values()), {"tests": TESTS}), strict=True)
    )
    assert found.pop("good") == 1.0
    assert set(found.values()) == {0.0}, found


def test_what_cannot_be_found_out_counts_as_0_and_is_counted() -> None:
    recipes = [
        RewardRecipe(kind="regex", pattern="(a+)+$", timeout=0.5),
        RewardRecipe(kind="exact"),
    ]
    rewards = make_rewards(recipes, tiny_tokenizer())
    said = [
        Episode("x:1", {"answer": "aa"}, [], [1], text, True) for text in ("a" * 50 + "b", "aa")
    ]
    judged = judge(rewards, said)
    assert judged.total == [0.0, 2.0] and judged.failed == {"regex": 1, "exact": 0}
    figures = judged.figures(rewards, said)
    assert figures["reward/regex/failed"] == 1 and "reward/exact/failed" not in figures


def test_a_sandbox_that_fails_is_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    (reward,) = make_rewards([RewardRecipe(kind="unit_tests")], tiny_tokenizer())
    said = [Episode("x:1", {"answer": TESTS}, [], [1], text, True) for text in (GOOD, GOOD)]
    assert judge([reward], said).total == [1.0, 1.0]

    def fail(*given: Any, **more: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    judged = judge([reward], said)
    assert judged.total == [0.0, 0.0] and judged.failed == {"unit_tests": 2}


def test_two_rewards_of_a_kind_both_count() -> None:
    recipes = [
        RewardRecipe(kind="regex", pattern=pattern, weight=weight)
        for pattern, weight in (("a", 1.0), ("b", 10.0))
    ]
    rewards = make_rewards(recipes, None)  # type: ignore[arg-type]
    said = [Episode("x:1", {}, [], [1], text, True) for text in ("a", "b", "ab")]
    judged = judge(rewards, said)
    assert judged.total == [1.0, 10.0, 11.0]
    assert judged.figures(rewards, said)["reward/regex/2"] == pytest.approx(2 / 3)


def test_a_row_must_have_what_judges_it() -> None:
    with pytest.raises(UserError, match="x:1: has no 'answer', which the reward numeric needs"):
        check_columns([RewardRecipe(kind="numeric")], "x:1", {"prompt": "a"})
    check_columns([RewardRecipe(kind="numeric", column="n")], "x:1", {"prompt": "a", "n": 3})
