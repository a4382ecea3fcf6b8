"""`data`: the commands on small corpora, what they print, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
import yaml

from llamaseek.cli.data import print_rows
from llamaseek.data.batch import Batch
from llamaseek.data.clean.recipe import CleanRecipe
from llamaseek.data.documents import read_documents
from llamaseek.data.quality.recipe import QualityRecipe
from llamaseek.recipe.load import make_recipe
from llamaseek.train.jobs.preview import shown_row, training_rows
from tests.cli.run import Cli
from tests.data.planted import gibberish, page, write_rows
from tests.train.tiny import LLAMA_SIZES, corpus, tiny_tokenizer

DIM = "\x1b[2m"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a corpus of 60 pages, ten of them gibberish, ten there twice."""
    rng = Random(4)
    texts = [gibberish(rng) if n % 6 == 0 else page(rng) for n in range(60)]
    texts += texts[1:11]
    rows = [{"text": text, "id": f"page-{n}"} for n, text in enumerate(texts)]
    write_rows(tmp_path / "pages.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_clean_says_what_left_and_writes_its_page(web: Path, cli: Cli) -> None:
    stages = "stages=[exact_dedup, gopher_quality]"
    done = cli("data", "clean", "web-text", "sources.web=pages.jsonl", stages, "--workers", "1")
    assert done.code == 0, done.err
    kept = list(read_documents([web / "data" / "web-text" / "documents"]))
    assert f"kept {len(kept)} of 70 documents" in done.out
    assert len(kept) == 50 and "same text (10)" in done.out
    page = (web / "data" / "web-text" / "report.html").read_text()
    removed = json.loads((web / "data" / "web-text" / "stats.json").read_text())["removed"]
    assert all(rule in page for rules in removed.values() for rule in rules)
    assert len(removed) == 2 and "page-61" in page and "<svg" in page
    assert not re.search(r'(src|href)="(?!#)', page)  # nothing is loaded from anywhere
    (web / "data" / "web-text" / "report.html").unlink()
    again = cli("data", "stats", "data/web-text")
    assert again.code == 0
    assert (web / "data" / "web-text" / "report.html").read_text() == page
    assert cli("data", "clean", "web-text", "sources.web=pages.jsonl", stages).code == 0
    other = cli("data", "clean", "web-text", "sources.web=pages.jsonl")
    assert other.code == 2 and "--overwrite replaces it" in other.err


def test_what_a_document_says_cannot_change_the_page(web: Path, cli: Cli) -> None:
    write_rows(web / "bad.jsonl", [{"text": "<script>alert(1)</script> & so on", "id": "<b>"}])
    cli("data", "clean", "web-text", "sources.web=bad.jsonl", "stages=[gopher_quality]")
    page = (web / "data" / "web-text" / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clean", "web-text"), "sources: {} is not allowed"),
        (("clean", "web-text", "sources.web=none.txt"), "none.txt: no such file"),
        (("clean", "web-text", "sources.web=pages.jsonl", "stages=[goofer]"), "gopher"),
        (("clean", "web-text", "sources.web=pages.jsonl", "stage=x"), "stage"),
        (("clean", "web-text", "--machine", "2", "--machines", "2"), "--machine: 2"),
        (("stats", "."), "holds no finished cleaning run"),
        (("inspect", "quickstart-grpo"), ""),
    ],
)
def test_mistakes_are_one_line(web: Path, cli: Cli, words: tuple[str, ...], message: str) -> None:
    done = cli("data", *words)
    assert done.code == 2 and done.err.startswith("error: ") and message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (web / "data").exists()


def test_a_dry_run_prints_the_recipe(web: Path, cli: Cli) -> None:
    done = cli("data", "clean", "web-text", "sources.web=pages.jsonl", "--dry-run")
    assert done.code == 0 and "min_words: 50" in done.out
    (web / "again.yaml").write_text(done.out)
    again = cli("data", "clean", "again.yaml", "--dry-run")
    assert again.out == done.out


def test_a_dry_run_of_a_judge_prints_its_recipe(web: Path, cli: Cli) -> None:
    made = {
        "name": "j", "stage": "judge", "sources": ["pages.jsonl"],
        "judge": {"model": "nowhere"}, "keep": {"share": 0.5},
    }  # fmt: skip
    (web / "j.yaml").write_text(json.dumps(made))
    done = cli("data", "judge", "j.yaml", "--dry-run")
    assert done.code == 0 and "sample: 2000" in done.out and not (web / "data").exists()
    (web / "again.yaml").write_text(done.out)
    assert cli("data", "judge", "again.yaml", "--dry-run").out == done.out


def test_pretraining_rows_are_shown_with_their_documents(tmp_path: Path, cli: Cli) -> None:
    tiny_tokenizer().save(tmp_path / "tok")
    (tmp_path / "r.yaml").write_text(
        json.dumps(
            {
                "name": "r", "stage": "pretrain", "out": str(tmp_path / "run"),
                "model": {"config": LLAMA_SIZES}, "tokenizer": {"path": str(tmp_path / "tok")},
                "data": {"sources": [corpus(tmp_path)], "length": 48},
            }
        )
    )  # fmt: skip
    done = cli("data", "inspect", str(tmp_path / "r.yaml"), "--rows", "2")
    assert done.code == 0, done.err
    assert done.out.count("(48 a row)") == 2 and "And the" in done.out


def test_what_has_a_loss_is_green(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The question and the headers are; the answer and its end are not."""
    from rich.console import Console

    tiny_tokenizer().save(tmp_path / "tok")
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    write_rows(tmp_path / "rows.jsonl", [{"messages": turns}] * 3)
    recipe = make_recipe(
        {
            "name": "r", "stage": "sft", "model": {"init_from": str(tmp_path / "tok")},
            "data": {"sources": [str(tmp_path / "rows.jsonl")], "length": 96, "holdout": 0},
        }
    )  # fmt: skip
    (row,) = list(training_rows(recipe, 1))
    dimmed = "".join(s.text for s in row.documents[0] if not s.in_loss)
    in_loss = "".join(s.text for s in row.documents[0] if s.in_loss)
    assert "Why?" in dimmed and "<|start_header_id|>assistant" in dimmed
    assert in_loss == "Because.<|eot_id|>"
    assert row.tokens + row.padding == 96
    console = Console(force_terminal=True, highlight=False, width=200)
    print_rows(console, [row], recipe)
    printed = capsys.readouterr().out
    assert DIM in printed and "Because.<|eot_id|>" in printed
    assert "\x1b[32mBecause.<|eot_id|>\x1b[0m" in printed and printed.count("\x1b[32m") == 3


def test_ranked_answers_are_shown_with_the_token_that_is_scored(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "tok")
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    write_rows(tmp_path / "rows.jsonl", [row] * 3)
    recipe = make_recipe(
        {
            "name": "r", "stage": "reward", "model": {"init_from": str(tmp_path / "tok")},
            "data": {"sources": [str(tmp_path / "rows.jsonl")], "length": 200, "holdout": 0},
        }
    )  # fmt: skip
    (shown,) = list(training_rows(recipe, 1))
    texts = ["".join(s.text for s in document) for document in shown.documents]
    assert ["Because." in texts[0], "No." in texts[1]] == [True, True]
    assert [[s.text for s in d if s.in_loss] for d in shown.documents] == [["<|eot_id|>"]] * 2
    assert shown.in_loss == 2


def test_prompts_are_shown_in_the_order_of_the_first_rollout(tmp_path: Path, cli: Cli) -> None:
    """The very prompts, in the order that the run's own source asks them."""
    from types import SimpleNamespace

    from llamaseek.train.rollouts.rollout import Rollouts

    tiny_tokenizer().save(tmp_path / "tok")
    rows = [{"prompt": f"{n}+1?", "answer": str(n + 1)} for n in range(8)]
    write_rows(tmp_path / "rows.jsonl", rows)
    made = {
        "name": "r", "stage": "grpo", "model": {"init_from": str(tmp_path / "tok")},
        "data": {"sources": [str(tmp_path / "rows.jsonl")], "length": 200, "holdout": 0},
        "rollout": {"rewards": [{"kind": "exact"}], "max_tokens": 4},
    }  # fmt: skip
    recipe = make_recipe(made)
    shown = list(training_rows(recipe, 3))
    source = Rollouts(recipe, None, rows, [], SimpleNamespace())  # type: ignore[arg-type]
    asked = [row["answer"] for row in source._asked(0, 3)]  # type: ignore[call-overload]
    assert [row.judged for row in shown] == [{"answer": answer} for answer in asked]
    assert not any(s.in_loss for row in shown for s in row.documents[0])
    (tmp_path / "r.yaml").write_text(json.dumps(made))
    done = cli("data", "inspect", str(tmp_path / "r.yaml"), "--rows", "1")
    assert done.code == 0 and f"answer: {asked[0]}" in done.out and "Prompts:" in done.out


def test_padding_is_counted_and_not_shown() -> None:
    import torch

    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("The red fox")
    fill = 4
    tokens = torch.tensor([ids + [0] * fill])
    positions = torch.tensor([[*range(len(ids)), *[0] * fill]])
    targets = torch.tensor([[*ids[1:], -100, *[-100] * fill]])
    row = shown_row(Batch(tokens, positions, targets), 0, tokenizer)
    assert (row.tokens, row.padding, row.in_loss) == (len(ids), fill, len(ids) - 1)
    assert "".join(s.text for s in row.documents[0]) == "The red fox"


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DOCUMENTED, re.DOTALL))
def test_the_recipes_of_the_docs_are_recipes(block: str, tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("Is it good?")
    found = yaml.safe_load(block.replace("@rubric.txt", f"@{tmp_path}/rubric.txt"))
    if found.get("stage") == "data":
        assert CleanRecipe.model_validate(found).sources["wiki"]
    elif found.get("stage") == "judge":
        assert QualityRecipe.model_validate(found).judge.rubric == "Is it good?"
    else:
        made = make_recipe({"name": "x", "stage": "pretrain", **found})
        assert made.data.long is not None
