"""A reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.batch import IGNORE
from llamaseek.data.pack import Example, pack_apart
from llamaseek.errors import UserError
from llamaseek.text.chat import turn_end
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.objectives.reward import answer_scores

if TYPE_CHECKING:
    from llamaseek.train.rewards import Episode

ROWS = 64  # scored at once


class RewardModel:
    """r(x, y) at the answer's last token; a truncated answer is closed first."""

    def __init__(self, folder: str, tokenizer: Tokenizer) -> None:
        self.model = load_model(Path(folder)).eval().requires_grad_(False)
        if not self.model.config.is_reward_model:
            raise UserError(f"rewards.model: {folder} is not a reward model; `reward` trains one")
        if Tokenizer.load(folder).to_json() != tokenizer.to_json():
            raise UserError(f"rewards.model: {folder} has a different tokenizer from the model's")
        end = turn_end(tokenizer)
        self.end = tokenizer.stop_ids[-1] if end is None else end

    @torch.no_grad()
    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One reward an episode."""
        device = self.model.model.norm.weight.device
        found: list[float] = []
        for start in range(0, len(episodes), ROWS):
            rows = [self._closed(episode) for episode in episodes[start : start + ROWS]]
            batch = pack_apart([[Example(ids, [IGNORE] * len(ids))] for ids in rows])
            batch.extra["ends"] = torch.tensor([[len(ids) - 1] for ids in rows])
            found += answer_scores(self.model, batch.to(device))[:, 0].tolist()
        return found

    def _closed(self, episode: Episode) -> list[int]:
        """Ids that end as the reward model saw answers end."""
        return episode.tokens if episode.finished else [*episode.tokens, self.end]
