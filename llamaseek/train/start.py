"""The trained model that a run starts from."""

from __future__ import annotations

from pathlib import Path

import torch

from llamaseek.checkpoints.adapter_config import CONFIG as ADAPTER
from llamaseek.checkpoints.hf import load_model
from llamaseek.errors import UserError, bad_value, quoted
from llamaseek.herd import ModelConfig
from llamaseek.herd.configs import MASKED, ROUTING_BIAS
from llamaseek.herd.folder import read_config, stored_tensors
from llamaseek.herd.formats import PACKED
from llamaseek.herd.grouped import QWEIGHT
from llamaseek.models import CausalLM
from llamaseek.models.lora import add_lora
from llamaseek.models.quant.nf4 import quantize_layers
from llamaseek.recipe.post_training import LoraRecipe
from llamaseek.recipe.schema import Recipe
from llamaseek.recipe.stages import STAGES
from llamaseek.runtime.check import by_layer
from llamaseek.text.tokenizer import Tokenizer


def start_from(recipe: Recipe) -> tuple[Tokenizer, CausalLM]:
    """Tokenizer and model of `model.init_from`; UserError where they are not fit."""
    folder = check_start(recipe)
    tokenizer = recipe_tokenizer(recipe)
    model = trainable(folder, mapped=by_layer(recipe))
    check_vocabulary(model, tokenizer)
    if recipe.lora is not None:
        adapt_model(model, recipe.lora, recipe.seed)
    return tokenizer, model


def check_start(recipe: Recipe) -> Path:
    """The folder of `model.init_from`; UserError where its config is not fit."""
    if not recipe.model.init_from:
        raise UserError("model.init_from: is empty; give the folder of a pre-trained model")
    folder = Path(recipe.model.init_from)
    if STAGES[recipe.stage].generates:
        check_speaks("model.init_from", folder)
    check_length(recipe, read_config(folder))
    return folder


def recipe_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer of `tokenizer.path`, or else of `model.init_from`, with the recipe's template.

    UserError where neither is given, or its files are not fit.
    """
    folder = recipe.tokenizer.path or recipe.model.init_from
    if not folder:
        raise UserError("model.init_from: is empty; the tokenizer in that folder encodes the rows")
    own = recipe.tokenizer
    return Tokenizer.load(folder).use_chat_template(own.chat_template, own.chat_template_kwargs)


def trainable(folder: Path, config: ModelConfig | None = None, mapped: bool = False) -> CausalLM:
    """The model of a folder, in float32; UserError where its weights are whole numbers.

    Such weights have no gradients. Those in fp8 are widened. `mapped` leaves bf16 as it is, in
    its files until it is first read (a mixture's experts, stacked, in memory), for `Ranks` to
    widen a layer at a time.
    """
    stored = stored_tensors(folder)
    if any(name.endswith((PACKED, QWEIGHT)) for name in stored):
        raise UserError(
            f"model.init_from: {folder} holds weights in 4 or 8 bits, which cannot be trained; "
            "allowed: the model it was quantized from, or: "
            f"llamaseek convert {quoted(folder)} NEW --dtype bfloat16"
        )
    if mapped and {t.dtype for n, t in stored.items() if not n.endswith(ROUTING_BIAS)} == {"BF16"}:
        model = load_model(folder, torch.bfloat16, config=config, mapped=True)
        for buffer in model.buffers():
            buffer.data = buffer.data.clone()  # training writes to it, and a file is not to be
        return model.requires_grad_(True)
    return load_model(folder, config=config)


def check_speaks(field: str, folder: str | Path, masked: bool = False) -> None:
    """Refuse a reward model where a model of language is wanted, and an adapter's folder.

    A masked language model is refused too, unless its own objective goes on (`masked`).
    """
    if not (Path(folder) / "config.json").is_file() and (Path(folder) / ADAPTER).is_file():
        raise UserError(
            f"{field}: {folder} is an adapter; allowed: the model folder beside it, or: llamaseek "
            f"convert BASE NEW --adapter {quoted(folder)}"
        )
    config = read_config(folder)
    if config.is_reward_model:
        raise UserError(
            f"{field}: {folder} is a reward model: it returns scores and cannot generate text"
        )
    if not config.is_causal and not masked:
        raise UserError(f"{field}: {folder} {MASKED}")


def adapt_model(model: CausalLM, lora: LoraRecipe, seed: int) -> None:
    """Freeze the model and put fresh adapters on it; with `base: nf4` keep it in 4 bits."""
    if lora.base == "nf4":
        quantize_layers(model)
    torch.manual_seed(seed)
    kind = {"use_dora": lora.use_dora, "use_rslora": lora.use_rslora}
    add_lora(model, lora.rank, lora.alpha, lora.targets, **kind)


def check_length(recipe: Recipe, config: ModelConfig) -> None:
    """Rows may not be longer than the model's context."""
    if recipe.data.length > config.max_position_embeddings:
        allowed = f"at most the model's max_position_embeddings ({config.max_position_embeddings})"
        raise bad_value("data.length", recipe.data.length, allowed)


def check_vocabulary(model: CausalLM, tokenizer: Tokenizer) -> None:
    """A tokenizer with more ids than the model has rows cannot be used with it."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"tokenizer: has {tokenizer.vocab_size} ids, but the model's vocabulary is "
            f"{model.config.vocab_size}"
        )
