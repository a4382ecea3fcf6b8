"""The command line under torchrun: the same figures, restarts after kills, a reported hang."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamaseek.errors import UserError
from llamaseek.recipe.load import save_recipe
from llamaseek.runtime.launch import meet
from tests.cli.run import process
from tests.train.tiny import recipe


def torchrun(world: int, *words: str, restarts: int = 0) -> subprocess.Popen[str]:
    """`torchrun … -m llamaseek WORDS`, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}"]
    command += [f"--max-restarts={restarts}", "--master-port=0", "--monitor-interval=0.1"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "llamaseek", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


def ended(run: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; nothing of the run is left after it."""
    try:
        out, err = run.communicate(timeout=seconds)
    finally:
        stop(run)
    return run.returncode, out, err


def stop(run: subprocess.Popen[str]) -> None:
    for pid in (*workers(run), run.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def workers(run: subprocess.Popen[str]) -> list[int]:
    """The ranks' processes."""
    path = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def recipe_file(folder: Path, run: str, **changes: Any) -> str:
    settings: dict[str, Any] = {
        "train__objective": "multi_token", "train__steps": 30, "train__save_every": 3,
        "train__eval_every": 15, "train__precision": "fp64", "data__length": 32,
        "out": str(folder / run), **changes,
    }  # fmt: skip
    path = folder / f"{run}.yaml"
    save_recipe(recipe(folder, "deepseek_v3", **settings), path)
    return str(path)


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(x) for x in path.read_text().splitlines() if x.endswith("}")]


def test_two_ranks_print_and_log_what_one_does(tmp_path: Path) -> None:
    short = {"train__steps": 4, "train__eval_every": 2}
    alone = process("pretrain", recipe_file(tmp_path, "alone", **short))
    assert alone.code == 0, alone.err
    code, out, err = ended(
        torchrun(2, "pretrain", recipe_file(tmp_path, "two", **short), "parallel.shard=2")
    )
    assert code == 0, err
    assert out == alone.out.replace("alone", "two")
    assert err.count("tiny 2/4") == err.count("tiny 4/4") == 1
    for ours, wanted in zip(lines(tmp_path / "two"), lines(tmp_path / "alone"), strict=True):
        timed = {"tokens_per_second"}
        assert ours.keys() == wanted.keys()
        kept = {k: v for k, v in wanted.items() if k not in timed}
        for key, value in kept.items():
            same = value if isinstance(value, list) else pytest.approx(value, rel=1e-9)
            assert ours[key] == same, key


def test_a_wrong_layout_is_said_once(tmp_path: Path) -> None:
    run = torchrun(2, "pretrain", recipe_file(tmp_path, "wrong"), "parallel.data=4")
    code, out, err = ended(run)
    assert code != 0 and "exitcode  : 2 " in err, err
    assert err.count("error: parallel: data 4 makes 4 ranks, but 2 were started") == 1


def test_two_recipes_on_one_rendezvous_are_told_apart(tmp_path: Path) -> None:
    paths = [recipe_file(tmp_path, name, name=name) for name in ("mine", "yours")]
    words = "import os, sys; from llamaseek.cli.main import main; "
    words += f"sys.argv = ['llamaseek', 'pretrain', {paths!r}[int(os.environ['RANK'])], "
    words += "'parallel.data=2']; main()"
    script = tmp_path / "either.py"
    script.write_text(words)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script)]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    code, _, err = ended(run)
    told = "error: parallel: rank 1 came with another recipe (yours) than rank 0 (mine)"
    assert code != 0 and err.count(told) == 1 and "exitcode  : 2 " in err, err
    assert not (tmp_path / "mine").exists() and not (tmp_path / "yours").exists()


def test_hosts_that_restart_need_a_store_of_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        meet(timedelta(seconds=1))


@pytest.mark.parametrize(
    "kills", [2, pytest.param(10, marks=pytest.mark.parallel)], ids=["twice", "ten times"]
)
def test_killed_ranks_are_started_again(kills: int, tmp_path: Path) -> None:
    plan = ("parallel.data=2", "parallel.zero=true")
    steps = {"train__steps": 12 + 6 * kills}
    code, _, err = ended(torchrun(2, "pretrain", recipe_file(tmp_path, "whole", **steps), *plan))
    assert code == 0, err
    cut = tmp_path / "cut"
    run = torchrun(2, "pretrain", recipe_file(tmp_path, "cut", **steps), *plan, restarts=kills)
    rng = random.Random(3)
    for kill in range(kills):
        wait_for(run, lambda done=5 * kill + 3: any(x["step"] > done for x in lines(cut)))
        os.kill(rng.choice(workers(run)), signal.SIGKILL)
        reached = lines(cut)[-1]["step"]
        wait_for(run, lambda old=reached: lines(cut)[-1]["step"] != old)
    code, _, err = ended(run)
    assert code == 0, err
    models = [tmp_path / name / "model" / "model.safetensors" for name in ("cut", "whole")]
    ours, wanted = map(load_file, models)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    logged = [line["step"] for line in lines(cut) if "loss" in line]
    assert logged == list(range(1, steps["train__steps"] + 1))


def wait_for(run: subprocess.Popen[str], true: Any, seconds: float = 120) -> None:
    """Until something holds while a run goes on."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.02)


def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "hung", train__steps=5000, train__save_every=5000)
    run = torchrun(2, "pretrain", path, "parallel.data=2", "parallel.timeout=12")
    try:
        wait_for(run, lambda: len(lines(tmp_path / "hung")) > 3)
        pids = sorted(workers(run))
        os.kill(pids[1], signal.SIGSTOP)
        began, told = time.monotonic(), ""
        assert run.stderr is not None
        while "rank 1: silent" not in told and time.monotonic() < began + 60:
            told += run.stderr.readline()
        assert "no progress for 12 s; not answering: rank 1" in told
        assert "rank 0: waiting in step" in told and "rank 1: silent" in told
        assert time.monotonic() < began + 12 + 15
    finally:
        stop(run)


@pytest.mark.parallel
def test_a_stop_signal_to_torchrun_saves_in_time(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "asked", train__steps=5000, train__save_every=5000)
    run = torchrun(2, "pretrain", path, "parallel.tensor=2")
    wait_for(run, lambda: len(lines(tmp_path / "asked")) > 3)
    run.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, _, err = ended(run, 60)
    assert time.monotonic() - began < 30  # torchrun kills after 30 s
    (saved,) = (tmp_path / "asked" / "checkpoints").glob("step-*")
    assert (saved / "model.safetensors").is_file(), err
    assert "to resume:" in err
