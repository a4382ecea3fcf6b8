"""What torchrun's environment says of this process: no torch."""

from __future__ import annotations

import os


def started_ranks() -> int | None:
    """How many ranks torchrun has started, None without it."""
    world = os.environ.get("WORLD_SIZE")
    return int(world) if world else None


def is_first_rank() -> bool:
    """Whether this process is the one that speaks: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"
