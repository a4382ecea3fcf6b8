"""Memory: what the planner predicts against what torch measures, both families.

    python bench/memory.py [--json PATH]

Twelve cases: AdamW training with and without activation checkpointing, LoRA, and inference with a
cache. A training step is the loop's (`train/loop.py`): loss, backward, clip, fused AdamW; the
measured one is the second, when the optimizer has its state. On a CPU the peak is that of
`torch.distributed._tools.mem_tracker.MemTracker`, on a GPU `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from bench.common import Row, report
from llamaseek.data.batch import Batch
from llamaseek.herd import ModelConfig, config_from_sizes
from llamaseek.models import CausalLM, build_model
from llamaseek.models.attention import BLOCKED_LENGTH
from llamaseek.models.lora import add_lora
from llamaseek.models.recompute import recompute
from llamaseek.plan.activations import TrainingPass
from llamaseek.plan.formats import FORMATS
from llamaseek.plan.memory import CHUNK_NUMBERS, Training, training_memory
from llamaseek.plan.serving import Serving, serving_memory
from llamaseek.train.objectives import Objective
from llamaseek.train.objectives.multi_token import MultiToken
from llamaseek.train.objectives.next_token import NextToken
from tests.models.contiguous import ContiguousCache

SIZES: dict[str, dict[str, Any]] = {
    "llama3": {
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "deepseek_v3": {
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 16,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
    },
}
ATTENTION = {"llama3": ("q_proj", "v_proj"), "deepseek_v3": ("q_b_proj", "kv_b_proj")}
RANK, NEW_TOKENS = 16, 4
MEGABYTE = 1e6


@dataclass(frozen=True)
class Case:
    """One measurement. `base` is the dtype of the weights; bf16 adds autocast where it is fp32."""

    name: str
    family: str
    task: str  # adamw, lora, inference
    bf16: bool = True
    checkpoint: bool = False
    rows: int = 4
    length: int = 256
    base: torch.dtype = torch.float32
    depth: int = 0
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        extra = {"num_nextn_predict_layers": self.depth} if self.depth else {}
        return config_from_sizes(self.family, {**SIZES[self.family], **self.sizes, **extra})


BF16 = torch.bfloat16
TIED = {"tie_word_embeddings": True}
LLAMA, DEEPSEEK = "llama3", "deepseek_v3"
CASES = (
    Case("llama3 adamw", LLAMA, "adamw"),
    Case("llama3 adamw recompute", LLAMA, "adamw", checkpoint=True),
    Case("llama3 adamw fp32 tied", LLAMA, "adamw", bf16=False, rows=1, length=1536, sizes=TIED),
    Case("llama3 lora", LLAMA, "lora", base=BF16),
    Case("llama3 lora recompute", LLAMA, "lora", checkpoint=True),
    Case("llama3 inference", LLAMA, "inference", base=BF16),
    Case("deepseek_v3 adamw", DEEPSEEK, "adamw"),
    Case("deepseek_v3 recompute", DEEPSEEK, "adamw", checkpoint=True),
    Case("deepseek_v3 multi-token", DEEPSEEK, "adamw", bf16=False, checkpoint=True, depth=1),
    Case("deepseek_v3 lora", DEEPSEEK, "lora", base=BF16),
    Case("deepseek_v3 lora recomp.", DEEPSEEK, "lora", checkpoint=True),
    Case("deepseek_v3 inference", DEEPSEEK, "inference", base=BF16),
)


class Tracker(MemTracker):
    """MemTracker for models with frozen weights: it would hook every parameter's gradient."""

    def _track_module_params_and_buffers(
        self, module: nn.Module, install_grad_hooks: bool = True
    ) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


class StepTracker(Tracker):
    """For a whole step of several micro-batches: MemTracker refuses a module that is called again,
    so what it keeps of the first call is dropped, which leaves the peak of the step as it is.
    """

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        if not self._mod_tracker.is_bw and len(self._mod_tracker.parents) <= 2:
            self.memory_tracking.pop(module, None)
        super()._pre_fw_hook(module, inputs)


class Whole(nn.Module):
    """Model and objective as one module, so that the tracker sees one call of it."""

    def __init__(self, model: CausalLM, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> torch.Tensor:
        """The step's loss."""
        terms = self.objective.terms(self.model, batch)
        return torch.stack([term.weight * term.sum for term in terms]).sum()


class Answer(nn.Module):
    """Reading a prompt into the cache, then a few new tokens."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> None:
        """Greedy, as `engine/generate.py`."""
        rows, length = batch.tokens.shape
        dtype, device = next(self.model.parameters()).dtype, batch.tokens.device
        shapes = self.model.cache_shapes()
        cache = ContiguousCache(shapes, rows, length + NEW_TOKENS, dtype, device)
        last = self.model(batch.tokens, batch.positions, cache)[:, -1]
        for new in range(NEW_TOKENS):
            chosen = self.model.logits(last).argmax(-1)[:, None]
            last = self.model(chosen, torch.full_like(chosen, length + new), cache)[:, 0]


def build(case: Case, device: torch.device) -> tuple[CausalLM, Batch]:
    """The case's model and a batch of whole rows."""
    torch.manual_seed(0)
    model = build_model(case.config).to(device, case.base)
    if case.task == "lora":
        add_lora(model, RANK, RANK, ATTENTION[case.family])
    recompute(model.model.layers, "full" if case.checkpoint else "none")
    shape = (case.rows, case.length)
    tokens = torch.randint(0, case.config.vocab_size, shape, device=device)
    positions = torch.arange(case.length, device=device).expand(shape).contiguous()
    return model, Batch(tokens, positions, tokens.roll(-1, 1))


def measure(case: Case, device: torch.device) -> int:
    """Peak bytes of the case."""
    model, batch = build(case, device)
    if case.task == "inference":
        answer = Answer(model.eval())

        @torch.no_grad()
        def read() -> None:
            answer(batch)

        return peak(device, read, model, batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    objective = MultiToken(case.depth, 0.3, 1e-4) if case.depth else NextToken(1e-4)
    whole = Whole(model.train(), objective)
    cast = case.bf16

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=cast):
            loss = whole(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    model.expert_load, model.balance_loss = {}, None
    return peak(device, step, model, batch, optimizer)


def peak(device: torch.device, run: Callable[[], None], model: CausalLM, *rest: Any) -> int:
    """Peak bytes while `run` runs; `rest` is the batch and what else exists before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    batch, *others = rest
    tracker = Tracker()
    tracker.track_external(model, *others, batch.tokens, batch.positions, batch.targets)
    with tracker:
        run()
    return int(tracker.get_tracker_snapshot("peak")[device]["Total"])


def predict(case: Case, device: torch.device) -> float:
    """The planner's bytes for the same."""
    if case.task == "inference":
        form = FORMATS["bf16" if case.base == torch.bfloat16 else "fp32"]
        length = case.length + NEW_TOKENS
        serving = Serving(case.rows, length, case.length, scores=True)
        return serving_memory(case.config, form, serving).total
    lora = case.task == "lora"
    run = TrainingPass(
        case.rows,
        case.length,
        number=2 if case.bf16 else 4,
        blocked=device.type == "cpu" and case.length <= BLOCKED_LENGTH,
        adapters=frozenset(ATTENTION[case.family]) if lora else None,
        rank=RANK if lora else 0,
    )
    training = Training(
        run,
        stored=case.base.itemsize,
        checkpoint=case.checkpoint,
        accumulate=False,
        chunk=CHUNK_NUMBERS[device.type],
        depth=case.depth,
    )
    return training_memory(case.config, training).total


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peer = "max_memory_allocated" if device.type == "cuda" else "torch MemTracker"
    rows = []
    for case in CASES:
        ours, measured = predict(case, device) / MEGABYTE, measure(case, device) / MEGABYTE
        share = round(ours / measured, 4)
        rows.append(
            Row(case.name, "MB peak", round(ours, 2), peer, round(measured, 2), share, None)
        )
    report(rows, [], options.json)


if __name__ == "__main__":
    main()
