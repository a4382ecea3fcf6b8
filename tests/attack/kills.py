"""SIGKILL at random instants of training; every resumption ends with the same bits.

Each stage is trained once to its end by one rank and once by two. Then runs with `keep: 1` and a
checkpoint after each step are killed, and resumed to their end: the model must be the same file.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tests.attack.figures import Figure

PROMISE = "every resumed run ends with the same bits"
STAGES = ("pretrain", "sft", "dpo", "grpo")
ROWS = {"sft": "arithmetic", "dpo": "preferences", "grpo": "arithmetic"}
LONGEST = 240.0  # seconds of one training; more is a hang
LATER = 0.8  # of the kills wait for the first checkpoint
# Ranks are forked from a server that has imported everything and computed nothing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["llamaseek.train.jobs.pretrain", "torch.utils.tensorboard"])


@dataclass(frozen=True)
class Case:
    """What is trained and how it is saved."""

    stage: str
    ranks: int
    background: bool


CASES = [Case(*each) for each in product(STAGES, (1, 2), (False, True))]


def start_folder(place: Path) -> str:
    """An untrained model to tune."""
    import torch

    from llamaseek.herd import config_from_sizes
    from llamaseek.models import build_model
    from llamaseek.train.saving.state import save_folder
    from tests.train.tiny import LLAMA_SIZES, tiny_tokenizer

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {**LLAMA_SIZES, "vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
    sizes |= {"initializer_range": 0.1, "max_position_embeddings": 512}
    save_folder(place / "start", build_model(config_from_sizes("llama3", sizes)), tokenizer)
    return str(place / "start")


def recipe_file(place: Path, name: str, case: Case) -> Path:
    """The recipe of one run; its folder is of the same name."""
    from llamaseek.recipe.load import make_recipe, save_recipe
    from tests.train.tiny import recipe

    train: dict[str, Any] = {
        "steps": 6, "save_every": 1, "keep": 1, "save_in_background": case.background,
        "batch": 4, "warmup": 2, "precision": "fp32", "eval_every": 3, "lr": 1e-3, "ema": 0.9,
    }  # fmt: skip
    parallel = {"shard": case.ranks}
    folder = place / name
    folder.mkdir()
    if case.stage == "pretrain":
        changes = {f"train__{key}": value for key, value in train.items()}
        made = recipe(folder, **changes, parallel=parallel)
    else:
        rewards = [{"kind": "regex", "pattern": "[aeiou]"}]
        rollout = {"samples": 2, "max_tokens": 5, "rewards": rewards, "eval_prompts": 4}
        made = make_recipe({
            "name": "tiny", "stage": case.stage, "out": str(folder / "run"), "train": train,
            "model": {"init_from": str(place / "start")}, "parallel": parallel,
            "data": {"rows": {ROWS[case.stage]: 12}, "length": 400},
            **({"rollout": rollout} if case.stage == "grpo" else {}),
        })  # fmt: skip
    path = folder / "recipe.yaml"
    save_recipe(made, path)
    return path


def rank(path: str, environment: dict[str, str], ready: Connection) -> None:
    """What one rank does: the whole run, or what is left of it."""
    import torch

    from llamaseek.api import check_recipe
    from llamaseek.runtime.launch import process_group
    from llamaseek.train.jobs.pretrain import build_job
    from llamaseek.train.loop import train

    sys.stderr = Path(path).with_name(f"errors-{environment.get('RANK', 0)}").open("a", buffering=1)
    os.environ |= environment
    torch.set_num_threads(1)
    recipe = check_recipe(path)
    resume = (recipe.folder / "checkpoints").is_dir()
    with process_group(recipe):
        job = build_job(recipe, resume)
        ready.send(True)
        train(job, resume)


class Ranks:
    """The processes of one training, from when the first is about to train."""

    def __init__(self, path: Path, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.ready, theirs = SERVER.Pipe()
        self.path, self.processes = path, []
        for number in range(count):
            world = {
                "RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": str(number),
                "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo",
            }  # fmt: skip
            given = (str(path), world if count > 1 else {}, theirs)
            self.processes.append(SERVER.Process(target=rank, args=given))
        for process in self.processes:
            process.start()
        assert self.ready.poll(LONGEST), self.errors()
        self.ready.recv()
        self.begun = time.monotonic()

    def errors(self) -> str:
        """What the ranks said."""
        said = (path.read_text() for path in sorted(self.path.parent.glob("errors-*")))
        return f"{self.path}: " + "".join(said)[-3000:]

    def wait_for(self, true: Callable[[], bool]) -> None:
        """Until something holds, or a rank has ended."""
        while not true() and all(process.is_alive() for process in self.processes):
            time.sleep(0.002)

    def end(self) -> float:
        """Wait for the end; the seconds that it took."""
        for process in self.processes:
            process.join(LONGEST)
        codes = [process.exitcode for process in self.processes]
        self.stop(Random(0))
        assert codes == [0] * len(codes), f"{codes} {self.errors()}"
        return time.monotonic() - self.begun

    def stop(self, rng: Random) -> bool:
        """SIGKILL to one rank, then to the others; whether the training was still going on."""
        alive = all(process.is_alive() for process in self.processes)
        for process in rng.sample(self.processes, len(self.processes)):
            process.kill()
            process.join()
        return alive


def model_bytes(path: Path) -> bytes:
    """The final model of a run, which must be there."""
    return (path.parent / "run" / "model" / "model.safetensors").read_bytes()


class Kills:
    """Whole runs are made once; each kill is of a run of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.rng = place, Random("kills")
        self.whole: dict[tuple[str, int], tuple[bytes, float]] = {}
        self.moments: Counter[str] = Counter()  # where kills came
        start_folder(place)

    def wanted(self, case: Case) -> tuple[bytes, float]:
        """The model of a run that nothing disturbed, saved in the foreground; its seconds."""
        key = case.stage, case.ranks
        if key not in self.whole:
            path = recipe_file(self.place, f"{case.stage}-{case.ranks}", Case(*key, False))
            seconds = Ranks(path, case.ranks).end()
            self.whole[key] = model_bytes(path), seconds
        return self.whole[key]

    def resumed(self, case: Case) -> bool:
        """Kill one run at a random instant, resume it; whether its model has the same bits."""
        wanted, seconds = self.wanted(case)
        while True:
            path = recipe_file(self.place, f"run-{sum(self.moments.values())}", case)
            run = Ranks(path, case.ranks)
            checkpoints = path.parent / "run" / "checkpoints"
            if self.rng.random() < LATER:
                run.wait_for(lambda folder=checkpoints: any(folder.glob("step-*")))
            time.sleep(self.rng.uniform(0, seconds / 2))
            alive = run.stop(self.rng)
            half = any(checkpoints.glob(".partial*")) or any(checkpoints.glob(".old*"))
            whole = any(checkpoints.glob("step-*"))
            moment = "in a save" if half else "between saves" if whole else "before the first"
            self.moments[moment if alive else "too late"] += 1
            if alive:
                break
            seconds *= 0.8  # it ended before the kill
        Ranks(path, case.ranks).end()
        return model_bytes(path) == wanted


def killed(count: int, cases: list[Case]) -> tuple[list[Case], Counter[str]]:
    """So many kills over the cases in turn: those whose model came out otherwise; the moments."""
    with TemporaryDirectory() as place:
        kills = Kills(Path(place))
        taken = [cases[number % len(cases)] for number in range(count)]
        wrong = [case for case in taken if not kills.resumed(case)]
    return wrong, kills.moments


def campaign() -> Iterator[Figure]:
    """About eight minutes."""
    count = 50
    wrong, moments = killed(count, CASES)
    moments.pop("too late", None)
    where = ", ".join(f"{number} {moment}" for moment, number in sorted(moments.items()))
    seen = f"{count - len(wrong)} resumed to the same bits; killed {where}"
    tried = (
        f"{count} SIGKILLs over {', '.join(STAGES)}, both ways to save, `keep: 1`, 1 and 2 ranks"
    )
    yield Figure(tried, seen, PROMISE, not wrong)
