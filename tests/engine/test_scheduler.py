"""Who runs when: budget, order, preemption, the bounded queue, and blocks freed at once."""

from __future__ import annotations

from random import Random

import pytest

from llamaseek.engine.blocks import BlockPool
from llamaseek.engine.request import Request, SamplingParams, SequenceState
from llamaseek.engine.scheduler import Chunk, QueueFull, Scheduler
from llamaseek.errors import UserError


def answer(length: int, new: int = 8, first: int = 0) -> SequenceState:
    request = Request(prompt=list(range(first, first + length)))
    return SequenceState(request, 0, 0, length + new, list(request.prompt))


def scheduler(
    blocks: int = 100, running: int = 8, waiting: int = 99, budget: int = 32
) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4), 200, running, waiting, budget)


def play(it: Scheduler, plan: list[Chunk], token: int = 1) -> None:
    """What a step does to the answers of its plan: compute, draw, finish."""
    for chunk in plan:
        samples = chunk.samples
        chunk.answer.computed += chunk.count
        if samples:
            chunk.answer.tokens.append(token)
        it.publish(chunk.answer)
        if len(chunk.answer.tokens) >= chunk.answer.limit:
            it.remove(chunk.answer)


def test_prompts_are_read_in_pieces_beside_running_answers() -> None:
    it = scheduler(budget=10)
    short, long = answer(3), answer(25, first=50)
    it.add(short)
    play(it, it.schedule())
    it.add(long)
    chunks = []
    for _ in range(4):
        plan = it.schedule()
        assert sum(chunk.count for chunk in plan) <= 10
        chunks.append([(chunk.answer is short, chunk.start, chunk.count) for chunk in plan])
        play(it, plan)
    assert chunks[:3] == [
        [(True, 3, 1), (False, 0, 9)],
        [(True, 4, 1), (False, 9, 9)],
        [(True, 5, 1), (False, 18, 7)],
    ]
    assert chunks[3] == [(True, 6, 1), (False, 25, 1)]


def test_first_come_first_served() -> None:
    it = scheduler(running=2, blocks=10)
    queue = [answer(8, first=n * 100) for n in range(4)]
    for one in queue:
        it.add(one)
    plan = it.schedule()
    assert [chunk.answer for chunk in plan] == queue[:2]
    play(it, plan)
    it.remove(queue[0])
    assert [chunk.answer for chunk in it.schedule()] == [queue[1], queue[2]]


def test_who_waits_for_a_shared_block_lets_others_by() -> None:
    it = scheduler(budget=32)
    first, same, other = answer(9), answer(7), answer(6, first=50)
    for each in (first, same, other):
        it.add(each)
    plan = it.schedule()
    assert [(chunk.answer is other, chunk.count) for chunk in plan] == [(False, 9), (True, 6)]
    assert list(it.waiting) == [same]
    play(it, plan)
    found = {id(chunk.answer): (chunk.start, chunk.count) for chunk in it.schedule()}
    assert found[id(same)] == (4, 3)  # the block is there by then


def test_the_newest_makes_way_and_comes_back_first() -> None:
    it = scheduler(blocks=5)
    old, new = answer(8, new=12), answer(8, first=100)
    for one in (old, new, answer(9, first=200)):
        it.add(one)
    seen = []
    for _ in range(12):
        plan = it.schedule()
        seen.append([chunk.answer for chunk in plan])
        play(it, plan)
    assert it.preemptions > 0
    assert seen[0] == [old, new]
    assert [old] in seen and all(step[0] is old for step in seen)
    assert it.waiting[0] is new or new in it.running
    assert len(old.tokens) == 20


def test_preempted_answers_find_their_own_blocks_again() -> None:
    it = scheduler(blocks=8)
    one = answer(12)
    it.add(one)
    play(it, it.schedule())
    it._preempt(one)
    assert (one.computed, one.blocks, it.pool.used) == (0, [], 0)
    (chunk,) = it.schedule()
    assert (chunk.start, chunk.count) == (12, 1)


def test_the_queue_is_bounded() -> None:
    it = scheduler(waiting=2)
    it.add(answer(3))
    it.add(answer(3))
    with pytest.raises(QueueFull, match="2 requests"):
        it.add(answer(3))
    it.schedule()
    it.add(answer(3))


def test_what_can_never_fit_is_refused() -> None:
    it = scheduler(blocks=5)
    it.check(20)
    with pytest.raises(UserError, match="needs 21 tokens of cache.*holds 20"):
        it.check(21)


def test_leaving_frees_blocks_at_once_whether_running_or_waiting() -> None:
    it = scheduler(running=1)
    one, other = answer(9), answer(9)
    it.add(one)
    it.add(other)
    it.schedule()
    assert it.pool.used == 3
    it.remove(other)
    it.remove(one)
    assert it.pool.used == 0 and not it.running and not it.waiting
    it.remove(one)  # once more is no harm


def test_a_salt_keeps_prefixes_apart() -> None:
    it = scheduler()
    for salt, cached in (("a", 0), ("a", 8), ("b", 0)):
        request = Request(prompt=list(range(10)), salt=salt)
        one = SequenceState(request, 0, 0, 12, list(request.prompt))
        it.add(one)
        play(it, it.schedule())
        assert one.cached == cached
        it.remove(one)


def test_a_scored_prompt_is_computed_whole() -> None:
    it = scheduler()
    for wanted, start in ((None, 0), (None, 8), (1, 0)):
        params = SamplingParams(prompt_logprobs=wanted)
        request = Request(prompt=list(range(10)), params=params)
        one = SequenceState(request, 0, 0, 12, list(request.prompt))
        it.add(one)
        (chunk,) = it.schedule()
        assert chunk.start == start
        play(it, [chunk])
        it.remove(one)


def test_random_loads_end_and_leave_nothing() -> None:
    rng = Random(0)
    for _ in range(40):
        it = scheduler(rng.randint(12, 40), rng.randint(1, 6), budget=rng.randint(8, 40))
        answers = [
            answer(rng.randint(1, 30), rng.randint(1, 15), first=rng.randint(0, 3))
            for _ in range(20)
        ]
        for one in answers:
            it.add(one)
        for step in range(5000):
            plan = it.schedule()
            assert sum(chunk.count for chunk in plan) <= it.budget
            held = [block for one in it.running for block in one.blocks]
            assert len(set(held)) == it.pool.used
            for one in it.running:
                assert it.tables[one.row, : len(one.blocks)].tolist() == one.blocks
            play(it, plan, token=step % 7)
            if step % 11 == 3 and it.running:
                it.remove(gone := rng.choice(it.running))
                gone.limit = 0
            if not it.running and not it.waiting:
                break
        assert it.pool.used == 0
        assert all(len(one.tokens) >= one.limit for one in answers)
