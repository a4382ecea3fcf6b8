"""Cache blocks: how many sequences use each, and which have contents that can be shared.

A block holds the cached numbers of `size` consecutive tokens. What it holds depends on all tokens
up to its end, so its key is the hash of its own tokens chained to the key of the block before.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence


def chain(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block of `tokens` that follows the block of key `before`; 16 bytes."""
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Reference counts, sharing by content, and eviction of the least recently used.

    A block without users keeps its content, and may be shared again, until it is taken for
    something else: blocks that hold nothing go first, then the longest unused.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._users = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._by_key: dict[bytes, int] = {}
        self._blank = deque(range(count))
        self._kept: OrderedDict[int, None] = OrderedDict()  # unused but shareable, oldest first

    @property
    def free(self) -> int:
        """How many blocks may be taken."""
        return len(self._blank) + len(self._kept)

    @property
    def used(self) -> int:
        """How many blocks have users."""
        return self.count - self.free

    def take(self, count: int) -> list[int] | None:
        """`count` blocks with one user each, or None, and nothing changed, if there are fewer."""
        if count > self.free:
            return None
        return [self._take_one() for _ in range(count)]

    def _take_one(self) -> int:
        if self._blank:
            block = self._blank.popleft()
        else:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        self._users[block] = 1
        return block

    def share(self, keys: Iterable[bytes]) -> list[int]:
        """One more user for each block of the longest prefix of `keys` that is there."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            self._kept.pop(block, None)
            self._users[block] += 1
            found.append(block)
        return found

    def publish(self, block: int, key: bytes) -> None:
        """Let others share a block that is computed; of two with one key the first stands."""
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each; a chain's end becomes the first to be taken again."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if self._keys[block] is None:
                self._blank.appendleft(block)  # in order, so that runs of blocks stay runs
            else:
                self._kept[block] = None

    def clear(self) -> None:
        """Forget what may be shared, as after a change of the model's weights."""
        for block in range(self.count):
            self._forget(block)
        self._blank.extend(self._kept)
        self._kept.clear()

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            self._keys[block] = None
            del self._by_key[key]
