"""Models that answer by one forward over whole rows, without a cache: the likely words of masked
places, and scores of a reward model.

N sequences, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.batch import IGNORE
from llamaseek.data.pack import Example, pack_apart
from llamaseek.errors import UserError
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM
from llamaseek.runtime.device import pick_device
from llamaseek.text.special import MASK_WORD
from llamaseek.text.tokenizer import Tokenizer

ROWS = 64  # scored at once
Candidates = list[tuple[str, float]]


def open_masked(source: Path, device: str = "auto") -> CausalLM:
    """The masked language model of a folder. UserError for a model that generates text."""
    if read_config(source).is_causal:
        raise UserError(
            f"{source}: is not a masked language model; a recipe with train.objective masked "
            "trains one"
        )
    return load_model(source, device=pick_device(device, "--device")).eval()


@torch.inference_mode()
def fill(model: CausalLM, tokenizer: Tokenizer, text: str, top: int = 5) -> list[Candidates]:
    """For each `[MASK]` of a text its `top` likeliest tokens with their probabilities, best first.

    Control tokens are no candidates. UserError for a text without a `[MASK]`, or beyond the
    context.
    """
    ids = masked_ids(tokenizer, text)
    longest = model.config.max_position_embeddings
    if len(ids) > longest:
        raise UserError(f"text: has {len(ids)} tokens; the model's context is {longest}")
    device = model.model.norm.weight.device
    tokens = torch.tensor([ids], device=device)
    positions = torch.arange(len(ids), device=device)[None]
    places = tokens[0] == tokenizer.mask_id
    logits = model.logits(model(tokens, positions)[:, places])[0].float()
    shares = logits.softmax(-1)
    shares[:, [i for i in tokenizer.special_ids if i < shares.shape[-1]]] = 0
    best = shares.topk(min(top, shares.shape[-1]))
    return [
        [(tokenizer.decode([token]), share) for token, share in zip(*place, strict=True)]
        for place in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def masked_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text with mask tokens; a word's own blank before it is masked with it."""
    first, *others = text.split(MASK_WORD)
    if not others:
        raise UserError(f"text: has no {MASK_WORD}, the place to fill in")
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(first.removesuffix(" "))]
    for number, part in enumerate(others, 1):
        kept = part.removesuffix(" ") if number < len(others) else part
        ids += [tokenizer.mask_id, *tokenizer.encode(kept)]
    return ids


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
