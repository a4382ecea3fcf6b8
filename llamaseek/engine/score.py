"""Scores of a reward model.

N sequences, T time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llamaseek.data.batch import IGNORE
from llamaseek.data.pack import Example, pack_apart
from llamaseek.errors import UserError
from llamaseek.models import CausalLM

ROWS = 64  # scored at once


@torch.inference_mode()
def score_sequences(model: CausalLM, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The score r of each sequence of ids, read at its last token.

    UserError for a model that is no reward model, and for a sequence beyond its context.
    """
    if not model.config.is_reward_model:
        raise UserError("model: is no reward model; `llamaseek reward` trains one")
    longest = model.config.max_position_embeddings
    for ids in sequences:
        if not 0 < len(ids) <= longest:
            raise UserError(f"messages: have {len(ids)} tokens; the model's context is {longest}")
    device, found = model.model.norm.weight.device, list[float]()
    for start in range(0, len(sequences), ROWS):
        rows = [list(ids) for ids in sequences[start : start + ROWS]]
        batch = pack_apart([[Example(ids, [IGNORE] * len(ids))] for ids in rows]).to(device)
        ends = torch.tensor([[len(ids) - 1] for ids in rows], device=device)
        scores = model.eval().score(model(batch.tokens, batch.positions))
        found += scores.gather(1, ends)[:, 0].tolist()
    return found
