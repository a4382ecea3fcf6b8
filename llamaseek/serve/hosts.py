"""The names by which a request may address the server: a defence against DNS rebinding.

A web page of an attacker can have its own name resolve to 127.0.0.1, and the browser then sends
the page's requests to a server here, whose answers the page may read. Such requests name the
attacker's host in their `Host` header, so a server that listens to this machine alone takes only
names of this machine, and those that `--allowed-host` adds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from llamaseek.errors import bad_value

NAME = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]@/\\\s]+))(?::[0-9]{1,5})?")
ANY = "*"


def is_loopback(host: str) -> bool:
    """Whether an address, or a name, is only reached from this machine."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 keeps them so
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str | None:
    """The name or address of a `Host` header in lower case, without its port; None for no host."""
    found = NAME.fullmatch(header.strip())
    return None if found is None else (found[1] or found[2]).lower().rstrip(".")


def is_allowed(headers: Sequence[str], listening: str, allowed: Sequence[str]) -> bool:
    """Whether a request with these `Host` headers is for a server that listens there.

    A request of HTTP/1.0 may have none; browsers always send one.
    """
    if not headers or ANY in allowed or not (allowed or is_loopback(listening)):
        return True
    name = host_name(headers[0])
    if len(headers) > 1 or name is None:
        return False
    return is_loopback(name) or name == listening.lower() or name in allowed


def read_names(given: Sequence[str], field: str) -> tuple[str, ...]:
    """Names as `is_allowed` compares them; UserError for what is none."""
    names = []
    for each in given:
        name = each if each == ANY else host_name(each)
        if name is None:
            raise bad_value(field, each, "the name or address of a host, or *")
        names.append(name)
    return tuple(names)
