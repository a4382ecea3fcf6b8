"""Benchmarks by the lecture's names and by lm-eval's: which task, with how many shots, from where.

Prompts, shots and extraction are those of lm-eval's own files; only what cannot run as it is
there is replaced (`verdicts`), and rows come from `data`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from llamaseek.errors import UserError, shorten, unknown_name
from llamaseek.evals import core, needle, verdicts
from llamaseek.evals.data import LocalData
from llamaseek.evals.protocols import PROTOCOLS

SHIPPED = Path(lm_eval.tasks.__file__).parent
OWN = Path(__file__).parent / "tasks_meta"
PREFIX = "lm-eval:"
SANDBOXED = ("humaneval", "mbpp")


@dataclass(frozen=True)
class Room:
    """What a model has room for: its context in tokens, and how many tokens a text is.

    What it is without a model is a guess.
    """

    context: int = 1 << 13
    count: Callable[[str], int] = lambda text: len(text) // 4


class Factory(TaskFactory):  # type: ignore[misc]
    """lm-eval's factory, with rows of our own and verdicts that need nothing from the network."""

    def __init__(self, data: LocalData, meta: dict[str, Any] | None = None) -> None:
        super().__init__(meta=meta)
        self._data = data
        self.shots: int | None = None  # where they are not the task's own

    def _load_full_config(
        self, entry: Entry, overrides: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        folder = None if entry.yaml_path is None else entry.yaml_path.parent.name
        if folder == "ifeval":
            verdicts.quiet_nltk()
        if folder in SANDBOXED:
            config = self._sandboxed(folder, entry, overrides or {})
        else:
            config = super()._load_full_config(entry, overrides)
        return config if "group" in config else self._with_rows(_mended(config))

    def _sandboxed(self, folder: str, entry: Entry, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """A task whose own file fetches its metric from the hub: ours runs it in the sandbox."""
        verdicts.check_sandbox()
        config = dict(load_yaml(entry.yaml_path, resolve_func=False)) | dict(overrides)
        metric = {"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}
        config |= {"metric_list": [metric], "unsafe_code": False}
        config["process_results"] = getattr(verdicts, folder)
        if folder == "humaneval":
            program = {"function": "custom", "filter_fn": verdicts.complete_prompts}
            config["filter_list"] = [{"name": "create_test", "filter": [program]}]
        else:
            code = {"function": "custom", "filter_fn": _mbpp_programs}
            config["filter_list"] = [{"name": "extract_code", "filter": [code]}]
            config["fewshot_config"] = {"sampler": "first_n", "samples": _mbpp_shots}
        config["metadata"] = dict(config.get("metadata") or {})
        return config

    def _with_rows(self, config: dict[str, Any]) -> dict[str, Any]:
        """The task reads its rows from `data`; splits that are not there are not asked for."""
        if not config.get("dataset_path") or config.get("custom_dataset") or "class" in config:
            return config
        task, evaluated = (
            str(config["task"]),
            config.get("test_split") or config.get("validation_split"),
        )
        options = dict(config.pop("dataset_kwargs", None) or {})
        rows = self._data.load(
            task, config["dataset_path"], config.get("dataset_name"), str(evaluated), **options
        )
        config["custom_dataset"] = lambda **options: rows
        few = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
        shots = config.get("num_fewshot") if self.shots is None else self.shots
        if shots and few and few not in rows:
            raise UserError(
                f"{task}: needs the split {few!r} for its {shots} shots; there is "
                f"{', '.join(map(repr, rows))}"
            )
        for key in ("training_split", "validation_split", "fewshot_split"):
            if config.get(key) not in (None, *rows):
                config[key] = None
        return config


def _folder(task: str) -> Path | None:
    """The folder of lm-eval's tasks that a task's name begins with: `bbh` of `bbh_cot_fewshot`."""
    parts = task.split("_")
    names = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((SHIPPED / name for name in names if (SHIPPED / name).is_dir()), None)


def _quiet() -> None:
    """No log lines and bars of lm-eval and datasets: the caller reports progress once."""
    import datasets
    import lm_eval.api.task

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = lambda items, **options: items


def _mended(config: dict[str, Any]) -> dict[str, Any]:
    """A task's config with verdicts that do not depend on caches, threads or the network."""
    task, path = str(config.get("task")), config.get("dataset_path")
    if path == "Idavidrein/gpqa":
        config["process_docs"] = verdicts.ordered_options
    if path == "google/IFEval":
        config["process_docs"] = verdicts.judged_instructions
    if task.startswith("minerva_math"):
        config["process_results"] = verdicts.minerva(config["process_results"])
        more = {"metric": "hendrycks", "aggregation": "mean", "higher_is_better": True}
        config["metric_list"] = [*config["metric_list"], more]
    return config


def _mbpp_programs(resps: Any, docs: Any) -> Any:
    """The code of each answer: what a fence holds, or all up to the end mark."""
    from llamaseek.workers.sandbox import code_of

    return [[code_of(one).partition("[DONE]")[0] for one in answers] for answers in resps]


def _mbpp_shots() -> list[dict[str, Any]]:
    """lm-eval's three, which its own file does not give without the hub's metric."""
    import ast

    tree = ast.parse((SHIPPED / "mbpp" / "utils.py").read_text())
    (shots,) = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples"
    ]
    (found,) = [node.value for node in shots.body if isinstance(node, ast.Return)]
    return list(ast.literal_eval(found)) if found is not None else []


class Tasks(TaskManager):  # type: ignore[misc]
    """The named benchmarks, each loaded from the folder of lm-eval that holds it.

    A name that is none of `PROTOCOLS` is looked for in all of lm-eval's tasks, which takes ten
    seconds; `lm-eval:NAME` is lm-eval's own task of that name.
    """

    def __init__(self, names: list[str], data: LocalData, room: Room | None = None) -> None:
        _quiet()
        self.notes: dict[str, str] = {}
        known = [PROTOCOLS[name] for name in names if name in PROTOCOLS]
        folders = {str(SHIPPED / p.folder) if p.folder else str(OWN) for p in known}
        other = [name for name in names if name not in PROTOCOLS and not Path(name).is_file()]
        folders |= {str(place) for name in other if (place := _folder(self.task_of(name)))}
        super().__init__(include_path=sorted(folders), include_defaults=False)
        if not {self.task_of(name) for name in other} <= set(self.all_tasks):
            super().__init__(include_path=sorted(folders))  # ten seconds
        self._factory = Factory(data)
        self._build_math()
        self._build_needles(names, room or Room())
        if "core" in names:
            self._build_core(data)
        for name in other:
            if self.task_of(name) not in self.all_tasks:
                raise unknown_name("task", name, [*PROTOCOLS, *self.all_tasks])

    def _add(self, group: dict[str, Any], tasks: Sequence[dict[str, Any]] = ()) -> None:
        """A group of tasks that no file of lm-eval's has."""
        for config in tasks:
            self._index[config["task"]] = Entry(config["task"], Kind.TASK, None, config)
        self._index[group["group"]] = Entry(group["group"], Kind.GROUP, None, group)

    def _build_needles(self, names: Sequence[str], room: Room) -> None:
        """A task for each length that the model has room for."""
        for name in set(names) & set(needle.NEEDLES):
            tasks = [needle.task_config(name, length, room.count)
                     for length in needle.lengths_within(room.context)]  # fmt: skip
            metric = [{"metric": key, "aggregation": "mean", "weight_by_size": False}
                      for key in ("exact_match", "recall")]  # fmt: skip
            self._add({"group": name, "task": [task["task"] for task in tasks],
                       "aggregate_metric_list": metric}, tasks)  # fmt: skip

    def _build_core(self, data: LocalData) -> None:
        """The tasks of nanochat's bundle whose files are there."""
        tasks, missing = core.read_bundle(core.find_bundle(data.folders))
        self._add(core.group_config(tasks), [core.task_config(task) for task in tasks])
        shots = [f"{task.label} ({task.shots}-shot)" for task in tasks]
        self.notes["core"] = f"core: {', '.join(shots)}"
        if missing:
            self.notes["core"] += f"; without {', '.join(missing)}, whose files are not there"

    def _build_math(self) -> None:
        """lm-eval has MATH's seven subjects, and no group of them."""
        subjects = [name for name in self.all_tasks if name.startswith("minerva_math_")]
        metric = [
            {"metric": name, "aggregation": "mean", "weight_by_size": True}
            for name in ("exact_match", "math_verify", "hendrycks")
        ]
        if subjects:
            self._add({"group": "minerva_math", "task": subjects, "aggregate_metric_list": metric})

    @staticmethod
    def task_of(name: str) -> str:
        """lm-eval's name of a benchmark."""
        if name.startswith(PREFIX):
            return name.removeprefix(PREFIX)
        return PROTOCOLS[name].task if name in PROTOCOLS else name

    @staticmethod
    def shots_of(name: str) -> int | None:
        """The shots that a benchmark is known for; None leaves it to the task."""
        return PROTOCOLS[name].shots if name in PROTOCOLS else None

    @staticmethod
    def is_chat(name: str) -> bool:
        """Whether a benchmark that generates can be asked as a chat."""
        return name not in PROTOCOLS or not PROTOCOLS[name].continues

    def build(self, name: str, shots: int | None = None) -> Any:
        """lm-eval's task or group. UserError where it, its rows or its `shots` are missing."""
        self._factory.shots = shots
        try:
            return self._load_spec(self.task_of(name))
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise UserError(f"{name}: needs {error.name}: pip install 'llamaseek[eval]'") from None
        except Exception as error:
            raise UserError(f"{name}: lm-eval cannot load it: {shorten(str(error))}") from error
