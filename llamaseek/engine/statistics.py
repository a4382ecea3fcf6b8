"""Statistics of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statistics:
    """Counts since the engine was made. A round is one answer's part in a step that drew tokens."""

    steps: int = 0
    computed: int = 0  # tokens run through the model, drafts included
    prompt: int = 0  # tokens of the prompts that were taken on
    cached: int = 0  # of these, found in shared blocks
    output: int = 0  # tokens said
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    finished: int = 0  # answers
    cancelled: int = 0  # requests
    failed: int = 0  # answers
    failing: str | None = None  # what the latest forward broke on, if it did

    @property
    def acceptance(self) -> float:
        """Share of drafts that stood; 0 without drafts."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens an answer gains each time it takes part in a forward that draws."""
        return self.output / self.rounds if self.rounds else 0.0
