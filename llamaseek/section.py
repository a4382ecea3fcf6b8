"""What every part of a recipe is. No torch import."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, as are numbers that are not finite, and nothing
    changes after loading.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
