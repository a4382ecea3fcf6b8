"""Accelerators as data: memory, bandwidth, dense matrix rates, links, and where each is stated.

Bytes and bytes a second are decimal, as data sheets give them. Rates are dense (no 2:4 sparsity),
accumulated in fp32. `link` is one direction of a GPU's connection to its neighbours in a node of
`node`; `network` its share of the node's network. Where a sheet states both directions together,
half is taken.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

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
