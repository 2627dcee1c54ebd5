"""EMOPIA (Hung et al. 2021, arXiv 2108.01374): pop piano clips in four emotion quadrants.

The data set has no audio (MIDI, YouTube ids and times; CC BY-NC-SA 4.0). This reads the layout of
its classifier code: one folder of clips ``Q1_<YouTube id>_<segment>.mp3`` (or wav, flac, ogg, aiff,
au, caf) and split files ``train.csv``, ``val.csv``, ``test.csv`` with the columns ``fname,label``.
Quadrants (valence, arousal): Q1 high, high; Q2 low, high; Q3 low, low; Q4 high, low.
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

from datamodules.batches import AudioBatch, check_clip_length
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
    """One clip: file, quadrant (Q1..Q4), song (the YouTube id) and segment (from 0)."""

    path: Path
    quadrant: str
    song: str
    segment: str

    @property
    def name(self) -> str:
        return f"{self.quadrant}_{self.song}_{self.segment}"


def parse_clip_name(name: str) -> tuple[str, str, str]:
    """``Q1_<YouTube id>_<segment>`` -> (quadrant, song, segment).

    YouTube ids may contain ``_``, so it splits only at the first and the last one. Raises
    ``UserError`` for any other form.
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

    Other files beside the audio (.pt, .mid) are ignored. Raises ``FileNotFoundError`` for a missing
    split file or missing clips, and ``UserError`` for other columns, a label that is missing or
    contradicts the name, a clip listed twice, or an empty split.
    """
    csv_path = Path(csv_path)
    audio_dir = Path(audio_dir)
    if not csv_path.is_file():
        raise FileNotFoundError(
            f"EMOPIA split file {csv_path} is missing; the splits are train.csv, val.csv and"
            " test.csv"
        )
    files = {Path(name).stem: path for name, path in listed(audio_dir, _SUFFIXES).files.items()}
    clips = []
    missing = []
    for record in read_table(csv_path, "fname", "label").rows:
        name = _stem(record.name("fname"))
        try:
            quadrant, song, segment = parse_clip_name(name)
        except UserError as error:
            raise UserError(f"{record.where}: {error}") from error
        label = record.cells.get("label")
        if label != quadrant:
            raise UserError(
                f"{record.where}: {name} has the label {label!r}, but its name says {quadrant}"
            )
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
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{csv_path} lists {repeated} more than once; list every clip once")
    return clips


def _stem(name: str) -> str:
    head, dot, suffix = name.rpartition(".")
    return head if dot and suffix.lower() in {"mp3", "wav", "flac", "ogg", "mid", "pt"} else name


def check_song_disjoint(splits: dict[str, Sequence[EmopiaClip]]) -> None:
    """Raises ``UserError`` for a song in two splits, because its clips resemble each other."""
    home: dict[str, str] = {}
    for split, clips in splits.items():
        for clip in clips:
            if home.setdefault(clip.song, split) != split:
                raise UserError(
                    f"song {clip.song!r} has clips in the splits {home[clip.song]} and {split}; a"
                    " song belongs to one split only"
                )


def duration_s(path: Path) -> float:
    """The length of a file. Raises ``UserError`` as ``audio_facts``."""
    return audio_facts(path).seconds


def read_mono(
    path: Path, sample_rate_hz: int, start_s: float = 0.0, seconds: float | None = None
) -> Tensor:
    """Reads a file as mono (N,) at ``sample_rate_hz``; decodes only the requested part.

    Raises ``UserError`` for a file that is not audio, is cut off, or has no samples, NaN or
    infinity.
    """
    wave = read_audio(path, start_s=start_s, seconds=seconds)
    return resampled(wave.samples_CN.T.mean(dim=1), wave.sample_rate_hz, sample_rate_hz)


class EmopiaDataset(Dataset):
    """Maps ``(index, share)`` to ``(wave_N, Prompt)``: the whole clip, or ``crop_s`` seconds of it.

    ``share`` places the crop: 0 begins with the clip, 1 ends with it. A short clip is padded with
    zeros.
    """

    def __init__(
        self, clips: Sequence[EmopiaClip], sample_rate_hz: int, crop_s: float | None = None
    ) -> None:
        self.clips = list(clips)
        self.sample_rate_hz = sample_rate_hz
        self.crop_s = crop_s

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
    """(clip, place of its crop) for one epoch: every clip once, by (seed, split, epoch)."""

    def __init__(self, data: EmopiaDataModule, split: str) -> None:
        self.data = data
        self.split = split

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
    """Reads nothing before the first batch.

    The trainer creates iterators before it knows the resumed epoch.
    """

    def __iter__(self) -> Iterator[AudioBatch]:
        yield from super().__iter__()


class EmopiaDataModule(L.LightningDataModule):
    """EMOPIA as ``AudioBatch`` (mono).

    Training uses one random crop per clip and epoch. Test batches hold one whole clip each, because
    clips differ in length and the class of a clip is a vote over all of its chunks. Crops depend
    only on ``seed`` and the epoch, so a resumed run sees the same ones.

    Args:
        audio_dir: the folder of clips.
        split_dir: the folder of the three csv files.
        sample_rate_hz: of the batches.
        crop_s: length of a training crop.
        val_crop: validate on one random crop per clip, as EMOPIA does, instead of whole clips.
        batch_size: clips per batch of crops.
        num_workers: processes that read files.
        seed: of order and crops.

    Raises:
        UserError: as ``check_clip_length``; from ``setup`` as ``read_split``.
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
        check_clip_length("crop_s", crop_s, sample_rate_hz)
        self.audio_dir = Path(audio_dir)
        self.split_dir = Path(split_dir)
        self.sample_rate_hz = sample_rate_hz
        self.crop_s = crop_s
        self.val_crop = val_crop
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.splits: dict[str, list[EmopiaClip]] = {}

    def check_files(self) -> None:
        """Checks that folders, tables and clips exist. Raises as ``setup``."""
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
            # for the workers' seeds, so that the global generator belongs to the module alone
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")
