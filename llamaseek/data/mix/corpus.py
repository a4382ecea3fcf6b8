"""A pre-training run's data: sources tokenized once into its folder, and rows drawn from there.

Tokenizing first costs disk (2 to 4 bytes a token) and buys what a stream cannot have: a true
shuffle in no memory, any document at once after a resume, and ranks that read only their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.batch import Batch
from llamaseek.data.clean.plan import fingerprint
from llamaseek.data.mix.encode import Encoder, TokenStore, fim_marks, write_store
from llamaseek.data.mix.rows import MixRows
from llamaseek.data.mix.schedule import Schedule
from llamaseek.data.mix.sources import TextSource, open_sources, phases_of
from llamaseek.data.pack import pack_text
from llamaseek.errors import UserError
from llamaseek.recipe.schema import Recipe
from llamaseek.text.special import FIM_TOKENS
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe

TOKENIZER_CHARACTERS = 200_000_000
"""Text that a tokenizer is trained on at most, all sources together."""

DIGEST = "texts.sha256"
"""Beside a source's tokens: the fingerprint of the texts that they were made from."""

Watch = Callable[[str, int, int], None]
"""Called with what is being tokenized, characters done, characters in all."""


@dataclass(frozen=True)
class Corpus:
    """What a run trains on and is tested on."""

    tokenizer: Tokenizer
    rows: MixRows
    held_out: Batch | None
    held_out_bytes: int
    bad_rows: BadRows
    fingerprint: str  # of the texts that are trained on


def build_corpus(
    recipe: Recipe, watch: Watch | None = None, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Read, tokenize, index; a run that has done so before finds its tokens in its folder.

    `tokenizer` is used in place of one trained on the text, as when a run is resumed.
    """
    data = recipe.data
    bad = BadRows.of(data)
    sources = open_sources(recipe, bad)
    tokenizer = _tokenizer(recipe, sources, tokenizer)
    schedule = Schedule(phases_of(recipe, sources), data.budgets)
    _check_budgets(recipe, sources)
    folder = _stores(recipe, sources, tokenizer, watch or (lambda name, done, total: None))
    stores = {s.name: TokenStore(folder / s.name, tokenizer.vocab_size) for s in sources}
    rows = MixRows(stores, schedule, data.length, data.isolate, recipe.seed)
    held_out = [text for source in sources for text in source.held_out()]
    batch = None
    if held_out:
        batch = pack_text(Encoder(tokenizer)(iter(held_out)), data.length, data.isolate)
    size = sum(len(text.encode()) for text in held_out)
    return Corpus(tokenizer, rows, batch, size, bad, _fingerprint(folder, sources))


def _tokenizer(recipe: Recipe, sources: list[TextSource], trained: Tokenizer | None) -> Tokenizer:
    folder = recipe.tokenizer.path or recipe.model.init_from
    if folder:
        own = recipe.tokenizer
        tokenizer = Tokenizer.load(folder)
        tokenizer.use_chat_template(own.chat_template, own.chat_template_kwargs)
        if recipe.data.fim:
            fim_marks(tokenizer)
        return tokenizer
    if trained is not None:
        return trained
    total = sum(source.size for source in sources)
    share = min(TOKENIZER_CHARACTERS / total, 1.0)
    texts = chain.from_iterable(_first(source, share) for source in sources)
    more = FIM_TOKENS[0] if recipe.data.fim else ()
    return train_bpe(texts, recipe.tokenizer.vocab_size, more)


def _first(source: TextSource, share: float) -> Iterator[str]:
    """A source's first texts, about a share of its characters."""
    left = source.border * share
    for text in source.train():
        if left <= 0:
            return
        yield text
        left -= len(text)


def _check_budgets(recipe: Recipe, sources: list[TextSource]) -> None:
    data, train = recipe.data, recipe.train
    if any(source.name not in data.budgets for source in sources):
        return
    needed = train.steps * train.batch * data.length
    allowed = sum(data.budgets[source.name] for source in sources)
    if allowed < needed:
        raise UserError(f"data.budgets: {allowed:,} tokens in total, but the run reads {needed:,}")


# The token stores in the run folder


def _stores(recipe: Recipe, sources: list[TextSource], tokenizer: Tokenizer, watch: Watch) -> Path:
    folder = recipe.folder / f"tokens-{_mark(recipe, tokenizer)}"
    with _alone(recipe.folder):
        if not folder.is_dir():
            for old in token_stores(recipe.folder):
                shutil.rmtree(old)
            _write_stores(folder, recipe, sources, tokenizer, watch)
    return folder


def token_stores(folder: Path) -> list[Path]:
    """The stores of tokens that runs have left in a run folder; other folders are not ours."""
    return [p for p in folder.glob("tokens-" + "[0-9a-f]" * 16) if p.is_dir()]


def _write_stores(
    folder: Path, recipe: Recipe, sources: list[TextSource], tokenizer: Tokenizer, watch: Watch
) -> None:
    data = recipe.data
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    long = (data.long.tokens, data.long.times) if data.long is not None else None
    try:
        for source in sources:
            encode = Encoder(tokenizer, data.fim, f"{recipe.seed}/{source.name}")
            digest = hashlib.sha256()
            texts = _watched(source, watch, digest)
            store = partial / source.name
            write_store(store, encode(texts), tokenizer.vocab_size, data.length, long)
            (store / DIGEST).write_text(digest.hexdigest())
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fingerprint(folder: Path, sources: list[TextSource]) -> str:
    """Of the training texts of every source, by name; read again where a store has none yet."""
    digest = hashlib.sha256()
    for source in sorted(sources, key=lambda one: one.name):
        path, own = folder / source.name / DIGEST, hashlib.sha256()
        if not path.is_file():
            for _ in _watched(source, lambda name, done, total: None, own):
                pass
        found = path.read_text() if path.is_file() else own.hexdigest()
        digest.update(f"{source.name} {found}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _watched(source: TextSource, watch: Watch, digest: hashlib._Hash) -> Iterator[str]:
    """The texts to train on; they are counted and digested on their way."""
    done = 0
    for text in source.train():
        digest.update(f"{len(text)} ".encode() + text.encode())
        yield text
        done += len(text)
        watch(source.name, done, source.border)


def _mark(recipe: Recipe, tokenizer: Tokenizer) -> str:
    """Changes with everything that the stores hold."""
    data = recipe.data
    corpora = {"text": data.sources} if data.sources else data.corpora
    settings = data.model_dump(mode="json") | {"seed": recipe.seed}
    digest = hashlib.blake2b(tokenizer.to_json().encode(), digest_size=8).hexdigest()
    return fingerprint(corpora, json.dumps([settings, digest], sort_keys=True))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: of the ranks of a run the first tokenizes, the others wait for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
