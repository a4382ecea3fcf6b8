"""A checkpoint on disk: a Hugging Face folder, and `state/` with the state for resuming.

`state/weights` is written by torch.distributed.checkpoint: every rank its own numbers, under the
names and in the shapes of the whole model, so that any layout reads what any other has written.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter

from llamaseek.checkpoints.hf import save_model
from llamaseek.data.source import SourceState
from llamaseek.errors import UserError, shorten
from llamaseek.files import read_json_object
from llamaseek.models import CausalLM
from llamaseek.parallel.ranks import ParallelModel
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.optimizer import NarrowAdamW, WeightAverage, optimizer_tensors
from llamaseek.train.saving.index import Reader

MODEL, OPTIMIZER, AVERAGE = "model/", "optimizer/", "average/"


def save_folder(folder: Path, model: CausalLM, tokenizer: Tokenizer) -> None:
    """A model folder that transformers and our own commands read."""
    save_model(model, folder)
    save_words(folder, tokenizer)


def save_words(folder: Path, tokenizer: Tokenizer) -> None:
    """What a model folder holds beside the model.

    generation_config.json keeps what the base's says, and names every end token.
    """
    tokenizer.save(folder)
    begin = {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
    ends = {"eos_token_id": list(tokenizer.stop_ids)}
    generation = begin | tokenizer.generation_config | ends
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def state_tensors(
    ranks: ParallelModel, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> dict[str, Tensor]:
    """This rank's numbers of weights, buffers, moments and averages, by kind and name.

    What adapters are added to is not trained; it comes from its own folder again.
    """
    weights = {weight.name: weight for weight in ranks.weights}
    trained = {name: w for name, w in weights.items() if w.own.requires_grad}
    found = {MODEL + name: weight.like(weight.own.detach()) for name, weight in trained.items()}
    if len(trained) == len(weights):
        found |= {MODEL + name: tensor for name, tensor in buffers(ranks)}
    for full, tensor in optimizer_tensors(ranks.own, optimizer).items():
        found[OPTIMIZER + full] = weights[full.split(".", 1)[1]].like(tensor)
    if average is not None:
        for name, tensor in average.tensors.items():
            found[AVERAGE + name] = weights[name].like(tensor)
    return found


def buffers(ranks: ParallelModel) -> Iterator[tuple[str, Tensor]]:
    """What a model stores beside its weights: the routing biases."""
    for part in ranks.parts:
        weights = {name for name, _ in part.named_parameters(remove_duplicate=False)}
        for name, tensor in part.state_dict().items():
            if name not in weights:
                yield name, tensor


def save_state(
    folder: Path,
    tensors: dict[str, Tensor],
    done: int,
    average_steps: int,
    group: dist.ProcessGroup | None,
) -> None:
    """Write `state/`: every rank its tensors, the first one the steps done."""
    state = folder / "state"
    alone = not dist.is_initialized()
    state.mkdir(parents=True, exist_ok=True)
    try:
        writer = FileSystemWriter(state / "weights", single_file_per_rank=True, sync_files=False)
        with one_process_is_meant():
            dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=alone)
    except CheckpointException as error:
        raise OSError(None, first_reason(error)) from None
    if alone or dist.get_rank() == 0:
        steps = {"steps_done": done, "average_steps": average_steps}
        (state / "progress.json").write_text(json.dumps(steps) + "\n")


@contextmanager
def one_process_is_meant() -> Iterator[None]:
    """Without torch's warning that there are no other ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def first_reason(error: CheckpointException) -> str:
    """What went wrong on the first rank that failed."""
    wrapped: Any = next(iter(error.failures.values()))
    reason = wrapped[0] if isinstance(wrapped, tuple) else wrapped
    return getattr(reason, "strerror", None) or " ".join(str(reason).split()) or repr(reason)


def load_state(
    folder: Path,
    ranks: ParallelModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    """Restore model, optimizer and average in place, from the checkpoint `step-N`."""
    state = folder / "state"
    try:
        progress = read_json_object(state / "progress.json")
        if f"step-{int(progress['steps_done'])}" != folder.name:
            raise ValueError(f"it is of step {progress['steps_done']}")
        average_steps = int(progress["average_steps"])
        reader = Reader(state / "weights", checked=True)
        stored = reader.index.state_dict_metadata
        names = [name for name in stored if name.startswith(OPTIMIZER)]
        make_moments(ranks.own, optimizer, [name.removeprefix(OPTIMIZER) for name in names])
        tensors = state_tensors(ranks, optimizer, average)
        with one_process_is_meant():
            dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except (LookupError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{state}: cannot be resumed from ({shorten(str(error))})") from None
    except CheckpointException as error:
        raise UserError(f"{state}: cannot be resumed from ({first_reason(error)})") from None
    if average is not None:
        average.steps = average_steps


def make_moments(
    own: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, stored: list[str]
) -> None:
    """Room for the stored moments of every weight that this optimizer steps.

    ValueError for the state of another optimizer.
    """
    kind = torch.bfloat16 if isinstance(optimizer, NarrowAdamW) else None  # None: the weights'
    stepped = {p: "momentum" in group for group in optimizer.param_groups for p in group["params"]}
    for full in stored:
        key, name = full.split(".", 1)
        parameter = own.get(name)
        if parameter is not None and parameter in stepped:
            if stepped[parameter] != (key == "momentum_buffer"):
                raise ValueError("its optimizer state is of another train.optimizer")
            moment = torch.zeros_like(parameter, dtype=kind)
            step = torch.zeros((), device=parameter.device)
            optimizer.state[parameter][key] = step if key == "step" else moment


POSITION, TENSORS = "data.json", "source.safetensors"  # of a source, in `state/`


def save_source(folder: Path, state: SourceState) -> None:
    """Write where in its data the next step begins, and a source's tensors, where it has any."""
    if state.position:
        (folder / "state" / POSITION).write_text(json.dumps(state.position) + "\n")
    if state.tensors:
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.tensors.items()}
        try:
            save_file(plain, folder / "state" / TENSORS)
        except SafetensorError as error:
            raise OSError(None, str(error)) from None


def load_source(folder: Path, fresh: SourceState) -> SourceState:
    """What `save_source` wrote for a source whose state was `fresh` before any step.

    Raises UserError where the source has a position and the folder holds none, or where one of
    the files is broken.
    """
    position = read_json_object(folder / "state" / POSITION) if fresh.position else {}
    path = folder / "state" / TENSORS
    try:
        return SourceState(position, load_file(path) if path.is_file() else {})
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be resumed from ({error})") from None
