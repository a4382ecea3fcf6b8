"""A model of the Hub without its weights: its small files, and the headers of its large ones.

Each file of weights is made as its header and a hole of the size of the rest, which takes no room
on the disk, so that all that reads headers reads these; they lie in a temporary folder that is
removed when the program ends.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaseek.checkpoints.hub import (
    HubName,
    Listing,
    Need,
    choose,
    list_files,
    user_errors,
)
from llamaseek.errors import UserError
from llamaseek.files import GGUF_SUFFIX
from llamaseek.gguf_header import LARGEST_HEADER, read_gguf_file
from llamaseek.herd.header import INDEX

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

FIRST = 1 << 20  # bytes of a GGUF file that are read first; four times as many where needed
AT_ONCE = 8  # files whose headers are read at one time


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="llamaseek-", ignore_cleanup_errors=True)


@cache
def fetch_headers(name: HubName, need: Need = "headers") -> Path:
    """A folder, or a GGUF file, that reads as the model's as far as headers go.

    With `need="config"` the headers of shards that an index lists are left out. UserError as
    `hub.fetch` raises it.
    """
    with user_errors(name):
        listing = list_files(name)
        files = choose(name, sorted(listing.files))
        if listing.folder is not None:
            gguf = files[0].endswith(GGUF_SUFFIX)
            return listing.folder / files[0] if gguf else listing.folder
        at = replace(name, revision=listing.sha)
        folder = Path(tempfile.mkdtemp(dir=_temporary().name)) / name.repo.partition("/")[2]
        folder.mkdir()
        if files[0].endswith(GGUF_SUFFIX):
            for file in files:
                _gguf_start(at, file, listing.files[file], folder / Path(file).name)
            return folder / Path(files[0]).name
        _copy_small(at, choose(name, sorted(listing.files), need), folder)
        _safetensors(at, listing, files, need, folder)
        return folder


def _copy_small(name: HubName, files: list[str], folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    for file in (f for f in files if not f.endswith(".safetensors")):
        target = folder / file
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(hf_hub_download(name.repo, file, revision=name.revision), target)


def _safetensors(
    name: HubName, listing: Listing, files: list[str], need: Need, folder: Path
) -> None:
    from huggingface_hub import HfApi

    wanted = [f for f in files if f.endswith(".safetensors")]
    if need == "config" and INDEX in listing.files:
        return
    api = HfApi()

    def write(file: str) -> None:
        found = api.parse_safetensors_file_metadata(name.repo, file, revision=name.revision)
        header = _header(found, listing.files[file])
        with (folder / file).open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            out.truncate(listing.files[file])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(write, wanted))


def _header(found: Any, size: int) -> bytes:
    """A header without its comments, with spaces in their place; a file that is shorter than its
    tensors has no room for them, which its reader says.
    """
    tensors = {
        name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)}
        for name, t in found.tensors.items()
    }
    end = max((t.data_offsets[1] for t in found.tensors.values()), default=0)
    text = json.dumps(tensors, separators=(",", ":"), ensure_ascii=False)
    return text.encode().ljust(size - 8 - end)


def _gguf_start(name: HubName, file: str, size: int, target: Path) -> None:
    """The header of a GGUF file, whose length only its end tells."""
    from huggingface_hub import HfFileSystem

    system, got = HfFileSystem(), 0
    while True:
        end = min(max(got * 4, FIRST), size)
        _append(system, f"{name.repo}@{name.revision}/{file}", got, end, target)
        with target.open("r+b") as out:
            out.truncate(size)
        got = end
        if got == size or got > LARGEST_HEADER or _is_whole(target, got):
            return


def _append(system: HfFileSystem, place: str, start: int, end: int, target: Path) -> None:
    with (
        system.open(place, "rb", cache_type="none") as source,
        target.open("r+b" if start else "wb") as out,
    ):
        source.seek(start)
        out.seek(start)
        out.write(source.read(end - start))


def _is_whole(target: Path, got: int) -> bool:
    """Whether the header ends within the bytes that are there; those behind read as zeros."""
    try:
        tensors = read_gguf_file(target).tensors.values()
    except UserError:
        return False
    return min((t.offset for t in tensors), default=got) <= got
