"""The lecture's four stages, and what the model says before and after each."""

from __future__ import annotations

from dataclasses import dataclass

STAGES = {
    "pretrain": ("Pre-training", "Predict the next token of raw text."),
    "sft": ("Supervised fine-tuning", "Answer five tasks; the loss is on the answer alone."),
    "instruct": ("Instruction tuning", "Follow instructions of ten kinds, in many wordings."),
    "dpo": ("Preference alignment (DPO)", "Prefer the better of two answers."),
}


@dataclass(frozen=True)
class Sample:
    """What the model said to one of the lecture's examples before and after a stage."""

    stage: str
    prompt: str
    before: str
    after: str
    wanted: str
