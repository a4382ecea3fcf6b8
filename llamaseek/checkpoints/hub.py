"""Models of the Hugging Face Hub by their ids, fetched into huggingface_hub's own cache.

An id is `OWNER/NAME[@REVISION][:FILE]`, as Ollama and llama.cpp write it also after `hf.co/`; FILE
is a `.gguf` file of the repository or a quantization. Weights are read from safetensors and GGUF
files alone: no pickle and no code is fetched. `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` and
`HF_HOME` are huggingface_hub's.
"""

from __future__ import annotations

import glob
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llamaseek.checkpoints.hub_resume import cache_folder_name, resume
from llamaseek.errors import UserError, shorten
from llamaseek.files import GGUF_SPLIT, GGUF_SUFFIX, disk_reason
from llamaseek.herd.header import INDEX, SINGLE

Need = Literal["model", "tokenizer", "headers", "config"]
"""What of a model is needed: all, its tokenizer's files, all but the numbers in its weights, or its
config and the names of its tensors."""

HOSTS = ("hf.co", "huggingface.co")
ID = re.compile(
    rf"(?:(?:https?:/+)?(?:{'|'.join(map(re.escape, HOSTS))})/)?"
    r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
    r"(?:@(?P<revision>[^:@\s]+))?(?::(?P<file>[^:@\s]+))?/?",
    re.ASCII,
)
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DEFAULT_QUANTIZATION = "q4_k_m"  # as llama.cpp and Ollama choose where none is named


class HubUnreachable(UserError):
    """The Hub gives no answer, or is not to be asked."""


@dataclass(frozen=True)
class HubName:
    """A repository, and where they are named a branch, tag or commit, and a GGUF file."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}" + (f":{self.file}" if self.file else "")


def parse_name(text: str) -> HubName | None:
    """The id that a text is, if it can be one; a path to a missing `.gguf` file is none."""
    found = ID.fullmatch(text)
    if found is None or (not found["file"] and text.endswith(GGUF_SUFFIX)):
        return None
    return HubName(found["repo"], found["revision"], found["file"])


@dataclass(frozen=True)
class Listing:
    """A repository's files with their sizes in bytes, at the commit `sha`, and the SHA-256 of large
    ones; `folder` is where the cache has them if the Hub is out of reach."""

    sha: str
    files: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


def fetch(name: HubName, need: Need = "model", to: Path | None = None) -> Path:
    """The folder in the cache, or `to`, with the files of a model that are needed; of a repository
    of GGUF files the file that is named or chosen. An interrupted download is resumed.

    UserError, with what to do, for what is missing, gated, out of reach, too large for the disk.
    """
    with user_errors(name):
        listing = list_files(name)
        chosen = choose(name, sorted(listing.files), need)
        return _download(name, listing, chosen, to)


def _download(name: HubName, listing: Listing, files: Sequence[str], to: Path | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    target = to or Path(constants.HF_HUB_CACHE)
    missing = [file for file in files if to is not None or not _is_cached(name, listing, file)]
    _check_room(name, sum(listing.files[file] for file in missing), target)
    patterns = [glob.escape(file) for file in files]
    try:
        for file in missing:
            if to is None and file in listing.digests:
                resume(name.repo, listing.sha, file, listing.digests[file], listing.files[file])
        found = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=patterns, local_dir=to
        )
    except OSError as error:
        if error.errno is None or getattr(error, "response", None) is not None:
            raise
        raise UserError(f"{target}: cannot be written ({disk_reason(error, target)})") from None
    folder = Path(found)
    return folder / files[0] if files[0].endswith(GGUF_SUFFIX) else folder


def _is_cached(name: HubName, listing: Listing, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name.repo, file, revision=listing.sha), str)


def _check_room(name: HubName, size: int, target: Path) -> None:
    place = next(one for one in (target, *target.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"{name}: needs {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {place}; "
            "HF_HOME names another folder for the cache"
        )


def list_files(name: HubName) -> Listing:
    """What a repository holds; where the Hub is out of reach, what the cache has of it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    except HfHubHTTPError:
        raise
    except (HTTPError, OfflineModeIsEnabled):
        kept = _cached_folder(name)
        if kept is None:
            raise
        paths = [path for path in kept.rglob("*") if path.is_file()]
        sizes = {path.relative_to(kept).as_posix(): path.stat().st_size for path in paths}
        return Listing(kept.name, sizes, folder=kept)
    files = info.siblings or []
    return Listing(
        info.sha or "",
        {one.rfilename: one.size or 0 for one in files},
        {one.rfilename: one.lfs.sha256 for one in files if one.lfs is not None},
    )


def _cached_folder(name: HubName) -> Path | None:
    """What the cache has of a repository's revision; the Hub's guide "Understand caching"."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE) / cache_folder_name(name.repo)
    revision = name.revision or "main"
    ref = root / "refs" / revision
    folder = root / "snapshots" / (ref.read_text().strip() if ref.is_file() else revision)
    return folder if folder.is_dir() else None


def choose(name: HubName, files: Sequence[str], need: Need = "model") -> list[str]:
    """The files of a repository that are fetched; GGUF files come first.

    UserError where none can be read, or none is what `name.file` says.
    """
    if name.file is None and (found := _weights(files)):
        return [*(found if need == "model" else []), *_beside(files, need)]
    if name.file is None and need == "tokenizer" and any(map(_is_tokenizer, files)):
        return _beside(files, need)
    if name.file is not None or any(file.endswith(GGUF_SUFFIX) for file in files):
        return _gguf(name, files)
    pickle = next((file for file in files if file.endswith(PICKLES)), None)
    lacks = f"; it has {pickle}, and pickles are not read" if pickle else ""
    raise UserError(f"{name}: holds no safetensors and no GGUF files{lacks}")


def _weights(files: Sequence[str]) -> list[str]:
    """A model's or an adapter's safetensors files: shards where there is an index."""
    if INDEX in files:
        shards = [f for f in files if f.endswith(".safetensors") and "/" not in f]
        return [f for f in shards if f != SINGLE and not f.startswith("consolidated")]
    return [f for f in (SINGLE, ADAPTER_WEIGHTS) if f in files]


def _is_tokenizer(file: str) -> bool:
    return file in ("tokenizer.json", "tokenizer.model")


def _beside(files: Sequence[str], need: Need) -> list[str]:
    """The files beside the weights that are read."""
    if need == "config":
        return [file for file in ("config.json", INDEX) if file in files]
    plain = [f for f in files if "/" not in f and f.endswith((".json", ".jinja"))]
    templates = [f for f in files if re.fullmatch(r"additional_chat_templates/[^/]+\.jinja", f)]
    plain = [f for f in plain if need != "tokenizer" or f != INDEX]
    return [*plain, *templates, *(f for f in files if f == "tokenizer.model")]


def _gguf(name: HubName, files: Sequence[str]) -> list[str]:
    """The file that is named, by its path or its quantization, with the others of its split."""
    models = [f for f in files if f.endswith(GGUF_SUFFIX) and _is_model(f)]
    if name.file in files:
        chosen = name.file
    else:
        wanted = DEFAULT_QUANTIZATION if name.file in (None, "latest") else name.file
        found = [file for file in models if _has_quantization(file, wanted)]
        if not found and wanted == DEFAULT_QUANTIZATION and name.file != wanted:
            found = models[:1]
        if not found:
            allowed = shorten(", ".join(models), 300) or "no GGUF file"
            raise UserError(f"{name}: {name.file!r} is no file or quantization; it has {allowed}")
        chosen = min(found, key=len)
    assert chosen is not None
    split = GGUF_SPLIT.fullmatch(Path(chosen).name)
    if split is None:
        return [chosen]
    start = chosen.removesuffix(Path(chosen).name) + split[1] + "-"
    return [f for f in files if f.startswith(start) and f.endswith(f"-of-{split[3]}{GGUF_SUFFIX}")]


def _is_model(file: str) -> bool:
    """Not a picture's encoder, an importance matrix, or a later file of a split."""
    split = GGUF_SPLIT.fullmatch(Path(file).name)
    other = re.search(r"mmproj|imatrix", file, re.IGNORECASE)
    return other is None and (split is None or int(split[2]) == 1)


def _has_quantization(file: str, wanted: str) -> bool:
    pattern = rf"(?:^|[-._/]){re.escape(wanted)}(?=[-./]|$)"
    return re.search(pattern, file.removesuffix(GGUF_SUFFIX), re.IGNORECASE) is not None


@contextmanager
def user_errors(name: HubName) -> Iterator[None]:
    """huggingface_hub's errors as one line each, with what to do."""
    from huggingface_hub import constants, errors

    kinds = (errors.HTTPError, OSError)  # those of the network, and of the cache
    try:
        yield
    except (*kinds, errors.HFValidationError, errors.SafetensorsParsingError) as error:
        answered = getattr(error, "response", None) is not None
        network = isinstance(error, kinds) and not answered
        kind = HubUnreachable if network else UserError
        raise kind(_reason(error, name, constants.ENDPOINT)) from None


def _reason(error: Exception, name: HubName, place: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name}: is gated; accept its license on {place}/{name.repo} and log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: no such folder here, and no such model on {place}; a private one needs "
            "`hf auth login` (or HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: has no branch, tag or commit {name.revision!r} on {place}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{name}: is not on this machine, and HF_HUB_OFFLINE is set; unset it to fetch it"
    if isinstance(error, errors.HFValidationError):
        return f"{name}: no such folder, and no id of a model ({shorten(str(error))})"
    response = getattr(error, "response", None)
    if response is not None:
        denied = response.status_code in (401, 403)
        hint = "; check the token with `hf auth whoami`, or `hf auth login`" if denied else ""
        return f"{name}: {place} answers {response.status_code}{hint} ({_first_line(error)})"
    return (
        f"{name}: no such folder here, and {place} cannot be reached ({_first_line(error)}); "
        "what is interrupted is resumed by the same command"
    )


def _first_line(error: Exception) -> str:
    return shorten(str(error).strip().partition("\n")[0] or type(error).__name__)


def snapshot_name(path: str | Path) -> str | None:
    """The id, with its commit, of a folder or file in huggingface_hub's cache; None for others."""
    from huggingface_hub import constants

    try:
        inside = Path(path).absolute().relative_to(Path(constants.HF_HUB_CACHE).absolute())
    except ValueError:
        return None
    repo, kind, commit, *file = (*inside.parts, "", "", "")[: max(len(inside.parts), 3)]
    if not repo.startswith("models--") or kind != "snapshots" or not commit:
        return None
    return str(HubName(repo[8:].replace("--", "/", 1), commit, "/".join(file) or None))
