"""What this machine has of what `llamaseek` can use, and the command for what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from llamaseek import __version__
from llamaseek.checkpoints.sources import cache_folder
from llamaseek.kernels.build import builder, library_path
from llamaseek.runtime.device import has_bf16
from llamaseek.units import size
from llamaseek.workers.sandbox import Sandbox

PACKAGES = ("torch", "tokenizers", "safetensors", "pyarrow", "fastapi", "uvicorn", "gguf")
EXTRA = re.compile(r"([\w.-]+)[^;]*;\s*extra\s*==\s*['\"]([\w-]+)['\"]")
OWN_EXTRAS = ("test", "dev", "all")
"""Extras for work on the package, and the one that names the others."""
LITTLE_DISK = 5 << 30


@dataclass(frozen=True)
class MachineFact:
    """One line: what was looked at, whether it is as it should be, and what to run if not."""

    subject: str
    found: str
    good: bool = True
    command: str = ""


def examine() -> Iterator[MachineFact]:
    """All facts, one after another; the sandbox is tried with a program, kernels are not built."""
    yield MachineFact("llamaseek", f"{__version__}, Python {platform.python_version()}")
    yield MachineFact("packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    yield from _extras()
    yield _processor()
    yield _memory()
    yield _kernels()
    yield from _gpus()
    yield from _sandbox()
    yield _cache()


def _extras() -> Iterator[MachineFact]:
    """Which packages of each extra are missing."""
    wanted: dict[str, list[str]] = {}
    for line in requires("llamaseek") or ():
        found = EXTRA.match(line)
        if found is not None and found[2] not in OWN_EXTRAS:
            wanted.setdefault(found[2], []).append(found[1])
    for extra, names in sorted(wanted.items()):
        missing = sorted({name for name in names if not _is_installed(name)})
        command = f"pip install 'llamaseek[{extra}]'" if missing else ""
        text = f"lacks {', '.join(missing)}" if missing else "installed"
        yield MachineFact(f"extra {extra}", text, not missing, command)


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _processor() -> MachineFact:
    numbers = "bf16 in hardware" if has_bf16(torch.device("cpu")) else "float32, no bf16"
    ability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return MachineFact("processor", f"{cores} cores, {platform.machine()}, {ability}, {numbers}")


def _memory() -> MachineFact:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(f"SC_{name}PHYS_PAGES") for name in ("", "AV"))
    except (ValueError, OSError, AttributeError):  # not a Unix that tells
        return MachineFact("memory", "not known")
    return MachineFact("memory", f"{size(total)}, {size(free)} of it unused")


def _kernels() -> MachineFact:
    if library_path().exists():
        return MachineFact("C++ kernels", f"compiled ({library_path()})")
    if builder().possible:
        return MachineFact("C++ kernels", "not compiled yet; the first answer compiles them")
    reason = builder().reason or "there is no C++ compiler"
    command = "" if builder().reason else "apt install g++"
    return MachineFact("C++ kernels", f"not used: {reason}; answers run as PyTorch", False, command)


def _gpus() -> Iterator[MachineFact]:
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        command = "pip install torch (the CUDA build)" if driver else ""
        text = "a driver, but this PyTorch cannot use it" if driver else "none"
        yield MachineFact("GPU", text, not driver, command)
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        kind = f"compute capability {about.major}.{about.minor}"
        yield MachineFact(f"GPU {number}", f"{about.name}, {size(about.total_memory)}, {kind}")


def _sandbox() -> Iterator[MachineFact]:
    """Where code of answers runs, tried with a program, and what it can do all the same."""
    sandbox = Sandbox()
    try:
        found = sandbox.confinement()
    except RuntimeError as error:
        yield MachineFact("sandbox", str(error), False)
        return
    finally:
        sandbox.close()
    through = found.lets_through
    command = "apt install bubblewrap" if through and not shutil.which("bwrap") else ""
    yield MachineFact("sandbox", f"code of answers runs in {found.mode}", not through, command)
    for why in found.refused:
        yield MachineFact("sandbox", f"not used: {why}")
    for what in through:
        yield MachineFact("sandbox", f"lets through: {what}", False)


def _cache() -> MachineFact:
    folder = cache_folder()
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    text = f"{folder}, {size(free)} free"
    if not os.access(there, os.W_OK):
        command = "export LLAMASEEK_CACHE=FOLDER"
        return MachineFact("cache folder", f"{folder}, cannot be written", False, command)
    return MachineFact("cache folder", text, free >= LITTLE_DISK)


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())
