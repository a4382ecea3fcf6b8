"""The parts of a training run, and its interruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.batch import Batch
from llamaseek.data.source import Source
from llamaseek.models import CausalLM
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.objectives import Objective


def summary_lines(source: Source) -> list[str]:
    """One line with what each of several corpora gave, beside what was asked of it."""
    shares = source.shares()
    if len(shares) < 2:
        return []
    parts = (f"{name} {s['share']:.2%} ({s['asked']:.2%})" for name, s in shares.items())
    return [f"mix of tokens (asked): {', '.join(parts)}"]


class Interrupted(Exception):
    """The run was asked to stop and has saved; `resume` is the command that continues it."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.signum = signum
        self.step = step


@dataclass
class Job:
    """Everything one run trains with."""

    recipe: Recipe
    model: CausalLM
    tokenizer: Tokenizer
    objective: Objective
    source: Source
    held_out: Batch | None = None
    held_out_bytes: int = 0
    # Figures of the model itself at each evaluation, as `val_NAME`.
    eval_fn: Callable[[CausalLM], dict[str, float]] | None = None
    # What held-out rows come out as, before the run (true) and after it: JSON of a row each.
    examine: Callable[[CausalLM, bool], list[dict[str, Any]]] | None = None
    bad_rows: BadRows = field(default_factory=BadRows)  # what was left out of the data
    # Figures of what was sampled before the run, for its first line; rows for `samples.jsonl`.
    sampled: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    data_fingerprint: str = ""  # of the texts; of rows it is made from their files and generators

    @property
    def tested(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.held_out is not None or self.eval_fn is not None


StepHook = Callable[[int], None]
