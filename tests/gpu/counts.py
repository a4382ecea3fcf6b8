"""Counts on a GPU without numbers what training computes, and prints it as JSON.

python -m tests.gpu.counts [ROOM ...]
"""

from __future__ import annotations

import json
import sys
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from llamaseek.data.batch import Batch
from llamaseek.data.source import Rows
from llamaseek.engine.forward.paged import build_cache
from llamaseek.engine.forward.runner import Runner
from llamaseek.engine.forward.step_layout import Inputs, StepResult, lay_out
from llamaseek.engine.request import Request, SamplingParams, SequenceState
from llamaseek.engine.sampling.sampler import decide
from llamaseek.engine.sampling.state import SamplingState
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.models.attention import GroupedQueryAttention, LatentAttention
from llamaseek.models.deepseek_v3 import DeepseekV3Layer
from llamaseek.models.llama3 import Llama3Layer
from llamaseek.parallel.expert import SplitExperts
from llamaseek.recipe.load import make_recipe
from llamaseek.train.job import Job
from llamaseek.train.loop import Trainer
from llamaseek.train.objectives.choose import make_objective
from tests.gpu.fake import FakeGpu, fake_gpu, with_fake_cuda
from tests.train.tiny import DEEPSEEK_SIZES, LLAMA_SIZES, tiny_tokenizer

LENGTHS = (8192, 131072)
WIDE = {"hidden_size": 128, "max_position_embeddings": max(LENGTHS), "vocab_size": 512}
SIZES = {"llama3": LLAMA_SIZES | WIDE, "deepseek_v3": DEEPSEEK_SIZES | WIDE}
OBJECTIVE = {"llama3": "next_token", "deepseek_v3": "multi_token"}
LAYER = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def packed(rows: int, length: int, vocabulary: int) -> Batch:
    """Rows of documents of a third of a row and less, a tenth of their tokens without a target."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(length).repeat(rows, 1)
    for row in positions:
        for start in torch.randint(1, length, (5,), generator=generator).sort().values.tolist():
            row[start:] = torch.arange(length - start)
    tokens = torch.randint(0, vocabulary, (rows, length), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[torch.rand(targets.shape, generator=generator) < 0.1] = -100
    return Batch(tokens, positions, targets)


def trainer_of(family: str, length: int, folder: str, gpu: FakeGpu) -> Trainer:
    """A trainer of two micro-batches of one row a step."""
    config = config_from_sizes(family, SIZES[family])
    train = {
        "device": "cpu", "precision": "bf16", "batch": 2, "micro_batch": 1, "steps": 20,
        "objective": OBJECTIVE[family], "ema": 0.9, "compile": False,
    }  # fmt: skip
    recipe = make_recipe({"name": "counts", "stage": "pretrain", "out": folder, "train": train})
    with torch.device("cuda"):
        model = build_model(config)
    objective = make_objective(recipe, model, tiny_tokenizer())
    rows = Rows(packed(2, length, config.vocab_size), 0)
    return Trainer(Job(recipe, model, tiny_tokenizer(), objective, rows))


def steps(family: str, length: int) -> dict[str, Any]:
    """The second of two steps: its largest tensor over T × T, and what the host waits for."""
    with TemporaryDirectory() as folder, fake_gpu() as gpu:
        trainer = trainer_of(family, length, folder, gpu)
        trainer.begin(0)
        gpu.clear()
        trainer.begin(1)
        return {"largest": gpu.largest / length**2, "waits": gpu.waits, "kernels": gpu.kernels}


def layer() -> dict[str, Any]:
    """Kernels and bytes of one layer of the 8B shape at T = 8192, forward and backward."""
    config = config_from_sizes("llama3", LAYER)
    with fake_gpu() as gpu, torch.device("cuda"):
        made = Llama3Layer(config, 0)  # type: ignore[arg-type]
        x = torch.empty(1, 8192, 4096, dtype=torch.bfloat16, requires_grad=True)
        rotary = torch.empty(1, 8192, 1, 64), torch.empty(1, 8192, 1, 64)
        gpu.clear()
        with torch.autocast("cuda", torch.bfloat16):
            out = made(x, rotary, torch.empty(1, 8192, dtype=torch.int64), None, None)[0]
        out.backward(torch.empty_like(out))
        found = {"small_kernels": gpu.small_kernels, "bytes": sum(gpu.moved.values())}
        return found | {"kernels": gpu.kernels, "moved": gpu.moved}


DECODED = {
    "llama3": LAYER,
    "deepseek_v3": {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 128,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "first_k_dense_replace": 0,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip
WITHIN = {"attend_paged": 2}  # kernels of an operator that has several: the parts, and their sum


def decoded(family: str) -> dict[str, Any]:
    """Kernels of a layer of the 8B or the 671B shape that decodes four sequences in bf16."""
    config = config_from_sizes(family, DECODED[family])
    kind = {"llama3": Llama3Layer, "deepseek_v3": DeepseekV3Layer}[family]
    attention = {"llama3": GroupedQueryAttention, "deepseek_v3": LatentAttention}[family]
    cuda = torch.device("cuda", 0)
    with torch.no_grad(), fake_gpu() as gpu:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(cuda):
            made = kind(config, 0).eval()  # type: ignore[arg-type]
        torch.set_default_dtype(torch.float32)
        shape = attention.cache_shape(config)  # type: ignore[arg-type]
        cache = build_cache([shape], 64, 16, torch.bfloat16, "auto", cuda)
        places = np.arange(32).reshape(4, 8), np.full(4, 100), np.ones(4, np.int64)
        cache.begin(lay_out(*places, 16, cuda, apart=True))
        x = torch.empty(1, 4, config.hidden_size, device=cuda)
        half = (128 if family == "llama3" else 64) // 2
        rotary = tuple(torch.empty(1, 4, 1, half, device=cuda) for _ in range(2))
        gpu.clear()
        made(x, rotary, torch.empty(1, 4, dtype=torch.int64, device=cuda), None, cache)
        kernels = gpu.kernels
    total = sum(n * WITHIN.get(name, 1) for name, n in kernels.items())
    return {"total": total, "kernels": kernels, "waits": gpu.waits}


def prompt(family: str, length: int = 8192) -> dict[str, Any]:
    """A step with the second half of a long prompt, the whole of a shorter one and a token that is
    decoded: its largest tensor over queries × keys of the long one, and what the host waits for.
    """
    config = config_from_sizes(family, SIZES[family])
    cuda = torch.device("cuda", 0)
    with torch.no_grad(), fake_gpu() as gpu:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(cuda):
            model = build_model(config).eval()
        torch.set_default_dtype(torch.float32)
        tables = np.arange(3 * length // 16).reshape(3, -1)
        cache = build_cache(model.cache_shapes(), tables.size, 16, torch.bfloat16, "auto", cuda)
        runner = Runner(model, cache, tables, 16)
        starts, counts = [length // 2, 0, 100], [length // 2, 1000, 1]
        gpu.clear()
        runner.forward(Inputs(tables, [0, 1, 2], starts, counts, [1] * sum(counts)))
        largest = gpu.largest / (length // 2 * length)
        return {"largest": largest, "waits": gpu.waits, "kernels": gpu.kernels}


def exchanged() -> dict[str, Any]:
    """What the host waits for in a layer of experts on four ranks, forward and backward, where
    each rank gets as many rows.
    """

    def even(sizes: Tensor) -> list[list[int]]:
        gpu.waits.append("tolist")
        return [[rows * choices // ranks] * ranks] * len(sizes)

    ranks, rows, choices = 4, 64, 4
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    with fake_gpu() as gpu, torch.device("cuda"), patch.object(FakeTensor, "tolist", even):
        experts = SplitExperts(4, 64, 32)  # of 16
        experts.expert, experts.tensor = dist.group.WORLD, None
        x, gates = torch.empty(rows, 64, requires_grad=True), torch.empty(rows, choices)
        chosen, load = torch.empty(rows, choices).long(), torch.empty(16).long()
        gpu.clear()
        with torch.autocast("cuda", torch.bfloat16):
            out = experts(x.to(torch.bfloat16), chosen, gates, load)
        out.backward(torch.empty_like(out))
    dist.destroy_process_group()
    return {"waits": gpu.waits, "kernels": gpu.kernels}


def sampled() -> list[list[str]]:
    """What the host waits for in two steps of four answers that draw their tokens otherwise."""

    def said(tokens: Tensor) -> list[int]:
        gpu.waits.append("tolist")
        return [7] * len(tokens)

    params = [
        SamplingParams(),
        SamplingParams(temperature=0.8, top_p=0.9, min_p=0.01, seed=1),
        SamplingParams(temperature=1.0, top_k=40, repetition_penalty=1.1, logit_bias={3: -2.0}),
        SamplingParams(presence_penalty=0.5, frequency_penalty=0.1),
    ]
    answers = [
        SequenceState(Request(prompt=[1, 2], params=each), 0, row, 99, [1, 2], row=row)
        for row, each in enumerate(params)
    ]
    waits, cuda = [], torch.device("cuda", 0)
    with torch.no_grad(), fake_gpu() as gpu, patch.object(FakeTensor, "tolist", said):
        state = SamplingState(8, 512, cuda)
        for _ in range(2):
            gpu.clear()
            logits = torch.empty(4, 512, device=cuda)
            for answer, tokens in zip(
                answers, decide(StepResult(logits, logits), answers, state), strict=True
            ):
                answer.tokens += tokens
            waits.append(gpu.waits)
    return waits


def main() -> None:
    """Print everything, or what is named."""
    with_fake_cuda("tests.gpu.counts")
    todo: dict[str, Any] = {f"{f} {t}": (steps, f, t) for f in SIZES for t in LENGTHS}
    todo["layer"] = (layer,)
    todo |= {f"decode {family}": (decoded, family) for family in DECODED}
    todo |= {f"prompt {family}": (prompt, family) for family in SIZES}
    todo |= {"experts": (exchanged,), "sampling": (sampled,)}
    for name in sys.argv[1:] or list(todo):
        what, *args = todo[name]
        print(json.dumps({name: what(*args)}))


if __name__ == "__main__":
    main()
