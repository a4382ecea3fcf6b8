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
from llamaseek.models.adapter import fill_adapter, save_adapter
from llamaseek.models.checkpoint import VALUE_HEAD, fill_model, save_model
from llamaseek.models.lora import LoRALinear
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.optimizer import WeightAverage, optimizer_tensors, restore_optimizer


def save_folder(folder: Path, model: CausalLM, tokenizer: Tokenizer) -> None:
    """A model folder that transformers and our own commands read."""
    save_model(model, folder)
    tokenizer.save(folder)
    stops = list(tokenizer.stop_ids)
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def save_step(folder: Path, model: CausalLM, tokenizer: Tokenizer, base: str | None) -> None:
    """A step's folder: the model's, or with adapters a PEFT folder on `base`."""
    if not is_adapted(model):
        save_folder(folder, model, tokenizer)
        return
    save_adapter(model, folder, base or "")
    tokenizer.save(folder)


def is_adapted(model: CausalLM) -> bool:
    """Whether adapters are what is trained."""
    return any(isinstance(module, LoRALinear) for module in model.modules())


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
    save_tensors(folder, "heads", heads(model))
    if average is not None:
        save_file(_plain(average.tensors), state / "average.safetensors")
    steps = {"steps_done": done, "average_steps": average.steps if average else 0}
    (state / "progress.json").write_text(json.dumps(steps) + "\n")


def heads(model: CausalLM) -> dict[str, Tensor]:
    """What is trained and the step's folder leaves out, by name.

    PPO's value head; a reward model's score where the folder is an adapter's.
    """
    left_out = (VALUE_HEAD, "score.") if is_adapted(model) else (VALUE_HEAD,)
    return {name: t for name, t in model.state_dict().items() if name.startswith(left_out)}


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
    if is_adapted(model):
        fill_adapter(model, folder)
    else:
        fill_model(model, folder)
    for name, tensor in load_tensors(folder, "heads").items():
        heads(model)[name].copy_(tensor)
    return int(progress["steps_done"])


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
