"""A model written as one GGUF file, a few rows of one tensor at a time.

The `gguf` package writes the metadata. It takes whole tensors, which for the experts of a large
model are gigabytes, so that their bytes are written here behind its header.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter

from llamaseek.checkpoints.gguf.blocks import encode
from llamaseek.checkpoints.gguf.kinds import Kind, asked_kind, kind_of
from llamaseek.checkpoints.gguf.layout import Outgoing, outgoing
from llamaseek.checkpoints.gguf.metadata import add_config, architecture
from llamaseek.checkpoints.gguf.vocabulary import add_tokenizer
from llamaseek.errors import UserError
from llamaseek.herd.configs import ModelConfig
from llamaseek.models.lazy import Lazy
from llamaseek.text.tokenizer import Tokenizer

ALIGNMENT = 32
Watch = Callable[[int], object]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor and the type it is written in."""

    tensor: Outgoing
    kind: Kind

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return prod(self.tensor.shape) // block * size


class GgufFile:
    """What a GGUF file is to hold: checked when it is made, then written."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: dict[str, Lazy],
        tokenizer: Tokenizer | None,
        asked: str,
        name: str,
    ) -> None:
        """`tensors` are the model's, plain and under Hugging Face's names; `asked` is one of
        `kinds.ASKED`. Raises `UserError` for what a GGUF file has no place for.
        """
        self.kind = asked_kind(asked)[1]
        self.config, self.tokenizer, self.name = config, tokenizer, name
        self.architecture = architecture(config)
        layers, tied = config.num_hidden_layers, config.tie_word_embeddings
        self.planned = [
            PlannedTensor(tensor, kind_of(tensor.name, tensor.shape, asked, layers, tied))
            for tensor in outgoing(config, tensors)
        ]
        self._writer = self._filled()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors to be written."""
        return sum(planned.nbytes for planned in self.planned)

    def write(self, path: Path, watch: Watch = lambda written: None) -> None:
        """Write the file; `watch` counts the bytes of its tensors.

        Raises `UserError` for a tensor that its type cannot hold, OSError where the disk is full.
        """
        writer = self._writer
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("ab") as file:
            for planned in self.planned:
                _pad(file)
                for piece in _encoded(planned):
                    file.write(piece)
                    watch(len(piece))
            _pad(file)

    def _filled(self) -> GGUFWriter:
        writer = GGUFWriter(None, self.architecture)
        add_config(writer, self.config, self.name, self.kind)
        if self.tokenizer is None:
            writer.add_tokenizer_model("none")
        else:
            add_tokenizer(writer, self.tokenizer, self.config.vocab_size)
        for planned in self.planned:
            dtype = np.dtype(np.float32 if planned.kind == Kind.F32 else np.uint8)
            writer.add_tensor_info(
                planned.tensor.name,
                _stored_shape(planned),
                dtype,
                planned.nbytes,
                raw_dtype=planned.kind,
            )
        return writer


def _stored_shape(planned: PlannedTensor) -> tuple[int, ...]:
    """The shape as the package wants it: of quantized tensors in bytes."""
    if planned.kind == Kind.F32:
        return planned.tensor.shape
    block, size = GGML_QUANT_SIZES[planned.kind]
    return (*planned.tensor.shape[:-1], planned.tensor.shape[-1] // block * size)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _encoded(planned: PlannedTensor) -> Iterator[bytes]:
    for rows in planned.tensor.pieces():
        try:
            yield encode(rows, planned.kind)
        except OverflowError as error:
            name = planned.tensor.name
            raise UserError(
                f"{name}: has {error}, which f16 cannot hold; use bf16 or f32"
            ) from None
