"""Two hosts, network namespaces joined by a cable: one loses it for a while, and the run goes on.

Started by the script that the docs name, on both; what they share is the disk and the cable.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llamaseek.recipe.load import load_recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.parallel.launch import on_ranks
from tests.parallel.test_torchrun import lines, recipe_file

SCRIPT = Path(__file__).parents[2] / "deploy" / "several-nodes.sh"
HEAD = "10.77.0.1"
STEPS = 40


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Host:
    """A network namespace, and what runs in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address, self.told = name, address, ""
        ip("netns", "add", name)

    def connect(self) -> None:
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "cable")
        for device in ("lo", "cable"):
            ip("-n", self.name, "link", "set", device, "up")

    def start(self, *words: str) -> None:
        """The script, in a process group of its own; `told` is what it says."""
        bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.run = subprocess.Popen(
            ["ip", "netns", "exec", self.name, str(SCRIPT), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={
                **os.environ, "PATH": bin_first, "HEAD": HEAD, "NODES": "2", "GPUS": "1",
                "ADDRESS": self.address, "GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1",
            },
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.run.stdout is not None
        for line in self.run.stdout:
            self.told += line

    def close(self) -> None:
        """End what is left of its processes, then the namespace."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        for pid in map(int, pids.stdout.split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made: list[Host] = []
    try:
        try:
            for number in (1, 2):
                made.append(Host(f"host{number}-{os.getpid()}", f"10.77.0.{number}"))
            one, two = (host.name for host in made)
            peer = ("peer", "name", "cable", "netns", two)
            ip("link", "add", "cable", "netns", one, "type", "veth", *peer)
            for host in made:
                host.connect()
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            pytest.skip(f"no network namespaces here: {str(why).strip()}")
        yield made
    finally:
        for host in made:
            host.close()


def undisturbed(path: str, folder: str) -> None:
    recipe = load_recipe(Path(path), [f"out={folder}", "parallel.data=2"])
    train(build_job(recipe))


@pytest.mark.parallel
def test_a_host_that_was_cut_off_comes_back(hosts: list[Host], tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "cut", train__steps=STEPS, train__save_every=5)
    cut = tmp_path / "cut"
    for host in hosts:
        host.start(path, "parallel.data=2", "parallel.timeout=10")
    wait_for(lambda: len(lines(cut)) > 7, hosts)
    ip("-n", hosts[1].name, "link", "set", "cable", "down")
    wait_for(lambda: "not answering: rank 1" in hosts[0].told, hosts)
    reached = lines(cut)[-1]["step"]
    ip("-n", hosts[1].name, "link", "set", "cable", "up")
    for host in hosts:
        assert host.run.wait(120) == 0, host.told
    assert reached < STEPS
    on_ranks(2, undisturbed, path, str(tmp_path / "whole"))
    compare(cut, tmp_path / "whole")


def compare(cut: Path, whole: Path) -> None:
    """Every step's loss, and the final weights, to the bit."""
    ours, wanted = (
        {line["step"]: line["loss"] for line in lines(run) if "loss" in line}
        for run in (cut, whole)
    )
    assert ours == wanted and sorted(ours) == list(range(1, STEPS + 1))
    models = [run / "model" / "model.safetensors" for run in (cut, whole)]
    held, other = map(load_file, models)
    assert all(torch.equal(held[name], other[name]) for name in other)


def wait_for(true: object, hosts: list[Host], seconds: float = 120) -> None:
    """Until something holds while both hosts go on."""
    end = time.monotonic() + seconds
    assert callable(true)
    while not true():
        told = "\n".join(host.told for host in hosts)
        assert time.monotonic() < end and all(h.run.poll() is None for h in hosts), told
        time.sleep(0.05)
