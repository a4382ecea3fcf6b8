"""The short form of `make attack WHAT=event-loop`; no times that a busy machine lacks."""

from __future__ import annotations

from tests.attack.event_loop import figure, hostile


def test_no_body_holds_the_event_loop_for_seconds() -> None:
    server, found = hostile(60, 1 << 19)
    seen = figure("60 bodies", server, found)
    print(seen.seen, dict(found))
    assert max(found) < 500 and found[200] >= 4 and found[400] > 30
    assert server.used == 0 and server.lateness(1) < 2000
