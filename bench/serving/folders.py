"""The models under test: one checkpoint, as a Hugging Face folder and as GGUF."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from bench.serving.workload import Shape

CONTEXT = 1024


def prepare(shape: Shape, folder: Path, source: Path | None) -> None:
    """Write the model folder or link to `source`, and write the GGUF where llama.cpp's converter is
    at hand."""
    model = folder / "model"
    if not (model / "config.json").exists():
        if shape.sizes:
            _write_model(shape, model)
        elif source is None:
            raise SystemExit("this shape needs --model FOLDER")
        else:
            model.symlink_to(source.resolve())
    source, gguf = os.environ.get("LLAMA_CPP_SOURCE"), folder / "model.gguf"
    if source and not gguf.exists():
        script = str(Path(source) / "convert_hf_to_gguf.py")
        made = folder / "new.gguf"
        command = [sys.executable, script, str(model), "--outfile", str(made), "--outtype", "bf16"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"llama.cpp's converter failed:\n{done.stderr[-2000:]}")
        made.rename(gguf)


def _write_model(shape: Shape, folder: Path) -> None:
    """Random weights under Llama 3's tokenizer, which both converters know."""
    import llama_models
    import transformers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    from llamaseek.checkpoints.hf import save_model
    from llamaseek.herd import config_from_sizes
    from llamaseek.models import build_model
    from llamaseek.text.special import llama3_names

    path = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    converter = TikTokenConverter(
        vocab_file=str(path), additional_special_tokens=list(llama3_names())
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )
    torch.manual_seed(0)
    sizes = {
        **shape.sizes,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    }
    save_model(build_model(config_from_sizes("llama3", sizes)), folder, torch.bfloat16)
    tokenizer.save_pretrained(folder)
