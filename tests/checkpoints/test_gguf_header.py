"""Headers of GGUF files: values as written, and of hostile ones a line that says what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from llamaseek.errors import UserError
from llamaseek.files import is_gguf
from llamaseek.gguf_header import read_gguf
from tests.checkpoints.gguf_files import (
    SIZES,
    SMOLLM2,
    llama_tensors,
    needs_smollm2,
    small_llama,
    write,
)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_gguf(path)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and len(message) < 400
    return message


def same_as_the_package(path: Path) -> None:
    theirs, ours = GGUFReader(path), read_gguf(path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            expected = field.contents()
            if isinstance(expected, float):
                assert np.float32(ours.metadata[key]) == np.float32(expected)
            else:
                assert ours.metadata[key] == expected
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.kind == tensor.tensor_type and found.offset == tensor.data_offset
        assert list(found.shape) == tensor.shape.tolist()[::-1]
        assert found.nbytes == tensor.n_bytes


def test_what_the_package_reads(tmp_path: Path) -> None:
    same_as_the_package(small_llama(tmp_path / "model.gguf"))


@needs_smollm2
def test_what_the_package_reads_of_smollm2() -> None:
    same_as_the_package(SMOLLM2)


def test_floats_are_short_decimals(tmp_path: Path) -> None:
    path = small_llama(tmp_path / "model.gguf")
    assert read_gguf(path).metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def test_a_file_is_known_by_its_name_or_its_first_bytes(tmp_path: Path) -> None:
    path = small_llama(tmp_path / "model.gguf")
    blob = tmp_path / "sha256-1234"
    blob.write_bytes(path.read_bytes())
    (tmp_path / "folder.gguf").mkdir()
    assert is_gguf(path) and is_gguf(blob) and is_gguf(tmp_path / "missing.gguf")
    assert not is_gguf(tmp_path) and not is_gguf(tmp_path / "folder.gguf")
    assert not is_gguf(tmp_path / "missing")


def test_a_split_is_one_model(tmp_path: Path) -> None:
    tensors = llama_tensors()
    write(tmp_path / "m.gguf", SIZES, tensors, split_max_tensors=8)
    first, *others = sorted(tmp_path.glob("m-*.gguf"))
    assert len(others) == 2
    found = read_gguf(first)
    assert set(found.tensors) == set(tensors)
    assert "is not the first" in refused(others[0])
    others[1].unlink()
    assert "no such file" in str(pytest.raises(UserError, read_gguf, first).value)


def test_every_truncated_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", SIZES, llama_tensors())
    whole = path.read_bytes()
    end = min(tensor.offset for tensor in read_gguf(path).tensors.values())
    cut = tmp_path / "cut.gguf"
    for size in (*range(0, end, 7), len(whole) - 1):
        cut.write_bytes(whole[:size])
        refused(cut)


def packed(*pairs: tuple[str, Any]) -> bytes:
    """struct.pack for each code and value; texts with their length before them."""
    out = b""
    for code, value in pairs:
        if code == "s":
            out += struct.pack("<Q", len(value)) + value.encode()
        else:
            out += struct.pack("<" + code, value)
    return out


def header(tensors: int = 0, pairs: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + packed(("I", version), ("Q", tensors), ("Q", pairs)) + body


KEY = packed(("s", "a"), ("I", 9))  # the key "a", a list
TENSOR = packed(("s", "w"), ("I", 1), ("Q", 64), ("I", 0), ("Q", 0))
HOSTILE = {
    "empty": b"",
    "another magic": b"GGML" + bytes(60),
    "version 1": header(version=1) + bytes(60),
    "big-endian": header(version=3 << 24) + bytes(60),
    "tensors beyond counting": header(tensors=2**63) + bytes(60),
    "keys beyond counting": header(pairs=2**64 - 1) + bytes(60),
    "a text longer than the file": header(pairs=1, body=packed(("Q", 2**60))) + bytes(60),
    "a list longer than the file": header(pairs=1, body=KEY + packed(("I", 4), ("Q", 2**61))),
    "a list of texts longer than the file": header(
        pairs=1, body=KEY + packed(("I", 8), ("Q", 2**61))
    ),
    "a list of lists": header(pairs=1, body=KEY + packed(("I", 9), ("Q", 1))) + bytes(60),
    "an unknown kind of value": header(pairs=1, body=packed(("s", "a"), ("I", 99))) + bytes(60),
    "a text that is not UTF-8": header(
        pairs=1, body=struct.pack("<Q", 2) + b"\xff\xff" + bytes(60)
    ),
    "a key twice": header(pairs=2, body=2 * packed(("s", "a"), ("I", 4), ("I", 1))) + bytes(60),
    "no alignment": header(pairs=1, body=packed(("s", "general.alignment"), ("I", 4), ("I", 0)))
    + bytes(60),
    "nine dimensions": header(tensors=1, body=packed(("s", "w"), ("I", 9))) + bytes(200),
    "no dimensions": header(tensors=1, body=packed(("s", "w"), ("I", 0))) + bytes(200),
    "no rows": header(
        tensors=1, body=packed(("s", "w"), ("I", 2), ("Q", 64), ("Q", 0), ("I", 0), ("Q", 0))
    )
    + bytes(500),
    "sizes that overflow": header(
        tensors=1, body=packed(("s", "w"), ("I", 2), ("Q", 2**33), ("Q", 2**33), ("I", 0), ("Q", 0))
    )
    + bytes(500),
    "half a block": header(
        tensors=1, body=packed(("s", "w"), ("I", 1), ("Q", 40), ("I", 2), ("Q", 0))
    )
    + bytes(500),
    "an unknown type": header(
        tensors=1, body=packed(("s", "w"), ("I", 1), ("Q", 64), ("I", 777), ("Q", 0))
    )
    + bytes(500),
    "an offset beyond the file": header(
        tensors=1, body=packed(("s", "w"), ("I", 1), ("Q", 64), ("I", 0), ("Q", 2**63))
    )
    + bytes(500),
    "an offset out of line": header(
        tensors=1, body=packed(("s", "w"), ("I", 1), ("Q", 64), ("I", 0), ("Q", 4))
    )
    + bytes(500),
    "a tensor twice": header(tensors=2, body=2 * TENSOR) + bytes(600),
    "a tensor over another": header(tensors=2, body=TENSOR + TENSOR.replace(b"w", b"v"))
    + bytes(600),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[kind])
    refused(path)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.gguf")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = small_llama(tmp_path / "model.gguf")
    assert read_gguf(path).metadata["llama.context_length"] == 128
    small_llama(path, **{"llama.context_length": 4096, "general.name": "changed"})
    assert read_gguf(path).metadata["llama.context_length"] == 4096
