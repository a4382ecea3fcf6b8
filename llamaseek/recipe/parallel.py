"""The `parallel` section of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llamaseek.recipe.reading import Section

Schedule = Literal["1f1b", "interleaved", "zero_bubble"]


class ParallelRecipe(Section):
    """Degrees of parallelism. Their product is the world size, without `expert`, which divides
    data × shard.

    `parallel: auto` lets the planner choose the layout for the model and the ranks that torchrun
    started.
    """

    auto: bool = False
    """Let the planner choose the layout for the model and the ranks that torchrun started;
    `parallel: auto` is the short form."""
    data: int = Field(default=1, ge=1)
    """Data-parallel replicas of the model; each trains on its own rows."""
    shard: int = Field(default=1, ge=1)
    """FSDP2 ranks: weights, gradients and optimizer state are sharded over them."""
    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel ranks: each matrix is split by heads, columns or vocabulary."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline-parallel ranks: the layers are split into stages."""
    context: int = Field(default=1, ge=1)
    """Context-parallel ranks: the tokens of a row are split over them."""
    expert: int = Field(default=1, ge=1)
    """Expert-parallel ranks: routed experts are split over them; divides `data` × `shard`."""
    schedule: Schedule = "1f1b"
    """The pipeline schedule of torch.distributed.pipelining."""
    stages_per_rank: int = Field(default=2, ge=2)
    """Pipeline stages per rank, for the schedules `interleaved` and `zero_bubble`."""
    last_layers: int | None = Field(default=None, ge=0)
    """Layers of the last pipeline stage, which also holds the head; none: layers are split
    evenly."""
    zero: bool = False
    """ZeRO-1: the optimizer state is split over the data-parallel ranks."""
    fp8_dispatch: bool = False
    """Send tokens to the ranks of their experts in fp8 (DeepSeek-V3 report §3.3.3)."""
    reshard: bool = True
    """Free the gathered weights after each layer's forward; false keeps them until the
    backward."""
    offload: bool = False
    """Keep sharded weights and optimizer state in CPU memory."""
    timeout: float = Field(default=600, gt=0)
    """Seconds without progress after which the run is stopped as hung."""

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, data: Any) -> Any:
        return {"auto": True} if data == "auto" else data

    @property
    def ranks(self) -> int:
        """The world size."""
        return self.data * self.shard * self.tensor * self.pipeline * self.context

    @property
    def stages(self) -> int:
        """Pipeline stages: one per rank, or `stages_per_rank` if the schedule interleaves."""
        alone = self.pipeline == 1 or self.schedule == "1f1b"
        return self.pipeline * (1 if alone else self.stages_per_rank)
