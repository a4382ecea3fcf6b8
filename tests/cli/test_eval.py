"""`llamaseek eval`: its table and files, a kill in the middle, two models, a server."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.evals import verdicts
from tests.cli.run import Cli
from tests.evals.benchmarks import write
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, make_service, running

TASKS = "piqa,arc_easy,openbookqa,gsm8k_llama,commonsense_qa"
KILLS = 10 if os.environ.get("LLAMASEEK_EVAL_FULL") else 2
SHARED = os.environ.get("LLAMASEEK_SHARED_DATA")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, `model` and `tuned`, and `data`."""
    folder = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("model", "tuned")):
        sizes = {"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 4096}
        save_model(tiny_model("llama3", seed=seed, **sizes), folder / name)
        TOKENIZER.save(folder / name)
    write(folder / "data")
    return folder


def test_the_table_and_the_files(place: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    words = "--tasks", "piqa,gsm8k_llama", "--data", str(place / "data"), "--limit", "4"
    done = cli("eval", str(place / "model"), *words, "--max-gen-toks", "8", "--out", str(out))
    assert done.code == 0, done.err
    assert "piqa: lm-eval piqa, 0-shot, log-likelihood, no chat template" in done.err
    assert "gsm8k_llama, 8-shot, generation, at most 8 tokens, chat template" in done.err
    assert "4 answers at the length limit" in " ".join(done.out.replace("│", " ").split())
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["task"] for row in samples] == ["piqa"] * 4 + ["gsm8k_llama"] * 8
    assert samples[-1]["finish_reason"] == "length" and samples[-1]["answer_tokens"] == 8
    assert samples[-1]["arguments"][0][0].startswith("<|begin_of_text|>")
    results = json.loads((out / "results.json").read_text())
    assert {"results", "configs", "versions", "n-shot", "n-samples", "config"} <= set(results)
    assert (out / "table.png").is_file()
    again = cli("eval", str(place / "model"), *words, "--out", str(out))
    assert again.code == 2 and "--resume" in again.err and again.err.count("\n") == 1


def test_two_models_are_compared(place: Path, tmp_path: Path, cli: Cli) -> None:
    words = "--tasks", "piqa", "--data", str(place / "data")
    out = tmp_path / "both"
    names = str(place / "model"), "--compare", str(place / "tuned")
    done = cli("eval", *names, *words, "--out", str(out))
    assert done.code == 0, done.err
    assert "minus" in done.out and "item by item" in done.out
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 1 and "http" not in page.split("</style>")[1].split("<svg")[0]
    assert f"{place / 'tuned'} minus {place / 'model'}" in page
    shown = re.search(
        r"piqa</td><td>acc</td><td>none</td>\s*<td class=\"number\">([-+.\d]+)<", page
    )
    assert shown is not None and shown[1] in done.out
    assert "llama-3-8b-instruct" in page and "79.6 <small>± 1.1</small>" in page
    assert "GPQA Diamond, CoT" in page
    same = cli("eval", str(place / "model"), *words, "--compare", str(place / "model"))
    assert same.code == 2 and "--compare" in same.err
    none = cli("eval", str(place / "model"), *words, "--compare", "nowhere")
    assert none.code == 2 and "nowhere" in none.err


def test_a_server_is_asked_through_its_address(place: Path, cli: Cli) -> None:
    with running(make_service(load_model(place / "model"))) as run:
        words = "--tasks", "piqa", "--data", str(place / "data"), "--limit", "3"
        done = cli("eval", f"{run.url}/v1", *words)
        assert done.code == 0, done.err
    here = cli("eval", str(place / "model"), *words)
    row = next(line for line in here.out.splitlines() if "acc_norm" in line)
    assert row in done.out
    gone = cli("eval", f"{run.url}/v1", *words)
    assert gone.code == 2 and "no server" in gone.err


def test_killed_at_random_and_resumed_it_writes_the_same_bytes(place: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    start(place, whole).wait(300)
    rng = Random(1)
    lines = len((whole / "journal.jsonl").read_text().splitlines())
    for _ in range(KILLS):
        process, until = start(place, out), rng.randint(0, lines - 1)
        while process.poll() is None and count(out) < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(place, out).wait(300) == 0
    for file in ("samples.jsonl", "journal.jsonl"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    one, other = (json.loads((each / "results.json").read_text()) for each in (whole, out))
    assert {**one, "date": 0, "pretty_env_info": ""} == {**other, "date": 0, "pretty_env_info": ""}


def start(place: Path, out: Path) -> subprocess.Popen[bytes]:
    """`eval` in a process of its own, going on with what is there.

    Not in the repository's folder, whose commit lm-eval notes, and which may change meanwhile.
    """
    words = ["--tasks", TASKS, "--data", str(place / "data"), "--max-gen-toks", "16", "--resume"]
    command = [sys.executable, "-m", "llamaseek", "eval", str(place / "model")]
    quiet = subprocess.DEVNULL
    whole = [*command, *words, "--out", str(out)]
    return subprocess.Popen(whole, stdout=quiet, stderr=quiet, cwd=place)


def count(out: Path) -> int:
    """Lines of the journal."""
    try:
        return (out / "journal.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.mark.skipif(not SHARED, reason="LLAMASEEK_SHARED_DATA is unset")
def test_humanevals_own_solutions_pass_and_empty_ones_fail() -> None:
    path = Path(str(SHARED)) / "human_eval/HumanEval.jsonl.gz"
    docs = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(docs) == 164
    for text, share in (("canonical_solution", 1.0), (None, 0.0)):
        answers = [[doc[text] if text else ""] for doc in docs]
        programs = verdicts.complete_prompts(answers, docs)
        found = [
            verdicts.humaneval(doc, [p])["pass@1"] for doc, p in zip(docs, programs, strict=True)
        ]
        assert found == [share] * 164
