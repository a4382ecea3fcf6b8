"""The machine: versions, which kernel attention takes, products and copies a second."""

from __future__ import annotations

import json
import platform
import sys
import time

import torch
from torch.nn.attention import SDPBackend

from llamaseek.runtime.device import matrix_peak, peak_rate


def attention(device: torch.device, width: int, value: int, grouped: bool, masked: bool) -> str:
    """The kernel that PyTorch takes for a row of 2,048 tokens in bf16."""
    heads, time_ = (8, 2 if grouped else 8), 2048
    shapes = ((heads[0], width), (heads[1], width), (heads[1], value))
    q, k, v = (
        torch.empty(1, count, time_, wide, dtype=torch.bfloat16, device=device)
        for count, wide in shapes
    )
    mask = torch.ones(1, 1, time_, time_, dtype=torch.bool, device=device) if masked else None
    choice = torch._fused_sdp_choice(
        q, k, v, attn_mask=mask, is_causal=not masked, enable_gqa=grouped
    )
    return SDPBackend(choice).name


def copied(device: torch.device, size: int) -> float:
    """Bytes read and written a second by a copy of `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    wait(device)
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    wait(device)
    return 20 * size / (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print JSON lines."""
    dry = "--dry" in sys.argv
    device = torch.device("cpu" if dry else "cuda")
    name = platform.processor() if dry else torch.cuda.get_device_name(device)
    print(json.dumps({"device": name, "torch": torch.__version__, "python": sys.version}))
    for width, value in ((128, 128), (192, 128)):
        for grouped in (False, True):
            for masked in (False, True):
                case = f"attention {width}/{value}, grouped {grouped}, mask {masked}"
                print(json.dumps({case: attention(device, width, value, grouped, masked)}))
    rates = {
        "bf16 TFLOP/s measured": matrix_peak(torch.bfloat16, device) / 1e12,
        "bf16 TFLOP/s of the data sheet": peak_rate(torch.bfloat16, device) / 1e12,
        "copy GB/s": copied(device, 2**20 if dry else 2**32) / 1e9,
    }
    print(json.dumps({key: round(rate, 2) for key, rate in rates.items()}))


if __name__ == "__main__":
    main()
