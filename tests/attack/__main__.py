"""`make attack`: all campaigns, or the one that is named; the figures go into docs/security.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from tests.attack import (
    changes,
    event_loop,
    grammars,
    kills,
    power_cut,
    programs,
    requests,
    soak,
    strangers,
    suites,
)
from tests.attack.figures import PAGE, Figure, renew

CAMPAIGNS: dict[str, Callable[[], Iterator[Figure]]] = {
    "grammars": grammars.campaign,
    "event-loop": event_loop.campaign,
    "kills": kills.campaign,
    "power-cut": power_cut.campaign,
    "changes": changes.campaign,
    "programs": programs.campaign,
    "requests": requests.campaign,
    "soak": soak.campaign,
    "files": strangers.campaign,
    "guard": suites.GUARD,
}


def main(names: list[str]) -> int:
    """Run the campaigns of these names, or all. 1 where a promise was not kept, else 0."""
    unknown = [name for name in names if name not in CAMPAIGNS]
    if unknown:
        print(f"WHAT={unknown[0]}: no such campaign; known: {', '.join(CAMPAIGNS)}")
        return 2
    kept = True
    for name in names or CAMPAIGNS:
        begun, found = time.monotonic(), list(CAMPAIGNS[name]())
        PAGE.write_text(renew(PAGE.read_text(), name, found, list(CAMPAIGNS)))
        for figure in found:
            kept = kept and figure.kept
            print(f"{name}: {figure.tried}: {figure.seen}; kept: {figure.kept}")
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
