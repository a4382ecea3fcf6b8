"""The one training loop. Objectives, data and model come in; a run folder comes out."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.batch import Batch
from llamaseek.models import CausalLM
from llamaseek.recipe import Recipe, save_recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.curves import Curves
from llamaseek.train.evaluate import evaluate
from llamaseek.train.machine import (
    autocast,
    keep_freed_memory,
    matrix_peak,
    pick_device,
    pick_dtype,
    training_flops_per_token,
)
from llamaseek.train.objectives import Objective
from llamaseek.train.optimizer import WeightAverage, make_optimizer, update_routing_bias
from llamaseek.train.progress import Progress
from llamaseek.train.run_folder import RunFolder
from llamaseek.train.schedule import learning_rate
from llamaseek.train.source import Mixed, Sampled, Source
from llamaseek.train.state import (
    load_position,
    load_state,
    load_tensors,
    save_folder,
    save_position,
    save_state,
    save_tensors,
)


class Interrupted(Exception):
    """The run was asked to stop and has saved; `resume` says how to go on."""

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
    train: Source
    held_out: Batch | None = None
    held_out_bytes: int = 0
    # Figures of the model itself at each evaluation, as `val_NAME`.
    examine: Callable[[CausalLM], dict[str, float]] | None = None
    bad_rows: BadRows = field(default_factory=BadRows)  # what was left out of the data

    @property
    def tested(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.held_out is not None or self.examine is not None


StepHook = Callable[[int], None]


def train(job: Job, resume: bool = False, on_step: StepHook | None = None) -> RunFolder:
    """Run `job` to its last step; the final model lies in the run folder's `model`.

    With `resume` it continues from the newest checkpoint, bit for bit. Raises `Interrupted`
    after saving when SIGINT or SIGTERM came.
    """
    return Trainer(job).run(resume, on_step)


class Trainer:
    """The state of a run: model, optimizer, average, folder."""

    def __init__(self, job: Job) -> None:
        self.job, self.recipe = job, job.recipe.train
        self.device = pick_device(self.recipe.device)
        keep_freed_memory()
        self.model = job.model.to(self.device).train()
        self.model.checkpoint_activations = self.recipe.checkpoint_activations
        if self.recipe.compile:
            compile_layers(self.model)
        self.optimizer = make_optimizer(self.model, self.recipe)
        decay = self.recipe.ema
        self.average = WeightAverage(self.model, decay) if decay else None
        self.folder = RunFolder(job.recipe.folder)
        self.tokens = 0

    def run(self, resume: bool, on_step: StepHook | None) -> RunFolder:
        """All steps that are left, then the final model."""
        self.folder.create()
        done = self._start(resume)
        dtype = pick_dtype(self.recipe.precision, self.device)
        flops = training_flops_per_token(self.model, self.job.train.length)
        peak = matrix_peak(dtype, self.device)
        progress = Progress(self.job.recipe.name, self.recipe.steps, done, flops, peak)
        self.curves = Curves(self.folder.path / "tensorboard", done)
        progress.say(self.job.bad_rows.told())
        with progress, closing(self.curves), stop_signals() as asked:
            for step in range(done, self.recipe.steps):
                self._after(step, self.step(step), progress)
                if on_step is not None:
                    on_step(step)
                if asked:
                    self._save(step + 1)
                    raise Interrupted(asked[0], step + 1)
        self._finish()
        return self.folder

    def _start(self, resume: bool) -> int:
        steps = self.folder.saved_steps()
        if resume and steps:
            folder = self.folder.checkpoint(steps[-1])
            done = load_state(folder, self.model, self.optimizer, self.average)
            self.tokens = self.folder.rewind(done).get("tokens", 0)
            if isinstance(self.job.train, Sampled):
                self.job.train.restore(load_tensors(folder, "source"))
            if isinstance(self.job.train, Mixed):
                self.job.train.restore(load_position(folder))
            return done
        self.folder.clear()
        save_recipe(self.job.recipe, self.folder.path / "recipe.yaml")
        return 0

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step: gradients over micro-batches, clip, update. Returns its metrics."""
        start = time.perf_counter()
        torch.manual_seed(self.job.recipe.seed * 1_000_003 + step)
        batch = self.job.train.step(step, self.recipe.batch)
        batch = self.job.objective.prepare(batch, step).to(self.device)
        self.model.expert_load = {}
        losses = self._gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        rate = learning_rate(self.recipe, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.model.expert_load:
            update_routing_bias(self.model, self.recipe.bias_update)
        if self.average is not None:
            self.average.update(self.model)
        tokens = int(batch.tokens.numel())
        self.tokens += tokens
        seconds = time.perf_counter() - start
        return {
            "step": step + 1,
            **losses,
            "lr": rate,
            "grad_norm": float(norm),
            "tokens": self.tokens,
            "tokens_per_second": tokens / seconds,
            **self._expert_metrics(step),
            **(self.job.train.metrics() if isinstance(self.job.train, Sampled) else {}),
            **({"rows_skipped": self.job.bad_rows.skipped} if step == 0 else {}),
        }

    def _gradients(self, batch: Batch) -> dict[str, float]:
        """Backward through every micro-batch, each term divided by its count over the step."""
        objective = self.job.objective
        counts = objective.counts(batch)
        sums: dict[str, float] = {}
        total = 0.0
        for micro in batch.split(self.recipe.micro_batch or self.recipe.batch):
            with autocast(self.recipe, self.device):
                terms = objective.terms(self.model, micro)
            parts = [(t, t.sum / max(counts[t.name], 1)) for t in terms]
            loss = torch.stack([t.weight * mean for t, mean in parts if t.weight]).sum()
            loss.backward()
            total += float(loss.detach())
            for term, mean in parts:
                name = term.logged
                sums[name] = sums.get(name, 0.0) + float(mean.detach())
        return {"loss": total, **sums}

    def _expert_metrics(self, step: int) -> dict[str, Any]:
        loads = self.model.expert_load
        if not loads:
            return {}
        shares = [load.float() / load.float().mean() for load in loads.values()]
        metrics: dict[str, Any] = {
            "expert_load_max_over_mean": max(float(share.max()) for share in shares)
        }
        if (step + 1) % self.recipe.eval_every == 0 or step + 1 == self.recipe.steps:
            metrics["expert_load"] = [[round(float(x), 4) for x in share] for share in shares]
        return metrics

    def _after(self, step: int, line: dict[str, Any], progress: Progress) -> None:
        self._log(line)
        progress.update(line)
        done, last = step + 1, step + 1 == self.recipe.steps
        if self.job.tested and (done % self.recipe.eval_every == 0 or last):
            scores = self._evaluate()
            self._log({"step": done, **scores, **self._shares()})
            progress.evaluated(scores)
        if done % self.recipe.save_every == 0 and not last:
            self._save(done)

    def _shares(self) -> dict[str, float]:
        """What share of the tokens so far each source of a mix gave, and was asked for."""
        mix = self.job.train.shares() if isinstance(self.job.train, Mixed) else {}
        return {
            f"mix/{name}/{key}": round(found[key], 5)
            for name, found in mix.items()
            for key in ("share", "asked")
        }

    def _log(self, line: dict[str, Any]) -> None:
        self.folder.log(line)
        self.curves.log(line)

    def _evaluate(self) -> dict[str, float]:
        with self.averaged():
            return evaluate(self.job, self.model, self.recipe, self.device)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the model, where there is an average."""
        if self.average is None:
            yield
            return
        self.average.swap(self.model)
        try:
            yield
        finally:
            self.average.swap(self.model)

    def _save(self, done: int) -> None:
        def write(folder: Any) -> None:
            save_folder(folder, self.model, self.job.tokenizer)
            save_state(folder, self.model, self.optimizer, self.average, done)
            if isinstance(self.job.train, Sampled):
                save_tensors(folder, "source", self.job.train.state())
            if isinstance(self.job.train, Mixed):
                save_position(folder, self.job.train.state())

        self.folder.save(self.folder.checkpoint(done), write)
        self.folder.prune(self.recipe.keep)

    def _finish(self) -> None:
        self._save(self.recipe.steps)
        with self.averaged():
            self.folder.save(
                self.folder.final, lambda f: save_folder(f, self.model, self.job.tokenizer)
            )


def compile_layers(model: CausalLM) -> None:
    """Compile every layer in place, multi-token modules included; equal layers share one graph."""
    for layer in model.model.layers:
        layer.compile()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM puts its number into; a second SIGINT ends at once."""
    asked: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signum)

    kept = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for signum, handler in kept.items():
            signal.signal(signum, handler)
