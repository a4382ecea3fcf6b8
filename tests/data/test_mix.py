"""The mix: ratios, phases, budgets; the same stream after every stop and for every rank."""

from __future__ import annotations

import json
import os
import re
import signal
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.batch import IGNORE
from llamaseek.data.builtin.documents import builtin_documents
from llamaseek.data.mix.corpus import build_corpus
from llamaseek.data.mix.encode import Encoder, TokenStore, fim_marks, write_store
from llamaseek.data.mix.rows import MixRows, shuffled
from llamaseek.data.mix.schedule import Phase, Schedule
from llamaseek.data.mix.sources import open_sources
from llamaseek.data.source import SourceState
from llamaseek.errors import UserError
from llamaseek.files import write_text
from llamaseek.recipe.load import make_recipe
from llamaseek.text.special import FIM_TOKENS
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.data.planted import write_rows
from tests.train.tiny import LLAMA_SIZES, stories, tiny_tokenizer

ASKED = {"web": 50.0, "math": 25.0, "code": 17.0, "languages": 8.0}
LENGTHS = {"web": 900, "math": 150, "code": 2500, "languages": 400}
"""Mean tokens a document: sources differ in it, and the ratio must not care."""

END = 1
LENGTH = 512


def documents(name: str, count: int) -> list[list[int]]:
    """Documents whose tokens name their source; the last token is END."""
    rng = Random(name)
    mark = 2 + list(ASKED).index(name)
    return [
        [mark * 1000 + rng.randrange(1000) for _ in range(rng.randint(2, 2 * LENGTHS[name]))]
        + [END]
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("stores")
    for name in ASKED:
        write_store(folder / name, documents(name, 300), 10_000, LENGTH)
    return {name: TokenStore(folder / name, 10_000) for name in ASKED}


def rows_of(stores: dict[str, TokenStore], *phases: Phase, **budgets: int) -> MixRows:
    schedule = Schedule(phases or [Phase(0, ASKED)], budgets)
    return MixRows(stores, schedule, LENGTH, seed=7)


def shares(tokens: torch.Tensor) -> dict[str, float]:
    """What share of the tokens carries each source's mark."""
    marks = (tokens // 1000).flatten()
    counted = {name: int((marks == 2 + n).sum()) for n, name in enumerate(ASKED)}
    return {name: 100 * count / sum(counted.values()) for name, count in counted.items()}


def test_a_million_tokens_have_the_ratio_asked_for(stores: dict[str, TokenStore]) -> None:
    rows = rows_of(stores)
    read = torch.cat([rows.step(step, 16).tokens for step in range(1_000_000 // LENGTH // 16)])
    found = shares(read)
    print({name: round(share, 3) for name, share in found.items()})
    for name, asked in ASKED.items():
        assert found[name] == pytest.approx(asked, abs=0.5)
        told = rows.shares()[name]
        assert 100 * told["share"] == pytest.approx(asked, abs=0.5)
        assert 100 * told["asked"] == pytest.approx(asked, abs=1e-6)
    # By deficit and not by lot: it holds early, to within a piece or two.
    assert shares(read[:100])["languages"] == pytest.approx(8, abs=100 * 2 * LENGTH / 51_200)


def test_stopped_at_ten_points_the_stream_is_the_same(stores: dict[str, TokenStore]) -> None:
    whole = rows_of(stores)
    wanted = [whole.step(step, 8) for step in range(60)]
    rng = Random(3)
    stops = sorted(rng.sample(range(1, 60), 10))
    rows, state = rows_of(stores), None
    for step in range(60):
        if step in stops:  # as a new process: nothing but the JSON of the last step is left
            rows = rows_of(stores)
            rows.restore(SourceState(json.loads(json.dumps(state.position))))
        found = rows.step(step, 8)
        state = rows.state()
        assert torch.equal(found.tokens, wanted[step].tokens)
        assert torch.equal(found.targets, wanted[step].targets)
        assert torch.equal(found.positions, wanted[step].positions)


def read_until(stores: dict[str, TokenStore], folder: Path, stop: int) -> None:
    """A process that reads on from what is on disk and kills itself after reading step `stop`.

    Its tokens are written before the place it has come to, so that the last step is read again.
    """
    rows, state = rows_of(stores), folder / "state.json"
    if state.exists():
        rows.restore(SourceState(json.loads(state.read_text())))
    for step in range(int((folder / "next").read_text()), 60):
        np.save(folder / f"{step}.npy", rows.step(step, 8).tokens.numpy())
        if step == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        write_text(state, json.dumps(rows.state().position))
        write_text(folder / "next", str(step + 1))


def test_killed_at_ten_points_the_stream_is_the_same(
    stores: dict[str, TokenStore], tmp_path: Path
) -> None:
    (tmp_path / "next").write_text("0")
    stops = sorted(Random(4).sample(range(60), 10))
    for stop in [*stops, 60]:
        process = get_context("fork").Process(target=read_until, args=(stores, tmp_path, stop))
        process.start()
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if stop < 60 else 0)
    whole = rows_of(stores)
    for step in range(60):
        wanted = whole.step(step, 8).tokens.numpy()
        assert np.array_equal(np.load(tmp_path / f"{step}.npy"), wanted)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_one_stream(stores: dict[str, TokenStore], ranks: int) -> None:
    alone = rows_of(stores)
    readers = [rows_of(stores) for _ in range(ranks)]
    for step in range(20):
        parts = [reader.step(step, 8, rank, ranks) for rank, reader in enumerate(readers)]
        assert all(len(part.tokens) == 8 // ranks for part in parts)
        together = torch.cat([part.tokens for part in parts])
        assert torch.equal(together, alone.step(step, 8).tokens)


def test_a_run_goes_on_with_other_ranks(stores: dict[str, TokenStore]) -> None:
    one = rows_of(stores)
    wanted = [one.step(step, 8).tokens for step in range(6)]
    two = rows_of(stores)
    for step in range(3):
        two.step(step, 8, 1, 2)
    four = [rows_of(stores) for _ in range(4)]
    for reader in four:
        reader.restore(two.state())
    for step in range(3, 6):
        parts = [reader.step(step, 8, rank, 4).tokens for rank, reader in enumerate(four)]
        assert torch.equal(torch.cat(parts), wanted[step])


def test_any_step_can_be_asked_for(stores: dict[str, TokenStore]) -> None:
    rows = rows_of(stores)
    wanted = [rows.step(step, 4).tokens for step in range(5)]
    for step in (4, 4, 1, 3, 0):
        assert torch.equal(rows.step(step, 4).tokens, wanted[step])


def test_every_epoch_reads_every_token_once(tmp_path: Path) -> None:
    """Rows end where they do; all tokens are read before any is read again."""
    texts = [[n * 100 + i for i in range(2 + n % 60)] + [END] for n in range(1, 90)]
    write_store(tmp_path / "a", texts, 10_000, 32)
    store = TokenStore(tmp_path / "a", 10_000)
    rows = MixRows({"a": store}, Schedule([Phase(0, {"a": 1.0})], {}), 32)
    total = sum(map(len, texts))
    read = torch.cat([rows.step(step, 1).tokens.flatten() for step in range(2 * total // 32 + 1)])
    epochs = [read[:total], read[total : 2 * total]]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(token for text in texts for token in text)
    assert not torch.equal(*epochs)


def test_rows_of_one_long_document_hold_a_piece_each_in_every_epoch(tmp_path: Path) -> None:
    """The end of a document, shorter than a row, does not move the rows that come after it."""
    text = [*range(2, 100 * 32 + 7), END]
    write_store(tmp_path / "a", [text], 10_000, 32)
    rows = MixRows(
        {"a": TokenStore(tmp_path / "a", 10_000)}, Schedule([Phase(0, {"a": 1.0})], {}), 32
    )
    for epoch in range(3):
        batch = rows.step(epoch, 101)
        assert torch.equal(batch.positions, torch.arange(32).expand(101, -1))
        assert set(batch.tokens.flatten().tolist()) == set(text)
        assert (batch.tokens.diff(dim=1) == 1).sum() >= 101 * 31 - 1  # all but before END


def test_targets_are_the_next_tokens_of_the_document(stores: dict[str, TokenStore]) -> None:
    """Also where a row or a piece ends within it; after its last token there is none."""
    follows = {
        (a, b, c)
        for name in ASKED
        for text in documents(name, 300)
        for a, b, c in zip(text, text[1:], [*text[2:], None], strict=False)
    }
    batch = rows_of(stores).step(0, 64)
    tokens, targets = batch.tokens.tolist(), batch.targets.tolist()
    checked = 0
    for row, aims, places in zip(tokens, targets, batch.positions.tolist(), strict=True):
        assert places[0] == 0
        for i in range(LENGTH):
            if row[i] == END:
                assert aims[i] == IGNORE
            elif places[i] > 0 and row[i - 1] != END:
                assert (row[i - 1], row[i], aims[i]) in follows
                checked += 1
    assert checked > 0.95 * 64 * LENGTH


def test_without_isolation_a_row_is_one_document(stores: dict[str, TokenStore]) -> None:
    rows = MixRows(stores, Schedule([Phase(0, ASKED)], {}), LENGTH, isolate=False)
    batch = rows.step(0, 4)
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert torch.equal(batch.positions, torch.arange(LENGTH).expand(4, -1))


def test_phases_change_the_mix(stores: dict[str, TokenStore]) -> None:
    annealing = {"math": 70.0, "code": 30.0}
    rows = rows_of(stores, Phase(0, ASKED), Phase(400, annealing))
    steps = [rows.step(step, 8).tokens for step in range(75)]
    before, after = torch.cat(steps[:50]), torch.cat(steps[50:])
    for name, asked in ASKED.items():
        assert shares(before)[name] == pytest.approx(asked, abs=1)
    assert shares(after)["math"] == pytest.approx(70, abs=1)
    assert shares(after)["web"] == 0
    wanted = (50 * ASKED["math"] + 25 * 70) / 75
    assert 100 * rows.shares()["math"]["asked"] == pytest.approx(wanted, abs=0.01)


def test_a_source_gives_no_more_than_its_budget(stores: dict[str, TokenStore]) -> None:
    rows = rows_of(stores, code=10_000)
    read = torch.cat([rows.step(step, 8).tokens for step in range(40)])
    told = rows.shares()
    assert told["code"]["tokens"] == 10_000
    rest = {name: share for name, share in shares(read).items() if name != "code"}
    for name, share in rest.items():  # the others keep their ratio
        assert share / sum(rest.values()) == pytest.approx(ASKED[name] / 83, abs=0.01)
    with pytest.raises(UserError, match=r"data\.budgets: all are used up"):
        one = MixRows({"web": stores["web"]}, Schedule([Phase(0, {"web": 1})], {"web": 99}), 64)
        one.step(0, 4)


def test_a_shuffle_is_a_permutation_by_its_seed() -> None:
    for size in (1, 2, 3, 10, 1000, 4097):
        orders = [shuffled(np.arange(size), size, seed) for seed in (1, 2)]
        for order in orders:
            assert sorted(order.tolist()) == list(range(size))
        assert size < 10 or not np.array_equal(*orders)
    big = 10**12  # of which only a stretch is ever computed
    part = shuffled(np.arange(5000) + big // 2, big, 3)
    assert len(set(part.tolist())) == 5000 and part.max() < big
    assert abs(float(part.mean()) / big - 0.5) < 0.02


# From a recipe


def corpus_recipe(folder: Path, **data: Any) -> Any:
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name} {text}"}) for text in stories()[:150]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    corpora = {name: [str(folder / f"{name}.jsonl")] for name in ("a", "b")}
    return make_recipe(
        {
            "name": "mix",
            "stage": "pretrain",
            "out": str(folder / "run"),
            "model": {"config": dict(LLAMA_SIZES)},
            "tokenizer": {"vocab_size": 400},
            "data": {"corpora": corpora, "length": 64, **data},
            "train": {"steps": 10, "batch": 8},
        }
    )


def test_a_recipe_s_sources_become_rows(tmp_path: Path) -> None:
    recipe = corpus_recipe(tmp_path, mix={"a": 3, "b": 1})
    corpus = build_corpus(recipe)
    for step in range(10):
        batch = corpus.rows.step(step, 8)
    assert corpus.rows.shares()["a"]["share"] == pytest.approx(0.75, abs=0.02)
    texts = corpus.tokenizer.decode(batch.tokens[0].tolist())
    assert "And the" in texts
    assert corpus.held_out is not None
    written = corpus.held_out_bytes, len(corpus.rows.stores["a"].tokens)
    before = next((tmp_path / "run").glob("tokens-*")).stat().st_mtime_ns
    again = build_corpus(recipe)
    assert next((tmp_path / "run").glob("tokens-*")).stat().st_mtime_ns == before
    assert (again.held_out_bytes, len(again.rows.stores["a"].tokens)) == written
    build_corpus(corpus_recipe(tmp_path, mix={"a": 3, "b": 1}, holdout=0.5))
    assert len(list((tmp_path / "run").glob("tokens-*"))) == 1  # of another recipe, another


def test_weights_come_from_sizes_by_temperature(tmp_path: Path) -> None:
    def weights(**data: Any) -> dict[str, float]:
        recipe = corpus_recipe(tmp_path, **data)
        (tmp_path / "b.jsonl").write_text(json.dumps({"text": "b " + "x y " * 500}))
        return dict(build_corpus(recipe).rows.schedule.phases[0].weights)

    flat, steep = weights(temperature=100.0), weights()
    assert flat["a"] / flat["b"] == pytest.approx(1, abs=0.05)
    assert steep["a"] / steep["b"] > 4
    assert weights(budgets={"a": 9_000_000, "b": 1_000_000}) == {"a": 9_000_000, "b": 1_000_000}


def test_a_run_tells_what_its_mix_became(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = corpus_recipe(tmp_path, mix={"a": 3, "b": 1})
    folder = train(build_job(recipe)).path
    assert re.search(
        r"a 7[45]\.\d\d% \(75\.00%\), b 2[45]\.\d\d% \(25\.00%\)", capsys.readouterr().err
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tested = next(line for line in lines if "mix/a/share" in line)
    assert tested["mix/a/asked"] == 0.75 and abs(tested["mix/a/share"] - 0.75) < 0.01
    position = json.loads((folder / "checkpoints" / "step-10" / "state" / "data.json").read_text())
    assert position["row"] == 80 and sum(position["taken"].values()) == 80 * 64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mix": {"a": 1, "c": 1}}, "data.mix source 'c' is unknown"),
        ({"mix": {"storys": 1}}, "did you mean 'stories'"),
        ({"mix": {"a": -1}}, r"data\.mix\.a: -1"),
        ({"mix": {"a": 0}}, "no weight above 0"),
        ({"budgets": {"a": 10, "b": 10}}, "20 tokens in total, but the run reads 5,120"),
        ({"phases": [{"start": 0.5, "mix": {"z": 1}}]}, r"data\.phases\.0\.mix source 'z'"),
        ({"corpora": {"a": ["nothing.txt"]}}, "nothing.txt: no such file"),
        ({"phases": [{"strt": 0.5, "mix": {"a": 1}}]}, "did you mean 'start'"),
        ({"long": {"tokens": 5, "time": 1}}, "did you mean 'times'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_corpus(corpus_recipe(tmp_path, **data))
    assert not list(tmp_path.rglob("tokens-*"))


def test_a_broken_file_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = corpus_recipe(tmp_path)
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write("\n{broken")
    with pytest.raises(UserError, match=r"b\.jsonl:151: not JSON"):
        build_corpus(recipe)
    assert not list(tmp_path.rglob("*tokens*"))


def test_rows_without_a_text_are_an_error_or_counted(tmp_path: Path) -> None:
    recipe = corpus_recipe(tmp_path)
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write('\n{"body": "a wrong column"}\n{"text": ""}\n{"text": 3}')
    with pytest.raises(UserError, match=r"b\.jsonl:151: no field 'text'; fields: body"):
        build_corpus(recipe)
    corpus = build_corpus(corpus_recipe_again(recipe, bad_rows="skip"))
    assert corpus.bad_rows.skipped == 3
    told = corpus.bad_rows.summary()
    assert told[0] == "data: skipped 3 of 303 rows" and "b.jsonl:151" in "".join(told)


def corpus_recipe_again(recipe: Any, **data: Any) -> Any:
    """The same recipe over the same files with other settings of data."""
    plain = recipe.model_dump()
    return make_recipe(plain | {"data": plain["data"] | data})


def test_long_documents_are_read_more_often(tmp_path: Path) -> None:
    texts = [[5] * n + [END] for n in (10, 10, 100)]
    write_store(tmp_path / "a", texts, 10, 32, long=(50, 3))
    pieces = TokenStore(tmp_path / "a", 10).pieces
    assert len(pieces) == 2 + 3 * 4
    assert (pieces[2:6] == pieces[6:10]).all() and (pieces[2:6] == pieces[10:14]).all()


# Fill-in-the-middle


def test_a_tenth_of_the_documents_become_prefix_suffix_middle() -> None:
    tokenizer = train_bpe(stories(), 420, FIM_TOKENS[0])
    begin, hole, end = fim_marks(tokenizer)
    texts = [f"{n} {text}" for n in range(10) for text in stories()]
    encoded = list(Encoder(tokenizer, 0.1, "1/web")(iter(texts)))
    changed = 0
    for text, ids in zip(texts, encoded, strict=True):
        assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
        if begin not in ids:
            assert tokenizer.decode(ids) == text
            continue
        changed += 1
        assert ids[1] == begin
        first, second = ids.index(hole), ids.index(end)
        parts = [ids[2:first], ids[first + 1 : second], ids[second + 1 : -1]]
        prefix, suffix, middle = map(tokenizer.decode, parts)
        assert prefix + middle + suffix == text
    assert changed / len(texts) == pytest.approx(0.1, abs=0.015)
    assert encoded == list(Encoder(tokenizer, 0.1, "1/web")(iter(texts)))


def test_without_its_tokens_fim_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.fim: the tokenizer has none"):
        fim_marks(tiny_tokenizer())


def test_the_built_in_sources_keep_their_size_and_seed() -> None:
    texts = list(builtin_documents("stories", 50_000, 1))
    assert texts == list(builtin_documents("stories", 50_000, 1))
    assert texts != list(builtin_documents("stories", 50_000, 2))
    assert sum(len(text.encode()) for text in texts) == pytest.approx(50_000, rel=0.05)


def test_other_columns_of_rows_of_text_are_reported_or_ignored(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"body": "words " * 9, "url": "u"}] * 8)
    data = {"sources": [str(tmp_path / "a.jsonl")], "columns": {"text": "body"}}
    for ignore, lines in (([], 1), (["url"], 0)):
        made = make_recipe({"name": "x", "stage": "pretrain", "data": data | {"ignore": ignore}})
        bad = BadRows()
        (source,) = open_sources(made, bad)
        assert next(source.train()) == "words " * 9 and len(bad.summary()) == lines
        assert all("url (8)" in line for line in bad.summary())
