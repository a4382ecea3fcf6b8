"""What a run says of itself: one quantity in training and held out, the peak, the progress line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.source import Rows
from llamaseek.herd import config_from_sizes
from llamaseek.models.score import add_value_head
from llamaseek.plan.learning_rate import unusual_rate, usual_rate
from llamaseek.recipe.post_training import GrpoRecipe, PpoRecipe
from llamaseek.recipe.reading import bundled
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.check import model_config
from llamaseek.runtime.device import PeakRate
from llamaseek.train.job import Job
from llamaseek.train.loop import Trainer
from llamaseek.train.objectives.dpo import DPO
from llamaseek.train.objectives.grpo import GRPO
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.multi_token import MultiToken
from llamaseek.train.objectives.next_token import NextToken
from llamaseek.train.objectives.ppo import PPO
from llamaseek.train.progress import Progress, watched_parts
from tests.parallel.scenes import VOCABULARY, job_of, recipe_of, rows
from tests.parallel.test_objectives import answers, pairs
from tests.train.tiny import recipe


def sampled() -> Batch:
    """Answers with all that GRPO (advantages a row) and PPO read; `ppo` is a token's."""
    batch, rng = answers(), torch.Generator().manual_seed(3)
    batch = batch.select(torch.tensor([0, 1, 2, 4]))
    shape = batch.tokens.shape
    names = ("old", "reference", "values", "returns", "ppo")
    extra = {name: torch.randn(shape, generator=rng).double() / 10 for name in names}
    mask = batch.targets != IGNORE
    extra = {name: tensor * mask - 3 * (name in names[:2]) for name, tensor in extra.items()}
    extra["advantages"] = torch.randn(len(batch.tokens), generator=rng).double()
    return Batch(batch.tokens, batch.positions, batch.targets, extra)


def for_ppo() -> Batch:
    """The same with an advantage at each token."""
    batch = sampled()
    extra = {**batch.extra, "advantages": batch.extra["ppo"]}
    return Batch(batch.tokens, batch.positions, batch.targets, extra)


OBJECTIVES: dict[str, Any] = {
    "sft": lambda: (answers(), NextToken(0.1)),
    "dpo": lambda: (pairs(), DPO(0.1, 0.2, 0.1)),
    "multi_token": lambda: (rows().batch, MultiToken(1, 0.3, 0.1)),
    "masked": lambda: (rows().batch, Masked(1, 3, VOCABULARY - 20, 0.0)),
    "grpo": lambda: (sampled(), GRPO(GrpoRecipe(beta=0.1), 1.0, 64)),
    "ppo": lambda: (for_ppo(), PPO(PpoRecipe(), 1.0)),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_training_and_held_out_show_the_same_quantity_by_the_same_name(kind: str) -> None:
    data, objective = OBJECTIVES[kind]()
    named = "multi_token" if kind == "multi_token" else "next_token"
    made = recipe_of("deepseek_v3", {}, objective=named, micro_batch=2)
    job = job_of(made)
    if kind == "ppo":
        add_value_head(job.model)
    trainer = Trainer(Job(made, job.model, job.tokenizer, objective, Rows(data, 0), data))
    trained = trainer._gradients(objective.prepare(data, 0))
    held_out = trainer._evaluate()
    assert {f"val_{name}" for name in trained} == held_out.keys()
    assert len(trained) >= 2  # the loss, and each term of it
    for name, value in trained.items():
        assert held_out[f"val_{name}"] == pytest.approx(float(value), abs=1e-6), name


def test_the_share_of_peak_is_of_the_best_rate_shown() -> None:
    now, measured = [0.0], iter([100.0, 160.0, 90.0])
    peak = PeakRate(lambda: next(measured), every=60.0, clock=lambda: now[0])
    assert peak.share(50.0) == 0.5
    assert peak.share(130.0) == 1.0  # faster than measured beside another program
    assert peak.share(65.0) == 0.5
    now[0] = 61.0
    assert peak.share(80.0) == 0.5  # measured again, alone now
    now[0] = 122.0
    assert peak.share(80.0) == 0.5  # a slower measurement takes nothing back


def screen(width: int, lines: list[dict[str, Any]], scores: dict[str, float], **more: Any) -> str:
    """What a terminal of this width shows after the last step."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    peak = PeakRate(lambda: 1e12)
    name = more.pop("name", "smollm2-tickets-lora")
    with Progress(name, 200, 0, 1e6, peak, console=console, **more) as progress:
        progress.bar.stop()  # no thread: one picture
        for line in lines:
            progress.update(line)
        progress.evaluated(lines[-1]["step"], scores)
        with console.capture() as shown:
            console.print(progress.bar.get_renderable())
    return shown.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_rate_and_time_left_stay_at_every_width(width: int) -> None:
    lines = [
        {"step": n, "loss": 1.2, "loss/dpo": 0.5, "loss/nll": 3.4, "accuracy": 0.75, "margin": 0.1,
         "tokens_per_second": 12345.0}
        for n in range(1, 100)
    ]  # fmt: skip
    scores = {"val_loss": 1.1, "val_loss/dpo": 0.4, "val_loss/nll": 3.3, "val_accuracy": 0.8}
    shown = screen(width, lines, scores, rows=320, batch=4)
    first, second = shown.splitlines()[:2]
    assert len(first) <= width and len(second) <= width
    assert "━" in first and "99/200" in first and "12,345 tok/s" in first and "left" in first
    assert second.startswith("loss 1.200  dpo 0.500  held out at step 99: loss 1.100")
    if width == 120:
        assert "held out at step 99: loss 1.100 dpo 0.400 accuracy 0.8" in second


def test_the_epoch_and_its_rows_are_named_at_80_columns() -> None:
    lines = [{"step": 40, "loss": 1.2, "loss/next_token": 1.2, "tokens_per_second": 900.0}]
    shown = screen(80, lines, {}, rows=320, batch=16)
    assert "epoch 2.00 of 320 rows" in shown


def test_pairs_that_are_all_equal_have_no_accuracy() -> None:
    shares = sum(1 / 12 for _ in range(12))  # of micro-batches: a little less than 1
    line = {"accuracy": 0.0, "equal": shares, "margin": 0.0}
    assert watched_parts(line) == ["equal 1", "margin 0"]
    line = {"val_accuracy": 0.5, "val_equal": 0.1, "val_margin": 0.2}
    assert watched_parts(line, "val_") == ["accuracy 0.5", "margin 0.2"]


def test_the_last_line_of_a_pipe_is_of_the_last_step() -> None:
    file = io.StringIO()
    progress = Progress("run", 2, 0, 1.0, None, console=Console(file=file, width=200))
    for step, value in ((1, 0.5), (2, 0.25)):
        progress.update({"step": step, "loss": value, "tokens_per_second": 9.0})
        progress.evaluated(step, {"val_loss": 2 * value})
    first, last = file.getvalue().splitlines()
    assert first.startswith("run 1/2 loss 0.500 held out at step 1: loss 1.000")
    assert last.startswith("run 2/2 loss 0.250 held out: loss 0.500")


@pytest.mark.parametrize(
    ("parameters", "how", "published", "factor"),
    [
        (175e9, ("pretrain", False, False), 6e-5, 1.1),  # GPT-3
        (8e9, ("pretrain", False, False), 3e-4, 2.1),  # Llama 3
        (405e9, ("pretrain", False, False), 8e-5, 2.1),
        (135e6, ("sft",), 1e-3, 5.5),  # SmolLM2
        (8e9, ("sft",), 5e-6, 5.5),  # Tulu 3
        (70e9, ("sft",), 2e-6, 5.5),
        (405e9, ("sft",), 1e-5, 5.5),  # Llama 3
        (7e9, ("sft", True), 2e-4, 2.1),  # QLoRA
        (65e9, ("sft", True), 1e-4, 2.1),
        (8e9, ("dpo",), 5e-7, 3),  # Tulu 3
        (7e9, ("grpo",), 1e-6, 2),  # DeepSeekMath
    ],
)
def test_usual_learning_rates_are_near_published_ones(
    parameters: float, how: tuple[Any, ...], published: float, factor: float
) -> None:
    assert 1 / factor < usual_rate(int(parameters), *how) / published < factor


def test_a_toys_learning_rate_on_a_real_model_is_warned_of(tmp_path: Path) -> None:
    made = recipe(tmp_path, stage="sft", train__lr=2e-3)
    toy = recipe(tmp_path, train__lr=2e-3)
    assert unusual_rate(toy, model_config(toy)) is None
    sizes = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
             "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
             "tie_word_embeddings": True}  # fmt: skip
    warning = unusual_rate(made, config_from_sizes("llama3", sizes))
    assert warning is not None
    assert "0.002" in warning and "1.24B" in warning and "2e-05 to 2e-04" in warning


def test_no_bundled_recipe_is_warned_of() -> None:
    for path in bundled().values():
        if path.name == "web-text.yaml":  # cleans data
            continue
        made = Recipe.load(path)
        if made.model.init_from is None:
            assert unusual_rate(made, model_config(made)) is None, path
