"""A training step on disk: a Hugging Face folder, and `state/` with what resuming needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.checkpoint import VALUE_HEAD, fill_model, save_model
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.optimizer import WeightAverage, optimizer_tensors, restore_optimizer


def save_folder(folder: Path, model: CausalLM, tokenizer: Tokenizer) -> None:
    """A model folder that transformers and our own commands read."""
    save_model(model, folder)
    tokenizer.save(folder)
    stops = list(tokenizer.stop_ids)
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def save_state(
    folder: Path,
    model: CausalLM,
    optimizer: torch.optim.AdamW,
    average: WeightAverage | None,
    done: int,
) -> None:
    """Write `state/`: optimizer, average of weights, steps done."""
    state = folder / "state"
    state.mkdir()
    save_file(_plain(optimizer_tensors(model, optimizer)), state / "optimizer.safetensors")
    save_tensors(folder, "value_head", value_head(model))
    if average is not None:
        save_file(_plain(average.tensors), state / "average.safetensors")
    steps = {"steps_done": done, "average_steps": average.steps if average else 0}
    (state / "progress.json").write_text(json.dumps(steps) + "\n")


def value_head(model: CausalLM) -> dict[str, Tensor]:
    """PPO's value head by name, which the model's folder leaves out; nothing elsewhere."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith(VALUE_HEAD)}


def save_position(folder: Path, state: dict[str, Any]) -> None:
    """Write where in its data the next step begins."""
    (folder / "state" / "data.json").write_text(json.dumps(state) + "\n")


def load_position(folder: Path) -> dict[str, Any]:
    """What `save_position` wrote."""
    path = folder / "state" / "data.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be resumed from ({error})") from None


def save_tensors(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """More of `state/`: what goes with a step beside model and optimizer."""
    if tensors:
        save_file(_plain(tensors), folder / "state" / f"{name}.safetensors")


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """What `save_tensors` wrote; nothing where there was nothing."""
    path = folder / "state" / f"{name}.safetensors"
    try:
        return load_file(path) if path.is_file() else {}
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be resumed from ({error})") from None


def load_state(
    folder: Path,
    model: CausalLM,
    optimizer: torch.optim.AdamW,
    average: WeightAverage | None,
) -> int:
    """Restore model, optimizer and average in place; returns the steps done."""
    state = folder / "state"
    try:
        progress = json.loads((state / "progress.json").read_text())
        restore_optimizer(model, optimizer, load_file(state / "optimizer.safetensors"))
        if average is not None:
            stored = load_file(state / "average.safetensors")
            for name, tensor in average.tensors.items():
                tensor.copy_(stored[name])
            average.steps = progress["average_steps"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{state}: cannot be resumed from ({error})") from None
    fill_model(model, folder)
    for name, tensor in load_tensors(folder, "value_head").items():
        value_head(model)[name].copy_(tensor)
    return int(progress["steps_done"])


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
