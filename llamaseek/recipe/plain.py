"""YAML as plain data, within limits: a recipe may come from a stranger."""

from __future__ import annotations

from typing import Any

import yaml

LARGEST = 1 << 18
"""Characters of a YAML text; the longest bundled recipe has two thousand."""
MOST_NODES = 50_000
"""Values of a text with every alias written out."""


def load_yaml(text: str) -> Any:
    """The plain data of a YAML text.

    ValueError for what is not YAML, is nested too deeply, or is larger than `LARGEST`, or than
    `MOST_NODES` with its aliases written out.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has {len(text):,} characters; at most {LARGEST:,} are read")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node has, its aliases written out; `counts` knows those already counted."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise ValueError("an alias stands within what it stands for")
        return counts[id(node)]
    counts[id(node)] = 0
    inner = node.value if isinstance(node.value, list) else []
    total = 1
    for each in inner:
        parts = each if isinstance(each, tuple) else (each,)
        total += sum(_count(part, counts) for part in parts)
        if total > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES:,} values with its aliases written out")
    counts[id(node)] = total
    return total
