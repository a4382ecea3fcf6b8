"""transformers' ContinuousBatchingManager: a line of JSON in, a line of timings out.

    python -m bench.serving.worker FOLDER

Greedy, in bf16, its own attention for a paged cache; a cache as large as the others'.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from bench.serving.folders import CONTEXT
from bench.serving.workload import CHATS

PAGE = 32


def start(folder: str) -> Any:
    """The manager of a model folder, running."""
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=CONTEXT * CHATS // 2 // PAGE, max_batch_tokens=512
        ),
    )
    manager.start()
    return manager


def run(manager: Any, asked: list[Any]) -> list[list[float]]:
    """All chats, each at its moment: first token, last token, end."""
    began: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    begin = time.perf_counter() + 0.05
    waiting = sorted(range(len(asked)), key=lambda n: asked[n][2])
    while len(found) < len(asked):
        while waiting and begin + asked[waiting[0]][2] <= time.perf_counter():
            number = waiting.pop(0)
            prompt, answer, _ = asked[number]
            began[str(number)] = time.perf_counter()
            manager.add_request(
                prompt, request_id=str(number), max_new_tokens=answer, record_timestamps=True
            )
        result = manager.get_result(timeout=0.002)
        if result is not None and result.is_finished():
            if result.error or len(result.generated_tokens) != asked[int(result.request_id)][1]:
                raise SystemExit(f"a chat failed: {result.error}")
            since, times = began[result.request_id], result.timestamps
            found[result.request_id] = [times[0] - since, times[-1] - since, times[-1] - begin]
    return [found[str(number)] for number in range(len(asked))]


def main() -> None:
    """Answer lines until there are no more."""
    with torch.inference_mode():
        manager = start(sys.argv[1])
        for line in sys.stdin:
            print("TIMES", json.dumps(run(manager, json.loads(line))), flush=True)
        manager.stop(block=True)


if __name__ == "__main__":
    main()
