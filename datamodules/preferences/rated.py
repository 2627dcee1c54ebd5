"""Label files of every dialect as the source of ``datamodules.rated_clips.RatedClips``."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datamodules.batches import RatedClip
from datamodules.preferences.clips import Clips, log_quarantined, usable
from datamodules.preferences.dialects import read_labels
from datamodules.preferences.splits import prompt_key
from datamodules.preferences.votes import aggregate
from zoo.errors import UserError
from zoo.types import Preference

log = logging.getLogger(__name__)


class LabelFiles:
    """Labels of one task from files of any dialect (docs/labels.md).

    Records whose audio is missing or unreadable are left out, named and counted in the log. Prompts
    that differ in case, blanks or a full stop only are one group. A comparison of two clips (task
    ``pairwise``) gives both: the better one with the share of votes that it has, the other one with
    the rest. One without a winner is left out.

    Args:
        files: one file, or several.
        audio_root: the clips are below this folder.
        task: what the labels are about; None: the files must be of one task.
        rule: from votes to labels: mean or majority.
        minimum_agreement: 0 to 1; leaves out clips whose largest side is a smaller share.
        minimum_votes: leaves out clips with votes, but fewer.
        listeners: gives every vote as a label of its own listener, instead of ``rule``.
        sample_rate_hz: what the clips are said to have; None: what their files say.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        audio_root: str,
        task: str | None = None,
        rule: str = "mean",
        minimum_agreement: float = 0.0,
        minimum_votes: int = 1,
        listeners: bool = False,
        sample_rate_hz: int | None = None,
    ) -> None:
        self.files = (files,) if isinstance(files, str) else tuple(files)
        self.audio_root = audio_root
        self.task = task
        self.rule = rule
        self.minimum_agreement = minimum_agreement
        self.minimum_votes = minimum_votes
        self.listeners = listeners
        self.sample_rate_hz = sample_rate_hz
        self.quarantined: dict[str, str] = {}  # clip -> why it cannot be used; of the last reading

    def rated_clips(self) -> list[tuple[str, RatedClip]]:
        """(split, clip) of every label.

        Raises ``UserError`` for bad rows, records of several tasks, a clip of another sample rate
        than stated, and when nothing is left.
        """
        records = [one for file in self.files for one in read_labels(file).checked()]
        tasks = sorted({record.task for record in records})
        if self.task is None and len(tasks) > 1:
            raise UserError(
                f"the labels are of several tasks ({', '.join(tasks)}); set task to one"
            )
        task = self.task or tasks[0]
        records = [record for record in records if record.task == task]
        kept, left_out = aggregate(records, self.rule, self.minimum_agreement, self.minimum_votes)
        labels = [record for record in kept if self._labels(record)]
        if not labels:
            raise UserError(f"no label of the task {task!r}; the files hold {', '.join(tasks)}")
        clips = Clips(self.audio_root)
        found = usable(labels, clips, self.sample_rate_hz)
        self.quarantined = dict(found.quarantined)
        for reason, count in left_out.items():
            log.warning("left out %d clips: %s", count, reason)
        log_quarantined(self.quarantined)
        rows = []
        ties = 0
        for number, record in enumerate(found.records):
            group = prompt_key(record.prompt) or record.audio
            for listener, label in self._labels(record):
                values = {record.audio: label}
                if task == "pairwise":
                    ties += label == 0.5
                    values = {} if label == 0.5 else {**values, record.other: 1 - label}
                pair = str(number) if task == "pairwise" else ""
                for name, value in values.items():
                    audio = clips.path(name)
                    clip = RatedClip(record.prompt, audio, value, group, listener, pair)
                    rows.append((record.split, clip))
        if ties:
            log.warning("left out %d comparisons without a winner", ties)
        if not rows:
            raise UserError("no comparison has a winner; give others")
        return rows

    def _labels(self, record: Preference) -> list[tuple[str | None, float]]:
        """(listener, label) of a record: each vote, or one label of all, else the score."""
        if self.listeners and record.votes:
            return [(vote.rater, vote.value) for vote in record.votes]
        value = record.label if record.label is not None else record.score
        return [] if value is None else [(None, value)]
