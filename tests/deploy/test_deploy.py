"""Launch files: what they hand to torchrun, and manifests that say the same as the scripts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaseek.recipe.reading import find_recipe

DEPLOY = Path(__file__).parents[2] / "deploy"
RECIPE = ("recipe.yaml", "parallel.shard=8")


FAKES = {
    "torchrun": 'echo "torchrun $*"',
    "srun": 'shift; exec "$@"',
    "scontrol": "echo node-7; echo node-8",
}


def faked(place: Path, fakes: dict[str, str]) -> dict[str, str]:
    """An environment whose PATH has these programs first."""
    for name, body in fakes.items():
        (place / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (place / name).chmod(0o755)
    return {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}


def launched(script: Path, place: Path, **environment: str) -> str:
    """The command line that a script ends in, by a torchrun that only prints."""
    env = {**faked(place, FAKES), **environment}
    done = subprocess.run(["bash", str(script), *RECIPE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_machine(tmp_path: Path) -> None:
    command = launched(DEPLOY / "single-node.sh", tmp_path, GPUS="4")
    assert "--standalone --nproc-per-node 4" in command
    assert command.endswith("-m llamaseek pretrain --auto-resume recipe.yaml parallel.shard=8")


def test_several_machines_meet_at_the_head(tmp_path: Path) -> None:
    command = launched(DEPLOY / "several-nodes.sh", tmp_path, HEAD="node-0", NODES="4", RUN="a")
    assert "--nnodes 4" in command and "--rdzv-endpoint node-0:29500 --rdzv-id a" in command


def test_a_machine_whose_name_leads_nowhere_gives_its_address(tmp_path: Path) -> None:
    for address, host in (("10.0.0.1", "true"), ("10.0.0.2", "false")):
        environment = {"HEAD": "10.0.0.1", "NODES": "2", "ADDRESS": address}
        command = launched(DEPLOY / "several-nodes.sh", tmp_path, **environment)
        assert f",is_host={host} --local-addr {address} -m llamaseek" in command


def test_several_machines_need_a_head() -> None:
    script = str(DEPLOY / "several-nodes.sh")
    done = subprocess.run(["bash", script], env={}, capture_output=True, text=True)
    assert done.returncode != 0 and "HEAD" in done.stderr


SLURM = {
    "SLURM_JOB_NODELIST": "node-[7-8]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "42",
    "SLURM_SUBMIT_DIR": str(DEPLOY.parent),
}


def spooled(place: Path) -> Path:
    """The batch script as Slurm runs it: a copy, in a folder of its own."""
    copy = place / "spool" / "slurm_script"
    copy.parent.mkdir()
    shutil.copy(DEPLOY / "slurm.sbatch", copy)
    return copy


def test_slurm_tells_the_nodes_of_its_allocation(tmp_path: Path) -> None:
    command = launched(spooled(tmp_path), tmp_path, **SLURM, STAGE="sft")
    assert "--nnodes 2" in command and "node-7:29500" in command and "--rdzv-id 42" in command
    assert "-m llamaseek sft --auto-resume" in command


def test_slurm_saves_and_queues_again_before_its_time_is_up(tmp_path: Path) -> None:
    told = tmp_path / "told"
    fakes = {
        "srun": f"touch {tmp_path}/started; while [ ! -e {told} ]; do sleep 0.05; done; exit 1",
        "scancel": f'echo "scancel $*" >> {told}',
        "scontrol": f'[ "$1" = requeue ] && echo "$*" >> {told} || echo node-7',
    }
    command = ["bash", str(spooled(tmp_path)), *RECIPE]
    with subprocess.Popen(command, env={**faked(tmp_path, fakes), **SLURM}) as job:
        while not (tmp_path / "started").exists():
            assert job.poll() is None
        job.send_signal(signal.SIGUSR1)
        assert job.wait(20) == 1
    assert told.read_text().splitlines() == ["scancel --signal=TERM 42", "requeue 42"]


def container(name: str) -> dict[str, Any]:
    """The first container of a manifest."""
    spec = yaml.safe_load((DEPLOY / name).read_text())["spec"]
    if name == "jobset.yaml":
        job = spec["replicatedJobs"][0]["template"]["spec"]
        assert job["completions"] == job["parallelism"] == 4
        pod = job["template"]["spec"]
    else:
        pod = spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    found: dict[str, Any] = pod["containers"][0]
    mounted = {mount["name"] for mount in found["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    return found


@pytest.mark.parametrize("name", ["jobset.yaml", "pytorchjob.yaml"])
def test_manifests_ask_for_the_ranks_of_their_layout(name: str) -> None:
    found = container(name)
    assert found["resources"]["limits"]["nvidia.com/gpu"] * 4 == 32
    restarts = (
        "auto-resume" in " ".join(found["command"]) or "several-nodes.sh" in found["command"][0]
    )
    assert restarts
    assert "parallel.shard=32" in found["args"] and "out=/runs/llamaseek" in found["args"]


def test_skypilot_runs_the_script_that_is_there() -> None:
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert "deploy/several-nodes.sh" in task["run"]
    assert os.access(DEPLOY / "several-nodes.sh", os.X_OK)
    assert find_recipe(task["envs"]["RECIPE"]).is_file()
