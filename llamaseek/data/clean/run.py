"""A cleaning run from its recipe to the folder: documents, the removed, statistics.

Until it is done everything lies in a hidden folder inside, named by recipe and files, which a
later run of the same recipe continues.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

import yaml

from llamaseek.data.clean.dedup.stage import CorpusStage
from llamaseek.data.clean.engine import POLL, CleaningWorkers
from llamaseek.data.clean.plan import fingerprint, make_plan, save_plan
from llamaseek.data.clean.recipe import CleanRecipe, dump
from llamaseek.data.clean.steps import CleaningPass, WorkFolder, passes, run_pass
from llamaseek.data.clean.tally import READ, total
from llamaseek.data.hub import SCHEME, parse_hub
from llamaseek.errors import UserError
from llamaseek.files import places, write_json, write_text

OnStep = Callable[[str, int], None]
REPLACED = ("documents", "removed")


def clean(
    recipe: CleanRecipe,
    pool: CleaningWorkers,
    overwrite: bool = False,
    on_step: OnStep | None = None,
) -> Path:
    """Run or continue a recipe; returns its folder. A run that is complete is left as it is.

    Raises UserError if the folder holds another run, or what a run would take away, and for
    sources that cannot be read.
    """
    _check_place(recipe)
    does = {key: value for key, value in dump(recipe).items() if key not in ("name", "out")}
    mark = fingerprint(recipe.sources, does)
    folder = recipe.folder
    if _done(folder, mark, overwrite):
        return folder
    work = _prepare(recipe, folder / f".work-{mark}", pool)
    count = len(work.plan())
    steps = passes(recipe.stages)
    for step in steps:
        _one_pass(work, step, count, pool, on_step or (lambda name, tasks: None))
    if pool.machine == 0:
        _finish(recipe, work, steps, count, mark)
    return folder


def _check_place(recipe: CleanRecipe) -> None:
    """A run replaces two folders: neither may be read by it, or be something else's."""
    folder = recipe.folder
    mine = (folder / "stats.json").exists() or any(folder.glob(".work-*"))
    for own in (folder / name for name in REPLACED):
        for source in _read_by(recipe):
            if any(_overlap(place, own.resolve()) for place in places(source)):
                raise UserError(f"out: {folder} would replace its source {source}")
        if own.exists() and not mine:
            raise UserError(f"out: {own} exists already and was not created by a run")


def _read_by(recipe: CleanRecipe) -> Iterator[str]:
    """Every file, folder or glob that a run of this recipe reads."""
    for path in chain.from_iterable(recipe.sources.values()):
        yield parse_hub(path).name if path.startswith(SCHEME) else path
    for stage in recipe.stages:
        for setting, value in stage.settings.model_dump().items():
            entries = (value,) if isinstance(value, str) else value
            if setting in ("files", "classifier"):
                yield from entries
            elif isinstance(entries, tuple):
                yield from (e[1:] for e in entries if isinstance(e, str) and e.startswith("@"))


def _overlap(place: Path, own: Path) -> bool:
    return place.is_relative_to(own) or own.is_relative_to(place)


def _done(folder: Path, mark: str, overwrite: bool) -> bool:
    try:
        found = json.loads((folder / "stats.json").read_text())["fingerprint"]
    except (OSError, ValueError, KeyError):
        return False
    if overwrite:
        return False
    if found != mark:
        raise UserError(
            f"{folder}: holds another run; --overwrite replaces it, another out=… keeps it"
        )
    return True


def _prepare(recipe: CleanRecipe, folder: Path, pool: CleaningWorkers) -> WorkFolder:
    work, plan = WorkFolder(folder), folder / "plan.json"
    while pool.machine and not plan.is_file():
        time.sleep(POLL)
    if not plan.is_file():
        shards = make_plan(recipe.sources, recipe.shard_bytes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
        write_text(plan, save_plan(shards))
    for step in passes(recipe.stages):
        for kind in ("documents", "removed", "tally", "notes"):
            work.of_pass(step.number, kind).mkdir(parents=True, exist_ok=True)
    return work


def _one_pass(
    work: WorkFolder, step: CleaningPass, count: int, pool: CleaningWorkers, on_step: OnStep
) -> None:
    """The shards of a pass, then what its last stage decides; then the pass before may go."""
    on_step(_title(step), count)
    pool.run(count, partial(run_pass, work, step), work.folder, f"pass-{step.number}")
    if step.after is not None:
        assert isinstance(step.after.settings, CorpusStage)
        shards = work.shards(step.number, count)
        for number, part in enumerate(step.after.settings.rounds(shards)):
            on_step(f"{step.after.name}: decide {number + 1}", part.tasks)
            name = f"pass-{step.number}-{number}"
            pool.run(part.tasks, partial(part.run, shards), work.folder, name)
    if step.number and pool.machines == 1:
        for kind in ("documents", "notes"):  # no step to come reads them
            shutil.rmtree(work.of_pass(step.number - 1, kind), ignore_errors=True)


def _title(step: CleaningPass) -> str:
    stages = [s.name for s in (step.before, *step.stages) if s is not None]
    return ", ".join(stages) or "read"


def _finish(
    recipe: CleanRecipe, work: WorkFolder, steps: list[CleaningPass], count: int, mark: str
) -> None:
    """Move the last pass's documents and all removed into place; the statistics come last."""
    folder = recipe.folder
    (folder / "stats.json").unlink(missing_ok=True)
    tallies = []
    for step in steps:
        for shard in range(count):
            path = work.of_pass(step.number, "tally") / f"{shard:06d}.json"
            tallies.append(json.loads(path.read_text())["tally"])
    for name in REPLACED:
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.move(work.of_pass(steps[-1].number, "documents"), folder / "documents")
    for step in steps:
        place = folder / "removed" / f"pass-{step.number}"
        shutil.copytree(work.of_pass(step.number, "removed"), place)
    write_text(folder / "recipe.yaml", yaml.safe_dump(dump(recipe), sort_keys=False))
    tally, stages = total(tallies), [stage.name for stage in recipe.stages]
    if READ in tally.removed:
        tally.entered[READ], stages = sum(tally.read.values()), [READ, *stages]
    stats = {"fingerprint": mark, "stages": stages, "shards": count}
    write_json(folder / "stats.json", stats | asdict(tally))
    shutil.rmtree(work.folder)
