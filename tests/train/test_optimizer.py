"""AdamW with narrow moments, and what layers keep for their backward pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.models.recompute import recompute
from llamaseek.recipe.schema import TrainRecipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.optimizer import make_optimizer
from tests.train.tiny import recipe


def test_moments_in_bf16_are_adamw_s_rounded() -> None:
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(4, 5))
    settings = TrainRecipe(moments="bf16", lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = make_optimizer([weight], settings)
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
