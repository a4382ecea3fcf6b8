"""Short forms of the campaigns of `make attack`, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaseek.workers.sandbox import LETS_THROUGH
from tests.attack.__main__ import CAMPAIGNS, main
from tests.attack.changes import CHANGES, outcomes
from tests.attack.figures import BEGIN, END, PAGE, Figure, renew
from tests.attack.grammars import beside
from tests.attack.kills import Case, killed
from tests.attack.power_cut import cuts
from tests.attack.programs import passed
from tests.attack.requests import connections, fuzzed
from tests.attack.soak import growth, loaded


def test_hostile_grammars_beside_a_harmless_one() -> None:
    found = beside(20)
    assert max(found.statuses) < 500 and found.harmless > 0
    assert found.grown < 300e6 and found.longest < 10 and found.ended < 20


def test_programs_in_the_sandbox() -> None:
    count, wrong, mode, whole = passed(12)
    assert count > 10 and (LETS_THROUGH[mode] or (not wrong and whole))


def test_changes_are_refused_or_told() -> None:
    some = [change for number, change in enumerate(CHANGES) if number % 6 == 1 or not change.recipe]
    for change, became in outcomes(some):
        assert became == ("refused" if change.refused else "told"), change
    assert len(CHANGES) == 40


def test_kills() -> None:
    assert killed(1, [Case("pretrain", 1, True)])[0] == []


def test_requests_by_chance_to_every_route() -> None:
    server, statuses, _, paths = fuzzed(300)
    assert {"/v1/chat/completions", "/v1/models", "/tokenize", "/health"} <= paths
    assert max(statuses) < 500 and statuses[200] > 50 and statuses[400] > 50 and server.used == 0


def test_connections_that_break_off() -> None:
    server, statuses, _ = connections(50, 10, 2)
    assert set(statuses) <= {0, 200, 429} and statuses[200] > 20 and server.used == 0


def test_full_load_leaves_nothing() -> None:
    server, statuses, memory = loaded(0.05)
    assert set(statuses) <= {200, 429} and server.used == 0 and memory
    assert growth([100] * 20 + [102] * 2) == pytest.approx(0.02)


def test_power_cuts(tmp_path: Path) -> None:
    assert list(cuts(tmp_path, [9, 22])) == [(True, True)] * 2


def test_the_table_keeps_what_other_campaigns_found() -> None:
    order = list(CAMPAIGNS)
    page = f"a\n{BEGIN}{END}b\n"
    page = renew(page, "guard", [Figure("a", "b", "c", True)], order)
    page = renew(page, "kills", [Figure("d", "e", "f", False)], order)
    page = renew(page, "guard", [Figure("g", "h", "i", True)], order)
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert rows == ["| kills | d | e | f | **no** |", "| guard | g | h | i | yes |"]
    assert page.startswith("a\n") and page.endswith("b\n")


def test_the_page_has_a_place_for_the_figures() -> None:
    text = PAGE.read_text()
    assert BEGIN in text and END in text
    assert main(["nothing"]) == 2
