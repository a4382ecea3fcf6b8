"""Decoding steps as CUDA graphs: one launch per step instead of several hundred.

A graph reads and writes memory that stays where it is, and is made for a fixed number of rows. So
there is one for each of a few sizes, captured when it is first needed; a step is copied into the
buffers of the smallest that holds it. The rows left over are padding: a token that sees itself
alone, in a block of the cache that no answer has.

N rows of a graph, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llamaseek.engine.forward.paged import PagedCache
from llamaseek.engine.forward.step_layout import StepLayout
from llamaseek.models import CausalLM
from llamaseek.models.moe import Experts

MOST = 256  # rows; with more the GPU is busy for longer than launching takes
GROUPED = (9, 10)  # compute capabilities whose grouped products ask the host for nothing
Forward = Callable[[], Tensor]
Model = Callable[[Tensor, Tensor, PagedCache], Tensor]
log = logging.getLogger(__name__)


def bucket(tokens: int) -> int:
    """Rows of the smallest graph for a step: 1, 2, 4, a multiple of 8, or of 32 above 64."""
    if tokens <= 4:
        return 1 << (tokens - 1).bit_length()
    step = 8 if tokens <= 64 else 32
    return -(-tokens // step) * step


def capturable(model: CausalLM) -> bool:
    """Whether a forward of the model launches the same work whatever its numbers.

    Experts in fewer bits, and grouped products of other types or on other GPUs, ask the host how
    many tokens each expert has. A forward of several ranks waits for the others.
    """
    weight = model.model.norm.weight
    if not weight.is_cuda or (dist.is_available() and dist.is_initialized()):
        return False
    routed = [moe.experts for moe in model.moe_layers().values()]
    if not routed:
        return True
    grouped = torch.cuda.get_device_capability(weight.device)[0] in GROUPED
    plain = all(type(experts) is Experts for experts in routed)
    return grouped and plain and weight.dtype == torch.bfloat16


def compiled(model: CausalLM, backend: str = "inductor") -> Model:
    """The model's forward pass compiled as one graph, once for each size."""
    from torch import _dynamo

    whole = torch.compile(model, dynamic=False, fullgraph=True, backend=backend)

    def run(tokens: Tensor, positions: Tensor, cache: PagedCache) -> Tensor:
        with _dynamo.config.patch(recompile_limit=2 * MOST):
            hidden: Tensor = whole(tokens, positions, cache)
        return hidden

    return run


class Capture:
    """Makes CUDA graphs on one device. They share memory: no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def __call__(self, forward: Forward) -> Forward:
        """`forward` captured; each call replays it and gives the same tensor with new numbers."""
        with torch.cuda.device(self.device):
            graph, hidden = self._record(forward)

        def again() -> Tensor:
            graph.replay()
            return hidden

        return again

    def _record(self, forward: Forward) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is set up at first use must not be captured
            for _ in range(2):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls count: another engine may be at work beside.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            hidden = forward()
        self.pool = graph.pool()
        return graph, hidden


@dataclass
class CapturedStep:
    """The buffers of one graph: its tokens (N), their positions, and its inputs."""

    tokens: Tensor
    layout: StepLayout
    run: Forward | None = None

    def fill(self, tokens: Tensor, layout: StepLayout) -> None:
        """Copy a step of as many rows. Blocks behind a sequence's own stay what they were."""
        assert layout.tables is not None and self.layout.tables is not None
        self.tokens.copy_(tokens)
        self.layout.positions.copy_(layout.positions)
        self.layout.slots.copy_(layout.slots)
        self.layout.lengths.copy_(layout.lengths)
        self.layout.tables[:, : layout.tables.shape[1]].copy_(layout.tables)


class Graphs:
    """Runs steps whose tokens attend apart. `blocks` is the longest sequence's number of them.

    `faster` computes what the model does, where it can. What a call gives is
    overwritten by the next one of the same size.
    """

    def __init__(
        self,
        model: CausalLM,
        cache: PagedCache,
        blocks: int,
        capture: Callable[[Forward], Forward],
        faster: Model | None = None,
    ) -> None:
        self.model: Model = model
        self.faster, self.cache = faster or self.model, cache
        self.blocks, self.capture = blocks, capture
        self.steps: dict[int, CapturedStep] = {}
        self.failed = False

    def takes(self, tokens: int) -> bool:
        """Whether there is, or can be, a graph for so many tokens."""
        return tokens <= MOST and not self.failed

    def __call__(self, tokens: Tensor, layout: StepLayout) -> Tensor:
        """tokens (N) and a layout of N rows, N a bucket's → hidden (N, D)."""
        step = self.steps.get(len(tokens))
        if step is None:
            step = self.steps[len(tokens)] = self._blank(tokens, layout)
        if step.run is None:
            step.run = self._captured(step)
        step.fill(tokens, layout)
        return step.run()

    def _blank(self, tokens: Tensor, layout: StepLayout) -> CapturedStep:
        """Buffers as long as these rows, for sequences of any length, filled with them."""
        rows = len(tokens)
        assert layout.tables is not None
        own = replace(
            layout,
            positions=torch.zeros_like(layout.positions),
            slots=torch.empty_like(layout.slots),
            lengths=torch.ones_like(layout.lengths),
            tables=layout.tables.new_zeros(rows, self.blocks),
        )
        step = CapturedStep(torch.zeros_like(tokens), own)
        step.fill(tokens, layout)  # what capturing computes on the way is what the step computes
        return step

    def _captured(self, step: CapturedStep) -> Forward:
        def forward() -> Tensor:
            self.cache.begin(step.layout)
            positions = step.layout.positions[None]
            return self.faster(step.tokens[None], positions, self.cache)[0]

        try:
            return self.capture(forward)
        except RuntimeError as error:
            self.failed, self.faster = True, self.model
            log.warning("steps run without CUDA graphs: %s", str(error).splitlines()[0])
            return forward
