"""Filters against datatrove's, decision by decision, and the reasons they give."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from datatrove.data import Document as Theirs
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    URLFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils.text import ngrams, simplify_text, split_into_sentences, split_into_words
from tldextract import TLDExtract

from llamaseek.data.builtin.python_library import code_documents, web_documents
from llamaseek.data.clean.recipe import make_stage
from llamaseek.data.clean.stage import CleaningStage, Reason
from llamaseek.data.clean.words import sentences, simplified, words
from llamaseek.data.documents import Document
from llamaseek.errors import UserError
from tests.data.planted import BOILERPLATE, foreign, gibberish, page, write_rows


@cache
def texts() -> list[str]:
    """2,000 documents of many kinds: prose, manuals, code, lists, noise, languages."""
    rng = Random(5)
    found = [document.text[:4000] for document in islice(web_documents(), 1000)]
    found += [document.text[:3000] for document in islice(code_documents(), 0, 3000, 10)]
    found += [page(rng) for _ in range(200)] + [gibberish(rng) for _ in range(50)]
    found += [foreign(rng)[1] for _ in range(50)]
    while len(found) < 2000:
        found.append(_spoilt(rng, page(rng)))
    return found[:2000]


def _spoilt(rng: Random, text: str) -> str:
    """A page with one of the defects that the rules look for, some more of it, some less."""
    lines, times = text.split("\n"), rng.randint(1, 12)
    first = text.split(".")[0]
    return rng.choice(
        [
            "\n".join(lines + [rng.choice(BOILERPLATE)] * times),
            "\n".join(f"- {word}" for word in text.split()[: 8 * times]) + "\n" + lines[0],
            text.replace(".", "...", times),
            text + " #tag" * times * 3,
            (first + ". ") * times + text,
            text + " lorem ipsum {x} use cookies"[: 3 * times],
            "\n\n".join([lines[0]] * times + lines),
            text[: 40 * times],
            text + "\n" + "\n".join(text.split()[: 10 * times]),
            text.replace(" ", " 12 ", 9 * times),
        ]
    )


PAIRS: dict[str, Callable[[], Any]] = {
    "gopher_quality": GopherQualityFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}


@pytest.mark.parametrize("name", PAIRS)
def test_decisions_are_datatroves(name: str) -> None:
    ours, theirs = stage(name), PAIRS[name]()
    kept = 0
    for text in texts():
        found, document = ours(Document(text, "x")), Theirs(text, "x")
        verdict = theirs.filter(document)
        assert isinstance(found, Document) == (verdict is True), f"{found}, {verdict}: {text}"
        if isinstance(found, Document):
            assert found.text == document.text
            kept += 1
    assert 100 < kept < 1900  # both verdicts were asked for


def test_words_and_sentences_are_spacys() -> None:
    for text in texts()[::5]:
        assert list(words(text)) == split_into_words(text)
        assert simplified(text) == simplify_text(text)
    prose = ["It costs $.5, e.g. here. Yes? No!", "Mr. A. said: it's 5.00. (True.) Etc.", "a b c"]
    for text in prose:
        assert sentences(text) == len(split_into_sentences(text))


def test_contamination_is_datatroves(tmp_path: Path) -> None:
    import numpy as np

    rng = Random(1)
    items = [" ".join(page(rng).split()[:30]) for _ in range(40)]
    documents = [f"{page(rng)} {_part(rng, rng.choice(items))}" for _ in range(300)]
    write_rows(tmp_path / "benchmark.jsonl", [{"question": item} for item in items])
    config = NGramsDecontConfig()
    theirs = NGramsDecontFilter(str(tmp_path), config)
    pieces = [ngrams(split_into_words(simplify_text(item)), config.n_grams) for item in items]
    hashes = {theirs.hash_func(" ".join(gram)) for grams in pieces for gram in grams}
    np.array(sorted(hashes), dtype=np.uint64).tofile(tmp_path / "all.index.hashes")
    ours = stage("decontaminate", files=[str(tmp_path / "benchmark.jsonl")])
    verdicts = []
    for text in documents:
        found = ours(Document(text, "x"))
        assert isinstance(found, Document) == (theirs.filter(Theirs(text, "x")) is True), text
        verdicts.append(isinstance(found, Document))
    assert 50 < sum(verdicts) < 250


def _part(rng: Random, item: str) -> str:
    """Eight to sixteen words of an item: some fewer than the twelve that count."""
    found, length = item.split(), rng.randint(8, 16)
    start = rng.randrange(len(found) - length)
    return " ".join(found[start : start + length])


def test_addresses_are_judged_as_by_datatrove() -> None:
    lists = {
        "domains": ["bad.com", "worse.org"],
        "urls": ["https://fine.org/this-page"],
        "words": ["casino"],
        "soft_words": ["win", "free", "now"],
        "subwords": ["p0rn"],
    }
    theirs = URLFilter(
        extra_domains=lists["domains"],
        extra_urls=lists["urls"],
        banned_words=lists["words"],
        soft_banned_words=lists["soft_words"],
        banned_subwords=lists["subwords"],
        use_integrated_lists=False,
    )
    theirs.tldextractor = TLDExtract(suffix_list_urls=())  # its own copy, not the network's
    ours, rng, verdicts = stage("url", **lists), Random(2), []
    hosts = ["fine.org", "bad.com", "www.worse.org", "notworse.org", "a.b.fine.org", "x.co.uk"]
    parts = ["casino", "casinos", "win", "free", "now", "this-page", "xp0rnx", "page", "2024"]
    for _ in range(400):
        path = "-".join(rng.choices(parts, k=rng.randint(0, 3)))
        url = f"https://{rng.choice(hosts)}/{path}"
        found = ours(Document("x", "x", {"url": url}))
        verdict = theirs.filter(Theirs("x", "x", metadata={"url": url}))
        assert isinstance(found, Document) == (verdict is True), (url, found, verdict)
        verdicts.append(verdict is True)
    assert 50 < sum(verdicts) < 350
    assert isinstance(ours(Document("x", "x")), Document)


def test_personal_information_goes_as_with_datatrove() -> None:
    mail, ip = "email@example.com", "22.214.171.124"
    theirs = PIIFormatter(email_replacement=mail, ip_replacement=ip)
    ours = stage("personal")
    some = [
        "Write to jane.doe+x@mail.example.org, or call 10.0.0.1 from 8.8.8.8.",
        "At 1.1.1.1:80 nobody <a_b@c-d.co.uk> answers @home.",
        *texts()[::20],
    ]
    for text in some:
        found = ours(Document(text, "x"))
        assert isinstance(found, Document)
        assert found.text == theirs.format(text)
    found = ours(Document(some[0], "x"))
    assert isinstance(found, Document) and found.metadata == {"redacted": 2}
    version = "Version 1.2.3.4.5 is no address"  # where datatrove would put one
    assert ours(Document(version, "x")) == Document(version, "x")


def test_languages_are_told_apart() -> None:
    rng = Random(3)
    ours = stage("language", keep=["en", "de"])
    for code in ("en", "fr", "de", "ru"):
        pages = [page(rng) if code == "en" else _in(rng, code) for _ in range(20)]
        found = [ours(Document(text, "x")) for text in pages]
        kept = [f for f in found if isinstance(f, Document)]
        assert len(kept) == (20 if code in ("en", "de") else 0)
        assert all(f.metadata["language"] == code for f in kept)
    reason = ours(Document(_in(rng, "fr"), "x"))
    assert isinstance(reason, Reason) and reason.rule == "language fr"
    assert "en or de with at least 0.65" in str(reason)


def _in(rng: Random, code: str) -> str:
    while True:
        language, text = foreign(rng)
        if language == code:
            return text


def test_a_reason_names_rule_value_and_limit() -> None:
    found = stage("gopher_quality", min_words=60)(Document("the cat and the dog " * 5, "x"))
    assert found == Reason("words", 25, "at least 60")
    assert str(found) == "words: 25 (allowed: at least 60)"


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage 'gofer_quality' is unknown; did you mean 'gopher_"):
        make_stage("gofer_quality", {})
    with pytest.raises(UserError, match=r"stages\.c4\.min_sentence:.*did you mean 'min_sentences'"):
        make_stage("c4", {"min_sentence": 3})
    with pytest.raises(UserError, match=r"stages\.url\.domains: .*nowhere\.txt is not a file"):
        make_stage("url", {"domains": ["@nowhere.txt"]})
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "too short"}) + "\n")
    with pytest.raises(UserError, match=r"no item of .*b\.jsonl has 12 words"):
        stage("decontaminate", files=[str(tmp_path / "b.jsonl")])(Document("a " * 20, "x"))


def stage(name: str, **settings: Any) -> CleaningStage:
    found = make_stage(name, settings)
    assert isinstance(found, CleaningStage)
    return found
