"""API keys and the limits of each, named as LiteLLM names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llamaseek.errors import UserError, bad_value
from llamaseek.files import read_bytes

LIMITED = {
    "rpm_limit": "requests a minute",
    "tpm_limit": "tokens a minute",
    "max_parallel_requests": "requests at once",
}


@dataclass(frozen=True)
class KeyLimits:
    """What one key may use; None is no limit."""

    rpm_limit: int | None = None
    tpm_limit: int | None = None
    max_parallel_requests: int | None = None

    def __post_init__(self) -> None:
        for name in LIMITED:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise bad_value(f"--{name.replace('_', '-')}", value, "a whole number above 0")


@dataclass(frozen=True)
class ApiKey:
    """A key that clients send, and its limits. UserError for a key that is blank."""

    key: str
    limits: KeyLimits = KeyLimits()

    def __post_init__(self) -> None:
        if not self.key.strip():
            raise bad_value("--api-key", self.key, "a text that is not blank")


def read_keys(path: Path, limits: KeyLimits) -> list[ApiKey]:
    """The keys of a file: one a line, then its own limits as NAME=NUMBER; # begins a comment.

    `limits` hold where a line says nothing. UserError, which repeats nothing of it, for any other
    line.
    """
    found = []
    try:
        lines = read_bytes(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--api-key-file: {path} cannot be read ({error.__class__.__name__})"
        ) from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not line.startswith("#"):
            own = dict(_limit(f"{path}:{number}", word) for word in words[1:])
            found.append(ApiKey(words[0], replace(limits, **own)))
    if not found:
        raise UserError(f"--api-key-file: {path} has no key")
    return found


def _limit(place: str, word: str) -> tuple[str, int]:
    name, _, value = word.partition("=")
    if name not in LIMITED or not (value.isascii() and value.isdecimal() and int(value[:18])):
        known = ", ".join(f"{each}=NUMBER" for each in LIMITED)
        raise UserError(f"{place}: is no key and its limits; allowed after a key: {known}")
    return name, int(value)


def all_keys(given: Sequence[str], path: Path | None, limits: KeyLimits) -> tuple[ApiKey, ...]:
    """Keys that were given by themselves, and those of a file.

    UserError for a file that cannot be read, and for limits that are no key's.
    """
    found = [ApiKey(key, limits) for key in given]
    if path is not None:
        found += read_keys(path, limits)
    for name in LIMITED:
        if getattr(limits, name) is not None and not found:
            raise UserError(f"--{name.replace('_', '-')}: is for each API key; give --api-key")
    return tuple(found)


def check_keys(keys: Sequence[ApiKey]) -> None:
    """UserError for a key that is given twice; it would have two limits."""
    if len({each.key for each in keys}) < len(keys):
        raise UserError("--api-key: the same key is given twice; allowed: once each")
