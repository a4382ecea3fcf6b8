"""What the machine can do: device, precision, measured matrix peak."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from llamaseek.errors import bad_value
from llamaseek.plan.gpus import gpu_called

if TYPE_CHECKING:
    from llamaseek.recipe.schema import TrainRecipe


def pick_device(wanted: str, field: str = "train.device") -> torch.device:
    """`auto` selects the GPU if there is one, `cuda:1` the second of several.

    Raises `UserError`, naming `field`, for a device that this machine lacks.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = ["cuda", *(f"cuda:{number}" for number in range(gpus))] if gpus else []
    if wanted == "auto":
        wanted = "cuda" if gpus else "cpu"
    if wanted not in ("cpu", *named):
        raise bad_value(field, wanted, ", ".join(("auto", "cpu", *named)) + " on this machine")
    return torch.device(wanted)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What matrix products run in: bf16 where the machine has it, else fp32. Weights are fp32.

    fp64 makes the weights fp64 too: for comparing layouts beyond rounding.
    """
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[precision]


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def compiles(recipe: TrainRecipe, device: torch.device) -> bool:
    """Whether layers and loss are compiled."""
    return device.type == "cuda" if recipe.compile == "auto" else recipe.compile


def autocast(recipe: TrainRecipe, device: torch.device) -> AbstractContextManager[None]:
    """The one place where precision is decided: bf16 products through autocast, or nothing."""
    dtype = pick_dtype(recipe.precision, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype == torch.bfloat16)


def be_deterministic(device: torch.device) -> None:
    """Let a GPU run no kernel whose sums depend on which thread came first."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at its first product
        torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Let glibc keep the pages of freed tensors instead of handing them back and forth.

    Each step frees and takes the same large blocks; faulting their pages in anew cost a sixth of
    a small model's step. Elsewhere than on glibc nothing happens.
    """
    _set_malloc(mmap_threshold=2**30, trim_threshold=2**31 - 1)


def hand_back_freed_memory() -> None:
    """Let glibc hand freed tensors back at once. While a model is cut, whole weights are freed that
    lie between the shares that are kept: a rank would end with twice the memory that it needs.
    """
    _set_malloc(mmap_threshold=2**20, trim_threshold=2**20)


def _set_malloc(mmap_threshold: int, trim_threshold: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, mmap_threshold)  # the names' numbers in malloc.h
        libc.mallopt(-1, trim_threshold)


def peak_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of dense products in `dtype`: of a GPU that is known, what its data sheet states, as
    published utilizations have it; otherwise what is measured.
    """
    gpu = gpu_called(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is not None and dtype.itemsize <= 4:
        return gpu.bf16 if dtype.itemsize == 2 else gpu.fp32
    return matrix_peak(dtype, device)


def queued_peak(dtype: torch.dtype, device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a GPU over ten products that it makes without a pause, after three others."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(13):
        if number == 3:
            begin.record()
        a @ b
    end.record()
    end.synchronize()
    return 10 * 2 * size**3 / (begin.elapsed_time(end) / 1000)


def matrix_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """FLOP/s of the best of the square products that a third of a second has time for, two at the
    least; of a GPU `queued_peak`.
    """
    if device.type == "cuda":
        return queued_peak(dtype, device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < 1 / 3:
        start = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / min(taken)


class PeakRate:
    """The best FLOP/s that this machine has shown: by `measure`, or by the run itself.

    A measurement beside another program's work is too low, so it is repeated: at most each
    `every` seconds, which costs the run half a percent.
    """

    def __init__(
        self,
        measure: Callable[[], float],
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.measure, self.every, self.clock = measure, every, clock
        self.best, self.measured = measure(), clock()

    def share(self, rate: float) -> float:
        """`rate` in FLOP/s as a share of the best one, from 0 to 1."""
        if self.clock() - self.measured >= self.every:
            self.best = max(self.best, self.measure())
            self.measured = self.clock()
        self.best = max(self.best, rate)
        return rate / self.best
