"""What a report shows, read from run folders. The page and the plots know nothing of files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, quoted
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.study.lecture import STAGES, Sample
from llamaseek.units import count


@dataclass(frozen=True)
class Figure:
    """One number before and after a stage; both are shares of held-out items."""

    name: str
    before: float | None
    after: float


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
    samples: list[Sample] = field(default_factory=list)

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
        return Report(stage.recipe.name, [], [stage], quoted("llamaseek", "chat", folder / "model"))
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
    lines = read_lines(folder / "metrics.jsonl")
    title, summary = STAGES[name] if name else (recipe.name, f"One {recipe.stage} run.")
    return StageReport(
        title,
        summary,
        recipe,
        [line for line in lines if "loss" in line],
        [line for line in lines if any(name.startswith("val_") for name in line)],
        quoted("llamaseek", recipe.stage, folder / "recipe.yaml", "--overwrite"),
        stage_figures(name, figures),
        [sample for sample in samples if sample.stage == name],
    )


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            if number < len(path.read_text().splitlines()):
                raise UserError(f"{path}:{number}: is not JSON") from None
    return lines
