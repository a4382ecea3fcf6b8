"""What answers are compared with: transformers' greedy generate, and near-ties between tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.models import CausalLM
from tests.models.shapes import tiny_model

FAMILIES = ("llama3", "deepseek_v3")
TIE = 1e-5


def saved_model(family: str, folder: Path, **changes: Any) -> tuple[CausalLM, Any]:
    """A tiny random model, read back from its folder, and transformers' of the same folder."""
    import transformers

    extra = {"num_nextn_predict_layers": 1} if family == "deepseek_v3" else {}
    save_model(tiny_model(family, **{**extra, **changes}), folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return load_model(folder).eval(), theirs


def random_prompts(count: int, seed: int = 0, vocab: int = 97) -> list[list[int]]:
    """Prompts of 20 lengths up to 70; a third of them begin alike."""
    rng = Random(seed)
    start = [rng.randrange(vocab) for _ in range(40)]
    lengths = sorted(rng.sample(range(1, 71), 20))
    prompts = []
    for number in range(count):
        length = lengths[number % 20]
        shared = min(rng.choice((0, 0, 40)), length - 1)
        prompts.append(start[:shared] + [rng.randrange(vocab) for _ in range(length - shared)])
    return prompts


@torch.no_grad()
def greedy_reference(theirs: Any, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """transformers' greedy continuations, prompts of one length at once, so that none is padded."""
    by_length = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_length[len(prompt)].append(number)
    answers: list[list[int]] = [[] for _ in prompts]
    for length, members in by_length.items():
        ids = torch.tensor([prompts[number] for number in members])
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        for number, row in zip(members, out[:, length:].tolist(), strict=True):
            answers[number] = row
    return answers


@torch.no_grad()
def near_ties(
    theirs: Any,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    got: Sequence[Sequence[int]],
) -> int:
    """How many answers differ first where the two likeliest tokens are closer than TIE.

    An answer that differs anywhere else is an error.
    """
    ties = 0
    for prompt, right, ours in zip(prompts, wanted, got, strict=True):
        if list(right) == list(ours):
            continue
        place = next(i for i, (a, b) in enumerate(zip(right, ours, strict=True)) if a != b)
        logits = theirs(torch.tensor([[*prompt, *right[:place]]])).logits[0, -1]
        top = logits.topk(2)
        gap = float(top.values[0] - top.values[1])
        assert gap < TIE and ours[place] in top.indices.tolist(), (prompt, right, ours, gap)
        ties += 1
    return ties


def answers(
    model: CausalLM, prompts: Sequence[Sequence[int]], new: int, **options: Any
) -> tuple[list[list[int]], Engine]:
    """Greedy answers of a fresh engine, and the engine."""
    engine = Engine(model, options=EngineOptions(**options))
    params = SamplingParams(max_tokens=new)
    outputs = engine.generate(Request(prompt=prompt, params=params) for prompt in prompts)
    return [output.answers[0].tokens for output in outputs], engine


def chi_square_p(counts: torch.Tensor, chances: torch.Tensor) -> float:
    """p of seeing counts (cells) at these chances; cells expected below 5 times are one cell."""
    expected = chances.double() * counts.sum()
    rare = expected < 5
    observed = torch.cat((counts[~rare].double(), counts[rare].sum()[None].double()))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    kept = expected > 0
    assert int(observed[~kept].sum()) == 0, "drawn what has no chance"
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = torch.tensor((int(kept.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
