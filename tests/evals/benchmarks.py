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


LANGUAGES = ("de", "es", "fr", "hi", "it", "pt", "th")
CATEGORIES = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health",
    "history", "law", "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip
MATH_KINDS = (
    "Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory",
    "Prealgebra", "Precalculus",
)  # fmt: skip


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


def _tool_calls(number: int) -> Row:
    """As BFCL has them: one call, two at once, and one with an argument that can be left out."""
    place = {"type": "string", "description": "A city."}
    unit = {"type": "string", "enum": ["C", "F"]}
    function = {
        "name": "weather.get", "description": "The weather.",
        "parameters": {"type": "dict", "properties": {"city": place, "unit": unit},
                       "required": ["city"]},
    }  # fmt: skip
    cities = [f"City {number}", f"Town {number}"][: 1 + number % 2]
    return {
        "id": f"simple_{number}",
        "question": [[{"role": "user", "content": f"How is it in {' and '.join(cities)}?"}]],
        "function": [function],
        "ground_truth": [{"weather.get": {"city": [c], "unit": ["", "C"]}} for c in cities],
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
    "tool_calls": _tool_calls,
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


def mmlu_subjects() -> list[str]:
    """The 57 subjects of MMLU, as lm-eval's files name them."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu/default"
    return sorted(file.stem.removeprefix("mmlu_") for file in folder.glob("mmlu_*.yaml"))


def write_core(folder: Path) -> Path:
    """nanochat's `eval_bundle` with a task of each kind, and one whose file is missing."""
    bundle = folder / "eval_bundle"
    rows: dict[str, tuple[str, int, float, list[Row]]] = {
        "options": ("multiple_choice", 3, 25, [
            {"query": f"Which is {n}?", "choices": _options(n, 4), "gold": n % 4} for n in range(8)
        ]),
        "contexts": ("schema", 0, 50, [
            {"context_options": [f"Ann saw {n}. Ann", f"Ann saw {n}. Bob"], "gold": n % 2,
             "continuation": f"went to {WORDS[n]}"} for n in range(8)
        ]),
        "texts": ("language_modeling", 2, 0, [
            {"context": f"After {n} comes ", "continuation": str(n + 1)} for n in range(8)
        ]),
        "gone": ("schema", 0, 50, []),
    }  # fmt: skip
    lines, table = ["icl_tasks:"], ["Eval Task,Random baseline"]
    for label, (kind, shots, chance, items) in rows.items():
        lines += [
            "-", f"  label: {label}", f"  dataset_uri: kinds/{label}.jsonl",
            f"  num_fewshot: [{shots}]", f"  icl_task_type: {kind}",
        ]  # fmt: skip
        lines += ['  continuation_delimiter: "\\nAnswer: "'] if label == "options" else []
        table.append(f"{label},{chance}")
        if items:
            _file(bundle / "eval_data/kinds" / label, items)
    (bundle / "core.yaml").write_text("\n".join(lines) + "\n")
    (bundle / "eval_meta_data.csv").write_text("\n".join(table) + "\n")
    return folder


def write_groups(folder: Path) -> Path:
    """Rows of every part of the benchmarks that have parts: subjects, languages, categories."""
    subjects = mmlu_subjects()
    rows = [_mmlu(n, subject) for n, subject in enumerate(subjects)]
    _file(folder / "mmlu/test", rows)
    _file(folder / "mmlu/dev", [_mmlu(n + 100 * k, s) for n, s in enumerate(subjects)
                                for k in range(1, 6)])  # fmt: skip
    pro = ROWS["mmlu_pro"]
    _file(folder / "mmlu_pro/test", [pro(n) | {"category": c} for n, c in enumerate(CATEGORIES)])
    shots = [pro(n + k) | {"category": c} for n, c in enumerate(CATEGORIES) for k in range(5)]
    _file(folder / "mmlu_pro/validation", shots)
    _file(folder / "math/test", [_math(n) | {"type": kind} for n, kind in enumerate(MATH_KINDS)])
    name = "Llama-3.1-8B-Instruct-evals__multilingual_mmlu_{}__details"
    for language in LANGUAGES:
        _file(folder / "llama_evals" / name.format(language), [
            {
                "subtask_name": f"mmlu_{language}_chat.{subject}",
                "input_question": row["question"],
                "input_choice_list": dict(zip("ABCD", row["choices"], strict=True)),
                "input_correct_responses": ["ABCD"[row["answer"]]],
            }
            for subject, row in zip(subjects, rows, strict=True)
        ])  # fmt: skip
    return folder


def right_choice(task: str, doc: Mapping[str, Any]) -> int:
    """The number of the right option."""
    if task == "winogrande":
        return int(doc["answer"]) - 1
    if "gpqa" in task:
        return "ABCD".index(doc["answer"][1])
    for key in ("gold", "answerKey", "answer", "label"):
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
    if "input_correct_responses" in doc:
        return f" {doc['input_correct_responses'][0]}."
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
    if task.startswith("needle"):
        return str(doc["target"])
    if task == "tool_calls":
        calls = [next(iter(one.items())) for one in json.loads(doc["ground_truth"])]
        return "; ".join(
            json.dumps({"name": name, "parameters": {"city": allowed["city"][0]}})
            for name, allowed in calls
        )
    if task == "ifeval":
        return "No such sign here"
    raise KeyError(task)
