"""EMOPIA (Hung et al. 2021, arXiv 2108.01374): pop piano clips in four emotion quadrants, as
``AudioBatch``.

The data set comes without audio (MIDI, YouTube ids and times; CC BY-NC-SA 4.0). The layout read
here is the one its classifier code works with: one folder of clips ``Q1_<YouTube
id>_<segment>.mp3`` (or wav, flac, ogg, aiff, au, caf) and split files ``train.csv``, ``val.csv``,
``test.csv`` with the columns ``fname,label``. Quadrants: Q1 high valence, high arousal; Q2 low,
high; Q3 low, low; Q4 high, low.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.batches import AudioBatch
from datamodules.tables import read_table
from zoo.audio_files import FORMATS, audio_facts, read_audio
from zoo.audio_files.folders import listed
from zoo.audio_files.resampling import resampled
from zoo.errors import UserError
from zoo.language import article_of
from zoo.types import Prompt

MOOD_OF_QUADRANT = {"Q1": "happy", "Q2": "angry", "Q3": "sad", "Q4": "tender"}
SPLITS = ("train", "val", "test")
_SUFFIXES = (*FORMATS, ".aiff", ".au", ".caf", ".rf64", ".w64")


@dataclass(frozen=True)
class EmopiaClip:
    """One clip: its file, quadrant (Q1..Q4), song (the YouTube id) and segment (counted from 0)."""

    path: Path
    quadrant: str
    song: str
    segment: str

    @property
    def name(self) -> str:
        return f"{self.quadrant}_{self.song}_{self.segment}"


def parse_clip_name(name: str) -> tuple[str, str, str]:
    """``Q1_<YouTube id>_<segment>`` -> (quadrant, song, segment).

    YouTube ids may hold ``_``: only the outer two split.

    Raises ``UserError`` for any other form.
    """
    quadrant, _, rest = name.partition("_")
    song, _, segment = rest.rpartition("_")
    if quadrant not in MOOD_OF_QUADRANT or not song or not segment.isdigit():
        raise UserError(
            f"{name!r} is not an EMOPIA clip name; expected Q1..Q4, the YouTube id and a segment"
            " number: Q1_<id>_0"
        )
    return quadrant, song, segment


def read_split(csv_path: str | Path, audio_dir: str | Path) -> list[EmopiaClip]:
    """The clips of one split file, in its order.

    Files of other kinds beside the audio (.pt, .mid) are left alone.

    Raises ``FileNotFoundError`` for a missing split file or clip (with the number of missing ones),
    ``UserError`` for other columns, a label that is missing or contradicts the name, a clip listed
    twice, or an empty split.
    """
    csv_path, audio_dir = Path(csv_path), Path(audio_dir)
    if not csv_path.is_file():
        raise FileNotFoundError(
            f"EMOPIA split file {csv_path} is missing; the splits are train.csv, val.csv and"
            " test.csv"
        )
    files = {Path(name).stem: path for name, path in listed(audio_dir, _SUFFIXES).files.items()}
    clips, missing = [], []
    for record in read_table(csv_path, "fname", "label").rows:
        name, where = _stem(record.name("fname")), record.where
        try:
            quadrant, song, segment = parse_clip_name(name)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if record.cells.get("label") != quadrant:
            label = record.cells.get("label")
            raise UserError(f"{where}: {name} has the label {label!r}, its name says {quadrant}")
        if name in files:
            clips.append(EmopiaClip(files[name], quadrant, song, segment))
        else:
            missing.append(name)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the clips in {csv_path} are not in {audio_dir}, for example"
            f" {missing[0]}; get them, or write split files without them"
        )
    if not clips:
        raise UserError(f"{csv_path} lists no clips")
    names = [clip.name for clip in clips]
    if len(set(names)) < len(names):
        raise UserError(
            f"{csv_path} lists {next(name for name in names if names.count(name) > 1)} more than"
            " once"
        )
    return clips


def _stem(name: str) -> str:
    head, dot, suffix = name.rpartition(".")
    return head if dot and suffix.lower() in {"mp3", "wav", "flac", "ogg", "mid", "pt"} else name


def check_song_disjoint(splits: dict[str, Sequence[EmopiaClip]]) -> None:
    """Raises ``UserError`` naming a song that lies in two splits: its clips would give the test
    away.
    """
    home: dict[str, str] = {}
    for split, clips in splits.items():
        for clip in clips:
            if home.setdefault(clip.song, split) != split:
                raise UserError(
                    f"song {clip.song!r} has clips in the splits {home[clip.song]} and {split}; a"
                    " song belongs to one split only"
                )


def duration_s(path: Path) -> float:
    """Seconds of a file. Raises ``UserError`` naming a bad one."""
    return audio_facts(path).seconds


def read_mono(
    path: Path, sample_rate_hz: int, start_s: float = 0.0, seconds: float | None = None
) -> Tensor:
    """(N,) mono at ``sample_rate_hz``; only the asked part of the file is decoded.

    Raises ``UserError`` naming a file that is no audio, cut off, has no samples, or NaN or
    infinity among them.
    """
    wave = read_audio(path, start_s=start_s, seconds=seconds)
    return resampled(wave.samples_CN.T.mean(dim=1), wave.sample_rate_hz, sample_rate_hz)


class EmopiaDataset(Dataset):
    """``(wave_N, Prompt)`` per ``(index, share)``: the whole clip, or ``crop_s`` seconds of it
    (zeros after a short clip).

    ``share`` 0..1 says where a part begins: 0 with the clip, 1 so that both end together.
    """

    def __init__(
        self, clips: Sequence[EmopiaClip], sample_rate_hz: int, crop_s: float | None = None
    ) -> None:
        self.clips, self.sample_rate_hz, self.crop_s = list(clips), sample_rate_hz, crop_s

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: tuple[int, float]) -> tuple[Tensor, Prompt]:
        index, share = item
        clip = self.clips[index]
        mood = MOOD_OF_QUADRANT[clip.quadrant]
        if self.crop_s is None:
            wave = read_mono(clip.path, self.sample_rate_hz)
        else:
            spare_s = max(0.0, duration_s(clip.path) - self.crop_s)
            part = read_mono(clip.path, self.sample_rate_hz, share * spare_s, self.crop_s)
            wave = torch.zeros(round(self.crop_s * self.sample_rate_hz))
            wave[: len(part)] = part[: len(wave)]
        labels = {"mood": mood, "quadrant": clip.quadrant, "song": clip.song, "instrument": "piano"}
        text = f"a recording of {article_of(mood)} {mood} piano solo"
        return wave, Prompt(
            id=clip.name, text=text, seconds=len(wave) / self.sample_rate_hz, labels=labels
        )


class _Parts(Sampler):
    """(clip, where its part begins) for one epoch: every clip once, a pure function of (seed,
    split, epoch).
    """

    def __init__(self, data: EmopiaDataModule, split: str) -> None:
        self.data, self.split = data, split

    def __len__(self) -> int:
        return len(self.data.splits[self.split])

    def __iter__(self) -> Iterator[tuple[int, float]]:
        epoch = self.data.trainer.current_epoch if self.data.trainer is not None else 0
        rng = random.Random(f"{self.data.seed}/{self.split}/{epoch}")
        order = list(range(len(self)))
        if self.split == "train":
            rng.shuffle(order)
        return iter([(index, rng.random()) for index in order])


class _LateLoader(DataLoader):
    """Reads nothing before the first batch is asked for: the trainer makes iterators before it
    knows the resumed epoch.
    """

    def __iter__(self) -> Iterator[AudioBatch]:
        yield from super().__iter__()


class EmopiaDataModule(L.LightningDataModule):
    """EMOPIA as ``AudioBatch`` (mono).

    ``audio_dir`` holds the clips, ``split_dir`` the three csv files.

    Training batches hold one random part of ``crop_s`` seconds a clip, another one each epoch; test
    batches hold one whole clip each, because clips differ in length and a clip's verdict is a vote
    over all of its chunks. ``val_crop``: validation hears one random part a clip, as EMOPIA's own,
    instead of whole clips. What is drawn depends on ``seed`` and the epoch only, so a resumed run
    hears what it would have heard.
    """

    batch_type = AudioBatch

    def __init__(
        self,
        audio_dir: str,
        split_dir: str,
        sample_rate_hz: int = 22_050,
        crop_s: float = 3.0,
        val_crop: bool = False,
        batch_size: int = 32,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if crop_s <= 0:
            raise UserError(f"crop_s must be positive, got {crop_s}")
        self.audio_dir, self.split_dir = Path(audio_dir), Path(split_dir)
        self.sample_rate_hz, self.crop_s, self.val_crop = sample_rate_hz, crop_s, val_crop
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.splits: dict[str, list[EmopiaClip]] = {}

    def check_files(self) -> None:
        """Finds what a fit would miss: a folder, a file of a table, a clip. Raises as ``setup``."""
        self.setup("fit")

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            splits = {
                split: read_split(self.split_dir / f"{split}.csv", self.audio_dir)
                for split in SPLITS
            }
            check_song_disjoint(splits)
            self.splits = splits

    def collate(self, items: Iterable[tuple[Tensor, Prompt]]) -> AudioBatch:
        waves, prompts = zip(*items)
        return AudioBatch(torch.stack(waves).unsqueeze(1), self.sample_rate_hz, tuple(prompts))

    def _loader(self, split: str) -> DataLoader:
        cropped = split == "train" or (split == "val" and self.val_crop)
        return _LateLoader(
            EmopiaDataset(
                self.splits[split], self.sample_rate_hz, self.crop_s if cropped else None
            ),
            self.batch_size if cropped else 1,
            sampler=_Parts(self, split),
            num_workers=self.num_workers,
            collate_fn=self.collate,
            # of the workers' seeds: the global generator is left to the module
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")
