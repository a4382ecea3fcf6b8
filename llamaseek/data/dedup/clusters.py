"""Clusters of documents joined by pairs, a band at a time, in NumPy.

Memory follows the number of documents that have duplicates, not the number of pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


class Clusters:
    """Grows by pairs (leaves, kept); a kept document that leaves elsewhere takes its own along."""

    def __init__(self) -> None:
        empty = np.empty(0, dtype=np.int64)
        self.members, self.roots, self.met = empty, empty, empty

    def add(self, pairs: Places) -> None:
        """Pairs (count, 2) of one band, in which a document leaves at most once."""
        if not len(pairs):
            return
        parts = [self.members, self.roots, pairs[:, 0], pairs[:, 1]]
        nodes, index = np.unique(np.concatenate(parts), return_inverse=True)
        members, roots, leaves, kept = np.split(index, np.cumsum([len(p) for p in parts])[:-1])
        met = np.zeros(len(nodes), dtype=np.int64)
        met[members] += self.met
        met[leaves] += 1
        order = np.lexsort((nodes, met > 0))  # those that never left come first
        rank = np.argsort(order)
        a, b = np.concatenate([members, leaves]), np.concatenate([roots, kept])
        labels = joined(rank[a], rank[b], len(nodes))
        self.members, self.met, self.roots = nodes, met, nodes[order[labels[rank]]]

    def result(self) -> tuple[Places, Places, Places]:
        """Who leaves (sorted), who stays for it, and in how many bands it met one before it."""
        leaves = self.members != self.roots
        return self.members[leaves], self.roots[leaves], self.met[leaves]


def joined(a: NDArray[np.int64], b: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The least node that each node of a graph with edges (a, b) is connected to."""
    labels = np.arange(size)
    while True:
        least = np.minimum(labels[a], labels[b])
        before = labels.copy()
        np.minimum.at(labels, before[a], least)
        np.minimum.at(labels, before[b], least)
        while not np.array_equal(labels, labels[labels]):
            labels = labels[labels]
        if np.array_equal(labels, before):
            return labels
