"""Options of an engine: memory, tokens per step, concurrent sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamaseek.errors import bad_value
from llamaseek.plan.serving import DEFAULT_CACHE

if TYPE_CHECKING:
    import torch

    from llamaseek.models import CausalLM

DRAFTERS = ("none", "mtp", "lookup", "model")


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """The source of drafts, and the most tokens that are drafted ahead, `depth`.

    Fewer are drafted, or none, where too few of an answer's drafts stand to be worth their cost.
    `mtp` is the model's own multi-token module (DeepSeek-V3), `lookup` finds the last words
    earlier in the text, `model` asks a smaller model of the same vocabulary, `draft_model`.
    """

    kind: str = "none"
    depth: int = 15
    draft_model: CausalLM | None = None

    def __post_init__(self) -> None:
        if self.kind not in DRAFTERS:
            raise bad_value("speculate", self.kind, ", ".join(DRAFTERS))
        if not 1 <= self.depth <= 15:
            raise bad_value("draft_tokens", self.depth, "a number from 1 to 15")
        if (self.kind == "model") != (self.draft_model is not None):
            raise bad_value("speculate", self.kind, "model, where a draft model is given")

    @property
    def ahead(self) -> int:
        """Drafts an answer may have in a step."""
        return 0 if self.kind == "none" else self.depth


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of an engine.

    `cache_bytes` bounds the cache, of which no more is made than `max_num_seqs` answers of full
    length could fill; None is, on a GPU, what is left of `gpu_memory_utilization` of its memory
    beside what is already taken, and 1 GiB elsewhere. `max_num_batched_tokens` bounds the tokens of
    one forward: more makes prompts faster, fewer make running answers steadier. `most_waiting`
    bounds the queue. `cache_dtype` "int8" halves the cache of a bf16 model. `cuda_graphs` replays
    decoding steps on a GPU, and `compile` has PyTorch compile them first.
    """

    cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    cache_dtype: str = "auto"
    block_size: int = 16
    max_num_seqs: int = 64
    most_waiting: int = 4096
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = True
    cuda_graphs: bool = True
    compile: bool = False
    speculation: Speculation = field(default_factory=Speculation)

    def __post_init__(self) -> None:
        for name in (
            "cache_bytes",
            "block_size",
            "max_num_seqs",
            "most_waiting",
            "max_num_batched_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise bad_value(name, value, "a number of at least 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            allowed = "a number above 0 and at most 1"
            raise bad_value("gpu_memory_utilization", self.gpu_memory_utilization, allowed)

    def cache_limit(self, device: torch.device) -> int:
        """Bytes that the cache may take on `device`."""
        if self.cache_bytes is not None:
            return self.cache_bytes
        import torch

        if device.type != "cuda" or not torch.cuda.is_available():
            return DEFAULT_CACHE
        free, total = torch.cuda.mem_get_info(device)
        return max(int(free - (1 - self.gpu_memory_utilization) * total), 1)
