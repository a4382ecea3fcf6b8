"""The lecture in four runs: pre-training, fine-tuning, instruction tuning, DPO; what each did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.builtin.instructions import LECTURE_INSTRUCTION
from llamaseek.data.builtin.tasks import LECTURE_EXAMPLES
from llamaseek.evals.generated import (
    Generator,
    expert_load,
    instruction_following,
    mtp_acceptance,
    preference_accuracy,
    preference_log_probs,
    story_parse_rate,
    task_exact_match,
)
from llamaseek.files import write_json
from llamaseek.herd.tensors import count_parameters
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.reading import find_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.study.lecture import STAGES, Sample
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.job import Job
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.saving.run_folder import RunFolder

FIRST_WORDS = "The red fox"
ITEMS = 500  # held-out items behind every figure
SMOKE_ITEMS = 8
SMOKE = (
    "train.steps=4",
    "train.batch=4",
    "train.warmup=1",
    "train.eval_every=2",
    "train.save_every=2",
)
SMOKE_DATA = {
    "pretrain": ("data.mix_bytes=150000", "tokenizer.vocab_size=400"),
    "sft": ("data.rows={tasks: 60}",),
    "instruct": ("data.rows={instructions: 60}",),
    "dpo": ("data.rows={preferences: 24}",),
}


@dataclass
class QuickstartResults:
    """What the stages showed so far; `figures` becomes `figures.json`."""

    figures: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def of(self, stage: str) -> list[Sample]:
        """The samples of one stage."""
        return [sample for sample in self.samples if sample.stage == stage]


Watcher = Callable[[str, QuickstartResults], None]
"""Called with a stage's name and all findings when the stage is done."""


def quickstart(
    family: str, folder: Path, smoke: bool, overwrite: bool, watch: Watcher
) -> dict[str, Any]:
    """Run the four stages into `folder` and return the figures, also written as `figures.json`.

    A stage whose folder holds the same recipe goes on from its checkpoints, so that an
    interrupted quickstart continues; another run there is an error, unless `overwrite` starts
    all of them again. `smoke` is a
    rehearsal in seconds, whose figures mean nothing.
    """
    started = time.perf_counter()
    found = QuickstartResults({"family": family, "seed": 0})
    items = SMOKE_ITEMS if smoke else ITEMS
    for stage in STAGES:
        recipe = stage_recipe(stage, family, folder, smoke)
        run_stage(stage, recipe, items, overwrite, found)
        watch(stage, found)
    found.figures["items"] = items
    found.figures["seconds"] = round(time.perf_counter() - started, 1)
    write_json(folder / "samples.json", [asdict(sample) for sample in found.samples])
    write_json(folder / "figures.json", found.figures)
    return found.figures


def stage_recipe(stage: str, family: str, folder: Path, smoke: bool) -> Recipe:
    """The bundled recipe of a stage, starting from the stage before it."""
    order = list(STAGES)
    overrides = [f"name={folder.name}/{stage}", f"out={folder / stage}"]
    if stage != order[0]:
        before = order[order.index(stage) - 1]
        overrides.append(f"model.init_from={folder / before / 'model'}")
    if smoke:
        overrides += [*SMOKE, *SMOKE_DATA[stage]]
    wanted = f"quickstart-{family if stage == order[0] else stage}"
    return load_recipe(find_recipe(wanted), overrides)


def run_stage(
    stage: str, recipe: Recipe, items: int, overwrite: bool, found: QuickstartResults
) -> None:
    """Measure, train, measure again."""
    saved = recipe.folder / "recipe.yaml"
    same = saved.is_file() and load_recipe(saved, []) == recipe
    if not same:
        RunFolder(recipe.folder).check(resume=False, overwrite=overwrite)
    resume = same and not overwrite
    job = build_job(recipe, resume)
    before = Generator(job.model, job.tokenizer)
    line_before = summary_line(stage, before)
    reference = scores_before(stage, job, before, items, found)
    train(job, resume)
    model = load_model(recipe.folder / "model").to(next(job.model.parameters()).device)
    after = Generator(model, Tokenizer.load(recipe.folder / "model"))
    scores_after(stage, job, after, items, found, reference)
    told_after = summary_line(stage, after)
    for (prompt, wanted), old, new in zip(examples(stage), line_before, told_after, strict=True):
        found.samples.append(Sample(stage, prompt, old, new, wanted))


def scores_before(
    stage: str, job: Job, model: Generator, items: int, found: QuickstartResults
) -> Tensor | None:
    """A stage's figures from the model it starts with; for DPO the reference log-probabilities."""
    figures = found.figures
    if stage == "sft":
        figures["task_exact_match"] = {"before": task_exact_match(model, items)}
    if stage == "instruct":
        figures["instruction_following"] = {"before": instruction_following(model, items)}
    if stage != "dpo":
        return None
    reference = preference_scores(job, model, items)
    figures["preference_accuracy"] = {"before": preference_accuracy(reference)}
    return reference


def scores_after(
    stage: str,
    job: Job,
    model: Generator,
    items: int,
    found: QuickstartResults,
    reference: Tensor | None,
) -> None:
    """The same figures from the model the stage made."""
    figures = found.figures
    if stage == "pretrain":
        figures["story_parse_rate"] = story_parse_rate(model, items)
        describe(job, model, items, figures)
    if stage == "sft":
        figures["task_exact_match"]["after"] = task_exact_match(model, items)
    if stage == "instruct":
        figures["instruction_following"]["after"] = instruction_following(model, items)
    if reference is not None:
        # The implicit reward is β log π/π_ref; β does not change which answer has more of it.
        reward = preference_scores(job, model, items) - reference
        figures["preference_accuracy"]["after"] = preference_accuracy(reward)
        figures["task_exact_match_after_dpo"] = task_exact_match(model, items)
        figures["instruction_following_after_dpo"] = instruction_following(model, items)


def preference_scores(job: Job, model: Generator, items: int) -> Tensor:
    """log p of held-out answers, counted as the recipe's form of DPO counts them."""
    recipe = job.recipe
    return preference_log_probs(model, items, recipe.data.length, recipe.train.dpo_form)


def describe(job: Job, speaker: Generator, items: int, figures: dict[str, Any]) -> None:
    """Sizes, and what only a mixture of experts has: load and accepted second tokens."""
    count = count_parameters(speaker.model.config)
    figures["parameters"] = count.total
    if speaker.model.config.multi_token_depth:
        figures["activated_parameters"] = count.activated
        assert job.held_out is not None
        loads = expert_load(speaker.model, job.held_out)
        figures["expert_load_max_over_mean"] = max(max(load) for load in loads)
        figures["mtp_acceptance"] = mtp_acceptance(speaker, items)


def examples(stage: str) -> list[tuple[str, str]]:
    """The lecture's prompts for a stage, each with the answer wanted ("" where many are right)."""
    if stage == "pretrain":
        return [(FIRST_WORDS, "")]
    if stage == "sft":
        return [(item.input, item.output) for item in LECTURE_EXAMPLES]
    return [(LECTURE_INSTRUCTION.input, LECTURE_INSTRUCTION.output)]


def summary_line(stage: str, speaker: Generator) -> list[str]:
    """What the model says to the lecture's prompts of a stage."""
    prompts = [prompt for prompt, _ in examples(stage)]
    if stage == "pretrain":
        return speaker.continuations(prompts)
    return speaker.answers(prompts)
