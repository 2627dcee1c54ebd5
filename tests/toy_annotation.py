"""A reward that hears the level of a clip, and says what it was asked."""

from __future__ import annotations

import time

from zoo.errors import UserError
from zoo.types import RewardOutput


class Level:
    """``factor`` times the mean absolute level.

    ``HEARD`` collects (text, labels) of what was scored; ``fail_after`` stops it like a bug.
    """

    differentiable = False
    HEARD: list[tuple[str, dict]] = []

    def __init__(
        self,
        factor: float = 1.0,
        fail_after: int | None = None,
        wait_s: float = 0.0,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        self.factor = factor
        self.fail_after = fail_after
        self.wait_s = wait_s
        if bounds is not None:
            self.bounds = tuple(bounds)

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        if self.fail_after is not None and len(self.HEARD) >= self.fail_after:
            raise RuntimeError("a bug")
        time.sleep(self.wait_s)
        assert len(prompts) == 1  # each clip by itself
        for prompt in prompts:
            if prompt.text == "refused":
                raise UserError("too long")
            self.HEARD.append((prompt.text, dict(prompt.labels)))
        level_B = wave_BCN.abs().mean(dim=(1, 2))
        factor = float("nan") if prompts[0].text == "no number" else self.factor
        return RewardOutput(factor * level_B, {"level": level_B})
