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
# FlashAttention-3 (Shah et al. 2024): causal forward, head width 128, 8k to 16k: about 600
# TFLOP/s of the products that causality leaves; its backward about 500.
ATTENTION_SHARE = 550 / 989.4
# The same book's all-reduce of 8 GPUs without in-switch reduction: 367.6 GB/s of 450.
LINK_SHARE = 367.6 / 450
# DeepEP's published all-to-all over RDMA: 43 to 47 GB/s of 50.
NETWORK_SHARE = 45 / 50
# STREAM-like kernels on HBM3 reach nine tenths.
MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Rates:
    """FLOP/s and bytes/s of one GPU that can be counted on."""

    products: float
    attention: float
    memory: float
    link: float
    network: float
    node: int

    def reach(self, ranks: int) -> float:
        """Bytes a second between so many neighbours: inside a node, else over the network."""
        return self.link if ranks <= self.node else self.network


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
