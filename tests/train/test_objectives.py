"""Each loss against a plain loop or transformers, following the papers' equations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.pack import Example, pack_text, pack_whole
from llamaseek.models import CausalLM, DeepseekV3
from llamaseek.models.loss import cross_entropy_sum, token_log_probs
from llamaseek.models.moe import sequence_balance
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.multi_token import MultiToken
from llamaseek.train.objectives.next_token import NextToken
from llamaseek.train.optimizer import update_routing_bias
from tests.models.shapes import ours_from, reference_model, tiny_config, tiny_model

FAMILIES = ("llama3", "deepseek_v3")


def text_batch(seed: int, rows: int, length: int, vocabulary: int = 90) -> Batch:
    """Random documents of random lengths, packed."""
    torch.manual_seed(seed)
    documents = [
        torch.randint(0, vocabulary, (int(n),)).tolist() for n in torch.randint(3, length, (40,))
    ]
    return pack_text(documents, length).select(slice(0, rows))


def term(terms: list[Any], name: str) -> float:
    return float(next(t.sum for t in terms if t.name == name))


def test_cross_entropy_sum_has_the_loss_and_gradients_of_the_plain_formula() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(70, 16, dtype=torch.float64).requires_grad_()
    weight = torch.randn(50, 16, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 50, (70,))
    targets[::7] = IGNORE
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(plain, (hidden, weight))
    ours = cross_entropy_sum(hidden, weight, targets)
    got = torch.autograd.grad(ours, (hidden, weight))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    kept = targets != IGNORE
    log_p = token_log_probs(hidden[kept], weight, targets[kept])
    assert -log_p.sum().item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_loss_they_have_alone(family: str) -> None:
    model = tiny_model(family).eval()
    torch.manual_seed(1)
    documents = [torch.randint(0, 97, (n,)).tolist() for n in (9, 30, 4, 17, 21, 12)]
    objective = NextToken(0.0)
    alone = 0.0
    for ids in documents:
        row = Example(ids, [*ids[1:], IGNORE])
        alone += term(objective.terms(model, pack_whole([row], len(ids))), "next_token")
    items = [Example(ids, [*ids[1:], IGNORE]) for ids in documents]
    packed = pack_whole(items, 64)
    assert packed.tokens.shape[0] < len(documents)
    together = term(objective.terms(model, packed), "next_token")
    count = objective.counts(packed)["next_token"]
    assert together / count == pytest.approx(alone / count, abs=1e-5)


def test_masked_lm_corrupts_at_the_rates_of_the_paper() -> None:
    mask, ordinary = 500, 400
    tokens = torch.randint(0, ordinary, (200, 256))
    tokens[:, 0] = 450  # a special token
    positions = torch.arange(256).expand_as(tokens)
    batch = Batch(tokens, positions, tokens.roll(-1, 1))
    out = Masked(3, mask, ordinary, 0.0).prepare(batch, 5)
    chosen = out.targets != IGNORE
    assert torch.equal(out.targets[chosen], tokens[chosen])
    assert torch.equal(out.tokens[~chosen], tokens[~chosen])
    assert not chosen[:, 0].any()
    share = chosen[:, 1:].float().mean()
    masked = (out.tokens == mask)[chosen].float().mean()
    kept = (out.tokens == tokens)[chosen].float().mean()
    assert abs(float(share) - 0.15) < 0.005
    assert abs(float(masked) - 0.8) < 0.01
    # A random token is the old one once in 400 times.
    assert abs(float(kept) - (0.1 + 0.1 / ordinary)) < 0.01
    again = Masked(3, mask, ordinary, 0.0).prepare(batch, 5)
    assert torch.equal(again.tokens, out.tokens)
    assert not torch.equal(Masked(3, mask, ordinary, 0.0).prepare(batch, 6).tokens, out.tokens)


def test_masked_lm_leaves_padding_alone() -> None:
    batch = pack_text([[5, 6, 7]], 512)
    out = Masked(0, 99, 90, 0.0).prepare(batch, 0)
    assert not (out.targets[:, 3:] != IGNORE).any()
    assert not out.tokens[:, 3:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_lm_loss_and_bidirectional_logits_match_transformers(
    family: str, tmp_path: Path
) -> None:
    config = tiny_config(family, is_causal=False)
    reference = reference_model(config)
    model = ours_from(reference, tmp_path)
    assert not model.config.is_causal
    tokens = torch.randint(0, 90, (3, 20), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(20).expand_as(tokens)
    batch = Masked(1, 96, 90, 0.0).prepare(Batch(tokens, positions, tokens), 0)
    everything = torch.zeros(3, 1, 20, 20)  # an additive mask that hides nothing
    with torch.no_grad():
        theirs = reference(batch.tokens, attention_mask=everything).logits
        ours = model.logits(model(batch.tokens, positions))
    scale = float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) <= 1e-4 * scale
    expected = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), batch.targets.flatten(), reduction="sum"
    )
    got = term(Masked(1, 96, 90, 0.0).terms(model, batch), "next_token")
    assert got == pytest.approx(float(expected), rel=1e-5)


def multi_token_loss(model: DeepseekV3, row: list[int], depth: int) -> list[float]:
    """Report eq. 21-25 token by token for one document: the sum of -log p at each depth."""
    tokens = torch.tensor([row])
    hidden = model(tokens, torch.arange(len(row))[None])
    sums = [negative_log(model, hidden, row, 1)]
    for k in range(1, depth + 1):
        # Eq. 21 joins h_i^{k-1} with the embedding of t_{i+k}; i runs over T - k places.
        usable = len(row) - k
        if usable < 1:
            sums.append(0.0)
            continue
        ahead = torch.tensor([row[k:]], dtype=torch.int64)
        positions = torch.arange(usable)[None]
        hidden = model.mtp(k - 1, hidden[:, :usable], ahead, positions)
        sums.append(negative_log(model, hidden, row, k + 1))
    return sums


def negative_log(model: CausalLM, hidden: Tensor, row: list[int], step: int) -> float:
    total = 0.0
    for place in range(len(row) - step):
        log_p = model.logits(hidden[0, place]).float().log_softmax(-1)
        total -= float(log_p[row[place + step]])
    return total


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_multi_token_loss_follows_the_report(depth: int) -> None:
    model = tiny_model("deepseek_v3", num_nextn_predict_layers=depth).eval()
    assert isinstance(model, DeepseekV3)
    torch.manual_seed(4)
    documents = [torch.randint(0, 97, (n,)).tolist() for n in (11, 2, 19, 6, 24)]
    batch = pack_text(documents, 62)
    objective = MultiToken(depth, 0.3, 0.0)
    with torch.no_grad():
        terms = objective.terms(model, batch)
        expected = [0.0] * (depth + 1)
        for row in documents:
            for k, value in enumerate(multi_token_loss(model, row, depth)):
                expected[k] += value
    assert [t.name for t in terms] == ["next_token", *(f"mtp_{k + 1}" for k in range(depth))]
    for got, wanted in zip(terms, expected, strict=True):
        assert float(got.sum) == pytest.approx(wanted, rel=1e-5)
    assert all(t.weight == pytest.approx(0.3 / depth) for t in terms[1:])
    counts = objective.counts(batch)
    assert {counts[t.name] for t in terms} == {sum(len(row) - 1 for row in documents)}


def test_balance_loss_follows_the_report() -> None:
    torch.manual_seed(5)
    rows, time, experts, top = 2, 13, 6, 2
    scores = torch.rand(rows, time, experts)
    expected = []
    for row in range(rows):
        total = 0.0
        for i in range(experts):
            f = p = 0.0
            for t in range(time):
                s = scores[row, t].tolist()
                f += float(s[i] in sorted(s, reverse=True)[:top])  # eq. 18's indicator
                p += s[i] / math.fsum(s)  # eq. 19
            total += (experts / (top * time)) * f * p / time  # eq. 17, 18, 20
        expected.append(total)
    torch.testing.assert_close(sequence_balance(scores, top), torch.tensor(expected))


def test_bias_updates_balance_a_skewed_router() -> None:
    config = tiny_config("deepseek_v3", n_routed_experts=8, num_experts_per_tok=2)
    torch.manual_seed(6)
    model = tiny_model("deepseek_v3", n_routed_experts=8, num_experts_per_tok=2)
    moe = model.moe_layers()[1]
    # All tokens lean the same way: two experts get nearly everything.
    shared = torch.randn(config.hidden_size)
    with torch.no_grad():
        moe.gate.weight[:2] += 0.1 * shared
        moe.gate.e_score_correction_bias.zero_()
    x = shared + 0.7 * torch.randn(16, 64, config.hidden_size)

    def busiest() -> float:
        load = moe(x)[1]
        model.expert_load = {1: load}
        return float(load.max() / load.float().mean())

    first = busiest()
    assert first > 2
    for _ in range(600):
        busiest()
        update_routing_bias(model, model.expert_load, 0.002)
    assert busiest() <= 1.3
