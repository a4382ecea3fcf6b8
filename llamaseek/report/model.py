"""What a report shows, read from run folders. The page and the plots know nothing of files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, quoted
from llamaseek.evals.compare import Confusion
from llamaseek.files import read_jsonl
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.recipe.stages import STAGES as RECIPE_STAGES
from llamaseek.report.outcome import Side, outcome
from llamaseek.study.lecture import STAGES, Sample
from llamaseek.text.special import MASK_WORD
from llamaseek.units import count

SHOWN = 10  # held-out samples on the page


@dataclass(frozen=True)
class Figure:
    """One number before and after a stage, and what it says; a `share` of held-out items, or any
    number.
    """

    name: str
    before: float | None
    after: float
    meaning: str = ""
    share: bool = True


@dataclass(frozen=True)
class StageReport:
    """One run: its curves, what it changed, and how to repeat it."""

    title: str
    summary: str
    recipe: Recipe
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    command: str
    figures: list[Figure] = field(default_factory=list)
    samples: list[Side] = field(default_factory=list)
    confusion: Confusion | None = None

    @property
    def expert_load(self) -> list[list[float]] | None:
        """Each expert's load over the mean at the last step that recorded it, a list a layer."""
        loads = [line["expert_load"] for line in self.steps if "expert_load" in line]
        return loads[-1] if loads else None


@dataclass(frozen=True)
class Report:
    """The page of a run: the model, what each stage changed, the next commands."""

    title: str
    facts: list[tuple[str, str]]
    stages: list[StageReport]
    chat: str


def read_report(folder: Path) -> Report:
    """The report of one run, or of a quickstart's four.

    Raises `UserError` where the folder holds no run.
    """
    if (folder / "recipe.yaml").is_file():
        stage = read_stage(folder, "", {}, [])
        return Report(
            stage.recipe.name, run_facts(stage.recipe), [stage], talk(folder, stage.recipe)
        )
    figures = read_json(folder / "figures.json", {})
    samples = [Sample(**sample) for sample in read_json(folder / "samples.json", [])]
    stages = [
        read_stage(folder / name, name, figures, samples)
        for name in STAGES
        if (folder / name / "recipe.yaml").is_file()
    ]
    if not stages:
        raise UserError(f"{folder}: holds no run (no recipe.yaml in it or in its stages)")
    last = list(STAGES)[len(stages) - 1]
    chat = quoted("llamaseek", "chat", folder / last / "model")
    return Report(folder.name, headline(figures), stages, chat)


def read_stage(
    folder: Path, name: str, figures: dict[str, Any], samples: list[Sample]
) -> StageReport:
    """One run folder; `name` is its stage in a quickstart, empty for a run of its own."""
    recipe = load_recipe(folder / "recipe.yaml", [])
    lines = read_jsonl(folder / "metrics.jsonl")
    kind = RECIPE_STAGES[recipe.stage]
    title, summary = STAGES[name] if name else (kind.title, kind.summary)
    steps = [line for line in lines if "loss" in line]
    tested = [line for line in lines if any(name.startswith("val_") for name in line)]
    command = quoted("llamaseek", recipe.stage, folder / "recipe.yaml", "--overwrite")
    if not name:
        found = outcome(recipe, lines, folder)
        own = [Figure(m.name, m.before, m.after, m.meaning, m.share) for m in found.measures]
        shown = found.samples[:SHOWN]
        return StageReport(
            title, summary, recipe, steps, tested, command, own, shown, found.confusion
        )
    mine = [Side(s.prompt, s.wanted, s.before, s.after, s.after == s.wanted != "")
            for s in samples if s.stage == name]  # fmt: skip
    return StageReport(
        title, summary, recipe, steps, tested, command, stage_figures(name, figures), mine
    )


def run_facts(recipe: Recipe) -> list[tuple[str, str]]:
    """What a run began with: model, data, what is trained."""
    data, lora = recipe.data, recipe.lora
    sources = ", ".join(data.sources or data.corpora or data.mix or data.rows)
    trained = "all weights" if lora is None else f"adapters of rank {lora.rank}"
    facts = [("stage", recipe.stage), ("data", sources), ("trained", trained)]
    start = recipe.model.init_from
    return [*facts, ("from", start)] if start else facts


def talk(folder: Path, recipe: Recipe) -> str:
    """The command that uses the model of a run."""
    if recipe.train.objective == "masked":
        return quoted("llamaseek", "fill", folder / "model", f"The red {MASK_WORD} chased")
    verb = "chat" if RECIPE_STAGES[recipe.stage].chats else "generate"
    return quoted("llamaseek", verb, folder / "model")


def stage_figures(stage: str, figures: dict[str, Any]) -> list[Figure]:
    """The numbers of `figures.json` that belong to a stage."""
    pair = {"sft": "task_exact_match", "instruct": "instruction_following"}.get(stage)
    if stage == "pretrain" and "story_parse_rate" in figures:
        rows = [Figure("stories that parse", None, figures["story_parse_rate"])]
        if "mtp_acceptance" in figures:
            rows.append(Figure("second tokens accepted", None, figures["mtp_acceptance"]))
        return rows
    if stage == "dpo" and "preference_accuracy" in figures:
        preferred = figures["preference_accuracy"]
        before = figures["task_exact_match"]["after"]
        after = figures["task_exact_match_after_dpo"]
        tasks = [Figure(f"task: {task}", before[task], after[task]) for task in after]
        return [Figure("better answer preferred", preferred["before"], preferred["after"]), *tasks]
    if pair not in figures:
        return []
    before, after = figures[pair]["before"], figures[pair]["after"]
    if isinstance(after, dict):
        return [Figure(task, before[task], after[task]) for task in after]
    return [Figure("instructions followed", before, after)]


def headline(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """A few numbers for the top of the page."""
    facts = [("family", {"llama3": "Llama 3", "deepseek_v3": "DeepSeek-V3"}.get(f, f))
             for f in [figures.get("family")] if f]  # fmt: skip
    if "parameters" in figures:
        facts.append(("parameters", count(figures["parameters"])))
    if "activated_parameters" in figures:
        facts.append(("activated", count(figures["activated_parameters"])))
    if "seconds" in figures:
        facts.append(("time", f"{figures['seconds'] / 60:.1f} min"))
    if "expert_load_max_over_mean" in figures:
        facts.append(("busiest expert", f"{figures['expert_load_max_over_mean']:.2f} × mean"))
    return facts


def read_json(path: Path, default: Any) -> Any:
    """A JSON file's contents, or `default` if there is no file."""
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
