"""The one training loop. Objectives, data and model come in; a run folder comes out."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamaseek.checkpoints.sources import with_names
from llamaseek.data.batch import Batch
from llamaseek.errors import UserError
from llamaseek.files import read_jsonl, write_jsonl
from llamaseek.models import CausalLM
from llamaseek.models.lora import LoRALinear
from llamaseek.models.moe import leave_wide_products
from llamaseek.models.quant.fp8_training import use_float8
from llamaseek.models.recompute import recompute
from llamaseek.parallel.collectives import on_first_rank
from llamaseek.parallel.ranks import ParallelModel
from llamaseek.plan.flops import recipe_flops
from llamaseek.recipe.load import save_recipe
from llamaseek.runtime.device import (
    PeakRate,
    autocast,
    be_deterministic,
    compiles,
    hand_back_freed_memory,
    keep_freed_memory,
    peak_rate,
    pick_device,
    pick_dtype,
)
from llamaseek.runtime.signals import stop_signals
from llamaseek.runtime.watch import set_phase
from llamaseek.train.benchmarks import Benchmarks
from llamaseek.train.best import RESTORED, BestEvaluation, check_can_choose
from llamaseek.train.evaluate import LossAccumulator, evaluate
from llamaseek.train.figures import Arriving, StepFigures, all_finite, is_finite
from llamaseek.train.job import Interrupted, Job, StepHook, summary_lines
from llamaseek.train.monitor import NonFiniteGuard
from llamaseek.train.optimizer import (
    WeightAverage,
    learning_rate,
    make_optimizer,
    update_routing_bias,
)
from llamaseek.train.progress import Progress
from llamaseek.train.saving.card import write_run_cards
from llamaseek.train.saving.lock import hold, release
from llamaseek.train.saving.pins import pins_of, save_pins
from llamaseek.train.saving.resume import Resumption
from llamaseek.train.saving.run_folder import RunFolder
from llamaseek.train.saving.saver import Adapted, AdaptedParts, Exported, Saver, outline
from llamaseek.train.saving.state import (
    load_state,
    save_source,
)
from llamaseek.train.tracking.trackers import Trackers

BEFORE, AFTER = "before.jsonl", "after.jsonl"
"""What held-out rows came out as at both ends of a run, in its folder."""


def train(
    job: Job,
    resume: bool = False,
    on_step: StepHook | None = None,
    allow_change: Sequence[str] = (),
    report: Callable[[Path], Path] | None = None,
) -> RunFolder:
    """Run `job` to its last step; the final model lies in the run folder's `model`.

    With `resume` it continues from the newest checkpoint, bit for bit. What the checkpoint depends
    on must be the same, but for the keys in `allow_change`. `report` writes a run folder's page, on
    the first rank. Raises `Interrupted` after saving when SIGINT or SIGTERM came.
    """
    folder = job.recipe.folder
    on_first_rank(lambda: hold(folder))
    try:
        return Trainer(job, allow_change).run(resume, on_step, report)
    finally:
        release(folder)


class Trainer:
    """The state of a run on this rank: weights, optimizer, average, folder."""

    def __init__(self, job: Job, allow_change: Sequence[str] = ()) -> None:
        self.job, self.recipe, self.allow_change = job, job.recipe.train, allow_change
        check_can_choose(self.recipe, job.held_out is not None)
        self.benchmarks = Benchmarks.of(job)
        self.device = pick_device(self.recipe.device)
        if self.recipe.deterministic:
            be_deterministic(self.device)
        dtype = pick_dtype(self.recipe.precision, self.device)
        model = job.model.train()
        self.flops = recipe_flops(job.recipe, model.config, job.source.length)
        form = saved_form(model, job, torch.promote_types(dtype, torch.float32))
        use_float8(model, self.recipe.float8, self.device)
        hand_back_freed_memory()
        self.ranks = ParallelModel(model, job.recipe.parallel, self.device, dtype)
        keep_freed_memory()
        recompute(self.ranks.layers(), self.recipe.checkpoint_activations)
        if compiles(self.recipe, self.device):
            compile_layers(self.ranks)
        self.optimizer = make_optimizer(self.ranks.stepped(), self.recipe)
        decay = self.recipe.ema
        self.average = WeightAverage(self.ranks.own, decay) if decay else None
        self.folder = RunFolder(job.recipe.folder)
        self.saver = Saver(
            self.folder,
            self.ranks,
            form,
            self.recipe.keep,
            self.recipe.save_in_background,
        )
        self.pins = pins_of(job, dtype, self.device) if self.ranks.main else {}
        self.guard = NonFiniteGuard(self.folder.path, self.recipe.max_skipped)
        self.logged: dict[str, str] = {}  # terms by the name they have in the metrics
        self.tokens = 0
        self.best = BestEvaluation()
        self.place = "start"
        self.later = self.device.type != "cpu"  # whether a step is read after the next has begun
        self.begun: StepFigures | None = None
        self.asked: list[int] = []  # signals
        self.stopping = False
        self.read_at = 0.0
        self.trackers: Trackers | None = None
        self.completed = False

    def run(
        self,
        resume: bool,
        on_step: StepHook | None,
        report: Callable[[Path], Path] | None = None,
    ) -> RunFolder:
        """All steps that are left, then the final model and its report."""
        with closing(self):
            self._finish(self._steps(self._start(resume), on_step))
            if self.trackers is not None:
                self.trackers.finish(report(self.folder.path) if report else None)
            self.completed = True
        return self.folder

    def _steps(self, done: int, on_step: StepHook | None) -> int:
        """All steps that are left; the step whose weights are the final ones."""
        name, main = self.job.recipe.name, self.ranks.main
        peak = PeakRate(partial(peak_rate, self.ranks.dtype, self.device)) if main else None
        progress = Progress(
            name,
            self.recipe.steps,
            done,
            self.flops,
            peak,
            rows=self.job.source.rows,
            batch=self.recipe.batch,
            shown=main,
        )
        self.trackers = Trackers(self.job.recipe, done) if main else None
        progress.say(self.job.bad_rows.summary())
        with progress, stop_signals() as asked:
            self.asked = asked
            if done == 0:
                self._begin(progress)
            done = self._train(done, progress, on_step, asked)
            progress.say(summary_lines(self.job.source))
            self._save(done, last=True)
            kept = self._restore_best(done, progress)
            self._examine(before=False)
        return kept

    def _train(
        self, done: int, progress: Progress, on_step: StepHook | None, asked: list[int]
    ) -> int:
        """Train until the last step, or until held-out loss has not fallen for long; the step."""
        patience = self.recipe.early_stopping_patience
        for step in range(done, self.recipe.steps):
            if self.best.should_stop(patience):
                progress.say([f"stopped: held-out loss has not fallen since step {self.best.step}"])
                return step
            self._after(self.begin(step), progress)
            if on_step is not None:
                on_step(step)
            if self.stopping if self.later else self.ranks.any(bool(asked)):
                self._show(progress)
                self._save(step + 1, last=True)
                raise Interrupted(asked[0] if asked else signal.SIGTERM, step + 1)
        return self.recipe.steps

    def _restore_best(self, done: int, progress: Progress) -> int:
        """The weights of the best evaluation, where they are wanted and not the last ones; their
        step.
        """
        best = self.best.step
        if not self.recipe.load_best_model_at_end or best is None or best == done:
            return done
        load_state(self.folder.checkpoint(best), self.ranks, self.optimizer, self.average)
        self._log({"step": done, RESTORED: best, **self._evaluate()})
        progress.say([f"kept: the weights of step {best}, whose held-out loss is the lowest"])
        return best

    def _begin(self, progress: Progress) -> None:
        """Where the run begins: the figures and answers that its end is compared with."""
        starts = self.job.recipe.model.init_from is not None and self.job.held_out is not None
        if self.job.eval_fn is not None or starts:
            self._test(0, progress)
        self._examine(before=True)

    def _examine(self, before: bool) -> None:
        if self.job.examine is None:
            return
        set_phase("answers to held-out rows")
        with self.averaged():
            found = self.job.examine(self.ranks.parts[0], before)
        if self.ranks.main:
            write_jsonl(self.folder.path / (BEFORE if before else AFTER), found)

    def close(self) -> None:
        """End the run in the tools that track it."""
        if self.trackers is not None:
            self.trackers.close(self.completed)

    def _start(self, resume: bool) -> int:
        on_first_rank(self.folder.create)
        done = self._resume() if resume else 0
        if self.ranks.main:
            if not done:
                self.folder.clear()
                if self.job.samples:
                    write_jsonl(self.folder.path / "samples.jsonl", self.job.samples)
            save_recipe(with_names(self.job.recipe), self.folder.path / "recipe.yaml")
        self.ranks.barrier()
        if done:
            self._recall_best()
        return done

    def _resume(self) -> int:
        found = Resumption(self.folder, self.ranks, self.optimizer, self.average, self.job.source)
        found.compare(self.pins, self.allow_change)
        done, self.tokens = found.resume(self.recipe.steps)
        return done

    def _recall_best(self) -> None:
        """The best evaluation of the steps before a resumed run, if its weights are there."""
        best = BestEvaluation.of(read_jsonl(self.folder.metrics))
        if not self.recipe.load_best_model_at_end:
            self.best = best
        elif best.step in self.folder.saved_steps():
            self.best, self.saver.best = best, best.step

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step, begun and read. Returns its metrics."""
        return self.read(self.begin(step))

    def begin(self, step: int) -> StepFigures:
        """One optimizer step: gradients over micro-batches, clip, update. The host waits for none
        of it on a GPU.

        A step whose loss or gradient is not finite changes nothing and is counted.
        """
        start = time.perf_counter()
        self.place = f"step {step + 1}"
        set_phase(f"{self.place}, making the batch")
        torch.manual_seed(self.job.recipe.seed * 1_000_003 + step)
        batch = self.job.source.step(step, self.recipe.batch)
        batch = self.job.objective.prepare(batch, step)
        if not self.job.objective.in_loss(batch):
            raise UserError(
                f"step {step + 1}: no token of its batch is in the loss, so it learns nothing; "
                "`llamaseek data inspect` shows what of the rows is"
            )
        losses = self._gradients(batch)
        set_phase(f"{self.place}, clipping and stepping")
        norm = self.ranks.clip(self.recipe.clip)
        rate = learning_rate(self.recipe, step)
        loads = self.ranks.loads()
        self._update(rate, loads, is_finite(losses["loss"], norm))
        self.ranks.zero_gradients()
        stop = torch.full_like(norm, float(bool(self.asked)))
        ends = self.ranks.total(stop) if self.later else stop
        return StepFigures(
            step=step,
            start=start,
            batch=batch,
            rate=rate,
            names=list(losses),
            found=Arriving(torch.stack([x.double() for x in (*losses.values(), norm, ends)])),
            loads=Arriving(torch.stack(list(loads.values()))) if loads else None,
            routed=list(loads),
            data=self.job.source.metrics(),
        )

    def read(self, begun: StepFigures) -> dict[str, Any]:
        """The metrics of a step that was begun."""
        losses, norm, self.stopping = begun.numbers()
        finite = all_finite(norm, losses["loss"])
        if not finite and self.average is not None:
            self.average.skipped()
        skipped = self.guard.saw(begun.step, finite, begun.batch, self.ranks.main)
        tokens = int(begun.batch.tokens.numel())
        self.tokens += tokens
        now = time.perf_counter()
        seconds = now - max(self.read_at, begun.start)
        self.read_at = now
        first = begun.step == 0
        return {
            "step": begun.step + 1,
            **losses,
            "lr": begun.rate,
            "grad_norm": norm,
            "tokens": self.tokens,
            "tokens_per_second": tokens / seconds,
            **skipped,
            **begun.expert_metrics(whole=self._evaluates(begun.step + 1)),
            **begun.data,
            **({"rows_skipped": self.job.bad_rows.skipped} if first else {}),
            **(self.job.sampled if first else {}),
        }

    def _update(self, rate: float, loads: dict[int, Tensor], finite: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # What the fused kernels ask before they change anything, as under a gradient scaler.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.ranks.after_step()
        for part in self.ranks.parts if not self.saver.adapted else []:
            update_routing_bias(part, loads, self.recipe.bias_update, finite)
        if self.average is not None:
            self.average.update(finite)

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Backward through every micro-batch, each term divided by its count over the step.

        Gives the whole run's loss and each term's mean by its name in the metrics, on the device.
        """
        tally = LossAccumulator(self.job.objective.counts(batch))
        self._run(batch, tally, backward=True)
        set_phase(f"{self.place}, adding up gradients")
        self.ranks.gradients()
        self.logged = self.logged or self.ranks.from_last_stage(tally.logged)
        loss, *means = tally.vector(self.ranks)
        by_term = dict(zip(tally.counts, means, strict=True))
        return {"loss": loss, **{name: by_term[term] for term, name in self.logged.items()}}

    def _run(self, batch: Batch, tally: LossAccumulator, backward: bool) -> None:
        """The objective on this rank's share of a batch."""

        def loss(model: CausalLM, micro: Batch) -> Tensor:
            set_phase(f"{self.place}, {'forward and backward' if backward else 'evaluation'}")
            with autocast(self.recipe, self.device):
                return tally.add(self.job.objective.terms(model, micro))

        rows = self.recipe.micro_batch or (1 if self.ranks.pipeline else self.recipe.batch)
        self.ranks.run(self.ranks.share(batch, rows), rows, loss, backward)

    def _show(self, progress: Progress) -> None:
        """Log the step that was begun last, if that has not been done."""
        if self.begun is not None:
            line = self.read(self.begun)
            self.begun = None
            self._log(line)
            progress.update(line)

    def _after(self, begun: StepFigures, progress: Progress) -> None:
        """What follows a step that was begun. On a GPU the one before it is read now, and this one
        only where something is to be done with the weights.
        """
        self._show(progress)
        self.begun = begun
        done, last = begun.step + 1, begun.step + 1 == self.recipe.steps
        if not self.later or last or self._pauses(done):
            self._show(progress)
        saved = done % self.recipe.save_every == 0
        if self.job.tested and self._evaluates(done):
            saved |= self._test(done, progress)
        if self.benchmarks is not None and self.benchmarks.due(done, last):
            set_phase(f"step {done}, benchmarks")
            with self.averaged():
                self._log({"step": done, **self.benchmarks.scores(self.job.model)})
        if saved and not last:
            self._save(done)

    def _pauses(self, done: int) -> bool:
        """Whether weights are evaluated or saved after so many steps."""
        recipe = self.recipe
        due = self.benchmarks is not None and self.benchmarks.due(done, done == recipe.steps)
        return due or self._evaluates(done) or done % recipe.save_every == 0

    def _evaluates(self, done: int) -> bool:
        """Whether held-out rows are evaluated after so many steps."""
        return done % self.recipe.eval_every == 0 or done == self.recipe.steps

    def _test(self, done: int, progress: Progress) -> bool:
        """Evaluate and log; whether these weights are the best so far, and are to be kept."""
        scores = self._evaluate()
        self._log({"step": done, **scores, **self._shares()})
        progress.evaluated(done, scores)
        if not done or "val_loss" not in scores or not self.best.saw(done, scores["val_loss"]):
            return False
        if self.recipe.load_best_model_at_end:
            self.saver.best = done
        return self.recipe.load_best_model_at_end

    def _shares(self) -> dict[str, float]:
        """What share of the tokens so far each source of a mix gave, and was asked for."""
        mix = self.job.source.shares()
        return {
            f"mix/{name}/{key}": round(found[key], 5)
            for name, found in mix.items()
            for key in ("share", "asked")
        }

    def _log(self, line: dict[str, Any]) -> None:
        if self.trackers is not None:
            self.folder.log(line)
            self.trackers.log(line)

    def _evaluate(self) -> dict[str, float]:
        with self.averaged():
            return evaluate(
                self.job, self.ranks, lambda batch, tally: self._run(batch, tally, backward=False)
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the model, where there is an average."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def _save(self, done: int, last: bool = False) -> None:
        state = self.job.source.state()

        def extras(folder: Path) -> None:
            save_source(folder, state)
            save_pins(folder, self.pins)

        set_phase(f"step {done}, checkpoint")
        self.saver.save(done, self.optimizer, self.average, extras, last)

    def _finish(self, step: int) -> None:
        with self.averaged():
            self.saver.finish(step, self.average is not None)
        if self.ranks.main:
            write_run_cards(self.folder, self.job.recipe, self.pins["contents"]["data"])


def saved_form(model: CausalLM, job: Job, dtype: torch.dtype) -> Exported | Adapted | AdaptedParts:
    """How the folders of a run are written, in `dtype`; before the model is taken apart."""
    base = job.recipe.model.init_from or ""
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        if job.recipe.parallel.shard > 1:
            return AdaptedParts(outline(model, dtype), job.tokenizer, base)
        return Adapted(model, job.tokenizer, base)
    return Exported(outline(model, dtype), job.tokenizer)


def compile_layers(ranks: ParallelModel) -> None:
    """Compile every layer in place, multi-token modules included; equal layers share one graph."""
    leave_wide_products()
    for layer in ranks.layers():
        layer.compile()
