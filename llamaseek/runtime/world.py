"""What torchrun's environment variables say of this process. Imports no torch."""

from __future__ import annotations

import os


def started_ranks() -> int | None:
    """How many ranks torchrun has started (WORLD_SIZE), None without torchrun."""
    world = os.environ.get("WORLD_SIZE")
    return int(world) if world else None


def is_first_rank() -> bool:
    """Whether this process prints and writes for all: rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """The rank of this process on its own machine (LOCAL_RANK), which picks its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_ranks(default: int = 1) -> int:
    """How many ranks run on this machine (LOCAL_WORLD_SIZE)."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", default))


def machines() -> int:
    """How many machines torchrun has joined (GROUP_WORLD_SIZE)."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))
