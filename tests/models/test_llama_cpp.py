"""Our folders through llama.cpp: its own converter, then its own engine, the same greedy tokens.

It needs llama-cpp-python, which takes minutes to build, and in LLAMA_CPP_SOURCE the folder
`vendor/llama.cpp` of its source distribution, which carries the converter; that one imports gguf
and sentencepiece. Elsewhere it is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llamaseek.checkpoints.hf import save_model
from llamaseek.herd import config_from_sizes
from llamaseek.models import CausalLM, build_model
from llamaseek.text import published
from llamaseek.text.tokenizer import Tokenizer
from tests.models.shapes import GGUF_DEEPSEEK, GGUF_LLAMA

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
SOURCE = os.environ.get("LLAMA_CPP_SOURCE", "")
pytestmark = pytest.mark.skipif(not SOURCE, reason="LLAMA_CPP_SOURCE names no llama.cpp source")


def tokenizer_files(family: str, folder: Path) -> int:
    """Put the family's published tokenizer into a folder as we write it; its number of ids."""
    published.get(family, folder / "published")
    tokenizer = Tokenizer.load(folder / "published")
    tokenizer.save(folder)
    shutil.rmtree(folder / "published")
    return tokenizer.vocab_size


def ours_greedy(model: CausalLM, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Greedy tokens by full forwards, and the smallest gap between first and second choice."""
    ids, gaps = list(prompt), []
    for _ in range(count):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model.logits(model(tokens, torch.arange(len(ids))[None]))[0, -1]
        best = logits.topk(2).values
        gaps.append(float(best[0] - best[1]))
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], min(gaps)


def theirs_greedy(gguf: Path, prompt: list[int], count: int) -> list[int]:
    """Its cache in fp32 as ours is: fp16, which it takes by itself, decides ties otherwise."""
    fp32 = llama_cpp.GGML_TYPE_F32
    engine = llama_cpp.Llama(
        str(gguf), n_ctx=256, n_threads=2, verbose=False, type_k=fp32, type_v=fp32
    )
    found = []
    for token in engine.generate(prompt, temp=0.0, top_k=1):
        found.append(token)
        if len(found) == count:
            return found
    return found


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_the_same_greedy_tokens(family: str, tmp_path: Path) -> None:
    folder, gguf = tmp_path / "model", tmp_path / "model.gguf"
    size = tokenizer_files(family, folder)
    torch.manual_seed(0)
    sizes = GGUF_LLAMA if family == "llama3" else GGUF_DEEPSEEK
    model = build_model(config_from_sizes(family, {**sizes, "vocab_size": size})).eval()
    save_model(model, folder, shard_bytes=20_000_000)
    script = Path(SOURCE) / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(folder), "--outfile", str(gguf), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for seed in range(5):
        prompt = torch.randint(
            100, size - 2000, (12,), generator=torch.Generator().manual_seed(seed)
        )
        expected, gap = ours_greedy(model, prompt.tolist(), 24)
        print(f"smallest gap {gap:.2e}")
        assert theirs_greedy(gguf, prompt.tolist(), 24) == expected
