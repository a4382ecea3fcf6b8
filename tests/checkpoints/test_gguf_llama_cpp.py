"""GGUF files that we write, in llama.cpp's own engine. Skipped where llama-cpp-python is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.herd import RopeScaling, config_from_sizes
from llamaseek.models import CausalLM, build_model
from llamaseek.text import published
from llamaseek.text.chat import encode_chat
from llamaseek.text.tokenizer import Tokenizer
from tests.checkpoints.gguf_files import SMOLLM2, needs_smollm2
from tests.models.shapes import GGUF_DEEPSEEK, GGUF_LLAMA

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

SCALED = RopeScaling("llama3", 8.0, 64, 1.0, 4.0)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.1": (
        "llama3",
        {**GGUF_LLAMA, "rope_scaling": SCALED},
    ),
    "llama, tied": ("llama3", {**GGUF_LLAMA, "tie_word_embeddings": True}),
    "llama with yarn": ("llama3", {**GGUF_LLAMA, "rope_scaling": RopeScaling("yarn", 4.0, 64)}),
    "deepseek": ("deepseek_v3", GGUF_DEEPSEEK),
    "deepseek, groups, yarn, ahead": (
        "deepseek_v3",
        {
            **GGUF_DEEPSEEK,
            "n_group": 4,
            "topk_group": 2,
            "num_nextn_predict_layers": 1,
            "rope_scaling": RopeScaling("yarn", 8.0, 64, mscale=1.0, mscale_all_dim=1.0),
        },
    ),
    "deepseek without query rank": ("deepseek_v3", {**GGUF_DEEPSEEK, "q_lora_rank": None}),
}


def opened(path: Path, **options: Any) -> Any:
    """Its cache in float32 as ours is: its default of float16 decides ties otherwise."""
    fp32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, verbose=False, type_k=fp32, type_v=fp32, **options
    )


def theirs(engine: Any, prompt: list[int], count: int) -> list[int]:
    found = []
    for token in engine.generate(prompt, temp=0.0, top_k=1):
        found.append(token)
        if len(found) == count:
            break
    return found


@torch.no_grad()
def behind(model: CausalLM, prompt: list[int], said: list[int]) -> float:
    """By how much, at most, a token that was said is not the best of our logits there."""
    ids = torch.tensor([[*prompt, *said]])
    logits = model.logits(model(ids, torch.arange(ids.shape[1])[None]))[0, len(prompt) - 1 : -1]
    own = logits.gather(1, torch.tensor(said)[:, None])[:, 0]
    return float((logits.amax(-1) - own).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_greedy_tokens_and_chat(variant: str, tmp_path: Path) -> None:
    family, sizes = VARIANTS[variant]
    published.get(family, tmp_path / "model")
    tokenizer = Tokenizer.load(tmp_path / "model")
    torch.manual_seed(0)
    config = config_from_sizes(family, {**sizes, "vocab_size": tokenizer.vocab_size})
    model = build_model(config).eval()
    for moe in model.moe_layers().values():
        moe.gate.e_score_correction_bias.normal_(std=0.1)
    save_model(model, tmp_path / "model", shard_bytes=20_000_000)
    GgufConversion(tmp_path / "model", tmp_path / "m.gguf").run()
    engine = opened(tmp_path / "m.gguf")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(100, 100_000, (90,), generator=generator).tolist()
        assert behind(model, prompt, theirs(engine, prompt, 24)) < 1e-3
    text = "Don't 12345 naïve 日本語\r\n\n <|eot_id|>"
    assert engine.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    same_chat(engine, Tokenizer.load(tmp_path / "m.gguf"))


def same_chat(engine: Any, tokenizer: Tokenizer) -> None:
    """A conversation rendered by the file's own template, tokenized there and here."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    if tokenizer.chat_template is None:
        assert "tokenizer.chat_template" not in engine.metadata
        return
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    names = tokenizer.named_tokens
    template = engine.metadata["tokenizer.chat_template"]
    formatter = Jinja2ChatFormatter(template, names["eos_token"], names["bos_token"])
    rendered = formatter(messages=messages).prompt
    ids = engine.tokenize(rendered.encode(), add_bos=False, special=True)
    assert ids == list(encode_chat(tokenizer, messages, add_generation_prompt=True).ids)


@needs_smollm2
@pytest.mark.parametrize("asked", ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k_m"])
def test_smollm2_in_every_type(asked: str, tmp_path: Path) -> None:
    """What llama.cpp says, it says by weights that are ours: at most half a logit from the best,
    which its activations of 8 or 16 bits cost."""
    path = tmp_path / "m.gguf"
    GgufConversion(SMOLLM2, path, asked).run()
    engine, tokenizer = opened(path), Tokenizer.load(path)
    same_chat(engine, tokenizer)
    model = load_model(path).eval()
    message = {"role": "user", "content": "Why is the sky blue?"}
    prompt = list(encode_chat(tokenizer, [message], add_generation_prompt=True).ids)
    said = theirs(engine, prompt, 48)
    gap = behind(model, prompt, said)
    print(f"{asked}: {gap:.3f} behind the best at most")
    assert gap < 0.5
