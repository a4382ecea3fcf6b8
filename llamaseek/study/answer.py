"""The lecture's questions by name, and what asking one leaves on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamaseek.files import write_json
from llamaseek.study.data_scaling import data_scaling
from llamaseek.study.mix import mix
from llamaseek.study.parallelism import parallelism
from llamaseek.study.runs import Finding, Settings, write_figure
from llamaseek.study.size import size
from llamaseek.study.stages import stages
from llamaseek.study.start import start


@dataclass(frozen=True)
class Study:
    """A question and what answers it."""

    question: str
    run: Callable[[Settings], Finding]


STUDIES = {
    "data-scaling": Study("Does more data lower the loss log-linearly?", data_scaling),
    "size": Study("A larger model or more data?", size),
    "mix": Study("Is a better mix better at equal tokens?", mix),
    "stages": Study("Why not a single training instead of several stages?", stages),
    "parallelism": Study("What does each layout hold, and what does it send?", parallelism),
    "start": Study("Which model to fine-tune an emotion detector from?", start),
}


def answer(name: str, settings: Settings) -> dict[str, Any]:
    """Run a study; its `figures.json` and `plot.png` are in the folder afterwards."""
    study = STUDIES[name]
    settings.folder.mkdir(parents=True, exist_ok=True)
    finding = study.run(settings)
    figures: dict[str, Any] = {"study": name, "question": study.question, "says": finding.says}
    figures |= {"seeds": list(settings.seeds), "rows": finding.rows}
    write_json(settings.folder / "figures.json", figures)
    write_figure(settings.folder / "plot.png", study.question, finding.draw)
    return figures
