"""Latent attention: time of a decoded token against its context, a small DeepSeek-V3, bf16.

    python bench/latent.py [--json PATH] [--plot PATH] [--contexts 1024,2048,…]

Four sides, each a process that is timed in turn, round after round: the engine's forward over the
latent cache; the same forward with keys and values of every head cached, as plain attention would
(the strongest form of the expanded path: nothing is expanded twice); our layers expanding all
latents in every step; and transformers, which does the last too. Caches are filled with random
numbers, since a prompt of 16,000 tokens would take longer than everything else.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from bench.common import Row, installed, report
from llamaseek.engine.forward.fused import Fused, fuse
from llamaseek.engine.forward.halves import Latents, Where
from llamaseek.engine.forward.paged import PagedStore, build_cache, bytes_per_token
from llamaseek.engine.forward.step_layout import lay_out
from llamaseek.herd import DeepseekV3Config, config_from_sizes
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM, build_model
from llamaseek.models.cache import LayerShape
from llamaseek.models.layers import dense_weight

ROUNDS, BLOCK = 5, 16
CONTEXTS = (1024, 2048, 4096, 8192, 16384)
SIZES = {  # the published attention but for its number of heads; little else to read
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "q_lora_rank": 256,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_intermediate_size": 256,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 32768,
}
Step = Callable[[], object]


def config() -> DeepseekV3Config:
    """The compared model's."""
    found = config_from_sizes("deepseek_v3", SIZES)
    assert isinstance(found, DeepseekV3Config)
    return found


def ours() -> CausalLM:
    """Seeded, bf16."""
    torch.manual_seed(0)
    return build_model(config()).to(torch.bfloat16).eval()


def forward(fused: Fused, shapes: list[LayerShape], context: int) -> Step:
    """One token more behind `context` cached ones."""
    blocks = -(-(context + 1) // BLOCK)
    cache = build_cache(shapes, blocks, BLOCK, torch.bfloat16, "auto", torch.device("cpu"))
    for store in cache.stores:
        for kept in store.kept:
            kept.normal_()
    tables = np.arange(blocks)[None]
    layout = lay_out(tables, np.array([context]), np.array([1]), BLOCK)
    token = torch.tensor([7])

    def step() -> None:
        cache.begin(layout)
        fused(token, layout, cache)

    return step


def latent(context: int) -> Step:
    """The engine's own way."""
    model = ours()
    fused = fuse(model)
    assert fused is not None
    return forward(fused, model.cache_shapes(), context)


class Expanded:
    """Latent attention with the keys and values of every head cached."""

    def __init__(self, step: Latents) -> None:
        self.step, layer = step, step.layer
        kv_b = dense_weight(layer.kv_b_proj, torch.bfloat16)
        self.kv_b = [kv_b.contiguous()]

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        """See `llamaseek.engine.forward.halves.FusedStep`."""
        step, layer, ops = self.step, self.step.layer, torch.ops.llamaseek
        both = step.first(x, step.norm)
        q, latent = both.tensor_split((-(layer.rank + layer.rope),), dim=1)
        if step.second is not None:
            q = step.second(q, layer.q_a_layernorm)
        q = q.unflatten(1, (layer.heads, -1))
        small = latent.new_empty(1, int(where.layout.slots.max()) + 1, layer.rope + layer.rank)
        turned = ops.rotate_store_latent(
            q,
            q.new_zeros(len(q), layer.heads, layer.rank),
            latent,
            layer.kv_a_layernorm.weight,
            layer.kv_a_layernorm.eps,
            where.cos,
            where.sin,
            where.layout.slots,
            small,
        )
        new = small[0, where.layout.slots]
        expanded = ops.linear(
            new[:, : layer.rank].contiguous(), None, 0.0, self.kv_b, [], 16, None, False
        ).unflatten(1, (layer.heads, -1))
        k_nope, v = expanded.split((layer.nope, layer.value), dim=-1)
        k_rope = new[:, None, layer.rank :].expand(-1, layer.heads, -1)
        store = where.cache.stores[layer.layer]
        store.write(where.layout.slots, (torch.cat((k_nope, k_rope), -1)[None], v[None]))
        q = torch.cat((q[..., : layer.nope], turned[..., layer.rank :]), -1)
        seen = where.cache.attend_few(layer.layer, q, layer.scale)
        return step.out(seen.flatten(1), residual=x)


def expanded_shape() -> LayerShape:
    """Keys and values of every head."""
    c = config()
    return LayerShape(c.num_attention_heads, (c.qk_head_dim, c.v_head_dim), c.v_head_dim)


def expanded(context: int) -> Step:
    """Plain attention's way, with the same kernels."""
    model = ours()
    fused = fuse(model)
    assert fused is not None
    fused.steps = [Expanded(s) if isinstance(s, Latents) else s for s in fused.steps]
    return forward(fused, [expanded_shape()] * model.config.num_hidden_layers, context)


def reexpanded(context: int) -> Step:
    """The training path over the cached latents: `kv_b_proj` of all of them, then attention."""
    model = ours()
    layers = [layer.self_attn for layer in model.model.layers]
    kept = [torch.randn(1, context + 1, 512).bfloat16() for _ in layers]
    rope = [torch.randn(1, context + 1, 1, 64).bfloat16() for _ in layers]
    x = torch.randn(1, 1, SIZES["hidden_size"]).bfloat16()

    @torch.inference_mode()
    def step() -> None:
        for layer, latents, keys in zip(layers, kept, rope, strict=True):
            q_nope, q_rope = layer._query(x).split((layer.nope, layer.rope), dim=-1)
            mask = torch.ones(1, 1, 1, context + 1, dtype=torch.bool)
            out = layer._expanded(q_nope, q_rope, latents, keys, mask)
            layer.o_proj(out.flatten(2))

    return step


def transformers(context: int) -> Step:
    """transformers' model of the same config, its cache lengthened by random numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    data = config().to_dict()
    settings = AutoConfig.for_model(**data)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
    cache: Any = DynamicCache(config=settings)
    position = torch.tensor([[context]])
    with torch.inference_mode():
        model(torch.arange(4)[None], past_key_values=cache)
    for layer in cache.layers:
        for name in ("keys", "values"):
            shape = list(getattr(layer, name).shape)
            shape[2] = context
            setattr(layer, name, torch.randn(shape).bfloat16())
    token = torch.tensor([[7]])

    @torch.inference_mode()
    def step() -> None:
        model(token, position_ids=position, past_key_values=cache, use_cache=True)

    return step


SIDES = {
    "latent": latent,
    "expanded": expanded,
    "expanded in every step": reexpanded,
    "transformers": transformers,
}


def work(side: str) -> None:
    """A side's process: a context comes in, the milliseconds of a token go out."""
    builder().build()
    made: dict[int, Step] = {}
    for line in sys.stdin:
        context = int(line)
        if context not in made:
            made = {context: SIDES[side](context)}
            made[context]()
        with torch.inference_mode():
            times = []
            for _ in range(3):
                start = time.perf_counter()
                made[context]()
                times.append(time.perf_counter() - start)
        print(statistics.median(times) * 1e3, flush=True)


class Process:
    """The other end of `work`."""

    def __init__(self, side: str) -> None:
        command = [sys.executable, __file__, "--side", side]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.pipe = subprocess.Popen(command, text=True, **pipes)

    def measure(self, context: int) -> float:
        """Milliseconds of a token."""
        assert self.pipe.stdin is not None and self.pipe.stdout is not None
        print(context, file=self.pipe.stdin, flush=True)
        return float(self.pipe.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self.pipe.stdin is not None
        self.pipe.stdin.close()
        self.pipe.wait()


def compare(contexts: list[int], sides: list[str]) -> dict[str, list[float]]:
    """Medians of the rounds for each side and context."""
    running = {side: Process(side) for side in sides}
    found: dict[str, list[float]] = {side: [] for side in sides}
    for context in contexts:
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side, process in running.items():
                times[side].append(process.measure(context))
        for side in sides:
            found[side].append(statistics.median(times[side]))
        print(context, {side: round(t[-1], 2) for side, t in found.items()}, flush=True)
    for process in running.values():
        process.close()
    return found


def rows(contexts: list[int], found: dict[str, list[float]]) -> list[Row]:
    """A row for each context and peer, and what a token of the cache takes."""
    made = []
    for place, context in enumerate(contexts):
        mine = 1e3 / found["latent"][place]
        for side in found:
            if side != "latent":
                theirs = 1e3 / found[side][place]
                case = f"context {context}"
                made.append(Row(case, "tokens/s", mine, side, theirs, mine / theirs, None))
    model = ours()
    shapes, plain = model.cache_shapes(), [expanded_shape()] * SIZES["num_hidden_layers"]
    small, large = (float(bytes_per_token(s, torch.bfloat16, "auto")) for s in (shapes, plain))
    exact = SIZES["num_hidden_layers"] * (SIZES["kv_lora_rank"] + SIZES["qk_rope_head_dim"]) * 2
    held = sum(
        kept.nbytes
        for shape in shapes
        for kept in PagedStore(shape, 1, BLOCK, torch.bfloat16, torch.device("cpu")).kept
    )
    assert small == exact == held / BLOCK
    made.append(Row("cache", "bytes a token", small, "expanded", large, large / small, None))
    return made


def plot(contexts: list[int], found: dict[str, list[float]], path: Path) -> None:
    """Time of a token against the context, one line a side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for side, times in found.items():
        axes.plot(contexts, times, marker="o", label=side)
    axes.set(xscale="log", yscale="log", xlabel="tokens in the cache", ylabel="ms a token")
    axes.set_xticks(contexts, [f"{c // 1024}k" for c in contexts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side)
        return
    contexts = [int(c) for c in options.contexts.split(",")]
    sides = [s for s in SIDES if s != "transformers" or installed("transformers")]
    found = compare(contexts, sides)
    if options.plot:
        plot(contexts, found, options.plot)
    skipped = [] if "transformers" in sides else ["transformers (not installed)"]
    report(rows(contexts, found), skipped, options.json)


if __name__ == "__main__":
    main()
