"""What `import llamaseek` gives: a model to use, a recipe to run, an estimate. See docs/api.md.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamaseek.errors import UserError, unknown_name
from llamaseek.model import Model

if TYPE_CHECKING:
    from llamaseek.evals.run import Evaluation
    from llamaseek.recipe.reading import Overrides
    from llamaseek.recipe.schema import Recipe


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
) -> Model:
    """A model and its tokenizer, ready for inference.

    `source` is a model folder, a GGUF file, the name of a published model, an id of the Hub
    (`OWNER/NAME[@REVISION][:FILE]`), or a LoRA adapter's folder that names its base; `adapter` is
    an adapter for the model of `source`, merged as it is read. `device` is auto, cpu,
    cuda or cuda:1; `dtype` is auto, bf16 or fp32. Raises UserError for what cannot be used.
    """
    from llamaseek.checkpoints.sources import find_source
    from llamaseek.engine.open import open_model, open_tokenizer

    found = find_source(source, adapters=True)
    adapter = None if adapter is None else find_source(adapter, adapters=True)
    tokenizer = open_tokenizer(found, adapter)
    return Model(open_model(found, device=device, dtype=dtype, adapter=adapter), tokenizer)


@dataclass(frozen=True)
class Run:
    """A training run on disk: `folder` has recipe.yaml, metrics.jsonl, report.html, checkpoints
    and, once it is done, model."""

    folder: Path

    @property
    def model_folder(self) -> Path:
        """The trained model's Hugging Face folder."""
        return self.folder / "model"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl: `step` and that step's figures, or an evaluation's."""
        path = self.folder / "metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None

    def model(self, *, device: str = "auto", dtype: str = "auto") -> Model:
        """The trained model, as `load` gives it."""
        return load(self.model_folder, device=device, dtype=dtype)


def train(
    recipe: str | Path | Recipe,
    overrides: Overrides = (),
    *,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
) -> Run:
    """Run a recipe to its end, and write its report.

    `recipe` is a file, the name of a bundled recipe, or a `Recipe`; `overrides` are dotted keys
    with values. `resume` goes on from the newest checkpoint, with "auto" only if there is one;
    `overwrite` replaces a run that is there. A run that is resumed may differ in the keys of
    `allow_change` from what its checkpoint was trained with. Raises UserError before anything is
    written, and `Interrupted`, after a checkpoint, on SIGINT or SIGTERM.
    """
    from llamaseek.runtime.check import check_started
    from llamaseek.runtime.world import is_first_rank

    read = check_recipe(recipe, overrides)
    check_started(read, str(recipe) if isinstance(recipe, str | Path) else read.name)
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # a rank was lost
    if not again and resume != "auto":
        from llamaseek.train.saving.run_folder import RunFolder

        RunFolder(read.folder).check(bool(resume), overwrite)
    if is_first_rank():
        _warn(read)
    _run(read, bool(resume) or again, allow_change)
    return Run(read.folder)


def check_recipe(recipe: str | Path | Recipe, overrides: Overrides = ()) -> Recipe:
    """The recipe that `train` would run, checked as far as it can be before anything is read."""
    from llamaseek.checkpoints.sources import with_sources_found
    from llamaseek.recipe.reading import find_recipe
    from llamaseek.recipe.schema import Recipe
    from llamaseek.runtime.check import resolve
    from llamaseek.runtime.world import started_ranks
    from llamaseek.train.saving.reads import check_reads, check_recipe_file
    from llamaseek.train.tracking.tracker import check_trackers

    if isinstance(recipe, Recipe):
        read = recipe.with_overrides(overrides) if overrides else recipe
    else:
        read = Recipe.load(recipe, overrides)
    layout = resolve(with_sources_found(read, "config"), started_ranks()).parallel
    read = read.model_copy(update={"parallel": layout})
    check_reads(read)
    check_trackers(read.train.track)
    if not isinstance(recipe, Recipe):
        check_recipe_file(find_recipe(str(recipe)), read)
    return read


def _warn(recipe: Recipe) -> None:
    """Say what is allowed and unlikely to be meant."""
    from llamaseek.checkpoints.sources import with_sources_found
    from llamaseek.plan.learning_rate import unusual_rate
    from llamaseek.runtime.check import model_config

    if warning := unusual_rate(recipe, model_config(with_sources_found(recipe, "config"))):
        print(f"warning: {warning}", file=sys.stderr)


def _run(recipe: Recipe, resume: bool, allow_change: Sequence[str]) -> None:
    from llamaseek.report.page import write_report
    from llamaseek.runtime.launch import process_group
    from llamaseek.train.jobs.pretrain import build_job
    from llamaseek.train.loop import train as run

    with process_group(recipe):
        run(build_job(recipe, resume), resume, allow_change=allow_change, report=write_report)


def evaluate(
    model: str | Path | Model,
    tasks: str | Sequence[str] = ("mmlu", "gpqa", "humaneval", "gsm8k", "math"),
    *,
    data: str | Path | Sequence[str | Path] = (),
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **options: Any,
) -> Evaluation:
    """Score a model on benchmarks, as `llamaseek eval`.

    `model` is what `load` takes, or a `Model`; `tasks` are names of docs/eval.md or of lm-eval.
    `data` is a folder of files, or several. `options` are limit, chat, num_fewshot, max_gen_toks,
    truncate, overlap, out and resume. What comes back has lm-eval's `results`, and `samples` by
    task. Raises UserError.
    """
    from llamaseek.evals.run import EvalOptions, evaluate_engine

    known = [each.name for each in fields(EvalOptions) if each.name not in ("tasks", "data")]
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    folders = [data] if isinstance(data, str | Path) else data
    asked = EvalOptions(
        tasks=[tasks] if isinstance(tasks, str) else list(tasks),
        data=[Path(folder) for folder in folders],
        **options
        | {key: Path(options[key]) for key in ("out", "overlap") if options.get(key) is not None},
    )
    name = "model" if isinstance(model, Model) else str(model)
    if not isinstance(model, Model):
        model = load(model, device=device, dtype=dtype, adapter=adapter)
    return evaluate_engine(model.engine, asked, name=name)


def plan(model: str | Path | None = None, *, gpu: str, **options: Any) -> dict[str, Any]:
    """Memory, GPUs, layout, speed and cost of a model from its config, as `llamaseek plan --json`.

    `model` is the name of a published model, a model folder, a GGUF file or an id of the Hub, of
    which headers alone are read; `options` are those of the command:
    task, dtype, context, batch, gpus, params, tokens, price, utilization, checkpointing. Raises
    UserError.
    """
    from inspect import signature

    from llamaseek.checkpoints.sources import find_entry
    from llamaseek.plan.answer import answer
    from llamaseek.plan.question import ask

    known = [name for name in signature(ask).parameters if name not in ("model", "gpu")]
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    return answer(ask(None if model is None else find_entry(str(model)), gpu, **options))
