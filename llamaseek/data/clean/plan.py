"""How a corpus is cut into shards: by the files and the recipe, never by the machine.

Small files are read together and large .jsonl files in parts, so that all shards are about as
long; whatever number of processes shares them, each shard gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.documents import Document, list_files, read_file, read_lines
from llamaseek.data.hub import SCHEME, hub_shards, parse_hub, read_hub
from llamaseek.errors import UserError

BLOCK = 1 << 24  # bytes read at once when line ends are looked for


@dataclass(frozen=True)
class Unit:
    """What is read in one go: a file, lines of one from byte `start` to `stop`, or a hub shard."""

    source: str
    path: str
    start: int = 0
    stop: int = 0
    line: int = 0  # the number of the first line; 0 for what is read whole

    def documents(self, bad: BadRows | None = None) -> Iterator[Document]:
        """The unit's documents, marked with the name of their source.

        Rows without a text are an error, or with `bad.skip` counted.
        """
        for document in self._read(bad):
            yield replace(document, metadata=document.metadata | {"source": self.source})

    def _read(self, bad: BadRows | None) -> Iterator[Document]:
        if self.path.startswith(SCHEME):
            return read_hub(self.path, self.start, self.stop, bad)
        if self.line:
            return read_lines(Path(self.path), self.start, self.stop, self.line, bad)
        return read_file(Path(self.path), bad)


Shard = list[Unit]


def make_plan(sources: Mapping[str, Sequence[str]], shard_bytes: int) -> list[Shard]:
    """The shards of all sources in order; raises UserError for a source that cannot be read."""
    shards: list[Shard] = []
    room = 0
    for unit, size in _units(sources, shard_bytes):
        if not size:
            continue
        if size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(unit)
        room -= size
    if not shards:
        raise UserError("sources: every file is empty")
    return shards


def fingerprint(sources: Mapping[str, Sequence[str]], recipe: object) -> str:
    """Changes with the recipe and with the name, size or date of any file."""
    files = []
    for paths in sources.values():
        for path in paths:
            found = [] if path.startswith(SCHEME) else list_files(path)
            files += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in found]
    text = json.dumps([recipe, files], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def save_plan(shards: Sequence[Shard]) -> str:
    """The plan as JSON."""
    return json.dumps([[asdict(unit) for unit in shard] for shard in shards], indent=0)


def load_plan(text: str) -> list[Shard]:
    """The plan that `save_plan` wrote."""
    return [[Unit(**unit) for unit in shard] for shard in json.loads(text)]


def _units(sources: Mapping[str, Sequence[str]], shard_bytes: int) -> Iterator[tuple[Unit, int]]:
    """All units with their bytes."""
    for name, paths in sources.items():
        for path in paths:
            if path.startswith(SCHEME):
                parse_hub(path)
                count = hub_shards(path)
                yield from ((Unit(name, path, n, count), shard_bytes) for n in range(count))
            else:
                for file in list_files(path):
                    yield from _of_file(name, file, shard_bytes)


def _of_file(name: str, file: Path, shard_bytes: int) -> Iterator[tuple[Unit, int]]:
    size = file.stat().st_size
    if file.suffix.lower() != ".jsonl" or size <= shard_bytes:
        yield Unit(name, str(file)), size
        return
    cuts = [*_cuts(file, shard_bytes), (size, 0)]
    for (start, line), (stop, _) in zip(cuts, cuts[1:], strict=False):
        yield Unit(name, str(file), start, stop, line), stop - start


def _cuts(file: Path, step: int) -> Iterator[tuple[int, int]]:
    """(byte, line number) of the first line that begins at or after every multiple of `step`."""
    yield 0, 1
    wanted, lines, at = step, 1, 0
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            counted = 0
            while (found := block.find(b"\n", max(wanted - 1 - at, counted))) >= 0:
                if at + found + 1 < wanted:
                    break
                lines += block.count(b"\n", counted, found + 1)
                counted = found + 1
                yield at + counted, lines
                wanted = max(wanted + step, at + counted + 1)
            lines += block.count(b"\n", counted)
            at += len(block)
