"""Benchmarks of the model in training, at some of its steps (`train.evaluate`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.errors import UserError
from llamaseek.evals.run import EvalOptions, check_installed, evaluate_engine, make_plan
from llamaseek.models import CausalLM
from llamaseek.parallel.fully_sharded import whole_weights
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.examine import answers_here
from llamaseek.train.job import Job


@dataclass(frozen=True)
class Benchmarks:
    """What is asked, and every how many steps."""

    options: EvalOptions
    tokenizer: Tokenizer
    every: int

    @classmethod
    def of(cls, job: Job) -> Benchmarks | None:
        """Those of a recipe, if it has any.

        Raises UserError, before training, for tasks and data that cannot be used, and for layouts
        that split a model's matrices.
        """
        asked = job.recipe.train.evaluate
        if asked is None:
            return None
        if not answers_here(job.recipe):
            raise UserError(
                "train.evaluate: is not for tensor, pipeline, context or expert parallelism"
            )
        check_installed()
        options = EvalOptions(
            tasks=asked.tasks, data=[Path(folder) for folder in asked.data], limit=asked.limit
        )
        make_plan(options, job.tokenizer.chat_template is not None, lambda line: None)
        return cls(options, job.tokenizer, asked.every)

    def due(self, done: int, last: bool) -> bool:
        """Whether the step is one with benchmarks."""
        return last or done % self.every == 0

    def scores(self, model: CausalLM) -> dict[str, Any]:
        """Every figure of every task as `eval/TASK/METRIC`; all ranks compute the same."""
        trained = model.training
        with whole_weights(model):
            engine = Engine(model, self.tokenizer, EngineOptions(cuda_graphs=False))
            results = evaluate_engine(engine, self.options).results["results"]
        model.train(trained)
        return {
            f"eval/{task}/{key.removesuffix(',none')}": value
            for task, figures in results.items()
            for key, value in figures.items()
            if "," in key and isinstance(value, int | float)
        }
