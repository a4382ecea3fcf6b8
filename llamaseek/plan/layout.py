"""How a model is laid over GPUs: the recipe's degrees, and the layers of a pipeline's stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamaseek.recipe.parallel import ParallelRecipe

DEGREES = ("data", "shard", "tensor", "pipeline", "context", "expert")
"""The degrees of a layout; `parallel` in a recipe has fields of the same names."""


@dataclass(frozen=True)
class Layout:
    """World size = data × shard × tensor × pipeline × context; expert divides data × shard.

    `data` copies the model and splits rows; `shard` splits rows and weights, gradients and
    optimizer (FSDP); `tensor` splits every matrix, head and activation; `pipeline` splits layers;
    `context` splits each row; `expert` splits the routed experts.
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1

    @property
    def gpus(self) -> int:
        """The world size."""
        return self.replicas * self.tensor * self.pipeline * self.context

    @property
    def replicas(self) -> int:
        """Ranks that see different rows."""
        return self.data * self.shard

    def to_dict(self) -> dict[str, int]:
        """The degrees, under the recipe's names."""
        return asdict(self)


@dataclass(frozen=True)
class Running:
    """What a recipe says of its layout beside the degrees (`parallel.*` of the same names)."""

    stages_per_rank: int = 1
    last_layers: int | None = None
    zero_bubble: bool = False
    zero: bool = False
    fp8_dispatch: bool = False

    def waits(self, pipeline: int) -> float:
        """Micro-batches that a pipeline's place idles for in a step (Narayanan et al. 2021)."""
        idle = (pipeline - 1) / self.stages_per_rank
        # Weights' gradients fill the rest (Qi et al. 2023, ZB-H1).
        return idle / 3 if self.zero_bubble else idle

    def in_flight(self, pipeline: int, place: int, micro_batches: int) -> int:
        """Forwards of a rank's parts that wait for their backward at once, at the most."""
        each = self.stages_per_rank
        if pipeline == 1:
            return 1
        if each == 1:
            return min(pipeline - place, micro_batches)
        most = (each - 1) * pipeline + 2 * (pipeline - 1 - place) + 1
        return min(most, micro_batches * each)


def running_of(recipe: ParallelRecipe) -> Running:
    """What a recipe's `parallel` section says beside the degrees."""
    return Running(
        recipe.stages // recipe.pipeline,
        recipe.last_layers,
        recipe.schedule == "zero_bubble",
        recipe.zero,
        recipe.fp8_dispatch,
    )


def stage_layers(layers: int, pipeline: int, stage: int, last: int | None = None) -> range:
    """The layers of one stage, `last` of them in the last one. Where the others, or without it all,
    do not divide, the first and last stage, which also hold the embedding and the head, get fewer.
    """
    if last is not None:
        if stage == pipeline - 1:
            return range(layers - last, layers)
        return stage_layers(layers - last, pipeline - 1, stage)
    each, extra = divmod(layers, pipeline)
    # Stages 1, 2, … take the extra layers first, then the last, then stage 0.
    order = [*range(1, pipeline), 0]
    larger = set(order[:extra])
    start = sum(each + (s in larger) for s in range(stage))
    return range(start, start + each + (stage in larger))
