"""Made-up rows of every benchmark, as files that `--data` reads, and their right answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COUNT = 12
LETTERS = "ABCDEFGHIJ"
WORDS = ("fox", "river", "stone", "cloud", "bird", "lamp", "chair", "moon", "book", "shoe")


def _options(number: int, count: int) -> list[str]:
    return [f"the {WORDS[(number + n) % 10]} {number + n}" for n in range(count)]


def _mmlu(number: int, subject: str = "anatomy") -> Row:
    return {
        "question": f"Which is number {number}?",
        "subject": subject,
        "choices": _options(number, 4),
        "answer": number % 4,
    }


def _arc(number: int) -> Row:
    choices = {"text": _options(number, 4), "label": [*"ABCD"]}
    return {"question": f"Which is {number}?", "choices": choices, "answerKey": "ABCD"[number % 4]}


def _math(number: int) -> Row:
    return {
        "problem": f"What is {number} + 1?",
        "solution": f"It is $\\boxed{{{number + 1}}}$.",
        "answer": str(number + 1),
        "type": "Algebra",
    }


def _humaneval(number: int) -> Row:
    name = f"add_{number}"
    return {
        "task_id": f"Test/{number}",
        "prompt": f'import math\n\n\ndef {name}(x):\n    """Add {number} to x."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(2) == {number + 2}\n",
        "entry_point": name,
    }


def _gpqa(number: int) -> Row:
    right, *wrong = _options(number, 4)
    row = {"Question": f"Which is {number}?", "Correct Answer": right}
    return row | {f"Incorrect Answer {n}": text for n, text in enumerate(wrong, 1)}


def _mbpp(number: int) -> Row:
    return {
        "task_id": number,
        "text": f"Write a function that adds {number}.",
        "code": f"def plus(x):\n    return x + {number}",
        "test_list": [f"assert plus({n}) == {n + number}" for n in range(3)],
        "test_setup_code": "",
    }


ROWS: dict[str, Any] = {
    "piqa": lambda n: {
        "goal": f"Do {n}", "sol1": f"take {n}", "sol2": f"leave {n + 1}", "label": n % 2
    },
    "hellaswag": lambda n: {
        "query": f"Walking: A man walks {n}", "label": n % 4, "endings": _options(n, 4)
    },
    "winogrande": lambda n: {
        "sentence": f"The {WORDS[n % 10]} met Ann and Bob, but _ left {n}.",
        "option1": "Ann", "option2": "Bob", "answer": "12"[n % 2],
    },
    "mmlu": _mmlu,
    "gpqa": _gpqa,
    "human_eval": _humaneval,
    "mbpp": _mbpp,
    "gsm8k": lambda n: {"question": f"What is {n} + 40?", "answer": f"Add.\n#### {n + 40}"},
    "math": _math,
    "math500": _math,
    "arc": _arc,
    "openbookqa": lambda n: {**_arc(n), "question_stem": f"It is {n}"},
    "commonsense_qa": lambda n: {
        "question": f"Which {n}?", "answerKey": "ABCDE"[n % 5],
        "choices": {"text": _options(n, 5), "label": [*"ABCDE"]},
    },
    "triviaqa": lambda n: {
        "question": f"Who is {n}", "answer": {"aliases": [f"mister {n}"], "value": f"mister {n}"}
    },
    "mmlu_pro": lambda n: {
        "question": f"Which {n}?", "options": _options(n, 10), "answer": LETTERS[n % 10],
        "category": "math", "cot_content": f"A: Let's think. The answer is ({LETTERS[n % 10]}).",
    },
    "ifeval": lambda n: {
        "key": n, "prompt": f"Write {n} without commas.",
        "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}],
    },
    "bbh": lambda n: {"input": f"not True is ({n})", "target": ["False", "True"][n % 2]},
}  # fmt: skip


def write(folder: Path, names: tuple[str, ...] = tuple(ROWS), count: int = COUNT) -> Path:
    """Files of these sets; returns the folder."""
    for name in names:
        rows = [ROWS[name](number) for number in range(count)]
        shots = [ROWS[name](number) for number in range(100, 107)]
        if name in ("mmlu", "mmlu_pro"):
            _file(folder / name / ("dev" if name == "mmlu" else "validation"), shots)
            _file(folder / name / "test", rows)
        elif name == "gsm8k":
            _file(folder / name / "train", shots)
            _file(folder / name / "test", rows)
        elif name in ("triviaqa", "openbookqa"):
            _file(folder / name / "train", shots)
            _file(folder / name / ("validation" if name == "triviaqa" else "test"), rows)
        elif name == "bbh":
            _file(folder / name / "boolean_expressions", rows)
        else:
            _file(folder / name, rows)
    return folder


def _file(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def right_choice(task: str, doc: Mapping[str, Any]) -> int:
    """The number of the right option."""
    if task == "winogrande":
        return int(doc["answer"]) - 1
    if "gpqa" in task:
        return "ABCD".index(doc["answer"][1])
    for key in ("answerKey", "answer", "label"):
        if key in doc:
            value = doc[key]
            return int(value) if str(value).isdigit() else LETTERS.index(value)
    raise KeyError(task)


def right_text(task: str, doc: Mapping[str, Any]) -> str:
    """An answer in the form that the task wants."""
    if task.startswith("gsm8k"):
        number = doc["answer"].split("#### ")[1]
        forms = {"gsm8k": f"#### {number}", "gsm8k_llama": f"The final answer is {number}"}
        return forms.get(task, f"The answer is {number}.")
    if task.startswith("minerva"):
        return f"So.\nFinal Answer: The final answer is ${doc['answer']}$. I hope it is correct."
    if task == "math_llama":
        return f"Therefore, the final answer is: $\\boxed{{{doc['answer']}}}$."
    if task in ("mmlu_pro_math", "mmlu_llama_math") or task.startswith("mmlu_pro"):
        return f"The answer is ({doc['answer']}). The best answer is {doc['answer']}."
    if task.startswith("mmlu_cot"):
        return f"The best answer is {'ABCD'[doc['answer']]}."
    if task.startswith("mmlu_llama"):
        return f" {'ABCD'[doc['answer']]}."
    if task == "gpqa_llama":
        return f"The best answer is {doc['answer'][1]}."
    if "gpqa" in task:
        return f"The answer is {doc['answer']}."
    if task == "arc_challenge_llama":
        return f" {doc['answerKey']}."
    if task == "humaneval":
        return str(doc["canonical_solution"])
    if task == "humaneval_instruct":
        return f"{doc['canonical_solution']}```\nDone."
    if task == "mbpp":
        return str(doc["code"])
    if task == "triviaqa":
        return f" {doc['answer']['value']}"
    if task.startswith("bbh"):
        return f"Let's think. So the answer is {doc['target']}."
    if task == "ifeval":
        return "No such sign here"
    raise KeyError(task)
