"""Everything at once: what a crowded engine says is what each request says alone.

Prompts that begin alike, little memory, several answers, drafts, adapters, grammars, stops, scores,
and requests that are dropped on the way, all drawn from a seed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.peft import Adapter, read_adapter, save_adapter
from llamaseek.engine.constrain import Constraint
from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.paged import bytes_per_token
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Delta, Logprob, Request, SamplingParams
from llamaseek.models import CausalLM
from llamaseek.models.lora import LoRALinear, add_lora
from tests.models.shapes import tiny_model
from tests.train.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WORDS = TOKENIZER.vocab_size
TOKENS = 200  # that the cache holds
CONSTRAINTS = [
    Constraint("regex", "[a-z]{3,9}( [a-z]+){2,20}"),
    Constraint("json_schema", '{"type": "object", "required": ["a"], "maxProperties": 2}'),
    Constraint("lark", 'start: ("ab" | "cd")+ "e"'),
]


def model(family: str) -> CausalLM:
    extra = {"num_nextn_predict_layers": 1} if family == "deepseek_v3" else {}
    return tiny_model(family, vocab_size=WORDS, **extra)


@cache
def adapter(family: str, folder: Path) -> Adapter:
    made = model(family)
    torch.manual_seed(1)
    add_lora(made, 4, 8.0, ["q_proj", "o_proj"])
    for layer in made.modules():
        if isinstance(layer, LoRALinear):
            torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
    save_adapter(made, folder, "base")
    return read_adapter(folder)


def sometimes(rng: Random, chance: float, **given: Any) -> dict[str, Any]:
    return given if rng.random() < chance else {}


def drawn_request(rng: Random, greedy: bool) -> Request:
    """A request with any of the engine's features."""
    start = [Random(7).randrange(WORDS)] * 5 + list(range(5, 60))
    shared, own = rng.choice((0, 20, 33, 55)), [rng.randrange(WORDS) for _ in range(20)]
    params: dict[str, Any] = {
        "max_tokens": rng.choice((0, 1, 5, 20, 40)),
        "seed": rng.randrange(1000),
        "temperature": 0.0 if greedy or rng.random() < 0.4 else 1.2,
        **sometimes(rng, 0.4, n=3),
        **sometimes(rng, 0.4, logprobs=2),
        **sometimes(rng, 0.2, prompt_logprobs=1),
        **sometimes(rng, 0.3, stop=rng.sample(["e", "th", "a ", "in", "s"], 2)),
        **sometimes(rng, 0.3, stop_token_ids=rng.sample(range(WORDS), 8)),
        **sometimes(rng, 0.2, repetition_penalty=1.3, frequency_penalty=0.5),
        **sometimes(rng, 0.2, top_k=20, top_p=0.9),
        **sometimes(rng, 0.2, constraint=rng.choice(CONSTRAINTS)),
    }
    prompt = start[:shared] + own[: rng.randrange(1, 20)]
    name, salt = rng.choice(("", "", "pirate")), rng.choice(("", "user"))
    return Request(prompt=prompt, params=SamplingParams(**params), adapter=name, salt=salt)


def same(ours: list[Logprob | None] | None, theirs: list[Logprob | None] | None) -> bool:
    """Whether two lists of scores are of the same tokens, and alike."""
    return [each and each.token for each in ours or []] == [
        each and each.token for each in theirs or []
    ] and all(
        one is None or two is None or abs(one.logprob - two.logprob) < 1e-3
        for one, two in zip(ours or [], theirs or [], strict=True)
    )


CASES = [("llama3", "none"), ("llama3", "model"), ("deepseek_v3", "mtp")]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_crowd_says_what_each_says_alone(family: str, kind: str, tmp_path: Path) -> None:
    rng = Random(f"{family} {kind}")
    adapters = {"pirate": adapter(family, tmp_path)}
    draft = model(family) if kind == "model" else None  # so like the model that drafts stand
    speculation = Speculation(kind=kind, depth=3, draft_model=draft)
    models = [one for one in (model(family), draft) if one is not None]
    token = sum(bytes_per_token(one.cache_shapes(), torch.float32, "auto") for one in models)
    options = EngineOptions(
        max_num_seqs=8,
        block_size=rng.choice((3, 7)),
        max_num_batched_tokens=24,
        cache_bytes=TOKENS * token,
        speculation=speculation,
    )
    crowd = Engine(model(family), TOKENIZER, options, adapters)
    alone = Engine(
        model(family),
        TOKENIZER,
        EngineOptions(max_num_seqs=1, enable_prefix_caching=False),
        adapters,
    )
    requests = [drawn_request(rng, greedy=kind != "none") for _ in range(18)]
    waiting, works, told = list(requests), [], dict[tuple[int, int], list[Delta]]()
    while waiting or crowd.busy:
        while waiting and rng.random() < 0.6:
            works.append(crowd.add(waiting.pop(0)))
        if works and rng.random() < 0.03:
            crowd.cancel(rng.choice(works).request.id)
        for delta in crowd.step():
            told.setdefault((delta.request, delta.index), []).append(delta)
    assert crowd.pool.used == 0 and crowd.scheduler.preemptions > 0
    assert crowd.statistics.accepted > 0 or kind != "model"
    done = [work for work in works if work.done]
    assert len(done) > 10
    for work, wanted in zip(done, alone.generate(w.request for w in done), strict=True):
        found = work.output()
        assert same(found.prompt_logprobs, wanted.prompt_logprobs)
        for ours, theirs in zip(found.answers, wanted.answers, strict=True):
            assert (ours.tokens, ours.text) == (theirs.tokens, theirs.text), work.request
            assert (ours.finish, ours.stop_id) == (theirs.finish, theirs.stop_id)
            assert same(ours.logprobs, theirs.logprobs)  # type: ignore[arg-type]
            parts = told[work.request.id, ours.index]
            assert [t for part in parts for t in part.tokens] == ours.tokens
            assert "".join(part.text for part in parts) == ours.text
