"""From rewards to advantages, in float64.

Sums are exactly rounded, so the order of samples or ranks changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from zoo.errors import UserError
from zoo.statistics.z_scores import Deviation, Moments, moments, standardised, z_scores

PROMPT_EPSILON = 1e-6  # added to the deviation of a prompt
BATCH_EPSILON = 1e-8  # added to the deviation of a batch


def batch_advantages(rewards: ArrayLike | torch.Tensor) -> np.ndarray:
    """(r - mean) / (std + 1e-8) over the whole batch (of all ranks), float64 (B,)."""
    reward_B = _rewards(rewards)
    whole = ["batch"] * len(reward_B)
    return z_scores(reward_B, whole, epsilon=BATCH_EPSILON)


def group_advantages(
    rewards: ArrayLike | torch.Tensor, prompt_ids: Sequence[str], deviation: Deviation = "group"
) -> np.ndarray:
    """(r - mean of the prompt's group) / (std + 1e-6), float64 (B,), as in GRPO.

    A group whose rewards are all equal gets advantage 0.

    Args:
        rewards: finite (B,).
        prompt_ids: the group of each sample.
        deviation: "group": of the same group (arXiv 2402.03300); "all": of all rewards (Flow-GRPO,
            arXiv 2505.05470), so that groups of almost equal rewards stay near 0.

    Raises:
        UserError: for rewards that are not finite, another ``deviation``, or counts that differ.
    """
    reward_B = _rewards(rewards, prompt_ids)
    return z_scores(reward_B, list(prompt_ids), deviation=deviation, epsilon=PROMPT_EPSILON)


class PromptTracker:
    """Reward statistics over the last ``buffer_size`` samples of each prompt, across rounds (DDPO).

    New rewards enter the buffers before they are used. A prompt with fewer than ``min_count``
    rewards in its buffer is normalised by the mean and std of the whole current call instead.
    """

    def __init__(self, buffer_size: int = 16, min_count: int = 16) -> None:
        if not 1 <= min_count <= buffer_size:
            raise UserError(
                f"invalid min_count {min_count} with buffer_size {buffer_size}: expected 1 <="
                " min_count <= buffer_size, because a buffer that never holds min_count rewards is"
                " never used"
            )
        self.buffer_size = int(buffer_size)
        self.min_count = int(min_count)
        self._buffers: dict[str, deque[float]] = {}

    def update(
        self,
        prompt_ids: Sequence[str],
        rewards: ArrayLike | torch.Tensor,
        order: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Advantages (r - mean) / (std + 1e-6), float64 (B,), of samples gathered from all ranks.

        Full buffers drop their oldest rewards.

        Args:
            prompt_ids: the prompt of each sample (B).
            rewards: finite (B,).
            order: the place of each sample in the round (B). With it, what is dropped does not
                depend on how ranks were gathered; without it the order given counts.

        Raises:
            UserError: for rewards that are not finite or counts that differ; nothing is changed
                then.
        """
        prompt_ids = list(prompt_ids)
        reward_B = _rewards(rewards, prompt_ids)
        rows = range(len(reward_B)) if order is None else _rows_in(order, len(reward_B))
        call = moments(reward_B)
        for row in rows:
            buffer = self._buffers.setdefault(prompt_ids[row], deque(maxlen=self.buffer_size))
            buffer.append(float(reward_B[row]))
        used = {}
        for prompt_id in set(prompt_ids):
            buffer = self._buffers[prompt_id]
            used[prompt_id] = call if len(buffer) < self.min_count else moments(buffer)
        return standardised(reward_B, prompt_ids, used, PROMPT_EPSILON)

    def stats(self) -> dict[str, Moments]:
        """Of every prompt's buffer as it is now."""
        return {prompt_id: moments(buffer) for prompt_id, buffer in self._buffers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values (a checkpoint with them loads with ``weights_only=True``)."""
        return {"buffers": {prompt_id: list(buffer) for prompt_id, buffer in self._buffers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces all buffers; of more than ``buffer_size`` rewards the newest are kept.

        Raises ``UserError`` for a state of something else.
        """
        if not isinstance(state, dict) or not isinstance(state.get("buffers"), dict):
            raise UserError(
                "not the state of a PromptTracker: expected {'buffers': {prompt id: [rewards]}}"
            )
        self._buffers = {
            str(prompt_id): deque((float(reward) for reward in rewards), maxlen=self.buffer_size)
            for prompt_id, rewards in state["buffers"].items()
        }


def _rewards(rewards: ArrayLike | torch.Tensor, names: Sequence[str] | None = None) -> np.ndarray:
    if isinstance(rewards, torch.Tensor):
        rewards = rewards.detach().cpu().double().numpy()
    reward_B = np.asarray(rewards, dtype=np.float64)
    if reward_B.ndim != 1 or (names is not None and len(names) != len(reward_B)):
        expected = "a flat list" if names is None else f"{len(names)} values, one per prompt id"
        raise UserError(f"invalid rewards of shape {reward_B.shape}: expected {expected}")
    bad = np.flatnonzero(~np.isfinite(reward_B)).tolist()
    if bad:
        raise UserError(
            f"the rewards of samples {bad} are not finite; leave such samples out before advantages"
            " are computed"
        )
    return reward_B


def _rows_in(order: Sequence[int], count: int) -> list[int]:
    """The rows sorted by their place in the round."""
    places = [int(place) for place in order]
    if len(set(places)) < len(places):
        raise UserError("order names a place twice; give every sample its own place in the round")
    if len(places) != count:
        raise UserError(f"order needs one place per sample: expected {count}, got {len(places)}")
    return sorted(range(count), key=places.__getitem__)
