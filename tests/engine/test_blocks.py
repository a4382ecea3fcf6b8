"""The block pool: counts, sharing, eviction, against a plain model of what it should do."""

from __future__ import annotations

from random import Random

from llamaseek.engine.blocks import BlockPool, chain


def test_a_key_stands_for_all_tokens_up_to_its_end() -> None:
    first = chain(b"", [1, 2])
    assert chain(first, [3, 4]) == chain(chain(b"", [1, 2]), [3, 4])
    assert chain(first, [3, 4]) != chain(chain(b"", [2, 1]), [3, 4])
    assert chain(b"salt", [1, 2]) != first
    assert len({chain(b"", [token]) for token in range(1000)}) == 1000


def test_all_or_nothing() -> None:
    pool = BlockPool(4, 16)
    assert pool.take(3) == [0, 1, 2]
    assert pool.take(2) is None and pool.free == 1
    pool.release([0, 1, 2])
    assert (pool.free, pool.used) == (4, 0)
    assert pool.take(4) == [0, 1, 2, 3]  # in order again, so that they are one run


def test_shared_blocks_live_until_the_last_user_leaves() -> None:
    pool = BlockPool(3, 16)
    mine = pool.take(2) or []
    for block, key in zip(mine, (b"a", b"b"), strict=True):
        pool.publish(block, key)
    assert pool.share([b"a", b"b", b"c"]) == mine
    pool.release(mine)
    assert pool.used == 2
    pool.release(mine)
    assert pool.used == 0 and pool.share([b"a"]) == mine[:1]
    assert pool.share([b"c", b"a"]) == []


def test_the_longest_unused_goes_first_and_chains_from_their_end() -> None:
    pool = BlockPool(3, 16)
    blocks = pool.take(3) or []
    for block, key in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.publish(block, key)
    pool.release(blocks[:1])
    pool.release(blocks[1:])
    assert pool.take(1) == [0] and pool.share([b"a"]) == []
    assert pool.take(1) == [2] and pool.share([b"b"]) == [1]


def test_forgotten_content_is_not_shared() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.take(1) or []
    pool.publish(blocks[0], b"a")
    pool.release(blocks)
    pool.clear()
    assert pool.share([b"a"]) == [] and pool.free == 2


def test_random_use_never_loses_or_doubles_a_block() -> None:
    rng = Random(0)
    pool, held = BlockPool(20, 4), list[list[int]]()
    for step in range(5000):
        if held and rng.random() < 0.5:
            pool.release(held.pop(rng.randrange(len(held))))
        else:
            keys = [bytes([rng.randrange(6), depth]) for depth in range(rng.randrange(4))]
            shared = pool.share(keys)
            more = pool.take(rng.randrange(4)) or []
            held.append(shared + more)
            for block in more:
                pool.publish(block, bytes([rng.randrange(6), rng.randrange(4)]))
            if step % 977 == 0:
                pool.clear()
        in_use = {block for blocks in held for block in blocks}
        assert pool.used == len(in_use)
        users = [sum(blocks.count(block) for blocks in held) for block in range(20)]
        assert pool._users == users
        assert sorted([*pool._blank, *pool._kept]) == [b for b in range(20) if not users[b]]
    for blocks in held:
        pool.release(blocks)
    assert pool.free == 20
