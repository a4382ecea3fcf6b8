"""The tokenizer: exact round trips, special text that stays text, files others can read."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from llamaseek.cli.tokenize import token_table
from llamaseek.data.builtin.python_library import web_documents
from llamaseek.errors import UserError
from llamaseek.text.json_backend import SPLIT_PATTERN
from llamaseek.text.special import SPECIAL_TOKENS
from llamaseek.text.tokenizer import StreamDecoder, Tokenizer
from llamaseek.text.train_bpe import SMALLEST, train_bpe

VOCAB = 600
CORPUS = [document.text for document in islice(web_documents(), 40)]
TOKENIZER = train_bpe(CORPUS, VOCAB)

spelled = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(SPECIAL_TOKENS))).map("".join)
ids_of_any_kind = st.lists(st.integers(0, VOCAB + 5), max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(path)
    return path


# Round trips


@given(st.text())
def test_decoding_gives_back_any_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(spelled)
def test_text_that_spells_special_tokens_stays_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.special_ids.isdisjoint(ids)
    assert TOKENIZER.decode(ids) == text


@given(spelled)
def test_parsed_special_tokens_decode_to_the_same_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode_special(text), skip_special=False) == text


@given(st.lists(spelled, max_size=5))
def test_a_batch_is_its_texts(texts: list[str]) -> None:
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


@given(ids_of_any_kind, st.booleans())
def test_decoding_joins_the_bytes_of_the_ids(ids: list[int], skip: bool) -> None:
    kept = [i for i in ids if not (skip and i in TOKENIZER.special_ids)]
    whole = b"".join(map(TOKENIZER.token_bytes, kept)).decode("utf-8", "replace")
    assert TOKENIZER.decode(ids, skip_special=skip) == whole


def test_the_same_ids_as_tiktoken() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {TOKENIZER.token_bytes(i): i for i in range(VOCAB - len(SPECIAL_TOKENS))}
    peer = tiktoken.Encoding("t", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    text = "".join(CORPUS[:10]) + "It'S  12345 ÉTÉ\t\r\n\n 日本語🙂 <|eot_id|>  "
    assert TOKENIZER.encode(text) == peer.encode(text, disallowed_special=())


def test_a_lone_surrogate_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"lone surrogate '\\ud800' at 2"):
        TOKENIZER.encode("ab\ud800")


# Ids


def test_special_tokens_are_the_last_ids_in_llama_3s_order() -> None:
    base = VOCAB - 11
    assert TOKENIZER.vocab_size == VOCAB
    ids = [TOKENIZER.encode_special(name) for name in SPECIAL_TOKENS]
    assert ids == [[base + n] for n in range(11)]
    assert TOKENIZER.special_ids == frozenset(range(base, VOCAB))


def test_named_ids_are_metas_distances_from_begin_of_text() -> None:
    t, base = TOKENIZER, VOCAB - 11
    named = [t.bos_id, t.eos_id, t.mask_id, t.pad_id, t.start_header_id, t.end_header_id, t.eot_id]
    assert [i - base for i in named] == [0, 1, 2, 4, 6, 7, 9]
    assert [i - base for i in t.stop_ids] == [1, 8, 9]


def test_the_first_ids_are_the_bytes() -> None:
    assert {TOKENIZER.token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}


def test_ids_beyond_the_vocabulary_are_nothing() -> None:
    assert TOKENIZER.token_bytes(VOCAB + 7) == b""
    assert TOKENIZER.decode([VOCAB + 7]) == ""


def test_the_table_shows_each_token_beside_its_id() -> None:
    table = token_table(TOKENIZER, "<|begin_of_text|>é\n")
    assert [text for text, _ in table] == ["<|begin_of_text|>", "\\xc3", "\\xa9", "\\n"]
    assert [i for _, i in table] == TOKENIZER.encode_special("<|begin_of_text|>é\n")
    assert token_table(TOKENIZER, "<|eot_id|>", special=False)[0][0] == "<"


# Streaming


@given(spelled, st.booleans())
def test_a_stream_never_shows_half_a_character(text: str, skip: bool) -> None:
    stream = StreamDecoder(TOKENIZER, skip_special=skip)
    ids = TOKENIZER.encode(text.replace("\ufffd", ""))
    pieces = [stream.push(i) for i in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert stream.flush() == ""


@given(ids_of_any_kind, st.booleans())
def test_a_stream_adds_up_to_the_decoded_text(ids: list[int], skip: bool) -> None:
    stream = StreamDecoder(TOKENIZER, skip_special=skip)
    streamed = "".join(stream.push(i) for i in ids) + stream.flush()
    assert streamed == TOKENIZER.decode(ids, skip_special=skip)


def test_flush_shows_what_never_became_whole() -> None:
    stream = StreamDecoder(TOKENIZER)
    first = TOKENIZER.encode("🙂")[0]
    assert (stream.push(first), stream.flush(), stream.flush()) == ("", "\ufffd", "")


# Training


def test_training_twice_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    train_bpe(iter(CORPUS), VOCAB).save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_smallest_vocabulary_is_bytes_and_special_tokens() -> None:
    smallest = train_bpe(["a"], SMALLEST)
    assert smallest.vocab_size == SMALLEST == 267
    assert smallest.decode(smallest.encode("żółw")) == "żółw"


def test_a_size_below_the_smallest_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size: 266 is not allowed; allowed: 267 or more"):
        train_bpe(["a"], 266)


def test_a_corpus_too_small_names_the_size_it_reaches() -> None:
    with pytest.raises(UserError, match="too small for 1000; it can reach 269"):
        train_bpe(["abc"], 1000)
    assert train_bpe(["abc"], 269).vocab_size == 269


@pytest.mark.parametrize("texts", [[], [""]])
def test_an_empty_corpus_is_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="corpus: it is empty"):
        train_bpe(texts, 300)


def test_a_corpus_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UserError, match="corpus: text 1 holds a lone surrogate"):
        train_bpe(["a", "\udc00"], 300)


# Files


@settings(max_examples=30)
@given(text=spelled)
def test_a_loaded_tokenizer_is_the_saved_one(folder: Path, text: str) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.encode_special(text) == TOKENIZER.encode_special(text)
    assert (loaded.bos_id, loaded.stop_ids) == (TOKENIZER.bos_id, TOKENIZER.stop_ids)


def test_saving_what_was_loaded_changes_nothing(tmp_path: Path) -> None:
    folder, again = tmp_path / "once", tmp_path / "again"
    TOKENIZER.save(folder)
    config = {"bos_token": {"content": "<|eot_id|>"}, "eos_token": None, "kept": [1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    loaded = Tokenizer.load(folder)
    loaded.save(again)
    assert loaded.bos_id == loaded.eot_id and loaded.eos_id == TOKENIZER.eos_id
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((again / "tokenizer_config.json").read_text()) == config


@pytest.mark.parametrize("model_type", [None, "llama", "deepseek_v3"])
def test_transformers_reads_the_folder(tmp_path: Path, model_type: str | None) -> None:
    auto = pytest.importorskip("transformers").AutoTokenizer
    TOKENIZER.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = auto.from_pretrained(tmp_path)
    text = CORPUS[3] + " 12345 été 日本語🙂"
    assert theirs.encode(text) == [TOKENIZER.bos_id, *TOKENIZER.encode(text)]
    assert theirs.decode(TOKENIZER.encode(text)) == text
    named = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.mask_token_id)
    assert named == (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id, TOKENIZER.mask_id)
    assert theirs.model_input_names == ["input_ids", "attention_mask"]
    assert len(theirs) == VOCAB


def test_padding_is_never_the_end_token() -> None:
    config = {"eos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"}
    loaded = Tokenizer(TOKENIZER.to_json(), config)
    assert loaded.pad_id == TOKENIZER.pad_id != loaded.eos_id == TOKENIZER.eot_id


def test_added_tokens_marked_ordinary_are_special_too() -> None:
    source = json.loads(TOKENIZER.to_json())
    for token in source["added_tokens"]:
        token["special"] = False
    loaded = Tokenizer(json.dumps(source))
    assert loaded.special_ids == TOKENIZER.special_ids
    assert loaded.special_ids.isdisjoint(loaded.encode("<|eot_id|>"))


def test_a_special_token_that_text_can_reach_is_refused() -> None:
    source = json.loads(TOKENIZER.to_json())
    word = TOKENIZER.token_text(300)
    source["added_tokens"].append(source["added_tokens"][0] | {"id": 300, "content": word})
    with pytest.raises(UserError, match="becomes that special token"):
        Tokenizer(json.dumps(source))


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: not found"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", r"tokenizer\.json: not a tokenizer"),
        ("tokenizer.json", b"\xff", r"tokenizer\.json: cannot be read"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json: not JSON"),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json: not a JSON object"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def sentence_piece() -> Library:
    """A tokenizer in the form of Llama 2's: blanks as U+2581, unknown letters as bytes."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: i for i, name in enumerate([*names, *"▁helo", "▁h", "el", "▁hel"])}
    merges = [("▁", "h"), ("e", "l"), ("▁h", "el")]
    library: Library = Library(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    library.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


def word_piece() -> Library:
    """A tokenizer in the form of BERT's."""
    words = ["[UNK]", "[CLS]", "hel", "##lo", "he", "!"]
    model = models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    library: Library = Library(model)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    library.decoder = decoders.WordPiece()  # type: ignore[assignment]
    library.add_special_tokens(["[UNK]", "[CLS]"])
    return library


@pytest.mark.parametrize("made", [sentence_piece(), word_piece()])
@pytest.mark.parametrize("text", ["hello", "hello he!  hello", "é🙂h", "", "hel🙂", " <s>[CLS] h"])
def test_tokenizers_that_are_not_byte_level_are_as_in_their_library(
    made: Library, text: str
) -> None:
    ours = Tokenizer(made.to_str(), {})
    ids = ours.encode(text)
    if "<s>" not in text:
        assert ids == made.encode(text, add_special_tokens=False).ids
    assert ours.id_of("<s>" if "<s>" in ours.specials.values() else "[CLS]") not in ids
    assert ours.decode(ids) == made.decode(ids, skip_special_tokens=True)
    stream = StreamDecoder(ours)
    assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids)


def test_a_token_the_vocabulary_lacks_is_named() -> None:
    source = json.loads(TOKENIZER.to_json())
    source["added_tokens"] = source["added_tokens"][:2]
    loaded = Tokenizer(json.dumps(source))
    assert loaded.chat_template is None
    with pytest.raises(UserError, match=r"it has no token <\|start_header_id\|>"):
        _ = loaded.start_header_id
