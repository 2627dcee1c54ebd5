"""From rewards to advantages, in float64.

Sums are exactly rounded, so the order of samples or ranks changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from zoo.errors import UserError

TRACKER_EPSILON = 1e-6
BATCH_EPSILON = 1e-8


@dataclass(frozen=True)
class RewardStatistics:
    """Of one set of rewards:

    ``mean``, population ``std`` (exactly 0 when all are equal) and ``count``.
    """

    mean: float
    std: float
    count: int


def reward_statistics(rewards: Iterable[float]) -> RewardStatistics:
    """Mean and population standard deviation by exactly rounded sums.

    Raises ``UserError`` when there is no reward.
    """
    values = [float(reward) for reward in rewards]
    if not values:
        raise UserError("no rewards were given, expected at least one")
    if min(values) == max(values):
        return RewardStatistics(values[0], 0.0, len(values))
    mean = math.fsum(values) / len(values)
    return RewardStatistics(
        mean,
        math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)),
        len(values),
    )


def _rewards(rewards: ArrayLike | torch.Tensor, names: Sequence[str] | None = None) -> np.ndarray:
    if isinstance(rewards, torch.Tensor):
        rewards = rewards.detach().cpu().double().numpy()
    array = np.asarray(rewards, dtype=np.float64)
    if array.ndim != 1 or (names is not None and len(names) != len(array)):
        expected = "a flat list" if names is None else f"{len(names)} values, one a prompt id"
        raise UserError(f"rewards must be {expected}, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array)).tolist()
    if bad:
        raise UserError(
            f"rewards of samples {bad} are not finite; drop such samples before advantages are"
            " taken"
        )
    return array


def batch_advantages(rewards: ArrayLike | torch.Tensor) -> np.ndarray:
    """(r - mean) / (std + 1e-8) over the whole batch (of all ranks), float64 (B,)."""
    array = _rewards(rewards)
    batch = reward_statistics(array)
    return (array - batch.mean) / (batch.std + BATCH_EPSILON)


def group_advantages(
    rewards: ArrayLike | torch.Tensor, prompt_ids: Sequence[str], std: str = "group"
) -> np.ndarray:
    """(r - mean of the prompt's group) / (std + 1e-6), float64 (B,), as in GRPO.

    ``std`` "group": of the same group (arXiv 2402.03300); "batch": of all rewards (Flow-GRPO, arXiv
    2505.05470), which keeps groups of almost equal rewards from being blown up. A group whose
    rewards are all equal gets advantage 0. Raises ``UserError`` for another ``std``, or when
    counts differ.
    """
    if std not in ("group", "batch"):
        raise UserError(f"std must be 'group' or 'batch', got {std!r}")
    array, prompt_ids = _rewards(rewards, prompt_ids), list(prompt_ids)
    batch = reward_statistics(array)
    advantages = np.zeros_like(array)
    for prompt_id in set(prompt_ids):
        rows = [row for row, name in enumerate(prompt_ids) if name == prompt_id]
        group = reward_statistics(array[rows])
        advantages[rows] = (array[rows] - group.mean) / (
            (group if std == "group" else batch).std + TRACKER_EPSILON
        )
    return advantages


class PromptTracker:
    """Per-prompt reward statistics over the last ``buffer_size`` samples of each prompt, kept
    between rounds (DDPO).

    New rewards enter the buffers before they are used. A prompt with fewer than ``min_count``
    rewards in its buffer is normalised by the mean and std of the whole current call instead.
    """

    def __init__(self, buffer_size: int = 16, min_count: int = 16) -> None:
        if not 1 <= min_count <= buffer_size:
            raise UserError(
                f"PromptTracker: expected 1 <= min_count <= buffer_size, got min_count {min_count},"
                f" buffer_size {buffer_size}; a buffer that never holds min_count rewards would"
                " never be used"
            )
        self.buffer_size, self.min_count = int(buffer_size), int(min_count)
        self._buffers: dict[str, deque[float]] = {}

    def update(
        self,
        prompt_ids: Sequence[str],
        rewards: ArrayLike | torch.Tensor,
        order: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Advantages (r - mean) / (std + 1e-6), float64 (B,), of samples gathered from all ranks.

        Full buffers drop their oldest rewards. ``order`` (B,) is the place of each sample in the
        round (its global index): with it, what is dropped does not depend on how ranks were
        gathered; without it the order given counts. Raises ``UserError`` on rewards that are not
        finite, or when counts differ; nothing is changed then.
        """
        prompt_ids = list(prompt_ids)
        array = _rewards(rewards, prompt_ids)
        if order is not None and sorted({int(place) for place in order}) != sorted(
            int(place) for place in order
        ):
            raise UserError(
                "order names a place twice; give every sample its own place in the round"
            )
        if order is not None and len(order) != len(array):
            raise UserError(
                f"order needs one place a sample, expected {len(array)}, got {len(order)}"
            )
        call = reward_statistics(array)
        for row in range(len(array)) if order is None else np.argsort(np.asarray(order)):
            self._buffers.setdefault(prompt_ids[row], deque(maxlen=self.buffer_size)).append(
                float(array[row])
            )
        used = {}
        for prompt_id in set(prompt_ids):
            buffer = self._buffers[prompt_id]
            used[prompt_id] = call if len(buffer) < self.min_count else reward_statistics(buffer)
        mean = np.array([used[prompt_id].mean for prompt_id in prompt_ids])
        std = np.array([used[prompt_id].std for prompt_id in prompt_ids])
        return (array - mean) / (std + TRACKER_EPSILON)

    def stats(self) -> dict[str, RewardStatistics]:
        """Of every prompt's buffer as it is now."""
        return {prompt_id: reward_statistics(buffer) for prompt_id, buffer in self._buffers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values (a checkpoint with them loads with ``weights_only=True``)."""
        return {"buffers": {prompt_id: list(buffer) for prompt_id, buffer in self._buffers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces all buffers; of more than ``buffer_size`` rewards the newest are kept.

        ``UserError`` on a foreign state.
        """
        if not isinstance(state, dict) or not isinstance(state.get("buffers"), dict):
            raise UserError(
                "not the state of a PromptTracker: expected {'buffers': {prompt id: [rewards]}}"
            )
        self._buffers = {
            str(prompt_id): deque((float(reward) for reward in rewards), maxlen=self.buffer_size)
            for prompt_id, rewards in state["buffers"].items()
        }
