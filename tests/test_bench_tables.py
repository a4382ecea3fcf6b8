"""The figures of README.md and docs/ are those of `bench/results/`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import tables
from bench.tables import Results, times

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_equal_the_results(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- bench " in text
    assert tables.written(page) == text, "python bench/tables.py --write renews it"


def test_a_changed_figure_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a table, whatever its place; the text around it stays."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = f"{Results('train').rate('llama3 eager'):,.0f}"
    changed = text.replace(f"| Llama 3, eager | {figure} |", "| Llama 3, eager | 9,999 |")
    assert changed != text
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.written("README.md") == text


def test_every_table_has_a_place() -> None:
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES)
    for name in tables.TABLES:
        assert pages.count(f"<!-- bench {name} -->\n|") == 1, name


def test_the_readmes_sentences_equal_the_results() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    decode, serve = Results("decode"), Results("serve")
    prompt, batch = "prefill 256 bf16", "decode 16 at once bf16"

    def beside(found: Results, case: str, peer: str) -> str:
        return times(found.row(case, peer=peer)["ratio"])

    for sentence in (
        f"runs at {decode.rate(prompt):.0f} tokens/s ({beside(decode, prompt, 'llama.cpp')} "
        f"llama.cpp, {beside(decode, prompt, 'transformers')} transformers)",
        f"at {decode.rate(batch):.0f} tokens/s ({beside(decode, batch, 'llama.cpp')} llama.cpp)",
        f"at {beside(serve, '1b burst', 'llama.cpp')} the throughput of llama.cpp's server and "
        f"{beside(serve, '1b burst', 'transformers')} that of transformers'",
    ):
        assert sentence in text, sentence
