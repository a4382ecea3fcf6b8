"""How this program was started, for the commands it prints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`llamaseek` where that finds this very program, else the path it was started by."""
    started = Path(sys.argv[0])
    found = shutil.which("llamaseek")
    if started.name != "llamaseek" or (found and Path(found).resolve() == started.resolve()):
        return "llamaseek"
    near = os.path.relpath(started)
    return near if len(near) < len(str(started)) else str(started)


def this_command(extra: str = "") -> str:
    """The command as it was typed, `extra` added where it is not there yet."""
    words = [*sys.argv[1:], extra] if extra and extra not in sys.argv else sys.argv[1:]
    return " ".join([program(), *map(shlex.quote, words)])
