"""Short forms of the campaigns of `make attack`, and its table."""

from __future__ import annotations

from pathlib import Path

from llamaseek.workers.sandbox import LETS_THROUGH
from tests.attack.__main__ import CAMPAIGNS, main
from tests.attack.figures import BEGIN, END, PAGE, Figure, renew
from tests.attack.grammars import beside
from tests.attack.power_cut import cuts
from tests.attack.programs import passed


def test_hostile_grammars_beside_a_harmless_one() -> None:
    found = beside(20)
    assert max(found.statuses) < 500 and found.harmless > 0
    assert found.grown < 300e6 and found.longest < 10 and found.ended < 20


def test_programs_in_the_sandbox() -> None:
    count, wrong, mode, whole = passed(12)
    assert count > 10 and (LETS_THROUGH[mode] or (not wrong and whole))


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
