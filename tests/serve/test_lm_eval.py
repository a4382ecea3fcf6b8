"""lm-eval, unchanged, against the server: item by item what it finds in process.

The reference is its own `hf` model over transformers, on the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.hf import load_model, save_model
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, Running, make_service, running
from tests.train.tiny import stories

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
task_files = pytest.importorskip("lm_eval.tasks")

TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "words": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and the tasks' files."""
    folder = tmp_path_factory.mktemp("lm_eval")
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():  # never the likeliest: the server ends turns at more tokens than `hf`
        model.lm_head.weight[sorted(TOKENIZER.special_ids)] = 0
    save_model(model, folder / "model")
    TOKENIZER.save(folder / "model")
    rows = []
    for number, text in enumerate(stories(24)[:8]):
        words = text.split()
        question = " ".join(words[: 4 + number % 3])
        # several tokens each, of unequal lengths
        choices = [" " + " ".join(words[5 : 6 + n]) for n in range(3)]
        rows.append({"question": question, "choices": choices, "answer": 1, "text": text[:300]})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        task = {"task": name, "test_split": "test", **source, **task}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


def items(place: Path, tasks: list[str], **how: Any) -> dict[str, list[Any]]:
    """What each item of each task got."""
    manager = task_files.TaskManager(include_path=str(place), include_defaults=False)
    found = lm_eval.simple_evaluate(
        tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=0, **how
    )
    samples = found["samples"]
    return {task: [each["resps"] for each in samples[task]] for task in tasks}


def in_process(place: Path, tasks: list[str], bos: bool) -> dict[str, list[Any]]:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32").eval()
    how: Any = {"batch_size": 1, "max_length": 255, "add_bos_token": bos}
    lm = HFLM(pretrained=model, tokenizer=str(place / "model"), **how)
    return items(place, tasks, model=lm)


def by_server(place: Path, run: Running, tasks: list[str], **args: Any) -> dict[str, list[Any]]:
    given = {
        "model": "tiny",
        "base_url": f"{run.url}/v1/completions",
        "tokenizer": str(place / "model"),
        "tokenizer_backend": "huggingface",
        "max_length": 256,
        **args,
    }
    return items(place, tasks, model="local-completions", model_args=given, batch_size=5)


def numbers(found: Any) -> list[Any]:
    """All numbers and flags in nested lists."""
    if isinstance(found, (list, tuple)):
        return [number for each in found for number in numbers(each)]
    return [found]


@pytest.mark.parametrize("share", [True, False])
def test_local_completions_finds_what_scoring_in_process_finds(place: Path, share: bool) -> None:
    service = make_service(load_model(place / "model"), enable_prefix_caching=share)
    tasks = ["choices", "rolling", "words"]
    expected = in_process(place, tasks, bos=share)
    with running(service) as run:
        found = by_server(place, run, tasks, add_bos_token=share)
        again = by_server(place, run, tasks, add_bos_token=share, num_concurrent=4)
        assert run.idle()
    for other in (found, again):
        check_same(expected, other)


def check_same(expected: dict[str, list[Any]], found: dict[str, list[Any]]) -> None:
    """The same texts and greedy flags, and log-likelihoods to 1e-4."""
    for task, theirs in expected.items():
        if task == "words":
            assert found[task] == theirs
            continue
        ours = numbers(found[task])
        for one, other in zip(numbers(theirs), ours, strict=True):
            assert type(one) is type(other)
            assert one == other if isinstance(one, bool) else abs(one - other) < 1e-4


def test_the_remote_tokenizer(place: Path) -> None:
    service = make_service(load_model(place / "model"))
    tasks = ["choices", "rolling", "words"]
    with running(service) as run:
        local = by_server(place, run, tasks)
        remote = by_server(place, run, tasks, tokenizer_backend="remote", tokenizer=None)
    check_same(local, remote)


def test_local_chat_completions(place: Path) -> None:
    service = make_service(load_model(place / "model"))
    with running(service) as run:
        given = {"model": "tiny", "base_url": f"{run.url}/v1/chat/completions", "max_length": 256}
        found = items(
            place,
            ["words"],
            model="local-chat-completions",
            model_args=given,
            apply_chat_template=True,
        )
        rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
        for row, resps in zip(rows, found["words"], strict=True):
            body = run.post(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": row["question"]}],
                temperature=0,
                max_tokens=12,
                stop=["."],
            ).json()
            assert resps == [[body["choices"][0]["message"]["content"]]]
