"""Every operator against its plain computation, as a script too, so that each instruction set's
kernels can be checked on one machine: `LLAMASEEK_KERNELS=avx2 python -m tests.kernels.check`."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from llamaseek.checkpoints.gguf.blocks import encode
from llamaseek.herd.published import ENTRIES
from llamaseek.kernels import ops
from llamaseek.kernels.blocks import KINDS, in_halves
from llamaseek.kernels.build import builder
from llamaseek.kernels.packed import dequantize_packed
from llamaseek.models.moe import Router
from llamaseek.models.quant.rounding import quantize

KERNELS = torch.ops.llamaseek
# Relative errors in the norm of the outcome. Weights of 4 bits meet activations of 8: rounding to
# 1/127 of the largest of 128 normal numbers is 0.7% of their size, and 1.5% where it is done twice.
EXACT, BF16, PACKED, TWICE = 2e-6, 4e-3, 1.5e-2, 2.5e-2
EIGHT, BLOCKS = 5e-4, 2e-4  # activations of 15 bits, a scale a token, and one for every 32
AVERAGE = 1e-5  # of attention over random values, which cancel each other out
FORMS = ((32, 0), (16, 0), (8, 0), (8, 32), (8, 64), (8, 128), (4, 0), (4, 32), (4, 64), (4, 128))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def tolerance(bits: int) -> float:
    return {32: EXACT, 16: BF16, 8: EIGHT}.get(bits, PACKED)


def make(shape: tuple[int, ...], bits: int, group: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """A weight as an operator takes it, its scales if it has any, and as plain float32."""
    weight = torch.randn(shape) * shape[-1] ** -0.5
    if bits >= 16:
        weight = weight.to({32: torch.float32, 16: torch.bfloat16}[bits])
        return weight, [], weight.float()
    words, scales = quantize(weight, bits, group)
    return words, [scales], dequantize_packed(words, scales, bits, torch.float32)


def check_linear(bits: int, group: int) -> None:
    """Several weights at once; norm, residual and gate; widths with tails; 1 to 19 tokens.

    The widest are also made long enough for more than one thread.
    """
    sizes = itertools.product((1, 2, 3, 4, 7, 16, 19), (40, 128, 200, 384), (33,))
    for tokens, width, long in (*sizes, (1, 384, 1503), (5, 384, 1503)):
        if group and width % group:
            continue
        made = [make((rows, width), bits, group) for rows in (long, 7)]
        words, scales = [m[0] for m in made], [s for m in made for s in m[1]]
        x, norm = torch.randn(tokens, width), torch.rand(width) + 0.5
        residual = torch.randn(tokens, long + 7)
        ready = torch.nn.functional.rms_norm(x, (width,), norm, 1e-5)
        wanted = torch.cat([ready @ m[2].T for m in made], -1) + residual
        found = KERNELS.linear(x, norm, 1e-5, words, scales, bits, residual, False)
        assert relative(found, wanted) < tolerance(bits), (tokens, width)
        gate, up = (make((long - 12, width), bits, group) for _ in range(2))
        both = [gate[0], up[0]], [*gate[1], *up[1]]
        found = KERNELS.linear(x, None, 0.0, *both, bits, None, True)
        wanted = torch.nn.functional.silu(x @ gate[2].T) * (x @ up[2].T)
        assert relative(found, wanted) < 2 * tolerance(bits), (tokens, width)


def check_alone(bits: int, group: int) -> None:
    """A token's products are the same to the bit whatever stands beside it, so that drafts change
    nothing; 1 to 16 tokens.
    """
    for width in (384, 576 if not group else 640, 2048):
        words, scales, _ = make((65, width), bits, group)
        rest = None, 0.0, [words], scales, bits, None, False
        for x in (torch.randn(16, width), torch.randn(16, width).bfloat16()):
            alone = torch.cat([KERNELS.linear(row[None], *rest) for row in x])
            for tokens in range(2, 17):
                found = KERNELS.linear(x[:tokens], *rest)
                assert torch.equal(found, alone[:tokens]), (width, tokens)


def check_one_large_number(group: int) -> None:
    """A number a hundred times as large as the others of a token hides none of them."""
    words, scales, plain = make((64, 384), 8, group)
    x = torch.randn(3, 384)
    x[:, 7] = 100
    rest = plain.clone()
    rest[:, 7] = 0
    found = KERNELS.linear(x, None, 0.0, [words], scales, 8, None, False)
    error = (found - x @ plain.T).norm() / (x @ rest.T).norm()
    assert error < 5e-3, error


def make_blocks(kind: str, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """A matrix in GGUF's blocks, and as the gguf package widens it."""
    type_, weight = GGMLQuantizationType[kind], torch.randn(rows, width) * width**-0.5
    if kind == "Q5_K":  # which no one writes here
        data = np.random.default_rng(rows).integers(0, 256, (rows, width // 256, 176), np.uint8)
        scales = np.array([0.01, 0.005], np.float16).view(np.uint8)
        data[..., :4] = scales
        blocks = torch.from_numpy(data.reshape(rows, -1))
    else:
        blocks = torch.frombuffer(bytearray(encode(weight, type_)), dtype=torch.uint8)
        blocks = blocks.view(rows, -1)
    return blocks, torch.from_numpy(dequantize(blocks.numpy(), type_))


def check_blocks(kind: str) -> None:
    """Two matrices, one of whose heads' rows alternate; 1 to 50 tokens; widths with tails.

    A token's numbers do not depend on what comes with it, where many come.
    """
    number = KINDS[kind]
    widths = (256, 768) if number > 8 else (32, 96, 256, 576)
    for tokens, width in itertools.product((1, 2, 3, 5, 8, 16, 19, 50), widths):
        (first, one), (second, two) = (make_blocks(kind, rows, width) for rows in (45, 48))
        x, norm, residual = torch.randn(tokens, width), torch.rand(width) + 0.5, torch.randn(93)
        ready = torch.nn.functional.rms_norm(x, (width,), norm, 1e-5)
        wanted = torch.cat((ready @ one.T, ready @ in_halves(two, 16).T), -1) + residual
        kinds, rest = [number, number], residual.expand(tokens, -1).contiguous()
        found = KERNELS.linear_blocks(x, norm, 1e-5, [first, second], kinds, [0, 16], rest, False)
        assert relative(found, wanted) < BLOCKS, (kind, tokens, width)
        plain = found
        found = KERNELS.linear_blocks(
            x.bfloat16(), None, 0.0, [first, second[:45]], kinds, [0, 0], None, True
        )
        inner = x.bfloat16().float()
        wanted = torch.nn.functional.silu(inner @ one.T) * (inner @ two[:45].T)
        assert found.dtype == torch.bfloat16 and relative(found, wanted) < BF16
        assert relative(KERNELS.widen_blocks(first, number), one) < EXACT
        if tokens > 16:
            again = KERNELS.linear_blocks(
                x[1:18], norm, 1e-5, [first, second], kinds, [0, 16], rest[1:18], False
            )
            assert torch.equal(again, plain[1:18])


def check_largest_codes() -> None:
    """Sums of products with the largest codes of Q6_K, 32 times -128, do not overflow."""
    data = np.zeros((40, 2, 210), np.uint8)
    data[..., 192:208] = 128
    data[..., 208:] = np.array([1], np.float16).view(np.uint8)
    blocks = torch.from_numpy(data.reshape(40, -1))
    for tokens in (3, 20):
        x = torch.ones(tokens, 512)
        found = KERNELS.linear_blocks(x, None, 0.0, [blocks], [KINDS["Q6_K"]], [0], None, False)
        assert relative(found, torch.full((tokens, 40), 512 * 4096.0)) < BLOCKS


def check_bf16_activations() -> None:
    """Activations in bf16 give what float32 ones of the same values give, rounded once."""
    x, weight = torch.randn(3, 200).bfloat16(), torch.randn(12, 200).bfloat16()
    found = KERNELS.linear(x, None, 0.0, [weight], [], 16, None, False)
    assert found.dtype == torch.bfloat16
    assert relative(found, x.float() @ weight.float().T) < BF16


def check_prompt(bits: int, group: int) -> None:
    """Many tokens in bf16, which need no more rounding where bf16 is multiplied; several chunks."""
    for width, rows in ((128, 33), (1536, 700)):
        words, scales, plain = make((rows, width), bits, group)
        x = torch.randn(50, width).bfloat16()
        found = KERNELS.linear(
            x, None, 0.0, [words, words[:5]], [*scales, scales[0][:5]], bits, None, False
        )
        wanted = x.float() @ torch.cat((plain, plain[:5])).T
        assert relative(found, wanted) < max(BF16, tolerance(bits)), (bits, group, width)


def check_heads() -> None:
    for dtype, most in ((torch.float32, EXACT), (torch.bfloat16, BF16)):
        x, weight = torch.randn(3, 8, 40, dtype=dtype), torch.randn(8, 30, 24, dtype=dtype)
        wanted = torch.einsum("mhk,hnk->mhn", x[..., :24].float(), weight.float())
        assert relative(KERNELS.linear_heads(x[..., :24], weight), wanted) < most


def check_norm() -> None:
    for dtype, most in ((torch.float32, EXACT), (torch.bfloat16, BF16)):
        x, weight = torch.randn(3, 200).to(dtype), (torch.rand(200) + 0.5).to(dtype)
        wanted = torch.nn.functional.rms_norm(x.float(), (200,), weight.float(), 1e-5)
        assert relative(KERNELS.rms_norm(x, weight, 1e-5), wanted) < most


def check_route() -> None:
    """As the model's own router chooses, with groups and without, a few experts or 256."""
    for groups, kept, experts, choices in (
        (1, 1, 16, 2),
        (8, 4, 256, 8),
        (4, 2, 4, 1),
        (2, 1, 6, 3),
    ):
        config = replace(
            ENTRIES["deepseek-v3"].config,
            hidden_size=72,
            n_routed_experts=experts,
            n_group=groups,
            topk_group=kept,
            num_experts_per_tok=choices,
        )
        for dtype in (torch.float32, torch.bfloat16):
            router = Router(config).requires_grad_(False)
            router.weight.data = torch.randn(experts, 72).to(dtype)
            router.e_score_correction_bias.normal_(std=0.1)
            x = torch.randn(5, 72).to(dtype)
            chosen, gates = router.choose(router.scores(x))
            found, weights = KERNELS.route(
                x,
                router.weight,
                router.e_score_correction_bias,
                groups,
                kept,
                choices,
                config.norm_topk_prob,
                config.routed_scaling_factor,
            )
            ours, theirs = torch.zeros(2, 5, experts).unbind()
            assert (
                relative(ours.scatter(1, found, weights), theirs.scatter(1, chosen, gates)) < EXACT
            )


def check_experts(bits: int, group: int) -> None:
    """A token's outcome is the sum of its experts', each weighed by its gate."""
    experts, width, hidden, tokens = 6, 128, 512, 20
    up, down = (
        make((experts, 2 * hidden, width), bits, group),
        make((experts, width, hidden), bits, group),
    )
    x = torch.randn(tokens, width)
    chosen = torch.stack([torch.randperm(experts)[:2] for _ in range(tokens)])
    gates = torch.rand(tokens, 2)
    scales = [m[1][0] if m[1] else None for m in (up, down)]
    found = KERNELS.experts(x, chosen, gates, up[0], scales[0], down[0], scales[1], bits, bits)
    wanted = torch.zeros(tokens, width)
    for token, choice in itertools.product(range(tokens), range(2)):
        expert = int(chosen[token, choice])
        first, second = (up[2][expert] @ x[token]).chunk(2)
        made = down[2][expert] @ (torch.nn.functional.silu(first) * second)
        wanted[token] += gates[token, choice] * made
    assert relative(found, wanted) < (TWICE if bits == 4 else 2 * tolerance(bits))


def check_attend() -> None:
    """Scattered blocks, several lengths, values that are a part of the keys, many heads."""
    for dtype, (heads, groups, width, values) in itertools.product(
        (torch.float32, torch.bfloat16),
        ((8, 2, 64, 64), (16, 1, 576, 512), (20, 1, 40, 24), (3, 3, 18, 18)),
    ):
        kept = [torch.randn(groups, 1024, width, dtype=dtype) for _ in range(2)]
        v = kept[1] if values == width else kept[0][..., :values]
        q = torch.randn(3, heads, width, dtype=dtype)
        tables, lengths = torch.randperm(60).view(3, 20), [1, 257, 320]
        found = KERNELS.attend(q, kept[0], v, tables, torch.tensor(lengths), 16, 0.1)
        for token, length in enumerate(lengths):
            slots = (tables[token][:, None] * 16 + torch.arange(16)).flatten()[:length]
            for head in range(heads):
                group = head * groups // heads
                scores = kept[0][group, slots].float() @ q[token, head].float() * 0.1
                wanted = scores.softmax(0) @ v[group, slots].float()
                error = relative(found[token, head], wanted)
                assert error < (AVERAGE if dtype == torch.float32 else 2 * BF16)


def check_attend_in_a_row() -> None:
    """Tokens of two prompts, over a stretch's end: as the fallback's, and as each would alone."""
    lengths = torch.tensor([1, 2, 3, 254, 255, 256, 257, 258, *range(100, 130)])
    for dtype, (heads, groups) in itertools.product(
        (torch.float32, torch.bfloat16), ((9, 3), (20, 1), (4, 4))
    ):
        k, v = (torch.randn(groups, 1024, 24, dtype=dtype) for _ in range(2))
        rows = torch.tensor([0] * 8 + [1] * 30)
        tables = torch.randperm(60)[:40].view(2, 20)[rows]
        q = torch.randn(len(rows), heads, 24, dtype=dtype)
        found = KERNELS.attend(q, k, v, tables, lengths, 16, 0.2)
        wanted = ops.attend(q, k, v, tables, lengths, 16, 0.2)
        assert relative(found, wanted) < (AVERAGE if dtype == torch.float32 else BF16)
        each = [
            KERNELS.attend(q[n : n + 1], k, v, tables[n : n + 1], lengths[n : n + 1], 16, 0.2)
            for n in range(len(rows))
        ]
        assert torch.equal(found, torch.cat(each))


def check_rotations() -> None:
    """The kernels turn and store as the fallbacks do, which the greedy tests hold to the models."""
    for dtype in (torch.float32, torch.bfloat16):
        qkv, slots = torch.randn(3, 12 * 16, dtype=dtype), torch.tensor([5, 9, 31])
        cos, sin = torch.rand(3, 8), torch.rand(3, 8)
        both = [[torch.zeros(2, 32, 16, dtype=dtype) for _ in range(2)] for _ in range(2)]
        found = KERNELS.rotate_store(qkv, cos, sin, slots, *both[0])
        wanted = ops.rotate_store(qkv, cos, sin, slots, *both[1])
        for ours, theirs in ((found, wanted), *zip(*both, strict=True)):
            assert relative(ours, theirs) < EXACT
        q, absorbed = torch.randn(3, 4, 40, dtype=dtype), torch.randn(3, 4, 48, dtype=dtype)
        latent, norm = torch.randn(3, 64, dtype=dtype), torch.rand(48, dtype=dtype)
        stores = [torch.zeros(1, 32, 64, dtype=dtype) for _ in range(2)]
        rest = (q, absorbed, latent, norm, 1e-6, cos, sin, slots)
        found = KERNELS.rotate_store_latent(*rest, stores[0])
        wanted = ops.rotate_store_latent(*rest, stores[1])
        most = EXACT if dtype == torch.float32 else BF16
        assert relative(found, wanted) < most and relative(*stores) < most


def check_all() -> None:
    torch.manual_seed(0)
    for form in FORMS:
        check_linear(*form)
        check_alone(*form)
        check_experts(*form)
        if form[0] < 16:
            check_prompt(*form)
    for group in (0, 128):
        check_one_large_number(group)
    for kind in KINDS:
        check_blocks(kind)
    check_largest_codes()
    check_bf16_activations()
    check_heads()
    check_norm()
    check_route()
    check_attend()
    check_attend_in_a_row()
    check_rotations()


if __name__ == "__main__":
    assert builder().build(), builder().reason
    check_all()
