"""What a step that only decodes costs beside its products: operators called, tensors made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.herd.published import ENTRIES
from llamaseek.kernels.build import builder
from llamaseek.models import build_model


class Counted(TorchDispatchMode):
    """Counts the operators that PyTorch dispatches, also those that C++ calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def step_calls(name: str, sequences: int) -> Counter[str]:
    """The operators of a step in which each sequence gains a token, as in the one before."""
    torch.manual_seed(0)
    engine = Engine(build_model(ENTRIES[name].config).eval())
    for number in range(sequences):
        params = SamplingParams(max_tokens=20, ignore_eos=True)
        engine.add(Request(prompt=[5 + number, 6, 7], params=params))
    for _ in range(3):
        assert engine.step()
    counted = Counted()
    with counted:
        deltas = engine.step()
    assert [len(delta.tokens) for delta in deltas] == [1] * sequences
    return counted.calls


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "most"), [("tiny-llama3", 15), ("tiny-deepseek-v3", 100)])
def test_operators_of_a_decoding_step(name: str, most: int) -> None:
    """As many for eight sequences as for one, and no more than there are today."""
    if not builder().build():
        pytest.skip(builder().reason)
    alone, together = step_calls(name, 1), step_calls(name, 8)
    assert alone == together
    assert alone.total() <= most, alone
