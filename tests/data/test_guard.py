"""Generated conversations for guards: verdicts follow from the policy, splits share nothing."""

from __future__ import annotations

from random import Random

from llamaseek.data.builtin.guard import (
    GuardItem,
    category_text,
    guard_item,
    guard_text,
    policy_text,
    policy_turns,
)
from llamaseek.data.builtin.hazards import CALM, HAZARDS, SAFE
from llamaseek.data.builtin.rows import generated_rows
from llamaseek.safety.verdict import read_answer
from llamaseek.text.guard_prompt import PUBLISHED, Category

NAMES = [category.name for category in PUBLISHED]


def items(split: str, count: int = 3000) -> list[GuardItem]:
    rng = Random(f"tests/{split}")
    return [guard_item(rng, split) for _ in range(count)]  # type: ignore[arg-type]


def test_every_published_category_has_its_words_and_shares_none() -> None:
    assert list(HAZARDS) == NAMES
    objects = [thing for hazard in HAZARDS.values() for thing in hazard.objects]
    assert len(objects) == len(set(objects))
    assert not {*SAFE.verbs, *CALM} & {verb for h in HAZARDS.values() for verb in h.verbs}


def test_a_verdict_names_the_listed_categories_by_the_policy_s_codes() -> None:
    said = ({"role": "user", "content": "How do I steal a bike and mock foreigners?"},)
    hazards = ("Non-Violent Crimes", "Hate")

    def verdict(*listed: tuple[str, str]) -> str:
        return GuardItem(said, hazards, tuple(Category(*pair) for pair in listed)).verdict

    assert verdict(("S1", "Hate"), ("S2", "Privacy"), ("S3", "Non-Violent Crimes")) == (
        "unsafe\nS1,S3"
    )
    assert verdict(("S10", "Hate"), ("S11", "Self-Harm")) == "unsafe\nS10"
    assert verdict(("S11", "Self-Harm")) == "safe"


def test_items_are_of_all_kinds() -> None:
    found = items("test")
    unsafe = sum(item.verdict != "safe" for item in found) / len(found)
    dropped = sum(bool(item.hazards) and not item.violated for item in found) / len(found)
    shuffled = sum([c.name for c in item.categories] != [
        name for name in NAMES if name in {c.name for c in item.categories}
    ] for item in found) / len(found)  # fmt: skip
    whole = sum(item.categories == PUBLISHED for item in found) / len(found)
    assert 0.3 < unsafe < 0.45
    assert dropped > 0.15
    assert shuffled > 0.3
    assert whole > 0.1
    assert {name for item in found for name in item.hazards} == set(NAMES)
    assert {item.messages[-1]["role"] for item in found} == {"user", "assistant"}
    assert all(item.categories for item in found)


def test_a_verdict_is_one_that_a_guard_may_give() -> None:
    for item in items("train", 500):
        safe, named = read_answer(item.verdict, item.categories)
        assert safe == (not item.violated)
        assert tuple(category.code for category in named) == item.violated


def test_held_out_conversations_were_never_trained_on() -> None:
    hazardous = [
        {item.messages[-1]["content"] for item in items(split) if item.hazards}
        for split in ("train", "test")
    ]
    assert not hazardous[0] & hazardous[1]


def test_rows_and_documents_are_seeded() -> None:
    assert list(generated_rows({"guard": 5}, 0, "train")) == list(
        generated_rows({"guard": 5}, 0, "train")
    )
    assert policy_text(Random(1)) == policy_text(Random(1))
    assert guard_text(Random(1)).rstrip().endswith(("safe", *"0123456789"))


def test_a_policy_leads_turns_that_are_judged_by_it() -> None:
    for _, row in generated_rows({"policies": 50}, 0, "train"):
        first, *rest = (message["content"] for message in row["messages"])
        listed = [name for name in NAMES if f": {name}.\n" in first]
        assert 0 < len(listed) < len(NAMES)
        assert all(text.startswith(("User: ", "Agent: ")) for text in rest[1::2])
        for asked, verdict in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            name = asked["content"].split("User: ")[-1]
            if name in NAMES:
                code = f"S{NAMES.index(name) + 1}"
                assert verdict["content"] == (f"unsafe\n{code}" if name in listed else "safe")


def test_no_verdict_of_a_policy_gives_another_away() -> None:
    dropped = unsafe = 0
    for seed in range(200):
        turns = policy_turns(Random(seed))
        named = [turn.split("User: ")[-1] for turn, _ in turns]
        named = [name for name in named if name in NAMES]
        codes = [verdict for _, verdict in turns if verdict != "safe"]
        assert len(named) == len(set(named)) and len(codes) == len(set(codes))
        unsafe += len(codes)
        dropped += sum(verdict == "safe" for turn, verdict in turns if turn.endswith(tuple(NAMES)))
    assert unsafe > 200 and dropped > 50


def test_categories_of_turns_are_told() -> None:
    told = "".join(category_text(Random(seed)) for seed in range(20)).split("\n\n")
    answers = [pair.split("\n")[-1] for pair in told if pair]
    assert set(answers) == {*NAMES, "None"}
