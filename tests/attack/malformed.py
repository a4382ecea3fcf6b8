"""Malformed and oversized files of strangers, made by rules: 200 of them.

A case is a name, the words of a command with `{}` for the folder of the case, and what writes the
folder. The word `read` stands for reading the folder's file of documents.
`python -m tests.attack.malformed FOLDER COUNT` writes them and prints names and words as JSON.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from tests.models.shapes import LLAMA
from tests.train.tiny import tiny_tokenizer

Write = Callable[[Path], object]
PLAN = ["plan", "--gpu", "h100-80gb", "--recipe", "{}/a.yaml"]
Case = tuple[str, list[str], Write]
CONFIG = {**LLAMA, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
MANY = b"[" + b"[]," * 5_000_000 + b"[]]"
JSON: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "arrays without end": b"[" * 100_000,
    "objects without end": b'{"a":' * 100_000,
    "deep and whole": b"[" * 100_000 + b"]" * 100_000,
    "null bytes": b"\0" * 1000,
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
    "half an object": b'{"model_type": "lla',
    "a number of 5,000 digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "5 million lists": MANY,
    "65 MB of blanks": b" " * (65 << 20),
    "two objects": b"{}{}",
    "latin-1": b'{"a": "\xe9"}',
}


def _file(name: str, content: bytes) -> Write:
    return lambda folder: (folder / name).write_bytes(content)


def _model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))


def _both(first: Write, second: Write) -> Write:
    return lambda folder: (first(folder), second(folder))


def json_cases() -> Iterator[Case]:
    for what, content in JSON.items():
        yield f"config.json: {what}", ["inspect", "{}"], _file("config.json", content)
        index = _both(_model, _file("model.safetensors.index.json", content))
        yield f"index: {what}", ["inspect", "{}"], index
        words = ["tokenize", "x", "--tokenizer", "{}"]
        yield f"tokenizer.json: {what}", words, _file("tokenizer.json", content)
        if what not in ("a number of 5,000 digits",):
            config = _both(tiny_tokenizer().save, _file("tokenizer_config.json", content))
            yield f"tokenizer_config.json: {what}", words, config


def yaml_cases() -> Iterator[Case]:
    def laughs(depth: int, width: int) -> str:
        lines = ["a0: &a0 [x]"]
        lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
        return "\n".join(lines)

    texts = {
        **{f"{d} levels of {w} aliases": laughs(d, w) for d, w in ((10, 10), (30, 2), (6, 50))},
        "one long anchor": "a: &a [" + "x," * 1000 + "]\nb: [" + "*a," * 1000 + "]",
        "merged aliases": "a: &a {b: 1}\n" + "\n".join(f"c{n}: {{<<: *a}}" for n in range(20_000)),
        "an alias of itself": "a: &a [*a]",
        "a mapping of itself": "a: &a {b: *a}",
        "arrays without end": "[" * 50_000,
        "arrays that end": "a: " + "[" * 5000 + "]" * 5000,
        "blocks without end": "\n".join(" " * n + "a:" for n in range(700)),
        "a megabyte": "a: " + "x" * (1 << 20),
        "a number of 5,000 digits": "seed: " + "9" * 5000,
        "a date that is none": "seed: 2001-99-99",
        "a class": "a: !!python/object/apply:os.system [touch ran]",
        "an unknown tag": "a: !b c",
        "a list as a key": "? [a]\n: b",
        "a tab": "a:\n\t- b",
        "an anchor that is not there": "a: *b",
        "a control character": "a: \x07",
        "two documents": "a: 1\n---\nb: 2",
        "broken base64": "a: !!binary '***'",
        "a list": "[1, 2]",
        "a word": "hello",
        "an open quote": 'a: "b',
    }
    for what, text in texts.items():
        yield f"recipe: {what}", PLAN, _file("a.yaml", text.encode())
    yield "recipe: bytes", PLAN, _file("a.yaml", b"\xff\xfe\x80")


def safetensors_cases() -> Iterator[Case]:
    def case(what: str, content: bytes) -> Case:
        written = _both(_model, _file("model.safetensors", content))
        return f"safetensors: {what}", ["inspect", "{}"], written

    def header(text: bytes, rest: bytes = b"") -> bytes:
        return struct.pack("<Q", len(text)) + text + rest

    def entry(**changes: Any) -> bytes:
        made = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
        return header(json.dumps({"a": made}).encode(), b"\0" * 4)

    import numpy as np

    good = save({"a": np.zeros((4, 4), np.float32)})
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield case(f"a header of {length} bytes", struct.pack("<Q", length) + good[8:])
    for what in ("nothing", "a list", "null", "arrays without end", "objects without end",
                 "null bytes", "UTF-16", "5 million lists"):  # fmt: skip
        yield case(what, header(JSON[what]) if JSON[what] else b"")
    changes: dict[str, dict[str, Any]] = {
        "a shape of 100,000 large sizes": {"shape": [2**63] * 100_000},
        "a size below 0": {"shape": [-1]},
        "a size that is a text": {"shape": ["1"]},
        "a shape that is a number": {"shape": 4},
        "an unknown type": {"dtype": "X"},
        "offsets beyond the file": {"data_offsets": [0, 2**62], "shape": [2**60]},
        "offsets in reverse": {"data_offsets": [4, 0]},
        "three offsets": {"data_offsets": [0, 2, 4]},
        "a gap": {"data_offsets": [2, 6]},
    }
    for what, change in changes.items():
        yield case(what, entry(**change))
    for cut in range(1, 10):
        yield case(f"{cut} tenths of it", good[: len(good) * cut // 10])


def gguf_cases() -> Iterator[Case]:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def made(tensors: int, keys: int, rest: bytes = b"", version: int = 3) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest

    def case(what: str, content: bytes) -> Case:
        return f"gguf: {what}", ["inspect", "{}/a.gguf"], _file("a.gguf", content)

    def listed(kind: int, count: int) -> bytes:
        return made(0, 1, text(b"a") + struct.pack("<IIQ", 9, kind, count))

    def tensor(shape: list[int], kind: int = 0, offset: int = 0, name: bytes = b"a") -> bytes:
        sizes = b"".join(struct.pack("<Q", size) for size in shape)
        rest = text(name) + struct.pack("<I", len(shape)) + sizes
        return made(1, 0, rest + struct.pack("<IQ", kind, offset) + b"\0" * 64)

    for count in (2**20, 2**32, 2**63, 2**64 - 1):
        yield case(f"{count} tensors", made(count, 0))
        yield case(f"{count} keys", made(0, count))
        yield case(f"a list of {count} texts", listed(8, count))
        yield case(f"a list of {count} numbers", listed(0, count))
        yield case(f"a text of {count} bytes", made(0, 1, struct.pack("<Q", count) + b"a"))
        yield case(f"a size of {count}", tensor([count, count]))
        yield case(f"an offset of {count}", tensor([4], offset=count // 32 * 32))
    for version in (0, 1, 4, 2**24 * 3):
        yield case(f"version {version}", made(0, 0, version=version))
    yield case("a list of lists", listed(9, 1) + struct.pack("<IQ", 0, 1))
    yield case("an unknown kind of value", made(0, 1, text(b"a") + struct.pack("<I", 77)))
    yield case("an unknown kind of tensor", tensor([4], kind=99))
    yield case("no dimension", tensor([]))
    yield case("nine dimensions", tensor([1] * 9))
    yield case("a dimension of 0", tensor([0, 4]))
    yield case("a key twice", made(0, 2, (text(b"a") + struct.pack("<II", 4, 1)) * 2))
    yield case("a name that is not UTF-8", tensor([4], name=b"\xff"))
    for align in (0, 3, 2**31):
        alignment = text(b"general.alignment") + struct.pack("<II", 4, align)
        yield case(f"an alignment of {align}", made(0, 1, alignment))

    def sparse(folder: Path) -> None:
        with (folder / "a.gguf").open("wb") as file:
            file.write(listed(0, 150_000_000))
            file.truncate(160_000_000)

    yield "gguf: 150 million small numbers", ["inspect", "{}/a.gguf"], sparse


def tokenizer_cases() -> Iterator[Case]:
    def case(what: str, **changes: Any) -> Case:
        def write(folder: Path) -> None:
            tiny_tokenizer().save(folder)
            path = folder / "tokenizer.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return f"tokenizer: {what}", ["tokenize", "x", "--tokenizer", "{}"], write

    def replaced(part: str, times: int, content: str = "aa") -> dict[str, Any]:
        one = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
        return {part: {"type": "Sequence", f"{part}s": [one] * times}}

    for times, content in ((40, "aa"), (8, "a" * 10), (1, "a" * 100_000)):
        for part in ("normalizer", "decoder"):
            yield case(f"a {part} of {times} of {len(content)}", **replaced(part, times, content))
    empty = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}
    yield case("a normalizer between all letters", normalizer=empty)
    for table in ("", "AAAA", "////////", "A" * 1000 + "*"):
        charsmap = {"type": "Precompiled", "precompiled_charsmap": table}
        yield case(f"a charsmap {table[:8]!r}", normalizer=charsmap)
    bad = {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated", "invert": False}
    yield case("an expression that is none", pre_tokenizer=bad)
    yield case("a model without words", model={"type": "BPE"})
    yield case("an unknown model", model={"type": "Oracle", "vocab": {}})
    words = {f"{n:x}": n for n in range(1_100_000)}
    yield case("a million words", model={"type": "BPE", "vocab": words, "merges": []})
    yield case("merges of what is not there", model={"type": "BPE", "vocab": {"a": 0},
                                                     "merges": [["x", "y"]]})  # fmt: skip


def data_cases() -> Iterator[Case]:
    def case(name: str, what: str, content: bytes) -> Case:
        return f"data: {name}, {what}", ["read", "{}/" + name], _file(name, content)

    def packed(piece: bytes, times: int) -> bytes:
        with io.BytesIO() as made:
            with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=9) as file:
                for _ in range(times):
                    file.write(piece)
            return made.getvalue()

    zeros = packed(b"\0" * (1 << 20), 140)
    long = packed(b"a" * (1 << 20), 140)
    with pa.BufferOutputStream() as sink:
        with pa.CompressedOutputStream(sink, "zstd") as file:
            for _ in range(140):
                file.write(b"a" * (1 << 20))
        zst = sink.getvalue().to_pybytes()
    for name in ("a.jsonl.gz", "a.txt.gz", "a.csv.gz", "a.json.gz", "a.parquet.gz"):
        yield case(name, "140 MB of zeros", zeros)
        yield case(name, "140 MB of one letter", long)
    for name in ("a.jsonl.zst", "a.txt.zst"):
        yield case(name, "140 MB of one letter", zst)
    rows = b'{"text": "hello"}\n' * 1000
    whole = gzip.compress(rows)
    yield case("a.jsonl.gz", "half of it", whole[: len(whole) // 2])
    yield case("a.jsonl.gz", "another sum", whole[:-8] + b"\1\2\3\4" + whole[-4:])
    yield case("a.jsonl.gz", "no gz at all", rows)
    yield case("a.jsonl.zst", "no zst at all", rows)
    yield case("a.jsonl", "a line of 70 MB", b'{"text": "' + b"a" * (70 << 20) + b'"}')
    for what in ("arrays without end", "objects without end", "null bytes", "5 million lists",
                 "half an object", "latin-1"):  # fmt: skip
        yield case("a.jsonl", what, JSON[what])
        yield case("a.json", what, JSON[what][: 1 << 20])
    yield case("a.csv", "an open quote", b'text\n"hello')
    yield case("a.csv", "a field too many", b"text\na,b\n")
    table = pa.table({"text": ["hello " * 20] * 500, "n": list(range(500))})
    for ending in ("parquet", "arrow"):
        good = io.BytesIO()
        if ending == "parquet":
            pq.write_table(table, good)
        else:
            with pa.ipc.new_file(good, table.schema) as writer:
                writer.write_table(table)
        content = good.getvalue()
        for cut in range(1, 6):
            part = content[: (len(content) - 1) * cut // 5]
            yield case(f"a.{ending}", f"{cut} fifths of it", part)
    good = io.BytesIO()
    pq.write_table(pa.table({"text": ["a" * (150 << 20)]}), good, compression="zstd")
    yield case("a.parquet", "150 MB of one letter", good.getvalue())


def cases() -> list[Case]:
    """All of them, in an order that mixes the kinds; the same each time."""
    kinds = (json_cases, yaml_cases, safetensors_cases, gguf_cases, tokenizer_cases, data_cases)
    found = [case for kind in kinds for case in kind()]
    Random("malformed").shuffle(found)
    return found


def written(place: Path, count: int) -> Iterator[Case]:
    """So many cases, each written into a folder of its number."""
    for number, case in enumerate(cases()[:count]):
        folder = place / str(number)
        folder.mkdir()
        case[2](folder)
        yield case


if __name__ == "__main__":
    print(json.dumps([case[:2] for case in written(Path(sys.argv[1]), int(sys.argv[2]))]))
