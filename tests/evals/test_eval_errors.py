"""What `eval` refuses, each in one line; and traps that change scores without a word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from llamaseek.errors import UserError
from llamaseek.evals import verdicts
from llamaseek.evals.data import LocalData
from llamaseek.evals.run import EvalOptions
from llamaseek.evals.table import differences, rows
from tests.evals.benchmarks import COUNT, ROWS, right_choice, write
from tests.evals.oracles import Oracle, asked, empty, gold


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("benchmarks"))


def refused(data: Path, task: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        asked(gold(), data, task, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_missing_file_says_where_to_get_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = refused(tmp_path, "piqa")
    assert "yonatanbisk.com/piqa" in message and f"{tmp_path}/piqa.jsonl" in message
    assert "idavidrein/gpqa" in refused(tmp_path, "gpqa")
    assert "no such folder" in refused(tmp_path / "none", "piqa")


def test_a_gated_set_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    def load(*args: Any, **options: Any) -> Any:
        raise ValueError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.")

    monkeypatch.setattr("datasets.load_dataset", load)
    assert "it is gated" in refused(tmp_path, "gpqa")


def test_a_missing_split_and_a_wrong_field_are_named(tmp_path: Path) -> None:
    (tmp_path / "mmlu").mkdir()
    line = json.dumps(ROWS["mmlu"](1)) + "\n"
    (tmp_path / "mmlu/test.jsonl").write_text(line)
    assert "needs the split 'dev' for its 5 shots" in refused(
        tmp_path, "lm-eval:mmlu_anatomy", num_fewshot=5
    )
    (tmp_path / "mmlu/test.jsonl").rename(tmp_path / "mmlu/dev.jsonl")
    (tmp_path / "mmlu/train.jsonl").write_text(line)
    assert "no rows of anatomy of the split 'test'" in refused(tmp_path, "lm-eval:mmlu_anatomy")
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a", "sol1": "b"}\n')
    assert "have no field 'sol2', which piqa reads" in refused(tmp_path, "piqa")


def test_an_unknown_task_names_the_nearest(data: Path) -> None:
    assert "did you mean 'winogrande'" in refused(data, "winogrand")


def test_values_that_are_not_allowed_are_named() -> None:
    for options, field in (
        ({"chat": "yes"}, "--chat"), ({"tasks": []}, "--tasks"), ({"limit": 0}, "--limit"),
        ({"num_fewshot": -1}, "--num-fewshot"), ({"resume": True}, "--resume"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=field):
            EvalOptions(**({"tasks": ["piqa"]} | options))
    assert "no chat template" in str(pytest.raises(UserError, _chat_without_template).value)


def _chat_without_template() -> None:
    from llamaseek.evals.run import _planned

    class Manager:
        def shots_of(self, name: str) -> None: ...
        def is_chat(self, name: str) -> bool:
            return True

        def build(self, name: str, shots: Any) -> str:
            return "task"

        def load(self, built: Any) -> Any:
            return {"tasks": {"a": type("T", (), {"OUTPUT_TYPE": "generate_until"})()}}

    _planned("a", Manager(), False, EvalOptions(tasks=["a"], chat="on"), print)


def test_without_a_sandbox_programs_are_not_scored(data: Path, monkeypatch: Any) -> None:
    def none(self: Any) -> Any:
        raise RuntimeError("sandbox: no program can be run (no Python)")

    monkeypatch.setattr("llamaseek.workers.sandbox.Sandbox.confinement", none)
    assert "humaneval, mbpp: sandbox: no program can be run" in refused(data, "humaneval")


def test_gpqas_order_depends_on_the_question_alone(data: Path, tmp_path: Path) -> None:
    import random

    found = []
    for seed in (0, 1):
        random.seed(seed)
        found.append(asked(gold(), data, "gpqa").samples["gpqa_main_zeroshot"])
    assert [row["target"] for row in found[0]] == [row["target"] for row in found[1]]
    assert len({row["target"] for row in found[0]}) > 1
    lines = (data / "gpqa.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "gpqa.jsonl").write_text("".join(reversed(lines)))
    other = asked(gold(), tmp_path, "gpqa").samples["gpqa_main_zeroshot"]
    orders = {r["doc"]["Question"]: r["doc"]["choices"] for r in found[0]}
    assert orders == {r["doc"]["Question"]: r["doc"]["choices"] for r in other}


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    write(tmp_path, ("piqa",))
    asked(gold(), tmp_path, "piqa")
    changed = {**ROWS["piqa"](1), "goal": "Something else"}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(changed) + "\n")
    oracle = gold()
    asked(oracle, tmp_path, "piqa")
    assert oracle.prompts == ["Question: Something else\nAnswer:"] * 2


def test_limit_takes_the_first_rows(data: Path) -> None:
    samples = asked(gold(), data, "piqa", limit=3).samples["piqa"]
    assert [row["doc"]["goal"] for row in samples] == ["Do 0", "Do 1", "Do 2"]


def test_acc_norm_divides_by_characters_not_bytes(tmp_path: Path) -> None:
    row = {"goal": "x", "sol1": "ééééé", "sol2": "abcdefgh", "label": 0}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(row) + "\n")

    class Uniform(Oracle):
        def loglikelihood(self, requests: Any) -> Any:
            return [((-6.0, -8.0)[r.idx], False) for r in requests]

    oracle = Uniform(right_choice, lambda task, doc: "")
    (figures,) = asked(oracle, tmp_path, "piqa").results["results"].values()
    assert figures["acc,none"] == 1.0 and figures["acc_norm,none"] == 0.0  # -1.2 against -1.0


def test_macro_and_micro_averages_differ_where_sizes_do(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    kinds = ["Algebra"] * 6 + ["Geometry"] * 2 + [
        "Counting & Probability", "Intermediate Algebra", "Number Theory", "Prealgebra",
        "Precalculus",
    ]  # fmt: skip
    lines = [json.dumps(ROWS["math"](n) | {"type": kind}) for n, kind in enumerate(kinds)]
    (tmp_path / "math/test.jsonl").write_text("\n".join(lines) + "\n")
    only_algebra = Oracle(
        right_choice,
        lambda task, doc: (
            f"Final Answer: The final answer is ${doc['answer']}$. I hope it is correct."
            if task.endswith("_algebra") and "intermediate" not in task
            else ""
        ),
    )
    found = asked(only_algebra, tmp_path, "math")
    figures = {(row.metric, row.filter): row for row in rows(found)}
    assert figures["exact_match", "none"].value == pytest.approx(6 / 13)
    assert figures["exact_match (macro)", "none"].value == pytest.approx(1 / 7)
    assert figures["exact_match", "none"].items == 13


def test_the_table_has_chance_shots_filters_and_warnings(data: Path) -> None:
    (piqa, _) = rows(asked(gold(), data, "piqa"))
    assert (piqa.chance, piqa.items, piqa.shots) == (0.5, COUNT, 0)
    strict, flexible = rows(asked(empty(), data, "gsm8k"))
    assert (strict.filter, flexible.filter) == ("strict-match", "flexible-extract")
    assert strict.warnings == f"{COUNT} answers with nothing extracted"
    assert strict.chance is None and strict.shots == 8
    (letters,) = rows(asked(gold(), data, "gpqa_llama"))  # generated
    assert letters.chance == 0.25


def test_two_models_are_compared_item_by_item(data: Path) -> None:
    half = Oracle(
        lambda task, doc: (right_choice(task, doc) + (int(doc["goal"][3:]) % 3 == 0)) % 2,
        lambda task, doc: "",
    )
    found = {
        d.metric: d for d in differences(asked(half, data, "piqa"), asked(gold(), data, "piqa"))
    }
    assert found["acc"].items == COUNT and 0 < found["acc"].difference <= 0.5
    assert found["acc"].error > 0


def test_math_verify_is_judged_in_a_thread_and_ends(monkeypatch: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(verdicts, "FORMULA_SECONDS", 3.0)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(verdicts._equal, "math_verify", "$\\frac12$", "$0.5$").result()
        tower = "$9^{9^{9^{9^{9}}}}$"
        assert not pool.submit(
            verdicts._equal, "math_verify", "$2^{10^{10^{10}}}+1$", tower
        ).result()


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("    return x + 3\n", True),
        ("    return math.floor(x) + 3\n```\nThis adds.", True),
        ("```python\ndef add_3(x):\n    return math.floor(x + 3)\n```", True),
        ("Sure:\n```python\nimport os\ndef add_3(x):\n    return x + 3\n```\nDone", True),
        ("    return x + 4\n", False),
        ("return x + 3", False),
        ("", False),
    ],
)
def test_a_completion_becomes_a_program(completion: str, right: bool) -> None:
    doc = ROWS["human_eval"](3)
    program = verdicts.completed(doc["prompt"], completion, doc["entry_point"])
    assert verdicts.humaneval(doc, [[program]]) == {"pass@1": float(right)}


HARMS = {
    "forks": """
        import os
        pids = []
        try:
            while len(pids) < 5000:
                pid = os.fork()
                if not pid:
                    while True: pass
                pids.append(pid)
        except OSError:
            raise SystemError(f"{len(pids)} processes") from None
        """,
    "socket": """
        import socket
        socket.create_connection(("127.0.0.1", PORT), 3).sendall(b"out")
        raise SystemError("sent")
        """,
    "disk": """
        with open("big", "wb") as file:
            for _ in range(1 << 14): file.write(bytes(1 << 20))
        raise SystemError("written")
        """,
    "parent": """
        import os, time
        for _ in range(20):
            os.kill(os.getppid(), 9)
            time.sleep(0.01)
        """,
}
"""Programs that reach for what is not theirs; the tests of a problem would let each pass."""


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmful_program_fails_alone(harm: str) -> None:
    """It does what it wants when its function is called, so that nothing else ends it."""
    import socket
    import textwrap
    import time

    doc = ROWS["human_eval"](3)
    good = doc["prompt"] + "    return x + 3\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = str(server.getsockname()[1])
        body = textwrap.indent(textwrap.dedent(HARMS[harm]).replace("PORT", port), "    ")
        bad = doc["prompt"] + body + "    return x + 3\n"
        started = time.monotonic()
        assert verdicts.humaneval(doc, [[bad, good]]) == {"pass@1": 0.5}
        assert time.monotonic() - started < 2 * verdicts.PROGRAM.seconds + 20
        tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
        found = verdicts._sandbox().run(bad, tests, verdicts.PROGRAM, doc["entry_point"])
        print(harm, found)
        with pytest.raises(TimeoutError):
            server.accept()


def test_rows_come_from_a_folder_as_the_hub_leaves_it(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "openai/gsm8k/main"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([ROWS["gsm8k"](n) for n in range(3)])
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    found = LocalData((tmp_path,)).load("gsm8k", "openai/gsm8k", "main", "test")
    assert {split: len(found[split]) for split in found} == {"train": 3, "test": 3}


def test_the_folder_of_a_set_is_data_itself(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [json.dumps(ROWS["gsm8k"](n)) for n in range(2)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    found = LocalData((folder,)).load("gsm8k", "openai/gsm8k", "main", "test")
    assert {split: len(found[split]) for split in found} == {"train": 2, "test": 2}
    places = f"put it at {tmp_path}/piqa.jsonl or {folder}/piqa.jsonl"
    with pytest.raises(UserError, match=re.escape(places)):
        LocalData((tmp_path, folder)).load("piqa", "baber/piqa", None, "validation")


def test_the_lectures_table_is_drawn(data: Path, tmp_path: Path) -> None:
    from llamaseek.evals.published import (
        COLUMNS,
        SCORES,
        measured,
        plot_table,
        standard_error,
        table_figure,
    )
    from llamaseek.herd.published import ENTRIES
    from llamaseek.pictures import VERMILION

    assert set(SCORES) <= {name.lower() for name in ENTRIES}
    assert all(len(scores) == len(COLUMNS) for scores in SCORES.values())
    lecture = dict(zip(COLUMNS, SCORES["llama-3-8b-instruct"], strict=True))
    found = {column: round(standard_error(column, score), 2)
             for column, score in lecture.items() if score}  # fmt: skip
    assert found == {"mmlu": 0.39, "gpqa": 2.24, "humaneval": 3.79, "gsm8k": 1.11, "math": 0.65}
    evaluation = asked(gold(), data, "gsm8k")
    assert measured(evaluation) == {"gsm8k": (100.0, 0.0)}
    plot_table([evaluation], tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 10_000
    panels = table_figure([evaluation]).axes
    hollow = [line.get_color() for line in panels[4].lines if line.get_markerfacecolor() == "none"]
    others = [model for model, scores in SCORES.items() if scores[4] and scores[4].protocol]
    assert len(hollow) == len(others) == 7
    assert all(len(panel.containers) >= 6 for panel in panels)  # marks with error bars
    assert [line.get_xdata()[0] for line in panels[3].lines if line.get_color() == VERMILION][
        0
    ] == 100


def test_items_that_stand_in_the_training_data_are_a_share(tmp_path: Path) -> None:
    rng = Random(2)
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [" ".join("".join(rng.choices(letters, k=6)) for _ in range(16)) for _ in range(8)]
    (tmp_path / "piqa.jsonl").write_text(
        "".join(json.dumps({"goal": t, "sol1": "a", "sol2": "b", "label": 0}) + "\n" for t in texts)
    )
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:4]))
    found = asked(gold(), tmp_path, "piqa", overlap=file)
    share = found.results["overlap"]["piqa"]
    assert share == pytest.approx(0.5 * 16 / 18)  # the items are of 18 words
    assert rows(found)[0].overlap == share
    half = " ".join(texts[0].split()[:8])
    file.write_text(json.dumps({"text": half}) + "\n")
    assert asked(gold(), tmp_path, "piqa", overlap=file).results["overlap"][
        "piqa"
    ] == pytest.approx(8 / 18 / 8)
    assert "no such run" in refused(tmp_path, "piqa", overlap=tmp_path / "gone")
