"""Answers sampled at once by the engine, as reinforcement learning asks for them."""

from __future__ import annotations

import json
import sys
import time

import torch

from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model

SHAPE = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
TINY = SHAPE | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def main() -> None:
    """Print tokens a second and how many answers ran at once."""
    dry = "--dry" in sys.argv
    device = torch.device("cpu" if dry else "cuda")
    answers, length = (4, 8) if dry else (256, 512)
    with device:
        model = build_model(config_from_sizes("llama3", TINY if dry else SHAPE))
    model = model.to(torch.bfloat16).eval().requires_grad_(False)
    options = EngineOptions(max_num_seqs=answers, max_num_batched_tokens=8 * answers)
    engine = Engine(model, None, options)
    params = SamplingParams(
        n=1, temperature=1.0, max_tokens=length, ignore_eos=True, detokenize=False, seed=0
    )

    def sample(count: int) -> float:
        prompts = [[17 + i % 300, 5, 6, 7] for i in range(count)]
        start = time.perf_counter()
        engine.generate([Request(prompt=prompt, params=params) for prompt in prompts])
        return time.perf_counter() - start

    sample(answers)  # graphs are captured
    seconds = sample(answers)
    found = {"answers": answers, "tokens": length, "capacity in tokens": engine.capacity}
    print(json.dumps({**found, "tokens/s": round(answers * length / seconds)}))


if __name__ == "__main__":
    main()
