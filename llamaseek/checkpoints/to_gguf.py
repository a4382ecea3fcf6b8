"""Any checkpoint that we read → one GGUF file, with its tokenizer and chat template."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from llamaseek.checkpoints.convert import read_any
from llamaseek.checkpoints.gguf.kinds import ASKED
from llamaseek.checkpoints.gguf.modelfile import modelfile
from llamaseek.checkpoints.gguf.write import GgufFile, Watch
from llamaseek.checkpoints.merge_adapter import merged
from llamaseek.checkpoints.peft import read_adapter
from llamaseek.checkpoints.widen import dequantized, widened
from llamaseek.errors import UserError
from llamaseek.files import GGUF_SUFFIX, check_kept, is_gguf, replacing, write_text
from llamaseek.herd.json_config import config_from_dict
from llamaseek.models.lazy import Lazy
from llamaseek.text.tokenizer import META_FILE, TOKENIZER_FILE, Tokenizer
from llamaseek.units import size

STORED = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
MODELFILE = "Modelfile"


def is_gguf_target(target: Path) -> bool:
    """Whether a conversion's target is a GGUF file, by its name."""
    return target.suffix == GGUF_SUFFIX


class GgufConversion:
    """A checked conversion into a GGUF file: made before anything is written, then run."""

    def __init__(
        self,
        source: Path,
        target: Path,
        asked: str | None = None,
        adapter: Path | None = None,
        ollama: bool = False,
    ) -> None:
        """`asked` is one of `kinds.ASKED`; None keeps float32, float16 and bf16 as they are.

        `adapter` is folded in. With `ollama`, a Modelfile is written beside the file. Raises
        `UserError` for a source, target or adapter that cannot be used, and for a model or
        tokenizer that GGUF has no form for.
        """
        check_kept(target, source)
        self.source, self.target, self.ollama = source, target, ollama
        data, tensors = read_any(source)
        stored = _of_matrices(tensors)
        kept = STORED.get(stored) if stored is not None else None
        quantized = any(getattr(tensor, "blocks", None) is not None for tensor in tensors.values())
        if asked is None and (kept is None or quantized):
            raise UserError(f"{source}: is quantized; give --dtype: {', '.join(ASKED)}")
        plain = dequantized(widened(tensors, torch.float32), torch.float32)
        if adapter is not None:
            check_kept(target, adapter)
            plain = merged(plain, read_adapter(adapter), adapter)
            if "lm_head.weight" in plain:
                data["tie_word_embeddings"] = False
        data.pop("quantization_config", None)
        config = config_from_dict(data)
        name = source.resolve().stem if is_gguf(source) else source.resolve().name
        self.tokenizer = _tokenizer(source)
        self.file = GgufFile(config, plain, self.tokenizer, asked or kept or "f32", name)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors to be written."""
        return self.file.nbytes

    @property
    def count(self) -> int:
        """Tensors to be written."""
        return len(self.file.planned)

    def run(self, overwrite: bool = False, watch: Watch = lambda written: None) -> None:
        """Write the target, which appears only when it is whole; `watch` counts its bytes.

        UserError where a file is in the way.
        """
        beside = self.target.with_name(MODELFILE)
        for path in (self.target, *([beside] if self.ollama else [])):
            if path.exists() and not overwrite:
                raise UserError(f"{path}: exists; --overwrite replaces it")
        if self.target.is_dir():
            raise UserError(f"{self.target}: is a folder")
        text = modelfile(self.target.name, self.tokenizer) if self.ollama else ""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.target.parent).free
        if self.nbytes > free:
            needed = f"{size(self.nbytes)}, {size(free)} are free"
            raise UserError(f"{self.target}: needs {needed}")
        with replacing(self.target) as partial:
            self.file.write(partial, watch)
        if self.ollama:
            write_text(beside, text)


def _of_matrices(tensors: dict[str, Lazy]) -> torch.dtype | None:
    """The one dtype of the tensors, or the one of the matrices where others are in float32."""
    dtypes = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) > 1}
    dtypes = dtypes - {torch.float32} if len(dtypes) > 1 else dtypes
    return dtypes.pop() if len(dtypes) == 1 else None


def _tokenizer(source: Path) -> Tokenizer | None:
    """The source's tokenizer; None for a folder without one."""
    has = is_gguf(source) or any((source / name).is_file() for name in (TOKENIZER_FILE, META_FILE))
    return Tokenizer.load(source) if has else None
