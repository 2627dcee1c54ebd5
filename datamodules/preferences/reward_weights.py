"""From labels to weights of denoising errors, for reward-weighted fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datamodules.batches import RatedClip
from zoo.errors import UserError, did_you_mean


def _raw(clips: Sequence[RatedClip], _: RewardTransform) -> list[float]:
    return [clip.label for clip in clips]


def _thresholded(clips: Sequence[RatedClip], how: RewardTransform) -> list[float]:
    return [float(clip.label >= how.threshold) for clip in clips]


def _centred(clips: Sequence[RatedClip], _: RewardTransform) -> list[float]:
    labels: dict[str, list[float]] = {}
    for clip in clips:
        labels.setdefault(clip.group, []).append(clip.label)
    mean_of = {group: math.fsum(own) / len(own) for group, own in labels.items()}
    return [clip.label - mean_of[clip.group] for clip in clips]


def _normalised(clips: Sequence[RatedClip], _: RewardTransform) -> list[float]:
    mean = math.fsum(clip.label for clip in clips) / len(clips)
    return [clip.label / mean if mean else 0.0 for clip in clips]


def _constant(clips: Sequence[RatedClip], how: RewardTransform) -> list[float]:
    return [how.value] * len(clips)


_KINDS: dict[str, Callable[[Sequence[RatedClip], RewardTransform], list[float]]] = {
    "raw": _raw,
    "thresholded": _thresholded,
    "centred": _centred,
    "normalised": _normalised,
    "constant": _constant,
}


@dataclass(frozen=True)
class RewardTransform:
    """How labels (0 to 1) become weights of denoising errors.

    Args:
        kind: "raw": the label itself, as BATON. "thresholded": 1 for a label of ``threshold`` or
            more, else 0. "centred": the label less the mean of its prompt's clips; clips below it
            are pushed away, with no lower bound. "normalised": the label divided by the mean label,
            so that weights have the mean 1. "constant": ``value`` for every clip, a control: 1
            imitates all clips alike, 0 leaves the pretraining stream alone.
        threshold: of "thresholded".
        value: of "constant".
    """

    kind: str = "raw"
    threshold: float = 0.5
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UserError(f"invalid kind {self.kind!r}; {did_you_mean(self.kind, _KINDS)}")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"invalid threshold {self.threshold}: expected a label, 0 to 1")
        if not math.isfinite(self.value):
            raise UserError(f"invalid value {self.value}: expected a finite number")

    def weights(self, clips: Sequence[RatedClip]) -> list[float]:
        """One weight per clip.

        Raises ``UserError`` when all are 0 and that was not asked for.
        """
        found = _KINDS[self.kind](clips, self)
        if not any(found) and not (self.kind == "constant" and self.value == 0):
            raise UserError(
                f"all {len(found)} weights are 0 with rewards.kind={self.kind}, so no clip would be"
                " learned; look at the labels (tools/labels.py stats), or choose another kind"
            )
        return found
