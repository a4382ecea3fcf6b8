"""How far each given token is from llama.cpp's best one: a program, for another Python.

Reads `path`, `prompts` and `answers` as JSON from standard input, prints the largest distance of
logits. Exit code 3 where llama-cpp-python is not installed.
"""

from __future__ import annotations

import json
import sys

import numpy as np

try:
    import llama_cpp
except ImportError:
    sys.exit(3)


def worst(path: str, prompts: list[list[int]], answers: list[list[int]]) -> float:
    """The largest distance of a given token's logit from the best one's."""
    fp32 = llama_cpp.GGML_TYPE_F32
    engine = llama_cpp.Llama(
        path, n_ctx=512, logits_all=True, verbose=False, type_k=fp32, type_v=fp32
    )
    found = 0.0
    for head, answer in zip(prompts, answers, strict=True):
        engine.reset()
        engine.eval([*head, *answer])
        logits = np.asarray(engine.scores[len(head) - 1 : len(head) + len(answer) - 1])
        behind = logits.max(-1) - logits[np.arange(len(answer)), answer]
        found = max(found, float(behind.max()))
    return found


if __name__ == "__main__":
    print(worst(**json.load(sys.stdin)))
