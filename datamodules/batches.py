"""Typed batches: the interface between data modules and Lightning modules.

Every batch has ``to(device)``, which Lightning calls to move it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, device

from zoo.errors import UserError
from zoo.types import Preference, Prompt

LONGEST_S = 3600.0  # of one clip: a longer one is probably a typing mistake and fills the memory


def check_clip_length(name: str, seconds: float, sample_rate_hz: int) -> None:
    """Raises ``UserError`` for a clip of less than one sample or more than ``LONGEST_S``.

    ``name`` is the setting to name in the message.
    """
    if not (seconds * sample_rate_hz >= 1 and seconds <= LONGEST_S):
        raise UserError(
            f"invalid {name} {seconds:g}: expected at least one sample ({1 / sample_rate_hz:g} s at"
            f" {sample_rate_hz} Hz) and at most {LONGEST_S:g} s"
        )


@dataclass(frozen=True)
class PromptBatch:
    """Prompts without audio.

    - ``round_index``: counts the rollouts of a run from 0 and seeds their noise.
    - ``sample_index[i]``: numbers the repeats of one prompt in a round, so that (seed, round,
      prompt id, sample index) identifies the noise of a sample for any batch size and rank.
    """

    prompts: tuple[Prompt, ...]
    sample_index: tuple[int, ...]
    round_index: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: device | str) -> PromptBatch:
        return self


@runtime_checkable
class PromptSource(Protocol):
    """A data module that knows all its prompts before training starts, so that they can be checked.

    ``all_prompts`` returns those of training and validation. ``drop_prompts`` removes the prompts
    with these ids from both; it raises ``UserError`` when no training prompt is left.
    """

    def all_prompts(self) -> tuple[Prompt, ...]: ...

    def drop_prompts(self, ids: Collection[str]) -> None: ...


@dataclass(frozen=True)
class AudioBatch:
    """Clean audio with captions.

    - ``wave_BCN``: in [-1, 1] at ``sample_rate_hz``.
    - ``weight_B``: one weight per sample, or None.
    """

    wave_BCN: Tensor
    sample_rate_hz: int
    prompts: tuple[Prompt, ...]
    weight_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: device | str) -> AudioBatch:
        weight_B = None if self.weight_B is None else self.weight_B.to(device)
        return replace(self, wave_BCN=self.wave_BCN.to(device), weight_B=weight_B)


@dataclass(frozen=True)
class LatentBatch:
    """Encoded audio (``datamodules/cache.py``): ``latent_BCT`` comes from ``Backbone.encode``."""

    latent_BCT: Tensor
    prompts: tuple[Prompt, ...]
    weight_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: device | str) -> LatentBatch:
        weight_B = None if self.weight_B is None else self.weight_B.to(device)
        return replace(self, latent_BCT=self.latent_BCT.to(device), weight_B=weight_B)


@dataclass(frozen=True)
class PairedBatch:
    """A batch of each of two streams that learn together: reward-weighted fine-tuning (BATON).

    - ``labelled``: samples of a model with a weight each, which may be negative.
    - ``pretrain``: recordings that keep the model what it was.
    """

    labelled: AudioBatch | LatentBatch
    pretrain: AudioBatch | LatentBatch

    def __len__(self) -> int:
        return len(self.labelled)

    def to(self, device: device | str) -> PairedBatch:
        return PairedBatch(self.labelled.to(device), self.pretrain.to(device))


@dataclass(frozen=True)
class LatentPairBatch:
    """Preference pairs of encoded clips: of each prompt the preferred one and the other.

    ``chosen_BCT`` and ``rejected_BCT`` come from ``Backbone.encode`` and have one shape.
    """

    chosen_BCT: Tensor
    rejected_BCT: Tensor
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def chosen(self) -> LatentBatch:
        return LatentBatch(self.chosen_BCT, self.prompts)

    def to(self, device: device | str) -> LatentPairBatch:
        chosen_BCT = self.chosen_BCT.to(device)
        return LatentPairBatch(chosen_BCT, self.rejected_BCT.to(device), self.prompts)


@dataclass(frozen=True)
class ClipPair:
    """Two clips for one prompt, by their files, of which ``chosen`` is preferred."""

    prompt: Prompt
    chosen: Path
    rejected: Path


@dataclass(frozen=True)
class ClipPairs:
    """Preference pairs, and what gave none.

    - ``train``, ``val``: the pairs; a prompt is in one of them only.
    - ``left_out``: reason -> how many prompts or comparisons gave no pair for it.
    - ``measures``: name -> number of the clips that the pairs are from, for the log.
    """

    train: tuple[ClipPair, ...]
    val: tuple[ClipPair, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RatedClip:
    """A clip that people have judged.

    - ``prompt``: the caption that it was judged by.
    - ``audio``: its file.
    - ``label``: from 0 (does not fit) to 1; a share of votes is a soft label.
    - ``group``: clips of equal group are compared with each other and are in one split.
    - ``listener``: who judged it; None for a label of several people.
    - ``pair``: names the comparison that the label is from, and is compared within it alone: 1 is
      the better one of two clips; "" for a label of the clip by itself.
    """

    prompt: str
    audio: Path
    label: float
    group: str
    listener: str | None = None
    pair: str = ""

    @property
    def compared_in(self) -> str:
        """Equal for clips whose labels may be compared: of one prompt, one listener and one pair.

        What two listeners say is not compared, because their scales differ.
        """
        return f"{self.group}\0{self.listener or ''}\0{self.pair}"


@dataclass(frozen=True)
class ClipFile:
    """A clip that a reward is asked about.

    - ``record``: what is known of it, without label and score.
    - ``path``, ``prompt``: its file, and what the reward is asked; None where ``fault`` is set.
    - ``fault``: why it cannot be scored; "" when nothing is known against it.
    """

    record: Preference
    path: Path | None
    prompt: Prompt | None
    fault: str = ""


@dataclass(frozen=True)
class PreferenceBatch:
    """Rated clips, and which of them are compared.

    - ``clips``: one record each.
    - ``pairs``: (better, worse) as indices into ``clips``; empty where each clip counts by itself.
    """

    clips: tuple[RatedClip, ...]
    pairs: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.pairs) or len(self.clips)

    def to(self, device: device | str) -> PreferenceBatch:
        return self


class RatedClipSource(Protocol):
    """A data module that knows all its clips after ``setup``.

    ``splits``: "train", "val", "test" -> clips. ``drop_clips`` removes those of these files.
    ``has_pairs``: whether batches compare clips.
    """

    splits: Mapping[str, tuple[RatedClip, ...]]
    has_pairs: bool

    def drop_clips(self, audio: Collection[Path]) -> None: ...
