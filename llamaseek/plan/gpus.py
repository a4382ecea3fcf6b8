"""Accelerators as data: memory, bandwidth, dense matrix rates, links, and where each is stated.

Bytes and bytes a second are decimal, as data sheets give them. Rates are dense (no 2:4 sparsity),
accumulated in fp32. `link` is one direction of a GPU's connection to its neighbors in a node of
`node`; `network` its share of the node's network. Where a sheet states both directions together,
half is taken.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, replace

from llamaseek.errors import UserError, bad_value, unknown_name


@dataclass(frozen=True)
class Gpu:
    """One accelerator. `fp8` is 0 where it multiplies none."""

    name: str
    title: str
    memory: float
    bandwidth: float
    fp32: float
    bf16: float
    fp8: float
    link: float
    network: float
    node: int
    source: str

    def peak(self, rate: str) -> float:
        """FLOP/s of "fp32", "bf16" or "fp8" products; UserError where it has none."""
        found: float = getattr(self, rate)
        if not found:
            raise bad_value("dtype", rate, f"fp32 or bf16 on {self.name} (no {rate} products)")
        return found


HOPPER = {"fp32": 67e12, "bf16": 989.4e12, "fp8": 1978.9e12, "network": 50e9, "node": 8}
ADA = {"link": 32e9, "node": 8}
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "h100-80gb",
            "NVIDIA H100 SXM",
            memory=80e9,
            bandwidth=3.35e12,
            link=450e9,
            **HOPPER,  # type: ignore[arg-type]
            source="NVIDIA H100 data sheet; network: Llama 3 paper §3.3.1, 400 Gb/s a GPU",
        ),
        Gpu(
            "h800-80gb",
            "NVIDIA H800 SXM",
            memory=80e9,
            bandwidth=3.35e12,
            link=200e9,
            **HOPPER,  # type: ignore[arg-type]
            source="H100's processor, NVLink cut to 400 GB/s; network: DeepSeek-V3 report §3.2.2",
        ),
        Gpu(
            "h200-141gb",
            "NVIDIA H200 SXM",
            memory=141e9,
            bandwidth=4.8e12,
            link=450e9,
            **HOPPER,  # type: ignore[arg-type]
            source="NVIDIA H200 data sheet",
        ),
        Gpu(
            "a100-80gb",
            "NVIDIA A100 SXM",
            memory=80e9,
            bandwidth=2.039e12,
            fp32=19.5e12,
            bf16=312e12,
            fp8=0,
            link=300e9,
            network=25e9,
            node=8,
            source="NVIDIA A100 data sheet; network: DGX A100, 200 Gb/s a GPU",
        ),
        Gpu(
            "b200-180gb",
            "NVIDIA B200",
            memory=180e9,
            bandwidth=8e12,
            fp32=75e12,
            bf16=2250e12,
            fp8=4500e12,
            link=900e9,
            network=50e9,
            node=8,
            source="NVIDIA DGX B200 data sheet, an eighth of the system",
        ),
        Gpu(
            "l40s-48gb",
            "NVIDIA L40S",
            memory=48e9,
            bandwidth=864e9,
            fp32=91.6e12,
            bf16=362.05e12,
            fp8=733e12,
            network=25e9,
            **ADA,  # type: ignore[arg-type]
            source="NVIDIA L40S data sheet; link: PCIe 4.0 × 16; network: 200 Gb/s assumed",
        ),
        Gpu(
            "rtx4090-24gb",
            "NVIDIA GeForce RTX 4090",
            memory=24e9,
            bandwidth=1.008e12,
            fp32=82.6e12,
            bf16=165.2e12,
            fp8=330.3e12,
            network=1.25e9,
            **ADA,  # type: ignore[arg-type]
            source="NVIDIA Ada whitepaper; link: PCIe 4.0 × 16; network: 10 Gb/s assumed",
        ),
        Gpu(
            "mi300x-192gb",
            "AMD Instinct MI300X",
            memory=192e9,
            bandwidth=5.3e12,
            fp32=163.4e12,
            bf16=1307.4e12,
            fp8=2614.9e12,
            link=448e9,
            network=50e9,
            node=8,
            source="AMD MI300X data sheet; link: seven Infinity Fabric links together",
        ),
    )
}

MEASURED = "measured now: numpy's float32 product and copy; bf16 taken as fast"


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, or the only one whose name begins so; `cpu` is this machine's."""
    wanted = name.lower()
    if wanted == "cpu":
        return this_cpu()
    near = [gpu for key, gpu in GPUS.items() if key == wanted or key.startswith(wanted)]
    if wanted and len(near) == 1:
        return near[0]
    raise unknown_name("gpu", name, [*GPUS, "cpu"])


def this_cpu(rates: tuple[float, float] | None = None) -> Gpu:
    """This machine's processor. Its `rates`, FLOP/s and bytes a second, are measured now with numpy
    in about a tenth of a second unless they are given.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise UserError("gpu: 'cpu' has an unknown amount of memory on this system") from None
    rate, bandwidth = rates or _measure()
    return Gpu(
        "cpu",
        "this machine's CPU",
        memory=memory,
        bandwidth=bandwidth,
        fp32=rate,
        bf16=rate,
        fp8=0,
        link=bandwidth,
        network=bandwidth,
        node=1,
        source="taken as given" if rates else MEASURED,
    )


def _measure(size: int = 768, repeats: int = 3) -> tuple[float, float]:
    """FLOP/s of a float32 product, bytes a second read and written by a copy; best of a few."""
    import numpy as np

    a, large = np.ones((size, size), np.float32), np.ones(1 << 24, np.uint8)
    product, copy = float("inf"), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        middle = time.perf_counter()
        large.copy()
        product = min(product, middle - start)
        copy = min(copy, time.perf_counter() - middle)
    return 2 * size**3 / product, 2 * large.nbytes / copy


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
    """The measured rates of `gpu` for products in "bf16", "fp8" or "fp32"; attention is in bf16
    beside both narrow ones.
    """
    share = FP8_SHARE if dtype == "fp8" else BF16_SHARE
    return Rates(
        products=share * gpu.peak(dtype),
        attention=ATTENTION_SHARE * (gpu.fp32 if dtype == "fp32" else gpu.bf16),
        memory=MEMORY_SHARE * gpu.bandwidth,
        link=LINK_SHARE * gpu.link,
        network=NETWORK_SHARE * gpu.network,
        node=gpu.node,
    )


ASK = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
SECONDS = 30.0


def found_gpu() -> Gpu | None:
    """The first GPU, with no more memory than it says it has; None where there is none.

    `UserError` for one whose rates are not known.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    try:
        output = subprocess.run(ASK, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, mebibytes = output.stdout.partition("\n")[0].rpartition(",")
    if not name:
        return None
    gpu = gpu_called(name)
    if gpu is not None:
        return replace(gpu, memory=min(gpu.memory, float(mebibytes) * 2**20))
    known = ", ".join(GPUS)
    raise UserError(f"LLAMASEEK_GPU: is not set, and {name} is not a known GPU; allowed: {known}")


def gpu_called(name: str) -> Gpu | None:
    """The GPU that its driver calls `name`, as in "NVIDIA H100 80GB HBM3"; None if not known."""
    words = name.lower().replace("-", " ").replace("rtx ", "rtx").split()
    return next((gpu for gpu in GPUS.values() if gpu.name.partition("-")[0] in words), None)
