"""Benchmarks of a model: from names of tasks to results, samples and their files.

lm-eval builds prompts, extracts answers and counts; its results are kept in its own shape.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llamaseek.engine.engine import Engine
from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.files import replacing, write_text

if TYPE_CHECKING:
    from llamaseek.evals.tasks import Room

CHAT = ("auto", "on", "off")
INVALID = "[invalid]"  # what lm-eval's filters give where they extract nothing
BOOTSTRAP = 1000  # samples for the error of what is no mean
Results = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is asked: `tasks` by name or as YAML files, at most `limit` items of each.

    `data` are folders of files; `chat` is auto, on or off; `num_fewshot` replaces the tasks' own
    number of shots; `overlap` is a run's folder, or data, to look for the items in; `out` is the
    folder for the results, which `resume` goes on with.
    """

    tasks: Sequence[str]
    data: Sequence[Path] = ()
    limit: int | None = None
    chat: str = "auto"
    num_fewshot: int | None = None
    max_gen_toks: int | None = None
    truncate: bool = False
    overlap: Path | None = None
    out: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.chat not in CHAT:
            raise bad_value("--chat", self.chat, ", ".join(CHAT))
        if not self.tasks:
            raise bad_value("--tasks", ",".join(self.tasks), "names of tasks, with commas between")
        for name in ("limit", "max_gen_toks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise bad_value(f"--{name.replace('_', '-')}", value, "a number of at least 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise bad_value("--num-fewshot", self.num_fewshot, "0 or more")
        if self.overlap is not None and not self.overlap.exists():
            raise UserError(f"--overlap: {self.overlap}: no such run, file or folder")
        if self.resume and self.out is None:
            raise UserError("--resume: needs --out, the folder of the run to go on with")


@dataclass
class Evaluation:
    """What came out: lm-eval's results, its samples by task, and warnings by task."""

    model: str
    results: Results
    samples: dict[str, list[dict[str, Any]]]
    warnings: dict[str, dict[str, int]] = field(default_factory=dict)


def evaluate_engine(
    engine: Engine,
    options: EvalOptions,
    *,
    name: str = "model",
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Run the benchmarks on an engine with a tokenizer; `log` gets a line on how each is asked.

    Raises UserError for tasks, data and prompts that cannot be used, before anything is computed.
    """
    check_installed()
    from llamaseek.evals.journal import Journal
    from llamaseek.evals.lm import EngineLM
    from llamaseek.evals.tasks import Room

    assert engine.tokenizer is not None
    _check_out(options)
    tokenizer, context = engine.tokenizer, min(engine.context, engine.capacity)
    room = Room(context, lambda text: len(tokenizer.encode(text)))
    tasks, plan = make_plan(options, tokenizer.chat_template is not None, log, room)
    journal = None
    if options.out is not None:
        settings = _settings(engine, name, options)
        journal = Journal(options.out / "journal.jsonl", settings, options.resume)
    lm = EngineLM(engine, tokenizer, name, journal, options.truncate)
    lm.progress = progress or lm.progress
    return run_plan(lm, tasks, plan, options, name)


def evaluate_server(
    url: str, options: EvalOptions, *, log: Callable[[str], None] = lambda line: None
) -> Evaluation:
    """The same by an OpenAI server at `url`, through lm-eval's own client.

    The server's tokenizer is asked for. Nothing is kept for `resume`. Raises UserError.
    """
    check_installed()
    from lm_eval.api.registry import get_model

    from llamaseek.evals.tasks import Room

    if options.resume:
        raise UserError("--resume: is not for a server, whose answers are not kept")
    base = url.rstrip("/")
    args = {"model": served_name(base), "base_url": f"{base}/completions"}
    args |= {"tokenizer_backend": "remote"}
    try:
        lm = get_model("local-completions").create_from_arg_obj(args, {"batch_size": 1})
    except Exception as error:
        raise UserError(f"{url}: {shorten(str(error))}") from error
    room = Room(getattr(lm, "max_length", 2048))
    tasks, plan = make_plan(options, options.chat != "off", log, room)
    return run_plan(lm, tasks, plan, options, url)


def served_name(base: str) -> str:
    """The first model that a server lists."""
    from urllib.request import urlopen

    try:
        with urlopen(f"{base}/models", timeout=10) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{base}/models: no server lists its models there ({error})") from None


def check_installed() -> None:
    """UserError where lm-eval is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("eval: needs lm-eval: pip install 'llamaseek[eval]'") from None


def _check_out(options: EvalOptions) -> None:
    """A folder with results is only used again by a run that goes on with them."""
    out = options.out
    if out is not None and not options.resume and (out / "journal.jsonl").exists():
        raise UserError(f"{out}: has an evaluation already; add --resume, or give another --out")


def _settings(engine: Engine, name: str, options: EvalOptions) -> dict[str, Any]:
    """What a journal's answers depend on besides the requests themselves."""
    weights = hashlib.sha256()
    for key, tensor in sorted(engine.model.state_dict().items()):
        weights.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            flat = tensor.detach().flatten()
            step = max(1, flat.numel() // 64)
            weights.update(repr(flat[::step].float().tolist()).encode())
    return {
        "model": name,
        "weights": weights.hexdigest()[:32],
        "truncate": options.truncate,
        "cache_dtype": engine.options.cache_dtype,
    }


@dataclass(frozen=True)
class PlannedTask:
    """A benchmark to run: by which name, lm-eval's object, shots, and whether as a chat."""

    name: str
    built: Any
    shots: int | None
    chat: bool


def make_plan(
    options: EvalOptions,
    has_template: bool,
    log: Callable[[str], None],
    room: Room | None = None,
) -> tuple[Any, list[PlannedTask]]:
    """The task manager, and the benchmarks in order. UserError where one cannot be had."""
    from llamaseek.evals.data import LocalData
    from llamaseek.evals.tasks import Tasks

    tasks = Tasks(list(options.tasks), LocalData(tuple(options.data)), room)
    return tasks, [_planned(each, tasks, has_template, options, log) for each in options.tasks]


def _planned(
    name: str, tasks: Any, has_template: bool, options: EvalOptions, log: Callable[[str], None]
) -> PlannedTask:
    shots = tasks.shots_of(name) if options.num_fewshot is None else options.num_fewshot
    built = tasks.build(name, shots)
    leaves = list(tasks.load([built])["tasks"].values())
    if not leaves:
        raise UserError(f"{name}: has no tasks")
    generates = all(task.OUTPUT_TYPE == "generate_until" for task in leaves)
    talks = has_template and generates and tasks.is_chat(name)
    if options.chat == "on" and not has_template:
        raise bad_value("--chat", "on", "off or auto: the model has no chat template")
    chat = options.chat == "on" or (options.chat == "auto" and talks)
    for task in leaves:
        if options.max_gen_toks is not None and generates:
            given = {"max_gen_toks": options.max_gen_toks}
            task.set_config(key="generation_kwargs", value=given, update=True)
    first = leaves[0]
    used = first.config.num_fewshot if shots is None else shots
    log(_protocol_line(name, tasks.task_of(name), first, len(leaves), used or 0, chat))
    if name in tasks.notes:
        log(tasks.notes[name])
    return PlannedTask(name, built, shots, chat)


def _protocol_line(name: str, task: str, first: Any, count: int, shots: int, chat: bool) -> str:
    """How a benchmark is asked, in one line."""
    kind = "log-likelihood" if first.OUTPUT_TYPE != "generate_until" else "generation"
    parts = [
        f"{name}: lm-eval {task}",
        f"{count} tasks" if count > 1 else "",
        f"{shots}-shot",
        kind,
    ]
    if kind == "generation":
        limit = (first.config.generation_kwargs or {}).get("max_gen_toks", 256)
        parts.append(f"at most {limit} tokens")
    parts.append("chat template" if chat else "no chat template")
    return ", ".join(filter(None, parts))


def run_plan(
    lm: Any, tasks: Any, plan: Sequence[PlannedTask], options: EvalOptions, name: str
) -> Evaluation:
    """Ask any model of lm-eval's interface what is planned; `name` is what it is called."""
    with environment_described_once():
        found = [_run(lm, tasks, planned, options) for planned in plan]
    evaluation = _joined(name, found, lm)
    if options.overlap is not None:
        from llamaseek.evals.overlap import overlaps, training_texts

        shares = overlaps(evaluation.samples, training_texts(options.overlap))
        evaluation.results["overlap"] = shares
    if options.out is not None:
        write(evaluation, options.out)
    return evaluation


@contextmanager
def environment_described_once() -> Iterator[None]:
    """lm-eval describes the machine after every task, which takes half a second with `pip list`."""
    from torch.utils import collect_env

    describe = collect_env.get_pretty_env_info
    collect_env.get_pretty_env_info = cache(describe)
    try:
        yield
    finally:
        collect_env.get_pretty_env_info = describe


@contextmanager
def kept_random_states() -> Iterator[None]:
    """lm-eval seeds the generators of the whole process; a training run goes on with its own."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _run(lm: Any, tasks: Any, planned: PlannedTask, options: EvalOptions) -> Results:
    """One benchmark by lm-eval."""
    from lm_eval import simple_evaluate

    try:
        with kept_random_states():
            return simple_evaluate(
                model=lm,
                tasks=[planned.built] if not isinstance(planned.built, list) else planned.built,
                task_manager=tasks,
                num_fewshot=planned.shots,
                limit=options.limit,
                bootstrap_iters=BOOTSTRAP,
                apply_chat_template=planned.chat,
                log_samples=True,
            )
    except (KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{planned.name}: its rows do not fit the task: {type(error).__name__}: {error}"
        ) from error


def _joined(name: str, found: Sequence[Results], lm: Any) -> Evaluation:
    """The results of all benchmarks as one object of lm-eval's shape."""
    from llamaseek.evals import verdicts

    joined: Results = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for results in found:
        for task, rows in (results.pop("samples", None) or {}).items():
            samples[task] = [_sample(task, row, lm) for row in rows]
        for key, value in results.items():
            if isinstance(value, dict) and isinstance(joined.get(key), dict):
                joined[key] = {**joined[key], **value}
            else:
                joined[key] = value
    joined["config"] = {**joined.get("config", {}), "model": name, "model_args": None}
    evaluation = Evaluation(name, joined, samples)
    given = getattr(lm, "warnings", {})
    for task, rows in samples.items():
        warned = asdict(given[task]) if task in given else {}
        nothing = Counter(f"nothing_extracted,{row['filter']}" for row in rows if _invalid(row))
        evaluation.warnings[task] = {**warned, **nothing}
    joined["warnings"] = evaluation.warnings | {
        "unjudged": {key: count for key, count in verdicts.unjudged.items() if count}
    }
    return evaluation


def _sample(task: str, row: dict[str, Any], lm: Any) -> dict[str, Any]:
    return {"task": task, **row, **getattr(lm, "facts", {}).get((task, row["doc_id"]), {})}


def _invalid(row: Mapping[str, Any]) -> bool:
    kept = row["filtered_resps"]
    return bool(kept) and all(each in (INVALID, [INVALID]) for each in kept)


def write(evaluation: Evaluation, out: Path) -> None:
    """results.json and samples.jsonl, each whole or not at all."""
    from lm_eval.utils import handle_non_serializable

    def text(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent)

    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "samples.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        for rows in evaluation.samples.values():
            for row in rows:
                file.write(text(row) + "\n")
    write_text(out / "results.json", text(evaluation.results, indent=2) + "\n")
