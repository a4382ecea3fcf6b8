"""The named sources of a pre-training run: of each a part to train on and a part held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.builtin.documents import NAMES, builtin_documents
from llamaseek.data.documents import read_documents
from llamaseek.data.hub import SCHEME, read_hub
from llamaseek.data.mix.schedule import Phase
from llamaseek.errors import UserError, bad_value, unknown_name
from llamaseek.recipe.schema import DataRecipe, Recipe

HELD_OUT = 8_000_000
"""Characters of a source that are held out at most: they are kept in memory and evaluated whole."""

Mix = Mapping[str, float]
Reader = Callable[[BadRows], Iterator[str]]


@dataclass(frozen=True)
class TextSource:
    """Texts that can be read again and again, and where training ends and the held-out begins."""

    name: str
    read: Callable[[], Iterator[str]]
    size: int  # characters
    holdout: float

    @property
    def border(self) -> int:
        """The character at which the held-out rest begins."""
        return max(round(self.size * (1 - self.holdout)), self.size - HELD_OUT)

    def train(self) -> Iterator[str]:
        """Texts to train on; the document at the border is cut."""
        left = self.border
        for text in self.read():
            if left <= 0:
                return
            yield text[:left]
            left -= len(text)

    def held_out(self) -> Iterator[str]:
        """The rest."""
        left = self.border
        for text in self.read():
            if left < len(text):
                yield text[max(left, 0) :]
            left -= len(text)


def open_sources(recipe: Recipe, bad: BadRows | None = None) -> list[TextSource]:
    """The sources that a recipe gives weight to; reads each once, to know its size.

    `bad` counts the rows that this reading skips.
    Raises UserError for names and weights that cannot be, and for sources that cannot be read.
    """
    data = recipe.data
    check_sources(data)
    mix = first_mix(data)
    skip = data.bad_rows == "skip"
    readers = {name: _reader(name, data, mix, recipe.seed) for name in _names(data)}
    counted = bad or BadRows.of(data)  # the other readings pass over the same rows
    sizes = {name: sum(map(len, read(counted))) for name, read in readers.items()}
    for name, size in sizes.items():
        if not size:
            raise UserError(f"data.corpora.{name}: holds no text")
    return [
        TextSource(name, partial(_again, read, skip), sizes[name], data.holdout)
        for name, read in readers.items()
    ]


def _again(read: Reader, skip: bool) -> Iterator[str]:
    return read(BadRows(skip))


def first_mix(data: DataRecipe) -> Mix:
    """The weights as the recipe gives them: a mix, or budgets for all, or none."""
    if data.sources:
        return {"text": 1.0}
    everywhere = data.budgets.keys() >= data.corpora.keys()
    return data.mix or (data.budgets if everywhere and data.budgets else {})


def phases_of(recipe: Recipe, sources: list[TextSource]) -> list[Phase]:
    """The weights over the run, in rows; without any given, by the sources' sizes."""
    data, train = recipe.data, recipe.train
    power = 1 / data.temperature
    weights = first_mix(data) or {source.name: source.size**power for source in sources}
    later = [Phase(round(p.start * train.steps) * train.batch, p.mix) for p in data.phases]
    return [Phase(0, weights), *later]


def _names(data: DataRecipe) -> list[str]:
    mixes = [first_mix(data) or dict.fromkeys(data.corpora, 1.0), *(p.mix for p in data.phases)]
    return list(dict.fromkeys(name for mix in mixes for name, weight in mix.items() if weight > 0))


def _reader(name: str, data: DataRecipe, mix: Mix, seed: int) -> Reader:
    paths = data.sources if data.sources else data.corpora.get(name)
    if paths is not None:
        return partial(_texts, paths, data)
    weights = {n: mix.get(n) or max(p.mix.get(n, 0.0) for p in data.phases) for n in _names(data)}
    budget = data.mix_bytes * weights[name] / sum(weights.values())
    return lambda bad: builtin_documents(name, budget, seed)


def _texts(paths: list[str], data: DataRecipe, bad: BadRows) -> Iterator[str]:
    """The texts of files and data sets; `bad` counts the other columns of their rows."""
    column = data.columns.get("text", "text")
    files = [path for path in paths if not path.startswith(SCHEME)]
    parts = [read_hub(path, 0, 1, bad) for path in paths if path.startswith(SCHEME)]
    if files:
        parts.append(read_documents(files, bad, column, data.encoding))
    for document in chain.from_iterable(parts):
        bad.unused.update(n for n in document.metadata if n != "place" and n not in data.ignore)
        yield document.text


def check_sources(data: DataRecipe) -> None:
    """One line for what no reading is needed to see."""
    if not (data.sources or data.corpora or data.mix):
        raise UserError(
            "data.sources: is empty; give files or folders, named ones in data.corpora, "
            "or weights in data.mix"
        )
    known = ["text"] if data.sources else [*data.corpora, *NAMES]
    mixes: dict[str, Mix] = {"data.mix": data.mix, "data.budgets": data.budgets}
    mixes |= {f"data.phases.{n}.mix": phase.mix for n, phase in enumerate(data.phases)}
    for field, mix in mixes.items():
        for name, weight in mix.items():
            if name not in known:
                raise unknown_name(f"{field} source", name, known)
            if weight < 0:
                raise bad_value(f"{field}.{name}", weight, "a number of at least 0")
        if mix and not sum(mix.values()):
            raise UserError(f"{field}: has no weight above 0")
    starts = [phase.start for phase in data.phases]
    if starts != sorted(set(starts)):
        raise bad_value("data.phases", starts, "starts that rise")
