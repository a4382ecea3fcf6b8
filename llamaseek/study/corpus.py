"""One corpus for all runs of a study: a tokenizer, nested shares of its text, held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from llamaseek.data.batch import Batch
from llamaseek.study.runs import SMOKE_CORPUS, Settings, write_documents
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.build import pack_documents, read_text

HELD_OUT = 400_000  # characters


@dataclass(frozen=True)
class Corpus:
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
        source = [f"data.sources=[{path}]", "data.mix={}", "data.holdout=0"]
        return [*source, f"tokenizer.path={self.folder}"], tokens


def make_corpus(settings: Settings) -> Corpus:
    """The study recipe's text; the same for every seed of the model."""
    extra = SMOKE_CORPUS if settings.smoke else ()
    recipe = settings.recipe("study", "corpus", *extra)
    text = read_text(recipe)
    tokenizer = train_bpe(text.train, recipe.tokenizer.vocab_size)
    tokenizer.save(recipe.folder)
    tokens = [len(ids) + 2 for ids in tokenizer.encode_batch(text.train)]  # begin and end
    held_out, size = [], 0
    for document in text.held_out:
        if size > HELD_OUT:
            break
        held_out.append(document)
        size += len(document)
    rows = pack_documents(recipe, tokenizer, held_out)
    return Corpus(recipe.folder, tokenizer, text.train, tokens, rows)
