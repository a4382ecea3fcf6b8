"""Downloads that a kill cut off, gone on with from the byte where they stopped.

huggingface_hub keeps the files of a repository that are whole; of the one that was being written
it leaves `blobs/<SHA-256>.<random>.incomplete` behind and never looks at it again.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path


def cache_folder_name(repo: str) -> str:
    """The folder of a model's repository in huggingface_hub's cache."""
    return f"models--{repo.replace('/', '--')}"


def resume(repo: str, revision: str, file: str, digest: str, size: int) -> None:
    """Finish a file's partial download in the cache, if there is one; else nothing.

    The result is kept only if its SHA-256 is `digest`. Raises what huggingface_hub raises.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    cache, folder = Path(constants.HF_HUB_CACHE), cache_folder_name(repo)
    blobs = cache / folder / "blobs"
    if not any(blobs.glob(f"{digest}*.incomplete")):
        return
    lock = cache / ".locks" / folder / f"{digest}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(str(lock)):  # the library's own: who holds it is writing the file
        parts = sorted(blobs.glob(f"{digest}*.incomplete"), key=lambda part: part.stat().st_size)
        if not parts or (blobs / digest).exists():
            return
        *shorter, longest = parts
        for part in shorter:
            part.unlink()
        with longest.open("ab") as out:
            url, headers = hf_hub_url(repo, file, revision=revision), build_hf_headers()
            http_get(url, out, resume_size=out.tell(), headers=headers, expected_size=size)
        _keep(longest, blobs / digest)


def _keep(part: Path, target: Path) -> None:
    """Rename a finished part if it is what its name says, else remove it, to be fetched anew."""
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == target.name:
        os.replace(part, target)
    else:
        with suppress(OSError):
            part.unlink()
