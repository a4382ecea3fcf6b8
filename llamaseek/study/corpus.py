"""One corpus for all runs of a study: a tokenizer, nested shares of its text, held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from random import Random

from llamaseek.data.batch import Batch
from llamaseek.data.mix.sources import open_sources
from llamaseek.study.runs import SMOKE_CORPUS, Settings, packed, write_documents
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe

HELD_OUT = 400_000  # characters


@dataclass(frozen=True)
class StudyCorpus:
    """Training documents with how many tokens each has, and what is never trained on."""

    folder: Path
    tokenizer: Tokenizer
    documents: list[str]
    tokens: list[int]
    held_out: Batch

    def share(self, share: Fraction) -> tuple[Path, int]:
        """The first documents that hold this share of the tokens: their file, their tokens."""
        wanted, count, tokens = share * sum(self.tokens), 0, 0
        while count < len(self.documents) and tokens < wanted:
            tokens += self.tokens[count]
            count += 1
        name = f"{share.numerator}-of-{share.denominator}.jsonl"
        return write_documents(self.folder / name, self.documents[:count]), tokens

    def overrides(self, share: Fraction) -> tuple[list[str], int]:
        """How a recipe reads that share with the shared tokenizer, and its tokens."""
        path, tokens = self.share(share)
        source = [f"data.sources=[{path}]", "data.corpora={}", "data.mix={}"]
        return [*source, "data.holdout=0", f"tokenizer.path={self.folder}"], tokens


def make_corpus(settings: Settings) -> StudyCorpus:
    """The study recipe's text; the same for every seed of the model."""
    extra = SMOKE_CORPUS if settings.smoke else ()
    recipe = settings.recipe("study", "corpus", *extra)
    sources = open_sources(recipe)
    train = [text for source in sources for text in source.train()]
    held_out = [text for source in sources for text in source.held_out()]
    for texts in (train, held_out):
        Random(0).shuffle(texts)
    tokenizer = train_bpe(train, recipe.tokenizer.vocab_size)
    tokenizer.save(recipe.folder)
    tokens = [len(ids) + 2 for ids in tokenizer.encode_batch(train)]  # begin and end
    sizes = accumulate(map(len, held_out))
    few = [text for text, size in zip(held_out, sizes, strict=True) if size <= HELD_OUT]
    return StudyCorpus(recipe.folder, tokenizer, train, tokens, packed(recipe, tokenizer, few))
