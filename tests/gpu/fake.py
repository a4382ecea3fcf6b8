"""A GPU without numbers, in this process: tensors on `cuda` have a shape and a dtype, and every
operation on them is counted. What is on the host is computed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.library import Library
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
PRODUCTS = ("mm", "bmm", "addmm", "_grouped_mm", "baddbmm")
ATTENTION = ("_varlen_attn", "_varlen_attn_backward", "_scaled_dot_product_flash_attention",
             "_scaled_dot_product_flash_attention_backward")  # fmt: skip
NO_KERNEL = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach",
             "lift_fresh", "_unsafe_view", "alias", "view", "_reshape_alias")  # fmt: skip
WAITS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique_dim",
         "_unique2", "repeat_interleave")  # fmt: skip


def with_fake_cuda(module: str) -> None:
    """Run `module` again in place of this process, with what a CPU build of PyTorch lacks to
    differentiate tensors on `cuda`; it must be there before PyTorch is.
    """
    if "LD_PRELOAD" in os.environ:
        return
    root = Path(torch.__file__).parent
    made = Path(mkdtemp()) / "guard.so"
    source = str(Path(__file__).with_name("guard.cpp"))
    command = [
        "g++",
        "-std=c++20",
        "-shared",
        "-fPIC",
        f"-I{root}/include",
        source,
        "-o",
        str(made),
    ]
    linked = [f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run([*command, "-o", str(made), *linked], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(made)}
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


class FakeGpu(TorchDispatchMode):
    """Counts kernels by name, the bytes that those read and write which are no products, the
    largest tensor, and what makes the host wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.clear()

    def clear(self) -> None:
        """Count from here on."""
        self.kernels: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.waits: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        wanted = kwargs.get("device")
        there = wanted is not None and torch.device(wanted).type == "cuda"
        if not there and not any(isinstance(x, FakeTensor) for x in inputs):
            return func(*args, **kwargs)
        with self.fake:
            out = func(*args, **kwargs)
        self._count(func, inputs, [x for x in tree_leaves(out) if isinstance(x, Tensor)], kwargs)
        return out

    def _count(self, func: Any, inputs: list[Tensor], outputs: list[Tensor], kwargs: Any) -> None:
        name = func._schema.name.partition("::")[2]
        if func.namespace == "prim":  # questions, as where a tensor is
            return
        kinds = {x.device.type for x in (*inputs, *outputs)}
        if len(kinds) > 1 and name in ("_to_copy", "copy_") and not kwargs.get("non_blocking"):
            self.waits.append(f"{name} {kinds}")
        sized = kwargs.get("output_size") is not None  # a repetition whose length is known
        if (name in WAITS and not sized) or (name in ("index", "index_put_") and _by_truth(inputs)):
            self.waits.append(name)
        self.largest = max([self.largest, *(x.numel() for x in outputs)])
        if name.rstrip("_") in NO_KERNEL or _only_a_view(func):
            return
        self.kernels[name] += 1
        if name not in PRODUCTS + ATTENTION:
            self.moved[name] += sum(x.numel() * x.itemsize for x in (*inputs, *outputs))

    @property
    def small_kernels(self) -> int:
        """Kernels that are no products and no attention."""
        return sum(n for name, n in self.kernels.items() if name not in PRODUCTS + ATTENTION)


def _by_truth(inputs: list[Tensor]) -> bool:
    return any(x.dtype == torch.bool for x in inputs[1:])


def _only_a_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returned
    )


def flash(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, is_causal: bool = False,
          scale: float | None = None, enable_gqa: bool = False) -> Tensor:  # fmt: skip
    """What a GPU takes for attention in 16 bits without a mask."""
    assert attn_mask is None and q.dtype.itemsize == 2
    attend = aten._scaled_dot_product_flash_attention
    wide = q.shape[-1] - v.shape[-1]
    out: Tensor = attend(q, k, F.pad(v, (0, wide)), is_causal=is_causal, scale=scale)[0]
    return out[..., : v.shape[-1]]


library = Library("fake_gpu", "DEF")
library.define("rms_norm(Tensor x, Tensor weight) -> Tensor")
library.define("rms_norm_backward(Tensor gradient, Tensor x, Tensor weight) -> (Tensor, Tensor)")
torch.library.register_fake("fake_gpu::rms_norm", lambda x, w: torch.empty_like(x), lib=library)
torch.library.register_fake(
    "fake_gpu::rms_norm_backward",
    lambda g, x, w: (torch.empty_like(x), torch.empty_like(w)),
    lib=library,
)


class RmsNorm(torch.autograd.Function):
    """`aten::_fused_rms_norm`, which only a CUDA build has; where dtypes differ it has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """One kernel."""
        assert x.dtype == weight.dtype
        ctx.save_for_backward(x, weight)
        out: Tensor = torch.ops.fake_gpu.rms_norm(x, weight)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """One kernel by x, and one by the weight, here as one."""
        return torch.ops.fake_gpu.rms_norm_backward(gradient, *ctx.saved_tensors)


def rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    """What `F.rms_norm` is on a GPU."""
    out: Tensor = RmsNorm.apply(x, weight)
    return out


@contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """`cuda` is there for tensors, products under autocast and attention."""
    with ExitStack() as stack:
        for name, value in (
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            ("torch.amp.autocast_mode.torch.cuda.is_bf16_supported", lambda *_, **__: True),
            ("torch.nn.functional.scaled_dot_product_attention", flash),
            ("torch.nn.functional.rms_norm", rms_norm),
            ("llamaseek.train.loop.pick_device", lambda *_: torch.device("cuda", 0)),
            ("torch.cuda._lazy_init", lambda: None),
            ("torch.nn.Module.to", lambda self, *_: self),  # it swaps tensors, which fakes refuse
            ("llamaseek.train.figures.torch.cuda.Event", Event),
        ):
            stack.enter_context(patch(name, value))
        # Backward passes run in this thread, not in one for the device.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield stack.enter_context(FakeGpu())


class Event:
    """Nothing to wait for."""

    def record(self) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""
