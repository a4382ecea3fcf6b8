"""What files of rows are taken for, by the names of their columns or by their values."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from llamaseek.data.detect import detect
from llamaseek.errors import UserError
from llamaseek.recipe.plain import load_yaml
from llamaseek.recipe.schema import DataRecipe

CASES = Path(__file__).parent / "cases"
Q, A = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tickets(path: Path, delimiter: str = ",") -> Path:
    """Twelve tickets of three queues, which no column name says anything about."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["no", "words", "queue"])
        for n in range(12):
            writer.writerow(
                [n, f"Ticket {n}, with a comma; and more", ("bills", "app", "other")[n % 3]]
            )
    return path


@pytest.mark.parametrize(
    ("rows", "kind", "columns"),
    [
        ([{"messages": [Q, A]}], "conversations", {}),
        ([{"conversations": [{"from": "human", "value": "a"}]}], "conversations", {}),
        ([{"instruction": "a", "output": "b"}], "prompt_completion", {}),
        ([{"question": "a", "answer": "b"}], "prompt_completion",
         {"prompt": "question", "completion": "answer"}),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "preferences", {}),
        ([{"prompt": "a", "completion": "b", "label": True}], "ratings",
         {"rating": "label"}),
        ([{"prompt": "a", "completion": "b", "score": 3.5}], "ratings",
         {"rating": "score"}),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 0}], "labels", {}),
        ([{"text": "a", "url": "b"}], "text", {}),
    ],
)  # fmt: skip
def test_columns_say_what_rows_are(
    tmp_path: Path, rows: list[dict[str, Any]], kind: str, columns: dict[str, str]
) -> None:
    found = detect([jsonl(tmp_path / "a.jsonl", *rows)])
    assert (found.kind, found.columns, found.rows) == (kind, columns, len(rows))


def test_a_spreadsheet_of_few_labels_is_labelled_texts(tmp_path: Path) -> None:
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t"), ("d.csv", "|")):
        found = detect([tickets(tmp_path / name, delimiter)])
        assert (found.kind, found.format) == ("labels", "labels")
        assert found.columns == {"text": "words", "label": "queue"}
        assert found.labels == {"bills": 4, "app": 4, "other": 4}
        assert (found.label_column, found.unused) == ("queue", {"no": 12})
        assert "12 labelled texts (words as text, queue as label); 3 labels" in found.sentence


def test_labels_that_are_long_or_many_are_answers(tmp_path: Path) -> None:
    long = [{"text": "a", "label": "words " * 20}, {"text": "b", "label": "c"}]
    many = [{"text": "a", "label": f"summary {n}"} for n in range(150)]
    for rows in (long, many):
        found = detect([jsonl(tmp_path / "a.jsonl", *rows)])
        assert (found.kind, found.format, found.labels) == ("prompt_completion", "labels", {})


def test_a_folder_of_markdown_is_text(tmp_path: Path) -> None:
    for name in ("a.md", "sub/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Words.")
    assert (detect([tmp_path]).kind, detect([tmp_path]).rows) == ("text", 2)
    rows = jsonl(tmp_path / "sub" / "rows.jsonl", {"messages": [Q, A]})
    assert detect([tmp_path]).kind == "conversations"  # the text is about the rows
    with pytest.raises(UserError, match=r"a\.md holds text and .*rows\.jsonl rows"):
        detect([tmp_path / "a.md", rows])


def test_columns_that_mean_nothing_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"no": 1, "Die Frage": "x", "Antwort": "y"})
    with pytest.raises(
        UserError, match=r"a\.jsonl:1: is in no known format; its columns are no, "
    ) as e:
        detect([path])
    hint = shlex.split(str(e.value).partition("data.columns can map them, as ")[2])
    assert hint == ["data.columns={prompt: Die Frage, completion: Antwort}"]
    columns = DataRecipe(columns=load_yaml(hint[0].partition("=")[2])).columns
    found = detect([path], columns)
    assert (found.kind, found.columns, found.unused) == ("prompt_completion", columns, {"no": 1})


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"input": "a b", "output": "c d"}, {"prompt": "input", "completion": "output"}),
        ({"id": 1, "User": "a", "Assistant ": "b"}, {"prompt": "User", "completion": "Assistant "}),
        ({"Q": "a", "A": "b", "system": "s"}, {"prompt": "Q", "completion": "A"}),
        ({"article": "a b", "summary": "a"}, {"prompt": "article", "completion": "summary"}),
    ],
)  # fmt: skip
def test_usual_names_of_prompts_and_answers_are_known(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str]
) -> None:
    found = detect([jsonl(tmp_path / "a.jsonl", row)])
    assert (found.kind, found.format, found.columns) == (
        "prompt_completion", "prompt_completion", columns,
    )  # fmt: skip
    assert "system" not in found.unused


def test_the_format_and_the_label_can_be_given(tmp_path: Path) -> None:
    both = {"prompt": "a", "completion": "b", "text": "c", "label": "d"}
    path = jsonl(tmp_path / "a.jsonl", both)
    with pytest.raises(UserError, match=r"could be .*; say which in data\.format"):
        detect([path])
    found = detect([path], form="labels")
    assert (found.kind, found.unused) == ("labels", {"prompt": 1, "completion": 1})
    rows = [{"priority": "lo" if n % 3 else "hi", "said": f"Words {n}.", "queue": "ab"[n % 2]}
            for n in range(12)]  # fmt: skip
    path = jsonl(tmp_path / "b.jsonl", *rows)
    assert detect([path]).label_column == "priority"
    found = detect([path], {"label": "queue"})
    assert found.columns == {"text": "said", "label": "queue"} and found.labels == {"a": 6, "b": 6}
    text = detect([jsonl(tmp_path / "c.jsonl", {"body": "a", "no": 1})], {"text": "body"})
    assert (text.kind, text.uses) == ("text", {"body": "text", "no": "not used"})


def test_a_table_without_column_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"Ticket {n} of many,{('bills', 'app')[n % 2]}\n" for n in range(9)]
    path.write_text("".join(rows))
    said = (
        r"a\.csv: the column 'bills' holds 'bills' in 4 rows: the line of column names is missing"
    )
    with pytest.raises(UserError, match=said):
        detect([path])
    path.write_text("text,label\n" + "".join(rows))
    assert detect([path]).labels == {"bills": 5, "app": 4}


def test_a_system_text_beside_a_label_is_read(tmp_path: Path) -> None:
    for text, label in (("text", "label"), ("words", "queue")):
        rows = [{text: f"Words {n}.", label: "ab"[n % 2], "system": "s"} for n in range(9)]
        found = detect([jsonl(tmp_path / "a.jsonl", *rows)])
        assert found.kind == "labels" and not found.unused, text


def test_columns_of_later_rows_are_looked_at(tmp_path: Path) -> None:
    """What the first row lacks: a system text, and a rating."""
    first, later = {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}
    path = jsonl(tmp_path / "a.jsonl", first, later | {"system": "s", "id": 1})
    assert detect([path]).uses["system"] == "system" and detect([path]).unused == {"id": 1}
    path = jsonl(tmp_path / "b.jsonl", first | {"score": None}, later | {"score": 2})
    assert (detect([path]).kind, detect([path]).rating_column) == ("ratings", "score")


def test_columns_nothing_reads_are_counted() -> None:
    found = detect([CASES / "ultrafeedback.jsonl"])
    assert found.unused == {
        "prompt_id": 2, "messages": 2, "score_chosen": 2, "score_rejected": 2,
    }  # fmt: skip
    assert detect([CASES / "orca.jsonl"]).uses["system"] == "system"
