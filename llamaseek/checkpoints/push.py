"""A finished model, adapter or GGUF file put on the Hub, with its card.

Files that the Hub has already are not sent again, so an interrupted upload is gone on with by the
same command. Tokens are huggingface_hub's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llamaseek.checkpoints.card import FILE, Card, CardSection, card_text, hub_base
from llamaseek.checkpoints.hub import HubName, choose, user_errors
from llamaseek.checkpoints.sources import ADAPTER, name_of
from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.files import is_gguf
from llamaseek.gguf_header import read_gguf
from llamaseek.herd.folder import read_config
from llamaseek.herd.header import weight_files

BESIDE = (FILE, "LICENSE", "NOTICE")


@dataclass(frozen=True)
class Upload:
    """What is put where: files by their names in the repository, and a card if they have none."""

    name: HubName
    files: dict[str, Path]
    card: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.files.values())

    def run(self, private: bool = False) -> str:
        """Make the repository and the branch where they are missing, and one commit with all
        files; its address. UserError where the Hub refuses or cannot be reached.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        api, repo, branch = HfApi(), self.name.repo, self.name.revision
        added = [CommitOperationAdd(file, str(path)) for file, path in self.files.items()]
        if self.card is not None:
            added.append(CommitOperationAdd(FILE, self.card.encode()))
        try:
            with user_errors(self.name):
                api.create_repo(repo, private=private, exist_ok=True)
                if branch is not None:
                    api.create_branch(repo, branch=branch, exist_ok=True)
                message = "Upload with llamaseek"
                done = api.create_commit(repo, added, commit_message=message, revision=branch)
        except RuntimeError as error:  # of one file that could not be sent
            reason = shorten(str(error.__cause__ or error))
            raise UserError(
                f"{self.name}: {error} ({reason}); the same command goes on with the rest"
            ) from None
        return str(done.commit_url)


def upload_of(place: Path, name: HubName) -> Upload:
    """The files of a model's or an adapter's folder, or a GGUF file; without training state.

    UserError for what is none of them or is not whole.
    """
    if name.file is not None:
        raise bad_value("the Hub id", str(name), "OWNER/NAME or OWNER/NAME@BRANCH")
    if is_gguf(place):
        return _gguf_upload(place, name)
    names = [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]
    if not (place / ADAPTER).is_file():
        read_config(place)
        weight_files(place)
    files = [*choose(HubName(str(place)), sorted(names)), *(f for f in BESIDE if f in names)]
    found = {file: place / file for file in files}
    if FILE in found:
        return Upload(name, found)
    card = Card(name.repo.partition("/")[2], "Made by llamaseek.", hub_base(str(place)))
    return Upload(name, found, card_text(card, adapter=(place / ADAPTER).is_file()))


def _gguf_upload(place: Path, name: HubName) -> Upload:
    """The file, all of them of a split, and a card that says what its header says."""
    header = read_gguf(place)
    paths = sorted({tensor.path for tensor in header.tensors.values()} | {place})
    kinds = sorted({tensor.kind.name for tensor in header.tensors.values()})
    title = name.repo.partition("/")[2]
    base = name_of(str(place))
    run = f"""```sh
llamaseek chat {name.repo}
llama-cli -hf {name.repo}
ollama run hf.co/{name.repo}
```"""
    card = Card(
        title,
        f"`{place.name}`: a GGUF file of the architecture {header.architecture}, with tensors in "
        f"{', '.join(kinds)}.",
        base=base if base != str(place) else None,
        relation="quantized" if base != str(place) else None,
        tags=["gguf"],
    )
    text = card_text(card, run=[CardSection("How to run it", run)])
    return Upload(name, {path.name: path for path in paths}, text)
