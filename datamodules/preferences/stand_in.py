"""Labels by a reward in place of people, for a chain that nobody has labelled clips for yet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from datamodules.batches import RatedClip
from datamodules.preferences.dialects import read_labels, write_labels
from datamodules.preferences.rated import LabelFiles
from zoo.errors import UserError
from zoo.types import Preference, Prompt, Vote

log = logging.getLogger(__name__)
LABELS = "labels.jsonl"


class MadeClip(Protocol):
    """A clip in a folder, and the prompt that it was made for."""

    path: Path
    prompt: Prompt


class ScoredClips(Protocol):
    """Clips in one folder that a reward can score (``lightning_modules.own_clips.OwnClips``).

    ``scorer`` names the reward; ``scores()`` has one number per clip of ``samples()``, in order.
    """

    folder: Path
    scorer: str

    def samples(self) -> Sequence[MadeClip]: ...

    def scores(self) -> Sequence[float]: ...


def above_prompt_mean(scores: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """1 for a score above the mean of its prompt, else 0: in each prompt its better clips.

    A prompt whose clips all score alike gets 0 only.
    """
    by_prompt: dict[str, list[float]] = {}
    for value, prompt in zip(scores, prompts, strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    mean = {prompt: sum(own) / len(own) for prompt, own in by_prompt.items()}
    return [float(value > mean[prompt]) for value, prompt in zip(scores, prompts, strict=True)]


class StandInLabels:
    """A source of labels: 1 for a clip that scores above the mean of its prompt, else 0.

    **The reward stands in for people and is no judge:** what learns from these labels learns the
    reward's taste. They are written to ``labels.jsonl`` beside the clips (docs/labels.md), one vote
    of the stand-in per clip, which people may correct or add to: a file that is there is used as it
    is. Remove it to have the reward label again.

    Args:
        clips: at least two per prompt.
    """

    def __init__(self, clips: ScoredClips) -> None:
        self.clips = clips

    def rated_clips(self) -> list[tuple[str, RatedClip]]:
        """("", clip) of every clip, with its label.

        Raises ``UserError`` for a label file that lacks a clip, and what ``LabelFiles`` and
        ``clips`` raise.
        """
        samples = self.clips.samples()
        file = self.clips.folder / LABELS
        if not file.is_file():
            write_labels(self._labelled(samples), file, "attune")
        known = {record.audio for record in read_labels(file).checked()}
        missing = [sample.path.name for sample in samples if sample.path.name not in known]
        if missing:
            raise UserError(
                f"{file} has no label of {len(missing)} of {len(samples)} clips, the first"
                f" {missing[0]}; label them, or remove the file and {self.clips.scorer} labels all"
            )
        rows = LabelFiles(str(file), str(self.clips.folder)).rated_clips()
        good = sum(clip.label > 0.5 for _, clip in rows)
        log.info("%d of %d clips are labelled as good in %s", good, len(rows), file)
        return rows

    def _labelled(self, samples: Sequence[MadeClip]) -> list[Preference]:
        labels = above_prompt_mean(self.clips.scores(), [sample.prompt.id for sample in samples])
        rater = f"stand-in {self.clips.scorer}"
        return [
            Preference(
                sample.prompt.text,
                sample.path.name,
                "integrity",
                votes=(Vote(rater, label),),
                seconds=sample.prompt.seconds,
            )
            for sample, label in zip(samples, labels, strict=True)
        ]
