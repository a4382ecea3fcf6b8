"""Small parts that several responses have."""

from __future__ import annotations

from typing import Any


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """How many tokens were given and said."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
