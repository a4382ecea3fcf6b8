"""Compiles the C++ kernels once for a machine and loads them, in the background if asked.

Nothing waits for them: until they are there, and where they cannot be built (no compiler, another
processor), the operators run as PyTorch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import tempfile
import threading
from functools import cache
from pathlib import Path

import torch

from llamaseek.kernels import blocks as _blocks  # noqa: F401  defines the operators first
from llamaseek.kernels import ops as _ops  # noqa: F401

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-w"]
log = logging.getLogger(__name__)


class Builder:
    """Builds and loads the kernels once a process. `reason` says why they are not there."""

    def __init__(self) -> None:
        self.ready = False
        self.reason = "" if supported() else "the processor lacks AVX2, or is not x86-64"
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def possible(self) -> bool:
        """Whether the kernels are there, or can be built."""
        compiler = os.environ.get("CXX", "c++")
        found = self.ready or library_path().exists() or shutil.which(compiler) is not None
        return found and not self.reason

    def start(self) -> None:
        """Load the kernels if they are built, else build them in the background."""
        if self.ready or self.reason or self._thread is not None:
            return
        if library_path().exists():
            self.build()
            return
        self._thread = threading.Thread(target=self.build, name="kernels", daemon=True)
        self._thread.start()

    def build(self) -> bool:
        """Build if need be, and load, now. Whether the kernels are there."""
        with self._lock:
            if not self.ready and not self.reason:
                try:
                    torch.ops.load_library(compiled())
                    self.ready = True
                except Exception as error:  # any failure of a compiler is the same to us
                    self.reason = str(error).strip().splitlines()[0][:200]
                    log.info("C++ kernels are not used: %s", self.reason)
        return self.ready


@cache
def builder() -> Builder:
    """The one of this process."""
    return Builder()


def supported() -> bool:
    """Whether there are kernels for this processor."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name == "nt":
        return False
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def library_path() -> Path:
    """Where the compiled file is or will be: one for each version of the sources and of torch."""
    digest = hashlib.blake2b(torch.__version__.encode(), digest_size=8)
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "llamaseek" / f"kernels-{digest.hexdigest()}.so"


def compiled() -> Path:
    """The compiled file, made first if need be. Two processes may make it; the last one stays."""
    target = library_path()
    if target.exists():
        return target
    from torch.utils import cpp_extension

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        cpp_extension.load(
            name="llamaseek_kernels",
            sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            extra_cflags=FLAGS,
            build_directory=folder,
            is_python_module=False,
        )
        os.replace(Path(folder) / "llamaseek_kernels.so", target)
    return target
