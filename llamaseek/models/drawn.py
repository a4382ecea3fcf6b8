"""New models of which no process holds more than a layer at a time: matrices are on `meta`, and
each knows how its numbers are drawn.

On a CPU they are those that a whole model would get. Its generator goes through the model once, as
it is made, and its state before each matrix is kept. A GPU's generator gives other numbers, so
there each matrix has a seed of its own. Either way a layout of ranks changes no number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llamaseek.models.trunk import CausalLM

aten = torch.ops.aten
RANDOM = {aten.normal_.default, aten.uniform_.default}
HOW = "_drawn"  # a parameter's attribute: how it is drawn
OWNED = "_owned"  # the same: whether it was drawn, so that nothing else has its memory


@dataclass(frozen=True)
class Draw:
    """How a matrix gets its numbers: the operation, its bounds, and where its generator stands."""

    operation: Any
    bounds: tuple[Any, ...]
    state: Tensor | None = None
    seed: int = 0

    def make(self, like: Tensor, device: torch.device) -> Tensor:
        """The numbers, on `device`."""
        made = torch.empty_like(like, device=device)
        generator = torch.Generator(device if self.state is None else "cpu")
        if self.state is None:
            generator.manual_seed(self.seed)
        else:
            generator.set_state(self.state)
        out: Tensor = self.operation(made, *self.bounds, generator=generator)
        return out


class _Draws(TorchDispatchMode):
    """Notes how tensors on `meta` are drawn; with `replays` the generator moves on as if they were
    in memory, of which one at a time is.
    """

    def __init__(self, replays: bool) -> None:
        super().__init__()
        self.replays = replays
        self.changed = False  # whether a matrix became something else after it was drawn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in RANDOM or args[0].device.type != "meta":
            self.changed |= func._schema.is_mutable and hasattr(args[0], HOW)
            return func(*args, **kwargs)
        state = torch.random.get_rng_state() if self.replays else None
        setattr(args[0], HOW, Draw(func, args[1:], state))
        if self.replays:
            func(torch.empty_like(args[0], device="cpu"), *args[1:])
        return args[0]


@contextmanager
def _matrices_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.dim() > 1 and param.device.type == "cpu":
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    with patch.object(nn.Module, "register_parameter", on_meta):
        yield


def undrawn_model(build: Callable[[], CausalLM], device: torch.device, seed: int) -> CausalLM:
    """The model that `build` makes, its matrices on `meta`, for `draw` on `device` to fill.

    A family that makes matrices otherwise than by one draw each is built in memory.
    """
    torch.manual_seed(seed)
    cpu = device.type == "cpu"
    with _matrices_on_meta(), _Draws(replays=cpu) as draws:
        model = build()
    if draws.changed or any(p.is_meta and not hasattr(p, HOW) for p in model.parameters()):
        torch.manual_seed(seed)
        return build()
    for name, parameter in model.named_parameters():
        how = getattr(parameter, HOW, None)
        if how is not None and not cpu:
            digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
            own = int.from_bytes(digest, "big")
            setattr(parameter, HOW, Draw(how.operation, how.bounds, seed=own))
    return model


@torch.no_grad()
def draw(module: nn.Module, device: torch.device) -> None:
    """Fill what of `module` is still on `meta`. In place."""
    for parameter in module.parameters():
        how = getattr(parameter, HOW, None)
        if how is not None and parameter.device.type == "meta":
            made = nn.Parameter(how.make(parameter, device), parameter.requires_grad)
            setattr(made, OWNED, True)
            torch.utils.swap_tensors(parameter, made)


def copy_draws(source: nn.Module, copied: nn.Module) -> None:
    """Let a copy of a module, made while it was on `meta`, be filled with the same numbers."""
    for own, new in zip(source.parameters(), copied.parameters(), strict=True):
        if hasattr(own, HOW):
            setattr(new, HOW, getattr(own, HOW))
