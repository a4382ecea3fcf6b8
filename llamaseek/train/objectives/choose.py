"""The objective that a recipe names."""

from __future__ import annotations

import torch

from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.loss import softmax_and_gradient
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.device import compiles, pick_device
from llamaseek.text.special import SPECIAL_TOKENS
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.objectives import Objective
from llamaseek.train.objectives.dpo import DPO
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.multi_token import MultiToken
from llamaseek.train.objectives.next_token import NextToken


def make_objective(recipe: Recipe, model: CausalLM, tokenizer: Tokenizer) -> Objective:
    """The objective a recipe names; refuses one the model cannot be trained with."""
    train = recipe.train
    balance = train.balance_weight
    compiled = compiles(train, pick_device(train.device))
    kernel = torch.compile(softmax_and_gradient) if compiled else softmax_and_gradient
    if train.objective == "multi_token":
        depth = model.config.multi_token_depth
        if depth == 0:
            allowed = "a deepseek_v3 model with num_nextn_predict_layers of at least 1"
            raise UserError(f"train.objective: multi_token needs {allowed}")
        return MultiToken(depth, train.mtp_weight, balance, kernel)
    if train.objective == "masked":
        ordinary = tokenizer.vocab_size - len(SPECIAL_TOKENS)
        return Masked(recipe.seed, tokenizer.mask_id, ordinary, balance, kernel)
    if train.objective == "dpo" or recipe.stage == "dpo":
        nll = train.dpo_nll if train.dpo_form == "llama3" else 0.0
        return DPO(train.dpo_beta, nll, balance)
    return NextToken(balance, kernel)
