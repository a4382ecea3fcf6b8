"""A worker's handler that seeks a regular expression: one of Python's can take for ever.

Jobs are `{"pattern", "text"}`, replies `{"found"}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Reply = tuple[dict[str, Any], bytes]


def prepare(blob: bytes) -> Callable[[], Callable[[Mapping[str, Any], bytes], Reply]]:
    """See `child`."""
    return lambda: search


def search(job: Mapping[str, Any], blob: bytes) -> Reply:
    """Whether the pattern matches anywhere; a dot matches line ends too."""
    return {"found": re.search(job["pattern"], job["text"], re.DOTALL) is not None}, b""
