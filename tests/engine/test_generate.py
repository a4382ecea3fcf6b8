"""Generation: alone or batched the same, stops, sampling that follows the distribution."""

from __future__ import annotations

import pytest
import torch

from llamaseek.engine.generate import generate, stream
from llamaseek.engine.sampler import Sampling, sample
from llamaseek.errors import UserError
from tests.models.shapes import tiny_model

FAMILIES = ("llama3", "deepseek_v3")
PROMPTS = [[5], [7, 8, 9, 10, 11], [3, 1, 4], [20] * 12]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_argmax_of_the_full_forward_alone_and_batched(family: str) -> None:
    model = tiny_model(family).eval()
    together = generate(model, PROMPTS, [], Sampling(max_tokens=9), batch=3)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert list(stream(model, prompt, [], Sampling(max_tokens=9))) == answer
        ids = list(prompt)
        for token in answer:
            tokens = torch.tensor([ids])
            with torch.no_grad():
                hidden = model(tokens, torch.arange(len(ids))[None])
                assert int(model.logits(hidden[0, -1]).argmax()) == token
            ids.append(token)


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it() -> None:
    model = tiny_model("llama3")
    free = generate(model, PROMPTS, [], Sampling(max_tokens=9))
    stop = free[1][4]
    stopped = generate(model, PROMPTS, [stop], Sampling(max_tokens=9))
    for whole, cut in zip(free, stopped, strict=True):
        assert cut == (whole[: whole.index(stop)] if stop in whole else whole)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0]).expand(20000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(sampling: Sampling) -> torch.Tensor:
        return sample(logits, sampling, generator).bincount(minlength=4) / 20000

    plain = shares(Sampling(temperature=0.5))
    torch.testing.assert_close(plain, (logits[0] / 0.5).softmax(-1), atol=0.02, rtol=0)
    assert (shares(Sampling(temperature=1, top_k=2)) > 0).tolist() == [True, False, False, True]
    assert (shares(Sampling(temperature=1, top_p=0.6)) > 0).tolist() == [False, False, False, True]
    assert sample(logits, Sampling(), generator).unique().tolist() == [3]


def test_what_cannot_be_asked() -> None:
    model = tiny_model("llama3")
    for prompts, message in (([[]], "empty"), ([[1] * 300], "context"), ([[999]], "999")):
        with pytest.raises(UserError, match=message):
            generate(model, prompts, [], Sampling())
    with pytest.raises(UserError, match="max_tokens"):
        Sampling(max_tokens=0)
