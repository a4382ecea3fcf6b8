"""How a run is laid over ranks: the recipe's `parallel` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llamaseek.section import Section

Schedule = Literal["1f1b", "interleaved", "zero_bubble"]


class ParallelRecipe(Section):
    """Degrees; their product but for `expert`, which divides data × shard, is the world size.

    `parallel: auto` takes the planner's layout for the model and the ranks that torchrun started.
    """

    auto: bool = False
    data: int = Field(default=1, ge=1)
    shard: int = Field(default=1, ge=1)
    tensor: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    context: int = Field(default=1, ge=1)
    expert: int = Field(default=1, ge=1)
    schedule: Schedule = "1f1b"
    stages_per_rank: int = Field(default=2, ge=2)  # of schedules that interleave
    last_layers: int | None = Field(default=None, ge=0)  # of the last stage, which has the head
    zero: bool = False  # the optimizer's moments spread over the data ranks (ZeRO-1)
    fp8_dispatch: bool = False  # rows go to their experts' ranks in fp8 (V3 report §3.3.3)
    reshard: bool = True  # sharded weights are given back after each layer's forward
    offload: bool = False  # sharded weights and moments wait in the host's memory
    timeout: float = Field(default=600, gt=0)  # seconds without progress that count as a hang

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
        """Parts the layers are cut into: one a pipeline rank, several where they interleave."""
        alone = self.pipeline == 1 or self.schedule == "1f1b"
        return self.pipeline * (1 if alone else self.stages_per_rank)
