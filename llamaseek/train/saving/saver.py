"""Checkpoints of a run, by all its ranks together; in the background if the recipe says so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from llamaseek.checkpoints.hf import from_hf, read_folder, to_hf, write_folder
from llamaseek.checkpoints.merge_adapter import merged
from llamaseek.checkpoints.peft import adapter_of, save_adapter
from llamaseek.checkpoints.widen import dequantized
from llamaseek.errors import UserError
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM
from llamaseek.models.lazy import Lazy, lazy
from llamaseek.parallel.ranks import ParallelModel
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.optimizer import WeightAverage
from llamaseek.train.saving.index import Reader
from llamaseek.train.saving.run_folder import RunFolder
from llamaseek.train.saving.state import (
    AVERAGE,
    MODEL,
    one_process_is_meant,
    save_folder,
    save_state,
    save_words,
    state_tensors,
)


def outline(model: CausalLM, dtype: torch.dtype) -> CausalLM:
    """The model without its numbers, every tensor on `meta`; parameters in `dtype`."""
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for own in model.parameters():
        empty = torch.empty_like(own, device="meta", dtype=dtype)
        memo[id(own)] = nn.Parameter(empty, requires_grad=own.requires_grad)
    return deepcopy(model, memo)


class SavedWeights(dict[str, Tensor]):
    """The tensors of `state/weights`, read on demand; the latest one is kept."""

    def __init__(self, weights: Path, averaged: bool) -> None:
        super().__init__()
        self.reader = Reader(weights)
        self.known = self.reader.index.state_dict_metadata
        self.averaged = averaged

    def __missing__(self, name: str) -> Tensor:
        key = MODEL + name
        if self.averaged and AVERAGE + name in self.known:
            key = AVERAGE + name
        found = self.known[key]
        assert isinstance(found, TensorStorageMetadata)
        tensor = torch.empty(found.size, dtype=found.properties.dtype)
        with one_process_is_meant():
            dcp.load({key: tensor}, storage_reader=self.reader, no_dist=True)
        self.clear()
        self[name] = tensor
        return tensor


def export(weights: Path, model: CausalLM, folder: Path, averaged: bool = False) -> None:
    """Write `config.json` and the tensors of the model that `outline` describes."""
    stored = SavedWeights(weights, averaged)

    def reads(name: str) -> Callable[[int, int], Tensor]:
        def rows(start: int, stop: int) -> Tensor:
            whole = from_hf(name, stored)
            return whole[start:stop] if whole.shape else whole

        return rows

    tensors = {
        name: Lazy(tensor.dtype, tuple(tensor.shape), reads(name)) for name, tensor in to_hf(model)
    }
    write_folder(folder, model.config, tensors)


Extras = Callable[[Path], None]


@dataclass(frozen=True)
class Exported:
    """A model whose folders are written from `state/weights`, under any layout."""

    outline: CausalLM
    tokenizer: Tokenizer

    def write(self, weights: Path, folder: Path, averaged: bool) -> None:
        """A Hugging Face folder."""
        export(weights, self.outline, folder, averaged)
        save_words(folder, self.tokenizer)

    def finish(self, weights: Path, folder: RunFolder, averaged: bool) -> None:
        """The final model."""
        folder.save(folder.final, lambda f: self.write(weights, f, averaged))


@dataclass(frozen=True)
class Adapted:
    """A model with adapters, whole on every rank; its folders are PEFT's, on `base`."""

    model: CausalLM
    tokenizer: Tokenizer
    base: str

    def write(self, weights: Path, folder: Path, averaged: bool) -> None:
        """The adapters as they are now."""
        save_adapter(self.model, folder, self.base)
        self.tokenizer.save(folder)

    def finish(self, weights: Path, folder: RunFolder, averaged: bool) -> None:
        """The final adapters, and the model with them folded in."""
        folder.save(folder.adapter, lambda f: save_adapter(self.model, f, self.base))
        folder.save(folder.final, lambda f: save_folder(f, self.model, self.tokenizer))


@dataclass(frozen=True)
class AdaptedParts:
    """A model with adapters of which each rank has a part: the same folders, from `state/weights`
    and the base's folder. `outline` is the whole model without its numbers.
    """

    outline: CausalLM
    tokenizer: Tokenizer
    base: str

    def write(self, weights: Path, folder: Path, averaged: bool) -> None:
        """The adapters of a checkpoint."""
        save_adapter(self._trained(weights, averaged), folder, self.base)
        self.tokenizer.save(folder)

    def finish(self, weights: Path, folder: RunFolder, averaged: bool) -> None:
        """The final adapters, and the base with them folded in."""
        model = self._trained(weights, averaged)
        folder.save(folder.adapter, lambda f: save_adapter(model, f, self.base))
        folder.save(folder.final, lambda f: self._fold(model, f))

    def _fold(self, model: CausalLM, folder: Path) -> None:
        """A model folder, from the base's a few rows at a time."""
        base, trained = Path(self.base), dict(model.named_parameters())
        plain = dequantized(read_folder(base, read_config(base)), torch.float32)
        folded = merged(plain, adapter_of(model), base)
        tensors = {
            name: folded[name].cast(own.dtype) if name in folded else lazy(trained[name])
            for name, own in to_hf(self.outline)
        }
        write_folder(folder, model.config, tensors)
        save_words(folder, self.tokenizer)

    def _trained(self, weights: Path, averaged: bool) -> CausalLM:
        """The outline with the numbers of what is trained."""
        model, stored = deepcopy(self.outline), SavedWeights(weights, averaged)
        names = [name for name, own in model.named_parameters() if own.requires_grad]
        model.load_state_dict({n: stored[n] for n in names}, strict=False, assign=True)
        return model


class Saver:
    """Writes checkpoints. A failed save is logged and counted; the last good checkpoint stays."""

    def __init__(
        self,
        folder: RunFolder,
        ranks: ParallelModel,
        form: Exported | Adapted | AdaptedParts,
        keep: int,
        background: bool,
    ) -> None:
        self.folder, self.ranks, self.form, self.keep = folder, ranks, form, keep
        self.best: int | None = None  # the step whose checkpoint is kept although it is old
        self.adapted = not isinstance(form, Exported)
        self.failed = 0  # checkpoints that could not be written
        self.seconds = 0.0  # the latest one took
        self.error: str | None = None  # why it failed
        self.pending: Future[None] | None = None
        live = isinstance(form, Adapted)  # its folders are made of what the next step changes
        self.thread = ThreadPoolExecutor(1) if background and not live else None
        # Planning in the background must not mix with the loop's own collectives.
        self.group = dist.new_group(backend="gloo") if ranks.mesh is not None else None

    def save(
        self,
        done: int,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        extras: Extras,
        last: bool = False,
    ) -> None:
        """The checkpoint of `done` steps; `extras` adds to its `state/`. Returns once the tensors
        are copied where it is written in the background. The last one must succeed.
        """
        self.wait()
        tensors = state_tensors(self.ranks, optimizer, average)
        steps = average.steps if average else 0
        if self.thread is None or last:
            self._write(done, tensors, steps, extras)
            self._heed(last)
            return
        copied = {name: at_hand(tensor) for name, tensor in tensors.items()}
        self.pending = self.thread.submit(self._write, done, copied, steps, extras)

    def wait(self) -> None:
        """Until the checkpoint that is being written is done."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None
            self._heed(last=False)

    def finish(self, done: int, averaged: bool) -> None:
        """The final model, from the checkpoint of step `done`."""
        error = None
        if self.ranks.main:
            weights = self.folder.checkpoint(done) / "state" / "weights"
            try:
                self.form.finish(weights, self.folder, averaged)
            except UserError as failed:
                error = str(failed)
        self.ranks.agree(error, self.group)

    def _heed(self, last: bool) -> None:
        """What became of the latest checkpoint."""
        if self.error is None:
            return
        if last:
            raise UserError(self.error)
        self.failed += 1
        if self.ranks.main:
            good = self.folder.saved_steps()
            kept = f"step {good[-1]} is the last good one" if good else "there is no good one yet"
            print(f"warning: {self.error}; the run continues, {kept}", file=sys.stderr)

    def _write(self, done: int, tensors: dict[str, Tensor], steps: int, extras: Extras) -> None:
        start = time.monotonic()
        target = self.folder.checkpoint(done)
        opened, error = False, None

        def write(folder: Path) -> None:
            nonlocal opened
            self.ranks.agree(None, self.group)  # the first rank has made the folder
            opened = True
            save_state(folder, tensors, done, steps, self.group)
            if self.ranks.main:
                extras(folder)
                self.form.write(folder / "state" / "weights", folder, averaged=False)

        try:
            if self.ranks.main:
                self.folder.save(target, write, stored_bytes(tensors))
                self.folder.prune(self.keep, self.best)
            else:
                write(self.folder.partial(target))
        except (UserError, OSError) as failed:
            error = str(failed)
        if self.ranks.main or opened:  # the other ranks know it already
            error = self._agreed(error)
        self.seconds, self.error = time.monotonic() - start, error

    def _agreed(self, error: str | None) -> str | None:
        """The first rank's error, on every rank."""
        try:
            self.ranks.agree(error, self.group)
        except UserError as failed:
            return str(failed)
        return None


def stored_bytes(tensors: dict[str, Tensor]) -> int:
    """About what a checkpoint takes: its state, and the model's weights once more as a folder."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    weights = sum(size for name, size in sizes.items() if name.startswith(MODEL))
    return sum(sizes.values()) + weights


def at_hand(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, which the next step does not change."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    return DTensor.from_local(
        tensor.to_local().detach().to("cpu", copy=True),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
