"""What layouts hold, receive and cost on a rank.

    python bench/parallel.py [--json PATH]

Bytes stand beside those that `llamaseek plan` counts: a ratio of 1 is what is wanted. Times are
compared side by side, in turn: two processes of one thread against one of two, and a mixture on two
processes with and without expert parallelism. Ranks are processes of this machine that talk over
gloo. `llamaseek study parallelism` is the same without times.
"""

from __future__ import annotations

import os
import statistics
import sys
from functools import partial
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, report
from llamaseek.study.layouts import PLANS, SIZES, Case, observed, on_ranks, step_seconds, trainer_of
from llamaseek.study.parallelism import compared, runs

ROUNDS, STEPS = 3, 3
DENSE = (
    "model.config.hidden_size=384",
    "model.config.intermediate_size=1024",
    "model.config.num_hidden_layers=6",
    "data.length=256",
    "train.micro_batch=4",
)
MIXTURE = (
    "model.config.hidden_size=256",
    "model.config.intermediate_size=512",
    "model.config.moe_intermediate_size=128",
    "model.config.n_routed_experts=16",
    "data.length=256",
    "train.micro_batch=4",
)


def bytes_rows() -> list[Row]:
    """Every layout of both families."""
    cases = {(f, name): Case(f, plan) for f in SIZES for name, plan in PLANS.items()}
    cases = {key: case for key, case in cases.items() if runs(*key)}
    found = []
    for (family, name), ranks in zip(cases, observed(list(cases.values())), strict=True):
        for row in compared(name, cases[family, name], ranks):
            metric = f"bytes {row['what']}, {row['kind']}"
            peer = (row["by"], row["computed"], row["ratio"])
            found.append(Row(f"{family} {name}", metric, row["bytes"], *peer, None))
    return found


def timed(case: Case) -> float:
    """Seconds of the fastest step, after a warm one."""
    trainer = trainer_of(case)
    trainer.step(0)
    return step_seconds(trainer, STEPS)


def seconds(case: Case, threads: int = 1) -> float:
    """Of a step: the slowest rank's."""
    (ranks,) = on_ranks(case.layout.gpus, [partial(timed, case)], threads)
    return max(ranks)


def in_turn(ours: tuple[Case, int], peer: tuple[Case, int]) -> tuple[float, float]:
    """Median seconds a step of two cases with so many threads, taken one after the other."""
    taken = [(seconds(*ours), seconds(*peer)) for _ in range(ROUNDS)]
    mine, others = zip(*taken, strict=True)
    return statistics.median(mine), statistics.median(others)


def versus(label: str, ours: tuple[Case, int], name: str, peer: tuple[Case, int]) -> Row:
    """Tokens a second."""
    mine, others = in_turn(ours, peer)
    recipe = ours[0].recipe
    tokens = recipe.train.batch * recipe.data.length
    ratio = round(others / mine, 3)
    return Row(label, "tokens/s", tokens / mine, name, tokens / others, ratio, None)


def time_rows() -> list[Row]:
    """Two processes against one, experts spread against experts copied."""
    two = Case("llama3", {"data": 2}, DENSE)
    one = Case("llama3", {}, DENSE)
    spread = Case("deepseek_v3", {"data": 2, "expert": 2}, MIXTURE)
    copied = Case("deepseek_v3", {"data": 2}, MIXTURE)
    return [
        versus("llama3 data 2", (two, 1), "one process, two threads", (one, 2)),
        versus("deepseek_v3 expert 2", (spread, 1), "data 2", (copied, 1)),
    ]


def main(json: Path | None = None, times: bool = True, sizes: bool = True) -> None:
    """Bytes (`--no-sizes` leaves them out), then times (`--no-times`)."""
    os.environ.pop("OMP_NUM_THREADS", None)  # each process sets its own
    rows = (bytes_rows() if sizes else []) + (time_rows() if times else [])
    report(rows, [], json)


if __name__ == "__main__":
    typer.run(main)
