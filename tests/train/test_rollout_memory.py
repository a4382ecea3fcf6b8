"""What `plan` says of a rollout on a GPU, and what one takes of a made-up amount of memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llamaseek.data.batch import Batch
from llamaseek.engine.engine import Engine
from llamaseek.herd.folder import read_config
from llamaseek.herd.published import ENTRIES
from llamaseek.models import build_model
from llamaseek.plan.gpus import find_gpu
from llamaseek.plan.layout import Layout
from llamaseek.plan.planner import Planner
from llamaseek.plan.recipe import question_of, recipe_answer
from llamaseek.plan.text import recipe_lines
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.reading import find_recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.rollouts import answers
from llamaseek.train.rollouts.rollout import Rollouts
from llamaseek.train.saving.state import save_folder
from tests.models.shapes import tiny_config
from tests.train.tiny import tiny_tokenizer

LENGTH, ANSWER, ANSWERS = 256, 224, 20


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each once."""
    apart = {tensor.data_ptr(): tensor.numel() * tensor.itemsize for tensor in tensors}
    return sum(apart.values())


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_a_rollout_takes_what_is_planned(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(family, vocab_size=tiny_tokenizer().vocab_size)
    save_folder(tmp_path, build_model(config), tiny_tokenizer())
    options = {
        "model.init_from": tmp_path, "data.length": LENGTH, "rollout.max_tokens": ANSWER,
        "train.batch": 40, "train.micro_batch": 8, "rollout.samples": 8, "grpo.beta": 0.1,
        "train.precision": "bf16", "train.device": "cpu", "data.rows.arithmetic": 100,
    }  # fmt: skip
    recipe = load_recipe(find_recipe("arithmetic-grpo"), [f"{k}={v}" for k, v in options.items()])
    gpu = find_gpu("h100-80gb")
    drawn = Planner(question_of(recipe, read_config(tmp_path), gpu)).drawing(Layout())
    assert drawn is not None
    limit = drawn.weights + 2 * (ANSWERS + 0.5) * LENGTH * drawn.token
    planner = Planner(question_of(recipe, read_config(tmp_path), replace(gpu, memory=limit)))
    planned, sampling = planner.drawing(Layout()), planner.question.sampling
    assert planned is not None and sampling is not None
    assert planned.answers(sampling, Layout()) == ANSWERS

    job = build_job(recipe)
    source: Any = job.source
    assert isinstance(source, Rollouts)
    sampler, running, seen = source.sampler, list[tuple[int, int]](), {}

    def weights() -> int:
        parts = [job.model, sampler.copied, source.assess.scored.frozen]
        models = [part for part in parts if isinstance(part, nn.Module)]
        return held(p for model in models for p in model.parameters())

    def room(device: torch.device) -> int:
        seen["weights"] = weights()
        return int(limit - seen["weights"]) // 2

    step = Engine.step

    def watched(self: Engine) -> Any:
        running.append((len(self.scheduler.running), self.pool.used))
        return step(self)

    monkeypatch.setattr(answers, "COPIED", ("cpu",))
    monkeypatch.setattr(answers, "cache_room", room)
    monkeypatch.setattr(Engine, "step", watched)
    monkeypatch.setattr("llamaseek.engine.engine._end_token_ids", lambda *_: frozenset())
    batch = source.step(0, 40)
    assert isinstance(batch, Batch) and sampler.engine is not None
    cache = held(kept for store in sampler.engine.runner.cache.stores for kept in store.kept)
    assert cache == pytest.approx(planned.cache, rel=0.1)
    assert seen["weights"] == pytest.approx(planned.weights, rel=0.1)
    whole = min(count for count, _ in running[ANSWER - 20 : ANSWER])  # none has ended yet
    assert whole == pytest.approx(ANSWERS, rel=0.1)


def test_the_plan_of_a_rollout_by_the_8b_shape() -> None:
    options = ["data.length=1024", "rollout.max_tokens=768", "lora.rank=16", "train.batch=512",
               "train.micro_batch=4", "train.precision=bf16", "model.init_from=a"]  # fmt: skip
    recipe = load_recipe(find_recipe("arithmetic-grpo"), options)
    config = ENTRIES["llama-3.1-8b"].config
    found = recipe_answer(recipe, config, find_gpu("h100-80gb"))
    token = 32 * 2 * 8 * 128 * 2  # layers, keys and values, heads, width, bytes
    weights = 2 * found["parameters"]  # in bf16, one copy: adapters have no reference
    at_once = (80e9 - weights) / 2 / (1024 * token)
    assert found["answers_at_once"] == pytest.approx(at_once, rel=0.02)
    assert found["bytes_per_gpu"]["cache"] == pytest.approx((80e9 - weights) / 2, rel=0.02)
    assert ("answers", f"{found['answers_at_once']} at once") in recipe_lines(found)
