"""A GPU of tensors that have a device, a shape and a dtype, but no numbers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from llamaseek.checkpoints import hf as checkpoint
from llamaseek.herd import ModelConfig
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM, build_model
from llamaseek.models.lazy import lazy

GPU = torch.device("cuda", 0)
# PyTorch without CUDA lacks what makes a GPU the current one, which indexing asks for. It has no
# device, so that autograd starts no threads for it, which would outlive these tests.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
struct Guard : NoOpDeviceGuardImpl<DeviceType::CUDA> {
  DeviceIndex deviceCount() const noexcept override { return 0; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
}
"""


@contextmanager
def fake_gpu(folder: Path) -> Iterator[None]:
    """Tensors made inside are fake. `folder` takes a file; skips where nothing compiles it."""
    if not torch.cuda.is_available():
        _load_guard(folder)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


def _load_guard(folder: Path) -> None:
    if getattr(_load_guard, "done", False):
        return
    home, library = Path(torch.__file__).parent, folder / "guard.so"
    (folder / "guard.cpp").write_text(GUARD)
    options = ["-std=c++20", "-shared", "-fPIC", f"-I{home}/include", f"-L{home}/lib"]
    command = ["g++", *options, str(folder / "guard.cpp"), "-o", str(library), "-lc10"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the device guard does not compile: {error}")
    torch.ops.load_library(str(library))
    _load_guard.done = True  # type: ignore[attr-defined]


def load_on_gpu(folder: Path) -> CausalLM:
    """`load_model` inside `fake_gpu`, in bf16. Files are read, and the model is built, outside."""
    with _disable_current_modes():
        found = checkpoint.read_folder(folder, read_config(folder))
        read = {name: lazy(one.rows(0, one.shape[0])) for name, one in found.items()}

    def built(config: ModelConfig) -> CausalLM:
        with _disable_current_modes():
            return build_model(config).to(torch.bfloat16)

    with (
        patch.object(checkpoint, "read_folder", lambda *_: read),
        patch.object(checkpoint, "build_model", built),
    ):
        return checkpoint.load_model(folder, torch.bfloat16, mapped=True, device=GPU).eval()
