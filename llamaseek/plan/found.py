"""Which of the known GPUs this machine has, by NVIDIA's driver alone: no torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

from llamaseek.errors import UserError
from llamaseek.plan.gpus import GPUS, Gpu

ASK = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
SECONDS = 30.0


def found_gpu() -> Gpu | None:
    """The first GPU, with no more memory than it says it has; None where there is none.

    `UserError` for one whose rates are not known.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    try:
        told = subprocess.run(ASK, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, mebibytes = told.stdout.partition("\n")[0].rpartition(",")
    if not name:
        return None
    words = name.lower().replace("-", " ").replace("rtx ", "rtx").split()
    for gpu in GPUS.values():
        if gpu.name.partition("-")[0] in words:
            return replace(gpu, memory=min(gpu.memory, float(mebibytes) * 2**20))
    known = ", ".join(GPUS)
    raise UserError(f"LLAMASEEK_GPU: is not set, and {name} is not a known GPU; allowed: {known}")
