"""Generation from the contiguous cache: batches of prompts of any lengths, and one stream.

B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from llamaseek.engine.sampler import Sampling, sample
from llamaseek.errors import UserError, bad_value
from llamaseek.models import CausalLM
from llamaseek.models.cache import ContiguousCache


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    sampling: Sampling,
    batch: int = 64,
) -> list[list[int]]:
    """The answer to each prompt, without its stop token. Prompts of like length share a batch."""
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        for step in steps(model, [prompts[i] for i in members], stop_ids, sampling):
            for place, token in step:
                answers[members[place]].append(token)
    return answers


def stream(
    model: CausalLM, prompt: Sequence[int], stop_ids: Sequence[int], sampling: Sampling
) -> Iterator[int]:
    """The tokens of one answer as they come."""
    for step in steps(model, [prompt], stop_ids, sampling):
        for _, token in step:
            yield token


@torch.inference_mode()
def steps(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    sampling: Sampling,
) -> Iterator[list[tuple[int, int]]]:
    """Each step's (prompt index, token) pairs; a prompt that has stopped is in no later step."""
    check_prompts(model, prompts)
    device = next(model.parameters()).device
    model.eval()
    generator = torch.Generator(device).manual_seed(sampling.seed)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    room = min(int(lengths.max()) + sampling.max_tokens, model.config.max_position_embeddings)
    dtype = next(model.parameters()).dtype
    cache = ContiguousCache(model.cache_shapes(), len(prompts), room, dtype, device)
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    hidden = model(tokens, positions, cache)
    rows = torch.arange(len(prompts), device=device)
    last = hidden[rows, lengths - 1]
    stops = torch.tensor(list(stop_ids), device=device)
    for number in range(sampling.max_tokens):
        chosen = sample(model.logits(last), sampling, generator)
        going = ~torch.isin(chosen, stops)
        rows, lengths, chosen = rows[going], lengths[going], chosen[going]
        if len(rows) == 0:
            return
        yield list(zip(rows.tolist(), chosen.tolist(), strict=True))
        if number + 1 == sampling.max_tokens or int(lengths.max()) >= room:
            return
        if not bool(going.all()):
            cache.keep_rows(going.nonzero().squeeze(1))
        last = model(chosen[:, None], lengths[:, None], cache)[:, 0]
        lengths = lengths + 1


def check_prompts(model: CausalLM, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse empty prompts, prompts beyond the context, and ids the model does not have."""
    context, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number}: is empty")
        if len(prompt) >= context:
            raise UserError(f"prompt {number}: has {len(prompt)} tokens; the context is {context}")
        bad = [token for token in (min(prompt), max(prompt)) if not 0 <= token < vocabulary]
        if bad:
            raise bad_value(f"prompt {number}", bad[0], f"ids from 0 to {vocabulary - 1}")
