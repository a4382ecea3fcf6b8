"""The training stages: which objectives each may have, and what its rows and its model are.

How a stage packs its rows and builds its job stands in `train/jobs`: `PACKERS` and `JOBS`.
"""

from __future__ import annotations

from dataclasses import dataclass

ANY = ("next_token", "multi_token")


@dataclass(frozen=True)
class StageKind:
    """What sets a training stage apart."""

    objectives: tuple[str, ...] = ANY  # the values that train.objective may have
    rollouts: bool = False  # its rows are prompts, answered during the run by the trained model
    generates: bool = True  # its model generates text
    chats: bool = True  # and answers messages


STAGES = {
    "pretrain": StageKind(objectives=(*ANY, "masked"), chats=False),
    "sft": StageKind(objectives=(*ANY, "sft")),
    "dpo": StageKind(objectives=(*ANY, "dpo")),
    "reward": StageKind(generates=False, chats=False),
    "grpo": StageKind(rollouts=True),
    "ppo": StageKind(rollouts=True),
}


def stage_of(objective: str) -> str:
    """The first stage that `train.objective` may be set to `objective` in."""
    return next(name for name, kind in STAGES.items() if objective in kind.objectives)
