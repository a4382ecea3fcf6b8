"""AdamW with narrow moments, and what layers keep for their backward pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from llamaseek.errors import UserError
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.models.recompute import recompute
from llamaseek.recipe.schema import Recipe, TrainRecipe
from llamaseek.runtime.check import resolve
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Trainer, train
from llamaseek.train.optimizer import make_optimizer
from tests.train.tiny import recipe


def test_moments_in_bf16_are_adamw_s_rounded() -> None:
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(4, 5))
    settings = TrainRecipe(moments="bf16", lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = make_optimizer({"w": weight}, settings)
    x = weight.detach().clone().double()
    first = second = torch.zeros_like(x)
    for step in range(1, 6):
        gradient = torch.randn(4, 5)
        weight.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        size = (second / (1 - 0.95**step)).sqrt() + 1e-8
        x = x - 1e-2 * 0.1 * x - 1e-2 * first / (1 - 0.9**step) / size
        first, second = first.bfloat16().double(), second.bfloat16().double()
        assert torch.allclose(weight.double(), x, atol=2e-6)
    kept = [value for key, value in optimizer.state[weight].items() if key != "step"]
    assert [moment.dtype for moment in kept] == [torch.bfloat16] * 2


def test_bf16_moments_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    made = recipe(tmp_path, "llama3", train__moments="bf16", train__steps=4, train__save_every=2)
    whole = train(build_job(made))
    wanted = (whole.path / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(whole.checkpoint(4))
    train(build_job(made), resume=True)
    assert (whole.path / "model" / "model.safetensors").read_bytes() == wanted


def test_muon_steps_matrices_of_layers_and_adamw_the_rest() -> None:
    """One by one, PyTorch's own two optimizers give the same weights."""
    torch.manual_seed(0)
    names = {
        "model.embed_tokens.weight": (20, 8),
        "model.layers.0.self_attn.q_proj.weight": (16, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 24),
        "model.layers.0.mlp.gate.weight": (4, 8),
        "model.layers.0.mlp.experts.down_proj": (4, 8, 8),
        "model.norm.weight": (8,),
    }
    start = {name: torch.randn(shape) for name, shape in names.items()}
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    settings = TrainRecipe(optimizer="muon", lr=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(weights, settings)
    alone = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    decayed = {name: 0.1 if value.dim() > 1 else 0.0 for name, value in start.items()}
    apart: list[torch.optim.Optimizer] = [
        torch.optim.Muon([p], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        if name.endswith("_proj.weight")
        else torch.optim.AdamW([p], lr=1e-2, betas=settings.betas, weight_decay=decayed[name])
        for name, p in alone.items()
    ]
    for rate in (1e-2, 5e-3):
        for group in (g for one in (optimizer, *apart) for g in one.param_groups):
            group["lr"] = rate
        for name, p in weights.items():
            p.grad = torch.randn_like(p)
            alone[name].grad = p.grad.clone()
        for one in (optimizer, *apart):
            one.step()
    for name, p in weights.items():
        torch.testing.assert_close(p, alone[name])


def test_a_step_of_muon_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    trainer = Trainer(build_job(recipe(tmp_path, "llama3", train__optimizer="muon")))
    trainer.step(0)
    before = {name: p.detach().clone() for name, p in trainer.ranks.own.items()}
    states = [
        {key: value.clone() for key, value in state.items()}
        for state in trainer.optimizer.state.values()
    ]
    for p in trainer.ranks.own.values():
        p.grad = torch.full_like(p, torch.nan)
    trainer._update(1e-2, {}, torch.tensor(False))
    assert all(torch.equal(p, before[name]) for name, p in trainer.ranks.own.items())
    for old, new in zip(states, trainer.optimizer.state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_a_run_with_muon_resumes_with_the_same_bits(tmp_path: Path) -> None:
    made = recipe(
        tmp_path, "deepseek_v3", train__optimizer="muon", train__steps=4, train__save_every=2
    )
    whole = train(build_job(made))
    wanted = (whole.path / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(whole.checkpoint(4))
    other = recipe(tmp_path, "deepseek_v3", train__steps=4, train__save_every=2)
    with pytest.raises(UserError, match="another train.optimizer"):
        train(build_job(other), resume=True, allow_change=["train.optimizer"])
    train(build_job(made), resume=True)
    assert (whole.path / "model" / "model.safetensors").read_bytes() == wanted


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.moments": "bf16"}, "moments bf16 is for optimizer adamw"),
        ({"lora.rank": 4}, "train.optimizer muon is for whole matrices"),
        ({"parallel.shard": 2}, "parallel.shard: above 1 is not for train.optimizer muon"),
        (
            {"parallel.tensor": 2, "model.config.num_key_value_heads": 2},
            "parallel.tensor: above 1 is not for train.optimizer muon",
        ),
    ],
)
def test_what_muon_is_not_for(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made = Recipe.load("tiny-shakespeare", {"train.optimizer": "muon", **overrides})
        resolve(made, made.parallel.ranks)


def test_a_compiled_layer_keeps_products_too() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    sizes |= {"vocab_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    kept = {}
    for what in ("selective", "full"):
        model = build_model(config_from_sizes("llama3", sizes)).train()
        recompute(model.model.layers, what)  # type: ignore[arg-type]
        for layer in model.model.layers:
            layer.compile(backend="aot_eager_decomp_partition")
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found: dict[int, int] = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()  # noqa: B023
            return x

        tokens = torch.zeros(1, 32, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model(tokens, torch.arange(32)[None])
        kept[what] = sum(size for place, size in found.items() if place not in own)
        torch._dynamo.reset()
    products = 32 * (64 + 2 * 32 + 2 * 128) * 4  # queries, keys, values, gate, up
    assert kept["selective"] > kept["full"] + products
