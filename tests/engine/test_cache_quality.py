"""The 8-bit cache against the plain one: perplexity of held-out text, read in small chunks."""

from __future__ import annotations

import math

import pytest
import torch

from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.models import CausalLM
from tests.models.shapes import tiny_model
from tests.train.tiny import stories, tiny_tokenizer

LENGTH = 128


def rows(count: int) -> torch.Tensor:
    """Stories as rows of tokens."""
    ids = [token for text in stories() for token in tiny_tokenizer().encode(text)]
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


def learn(model: CausalLM, tokens: torch.Tensor) -> None:
    """A minute model of the stories: enough that what stands before matters."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    positions = torch.arange(LENGTH).expand(8, LENGTH)
    for step in range(60):
        batch = tokens[torch.arange(8 * step, 8 * step + 8) % len(tokens)]
        logits = model.logits(model(batch, positions))[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def perplexity(model: CausalLM, tokens: torch.Tensor, cache_dtype: str) -> float:
    """By the engine, 16 tokens a forward, so that most keys and values come from the cache."""
    engine = Engine(model, None, EngineOptions(cache_dtype=cache_dtype, max_num_batched_tokens=16,
                                               max_num_seqs=4))  # fmt: skip
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    found = engine.generate([Request(prompt=row.tolist(), params=params) for row in tokens])
    scores = [s.logprob for out in found for s in out.prompt_logprobs or [] if s is not None]
    return math.exp(-sum(scores) / len(scores))


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_eight_bits_cost_at_most_half_a_percent(family: str) -> None:
    model = tiny_model(family, vocab_size=tiny_tokenizer().vocab_size, initializer_range=0.05)
    tokens = rows(56)
    learn(model, tokens[:48])
    plain, eight = (perplexity(model, tokens[48:], kind) for kind in ("auto", "int8"))
    print(f"{family}: {plain:.5f} plain, {eight:.5f} in 8 bits")
    assert plain < 60
    assert plain != eight < plain * 1.005
