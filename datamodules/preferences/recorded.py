"""Recorded files with captions as clips of one length (``datamodules.cache.ClipSet``)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from datamodules.audio import read_crop
from datamodules.batches import check_clip_length
from datamodules.preferences.clips import Clips, log_quarantined, usable
from datamodules.preferences.dialects import read_labels
from datamodules.rated_clips import RatedTable
from datamodules.tables import read_table
from zoo.errors import UserError
from zoo.types import Preference, Prompt


class RecordedSet:
    """Files with captions, cut or padded to ``seconds``, at one rate.

    Args:
        files: of the audio.
        captions: one per file.
        sample_rate_hz, channels: of the waves; files are resampled and mixed to them.
        seconds: a longer file is cut to its beginning, a shorter one followed by silence.
    """

    def __init__(
        self,
        files: Sequence[Path],
        captions: Sequence[str],
        sample_rate_hz: int,
        channels: int,
        seconds: float,
    ) -> None:
        check_clip_length("seconds", seconds, sample_rate_hz)
        self.files = tuple(files)
        self.captions = tuple(captions)
        self.sample_rate_hz = sample_rate_hz
        self.channels = channels
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.files)

    def wave(self, index: int) -> Tensor:
        """(channels, samples). Raises ``UserError`` and ``OSError`` for a file it cannot read."""
        samples = Prompt("", "", seconds=self.seconds).samples(self.sample_rate_hz)
        return read_crop(self.files[index], self.sample_rate_hz, self.channels, samples, 0.0)

    def prompt(self, index: int, rng: random.Random) -> Prompt:
        return Prompt(self.files[index].name, self.captions[index], seconds=self.seconds)


class CaptionedFiles:
    """Recordings with captions, for training and validation: a source of clips.

    Clips that are missing or cannot be read are left out, named in ``quarantined`` and counted in
    the log.

    Args:
        files: label files of a dialect that names clips and captions (Tango's AudioCaps lists,
            BATON's, ours; docs/labels.md), or tables with the columns file and caption.
        audio_root: the clips are below this folder.
        sample_rate_hz: of the waves; files of another rate are resampled.
        channels: of the waves.
        seconds: length of every clip.
        val_files: of validation, as ``files``; a clip may not be in both.
        count: so many of the training clips, drawn by ``seed``; None: all.
        stated_rate_hz: what the files are said to have; another rate raises. None: anything.
        seed: of the draw.

    Raises:
        UserError: from ``clip_sets`` for bad rows, a clip of another rate than stated, a clip in
            both sets, and when nothing is left.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        audio_root: str,
        sample_rate_hz: int,
        channels: int,
        seconds: float,
        val_files: str | Sequence[str] = (),
        count: int | None = None,
        stated_rate_hz: int | None = None,
        seed: int = 0,
    ) -> None:
        check_clip_length("seconds", seconds, sample_rate_hz)
        self.files = (files,) if isinstance(files, str) else tuple(files)
        self.val_files = (val_files,) if isinstance(val_files, str) else tuple(val_files)
        self.audio_root = audio_root
        self.sample_rate_hz = sample_rate_hz
        self.channels = channels
        self.seconds = seconds
        self.count = count
        self.stated_rate_hz = stated_rate_hz
        self.seed = seed
        self.quarantined: dict[str, str] = {}
        self._sets: tuple[RecordedSet, RecordedSet] | None = None

    def check_files(self) -> None:
        """Reads and decodes all files. Raises as ``clip_sets``."""
        self.clip_sets()

    def clip_sets(self) -> tuple[RecordedSet, RecordedSet]:
        """(training, validation), read once."""
        if self._sets is None:
            clips = Clips(self.audio_root)
            train = _records(self.files)
            if self.count is not None:
                if not 0 < self.count <= len(train):
                    raise UserError(
                        f"count is {self.count}, but {', '.join(self.files)} name {len(train)}"
                        f" clips; give 1 to {len(train)}, or null for all"
                    )
                rng = random.Random(f"pretrain count/{self.seed}")
                train = [train[i] for i in sorted(rng.sample(range(len(train)), self.count))]
            val = _records(self.val_files)
            both = {record.audio for record in train} & {record.audio for record in val}
            if both:
                raise UserError(
                    f"{len(both)} clips are in both files and val_files, first {min(both)!r}; name"
                    " other recordings to validate on"
                )
            self._sets = (self._set(train, clips), self._set(val, clips))
        return self._sets

    def _set(self, records: Sequence[Preference], clips: Clips) -> RecordedSet:
        if records:
            found = usable(records, clips, self.stated_rate_hz)
            records = found.records
            self.quarantined |= found.quarantined
            log_quarantined(found.quarantined)
        paths = [clips.path(record.audio) for record in records]
        captions = [record.prompt for record in records]
        return RecordedSet(paths, captions, self.sample_rate_hz, self.channels, self.seconds)


class LabelledAgain:
    """The clips of a source of labels, all of them and unweighted: a source of clips.

    Keeps a model near its own clips where there are no recordings for that. It keeps their faults,
    too: with recordings use ``CaptionedFiles``.

    Args:
        labelled: where labels come from (``LabelFiles`` ...); only clips of its split "train", or
            of no split, are taken.
        sample_rate_hz, channels: of the waves; files are resampled and mixed to them.
        seconds: length of every clip.
    """

    def __init__(
        self, labelled: RatedTable, sample_rate_hz: int, channels: int, seconds: float
    ) -> None:
        check_clip_length("seconds", seconds, sample_rate_hz)
        self.labelled = labelled
        self.sample_rate_hz = sample_rate_hz
        self.channels = channels
        self.seconds = seconds

    def clip_sets(self) -> tuple[RecordedSet, RecordedSet]:
        """All clips for training, and none for validation. Raises as ``labelled``."""
        rows = self.labelled.rated_clips()
        captions = {clip.audio: clip.prompt for split, clip in rows if split in ("train", "")}
        shape = (self.sample_rate_hz, self.channels, self.seconds)
        own = RecordedSet(list(captions), list(captions.values()), *shape)
        return own, RecordedSet((), (), *shape)


def _records(files: Sequence[str]) -> list[Preference]:
    found: list[Preference] = []
    for file in files:
        if Path(file).suffix.lower() in (".csv", ".tsv"):
            for row in read_table(file, "file", "caption").rows:
                name = row.words("file").replace("\\", "/")
                found.append(Preference(row.words("caption"), name, "relevance", source="PD"))
            continue
        for record in read_labels(file).checked():
            if not record.prompt:
                raise UserError(f"{file}: {record.audio!r} has no caption; add it to the file")
            found.append(record)
    return found
