"""The training stages: which objectives each may have, and what its rows and its model are.

How a stage packs its rows and builds its job stands in `train/jobs`: `PACKERS` and `JOBS`.
"""

from __future__ import annotations

from dataclasses import dataclass

ANY = ("next_token", "multi_token")


@dataclass(frozen=True)
class StageKind:
    """What sets a training stage apart."""

    title: str
    summary: str  # what the model learns in it, in a sentence
    objectives: tuple[str, ...] = ANY  # the values that train.objective may have
    rollouts: bool = False  # its rows are prompts, answered during the run by the trained model
    generates: bool = True  # its model generates text
    chats: bool = True  # and answers messages


STAGES = {
    "pretrain": StageKind(
        "Pre-training",
        "Predict the tokens of raw text.",
        objectives=(*ANY, "masked"),
        chats=False,
    ),
    "sft": StageKind(
        "Supervised fine-tuning",
        "Answer as the rows do; the loss is on the answers alone.",
        objectives=(*ANY, "sft"),
    ),
    "dpo": StageKind(
        "Direct preference optimization",
        "Prefer the better of two answers.",
        objectives=(*ANY, "dpo"),
    ),
    "reward": StageKind(
        "Reward model", "Give better answers higher scores.", generates=False, chats=False
    ),
    "grpo": StageKind(
        "Group relative policy optimization",
        "Answer as those of a group of sampled answers that were rewarded most.",
        rollouts=True,
    ),
    "ppo": StageKind(
        "Proximal policy optimization",
        "Answer so that the reward rises, and stay near the model of the start.",
        rollouts=True,
    ),
}


def stage_of(objective: str) -> str:
    """The first stage that `train.objective` may be set to `objective` in."""
    return next(name for name, kind in STAGES.items() if objective in kind.objectives)
