"""What accelerators and links reach in practice, as measured and published: no assumed utilisation.

Peaks are in `gpus.py`; these are the shares of them that the best kernels and collectives were
measured at, each with its source.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.plan.gpus import Gpu

# S. Bekman, Machine Learning Engineering, "Maximum Achievable Matmul FLOPS": H100 SXM reaches
# 794.5 TFLOP/s in bf16 and 1402.6 in fp8, of 989 and 1979.
BF16_SHARE, FP8_SHARE = 794.5 / 989.4, 1402.6 / 1978.9
# FlashAttention-3 on H100, bf16, causal, head width 128, rows of 8,192, 48 heads, batch 4
# (meta-pytorch/tritonbench#1267): forward 4.817 ms, backward 15.308 ms. Forward and backward are
# 3.30 and 8.25 TFLOP of what causality leaves: 574 TFLOP/s together (at 4,096: 491).
ATTENTION_SHARE = 574 / 989.4
# Bekman's all-reduce of 8 H100 without in-switch reduction: 367.6 GB/s of 450. The same share of an
# H800's 200 is 163; DeepEP measures 153 to 158 there.
LINK_SHARE = 367.6 / 450
# DeepEP's all-to-all (docs/legacy.md) over 64 H800 in 8 nodes: 50 to 51 GB/s, of which the eighth
# that stays in the node is no network's: 44 to 45 of 50.
NETWORK_SHARE = 45 / 50
# Copies in an H100's memory: 2,903 GB/s of 3,350 (Voltage Park and Georgia Tech's benchmark of 32).
MEMORY_SHARE = 2903 / 3350


@dataclass(frozen=True)
class Rates:
    """FLOP/s and bytes/s of one GPU that can be counted on."""

    products: float
    attention: float
    memory: float
    link: float
    network: float
    node: int


def rates_of(gpu: Gpu, dtype: str) -> Rates:
    """The measured rates of `gpu` for products in "bf16" or "fp8"; attention is in bf16."""
    share = FP8_SHARE if dtype == "fp8" else BF16_SHARE
    return Rates(
        products=share * gpu.peak(dtype),
        attention=ATTENTION_SHARE * gpu.bf16,
        memory=MEMORY_SHARE * gpu.bandwidth,
        link=LINK_SHARE * gpu.link,
        network=NETWORK_SHARE * gpu.network,
        node=gpu.node,
    )
