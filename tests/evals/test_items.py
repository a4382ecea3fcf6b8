"""Meta's items replayed: prompts to the token, verdicts one by one, on rows of their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from llamaseek.checkpoints.hf import save_model
from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError
from llamaseek.evals.items import READERS, is_right, replay, write_items
from llamaseek.evals.lm import EngineLM
from llamaseek.text.chat import encode_chat
from tests.cli.run import process
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER

CHAT = "<|start_header_id|>{}<|end_header_id|>\n\n"


@pytest.fixture(scope="module")
def lm() -> EngineLM:
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size, max_position_embeddings=1024)
    return EngineLM(Engine(model, TOKENIZER), TOKENIZER)


def chat(question: str) -> str:
    return CHAT.format("user") + question + "<|eot_id|>" + CHAT.format("assistant")


def generated(question: str, answer: str, wanted: str, right: bool) -> dict[str, Any]:
    return {
        "task_name": "gpqa_chat", "input_question": question, "is_correct": right,
        "input_final_prompts": [chat(question)], "input_correct_responses": [wanted],
        "output_prediction_text": [answer], "eval_config": {"max_gen_len": "6", "seed": "42"},
    }  # fmt: skip


def own_answer(lm: EngineLM, question: str) -> str:
    ids = encode_chat(TOKENIZER, [{"role": "user", "content": question}], True).ids
    params = SamplingParams(max_tokens=6)
    (output,) = lm.engine.generate([Request(prompt=ids, params=params)])
    return output.answers[0].text


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_prompt_is_the_chat_that_it_spells(lm: EngineLM, tmp_path: Path) -> None:
    """The model's own answer is wanted: its prompts must be what our chat encoder makes."""
    questions = [f"Which is {n}?" for n in range(4)]
    rows = [
        generated(q, f"The best answer is A{n}", own_answer(lm, q) if n else "no", n % 2 == 0)
        for n, q in enumerate(questions)
    ]
    for row in rows:
        row["output_prediction_text"] = [row["input_correct_responses"][0]]
        row["is_correct"] = True
    rows[3]["is_correct"] = False
    (found,) = replay(lm, write(tmp_path / "items.jsonl", rows))
    assert found.reader == "first line" and (found.readable, found.published) == (3, 4)
    assert [v.here for v in found.verdicts] == [False, True, True, True]
    assert found.counts == {(True, True): 2, (True, False): 1, (False, True): 1}
    lines = write_items([found], tmp_path / "out").read_text().splitlines()
    assert json.loads(lines[1])["answer"] == own_answer(lm, questions[1])


def test_the_likeliest_option_is_chosen(lm: EngineLM, tmp_path: Path) -> None:
    rows = []
    for n in range(3):
        prompts = [f"Which is {n}?\nA. x\nB. y\nAnswer: {letter}" for letter in "AB"]
        pairs = [([*TOKENIZER.prefix_ids, *TOKENIZER.encode(p[:-2])], TOKENIZER.encode(p[-2:]))
                 for p in prompts]  # fmt: skip
        scores = [score for score, _ in lm.score(["mmlu"] * 2, pairs)]
        best = "AB"[scores.index(max(scores))]
        rows.append({
            "task_name": "mmlu", "input_question": f"Which is {n}?", "is_correct": n == 0,
            "input_final_prompts": prompts, "output_prediction_text": None,
            "input_correct_responses": [f"Answer: {best if n < 2 else 'AB'[best == 'A']}"],
        })  # fmt: skip
    (found,) = replay(lm, write(tmp_path / "mmlu.jsonl", rows))
    assert [v.here for v in found.verdicts] == [True, True, False]
    assert found.counts == {(True, True): 1, (False, True): 1, (False, False): 1}


@pytest.mark.parametrize(
    ("reader", "answer", "read"),
    [
        ("letter", "Not A. The best answer is C.\nSo the best answer is (D).", "D"),
        ("letter", " B. Because", "B"),
        ("letter", "Banana", None),
        ("last number", "5 + 7 = 12, so the final answer is 1,012.", "1012"),
        ("boxed", r"Thus $\boxed{1}$ or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("first line", " John Paul II\n\nTitle: more", "John Paul II"),
    ],
)
def test_answers_are_read(reader: str, answer: str, read: str | None) -> None:
    assert READERS[reader](answer) == read


def test_what_is_right() -> None:
    assert is_right("john paul ii", ["John Paul II"]) and is_right("C", ["Answer: C"])
    assert is_right("1012", ["1,012.0"]) and is_right("$5", ["5"])
    assert not is_right(None, ["5"]) and not is_right("6", ["5"])


def test_what_is_no_file_of_items_is_named(lm: EngineLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: has no 'input_final_prompts'"):
        replay(lm, write(tmp_path / "a.jsonl", [{"question": "x"}]))
    with pytest.raises(UserError, match="row 1: 'input_final_prompts' is empty"):
        replay(
            lm,
            write(
                tmp_path / "c.jsonl",
                [{"input_final_prompts": [], "is_correct": True, "input_correct_responses": ["x"]}],
            ),
        )


def test_from_the_command_line(lm: EngineLM, tmp_path: Path) -> None:
    save_model(lm.engine.model, tmp_path / "model")
    TOKENIZER.save(tmp_path / "model")
    write(tmp_path / "items.jsonl", [generated("Who?", "The best answer is A.", "A", True)])
    done = process("eval", "model", "--items", "items.jsonl", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "read by: letter, which gives 1 of 1 published verdicts" in done.out
    assert "gpqa_chat │ 1 │ 1.0000" in done.out
    assert (tmp_path / "out/items.jsonl").is_file()
    wrong = process("eval", "model", "--items", "items.jsonl", "--tasks", "piqa", cwd=tmp_path)
    assert wrong.code == 2 and "--tasks: has no meaning with --items" in wrong.err
