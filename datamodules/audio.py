"""Your own recordings with captions as batches of equal length, for training on clean audio."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.batches import AudioBatch, check_clip_length
from datamodules.tables import Record, read_table
from zoo.audio_files import FORMATS, audio_facts, opened_audio, read_audio
from zoo.audio_files.folders import Listing, listed
from zoo.audio_files.resampling import resampled, resampled_length, source_span
from zoo.errors import UserError
from zoo.types import Prompt, Waveform

log = logging.getLogger(__name__)
SUFFIXES = tuple(FORMATS)


@dataclass(frozen=True)
class Clip:
    """One file: its caption, labels and weight.

    ``name`` is the path inside the folder, with forward slashes.
    """

    name: str
    path: Path
    caption: str = ""
    weight: float | None = None
    labels: dict[str, Any] = field(default_factory=dict, hash=False)


def find_clips(
    folder: str | Path, captions: str | Path | None = None, caption: str = ""
) -> tuple[Clip, ...]:
    """The audio files in ``folder`` and its subfolders (wav, flac, ogg, mp3), sorted by name.

    A name is found whether it is written with ``/`` or ``\\``, and in either Unicode form of its
    accents. Files that the table does not list are left out and counted in the log, and so are
    hidden files, folders and pipes with the name of a sound.

    Args:
        folder: where the files are.
        captions: a ``.csv``, ``.tsv`` or ``.jsonl`` table with ``file`` (path inside ``folder``)
            and ``caption`` (or ``text``, ``prompt``), perhaps ``weight`` (a number of at least 0);
            other columns become labels.
        caption: of every file where there is no table.

    Raises:
        UserError: as ``read_table``; for a folder without audio, a row without its file or whose
            caption is not text, and a file listed twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the folder of the audio files")
    listing = listed(folder, SUFFIXES, deep=True)
    found = listing.files
    listing.log_set_aside(folder)
    if not found:
        raise UserError(
            f"{folder} holds no audio: expected files that end in {', '.join(SUFFIXES)}"
        )
    if captions is None:
        return tuple(Clip(name, path, caption) for name, path in found.items())
    clips = _captioned(folder, listing, captions)
    if len(found) > len(clips):
        log.warning(
            "%s: %d of %d audio files have no row in %s and are left out",
            folder,
            len(found) - len(clips),
            len(found),
            captions,
        )
    return tuple(sorted(clips, key=lambda clip: clip.name))


def _captioned(folder: Path, listing: Listing, captions: str | Path) -> list[Clip]:
    """The clips that a table lists, in its order."""
    clips: dict[str, Clip] = {}
    missing = []
    for record in read_table(captions, "file", "caption").rows:
        written = record.name("file")
        name = listing.find(written)
        if name is None:
            aside = listing.reason(written)
            missing.append(f"{written} (line {record.line}{', ' + aside if aside else ''})")
            continue
        if name in clips:
            raise UserError(
                f"{record.where}: {name} is listed a second time; keep one row per file"
            )
        labels = record.others("file", "caption", "weight")
        path = listing.files[name]
        clips[name] = Clip(name, path, record.text("caption"), _weight(record), labels)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{captions} lists files that are not in {folder}: {', '.join(missing[:5])}{more}"
        )
    if not clips:
        raise UserError(
            f"{captions} holds no row; write one per recording, with 'file' and 'caption'"
        )
    if len({clip.weight is None for clip in clips.values()}) > 1:
        raise UserError(
            f"{captions}: some rows have a weight and some have none; fill in all or drop the"
            " column"
        )
    return list(clips.values())


def _weight(record: Record) -> float | None:
    try:
        weight = record.number("weight")
    except UserError:
        weight = math.nan
    if weight is not None and not (weight >= 0 and math.isfinite(weight)):
        got = record.cells["weight"]
        raise UserError(f"{record.where}: weight must be a number of at least 0, got {got!r}")
    return weight


def mix_channels(wave_CN: Tensor, channels: int) -> Tensor:
    """Repeats one channel, or averages many to one.

    Raises ``UserError`` for any other change (6 to 2, for example).
    """
    have = wave_CN.shape[0]
    if have == channels:
        return wave_CN
    if channels == 1:
        # torch's mean adds more than four channels in another order at the end of a wave than
        # before it: crops would differ from the whole
        total_N = wave_CN[0].clone()
        for channel_N in wave_CN[1:]:
            total_N += channel_N
        return (total_N / have).unsqueeze(0)
    if have == 1:
        return wave_CN.expand(channels, -1).clone()
    raise UserError(f"{have} channels cannot be mixed to {channels}; only to 1 or from 1")


def crop_start(length: int, samples: int, place: float) -> int:
    """Where a crop of ``samples`` begins in ``length``; ``place`` in [0, 1) chooses the start.

    0 where the crop is longer.
    """
    return int(place * (max(0, length - samples) + 1))


def crop(wave_CN: Tensor, samples: int, place: float) -> Tensor:
    """``samples`` samples from ``crop_start`` on; a shorter wave is followed by zeros."""
    start = crop_start(wave_CN.shape[-1], samples, place)
    part_CN = wave_CN[..., start : start + samples]
    return torch.nn.functional.pad(part_CN, (0, samples - part_CN.shape[-1]))


def read_crop(
    path: str | Path, sample_rate_hz: int, channels: int, samples: int, place: float
) -> Tensor:
    """Reads a crop; decodes and resamples only the part of the file that it depends on.

    The result equals ``crop(prepare(read_audio(path), ...), samples, place)`` bit for bit. An mp3
    is read completely, because its length may be an estimate.

    Args:
        path: the file.
        sample_rate_hz: rate of the crop.
        channels: channels of the crop; see ``mix_channels``.
        samples: length of the crop, at ``sample_rate_hz``.
        place: in [0, 1); see ``crop_start``.

    Returns:
        (channels, samples)

    Raises:
        UserError: as ``read_audio`` and ``prepare``; damage outside the part is not found.
    """
    with opened_audio(path) as audio:
        if not audio.has_exact_length:
            return crop(prepare(audio.read(), sample_rate_hz, channels), samples, place)
        facts = audio.facts
        length = resampled_length(facts.samples, facts.sample_rate_hz, sample_rate_hz)
        start = crop_start(length, samples, place)
        count = min(samples, length)
        span = source_span(start, count, facts.samples, facts.sample_rate_hz, sample_rate_hz)
        wave = audio.read(span.first, span.last - span.first)
    part_CN = prepare(wave, sample_rate_hz, channels)[:, span.skip :][:, :count]
    return torch.nn.functional.pad(part_CN, (0, samples - count))


def split_clips(
    clips: Sequence[Clip], val_share: float, seed: int
) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Splits into (training, validation), both in the order of ``clips``.

    ``val_share`` of the clips, rounded, go to validation, chosen by a hash of ``seed`` and name.
    """
    if not 0 <= val_share < 1:
        raise UserError(f"val_share must be in [0, 1), got {val_share}")
    ranked = sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}/{clip.name}".encode()).digest())
    held = {clip.name for clip in ranked[: round(val_share * len(clips))]}
    return tuple(c for c in clips if c.name not in held), tuple(c for c in clips if c.name in held)


class _Crops(Dataset):
    """Crops by (epoch, clip).

    The place of a crop depends on seed, epoch and name, so it is the same for every worker.
    """

    def __init__(self, clips: Sequence[Clip], module: AudioDataModule, is_random: bool) -> None:
        self.clips = clips
        self.is_random = is_random
        self.seed = module.seed
        self.rate_hz = module.sample_rate_hz
        self.channels = module.channels
        self.seconds = module.seconds

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Prompt, float | None]:
        epoch, index = key
        clip = self.clips[index]
        digest = hashlib.sha256(f"{self.seed}/{epoch}/{clip.name}".encode()).digest()
        place = int.from_bytes(digest[:6], "big") / 2**48 if self.is_random else 0.0
        samples = round(self.seconds * self.rate_hz)
        try:
            wave_CN = read_crop(clip.path, self.rate_hz, self.channels, samples, place)
        except (UserError, OSError) as error:
            raise UserError(
                f"{clip.path} cannot be read ({error}); data.check=full finds such files at the"
                " start"
            ) from error
        prompt = Prompt(clip.name, clip.caption, seconds=self.seconds, labels=clip.labels)
        return wave_CN, prompt, clip.weight

    def collate(self, rows: list[tuple[Tensor, Prompt, float | None]]) -> AudioBatch:
        weights = [weight for _, _, weight in rows]
        weight_B = None if None in weights else torch.tensor(weights)
        wave_BCN = torch.stack([wave for wave, _, _ in rows])
        return AudioBatch(wave_BCN, self.rate_hz, tuple(prompt for _, prompt, _ in rows), weight_B)


def prepare(wave: Waveform, sample_rate_hz: int, channels: int) -> Tensor:
    """Mixes and resamples to (channels, N) at ``sample_rate_hz``.

    Raises ``UserError`` for a wave without samples or with values that are not finite, and for
    channels that cannot be mixed.
    """
    samples_CN = wave.samples_CN
    if samples_CN.shape[-1] == 0:
        raise UserError("no samples")
    if not samples_CN.isfinite().all():
        raise UserError("samples that are not finite")
    return resampled(mix_channels(samples_CN, channels), wave.sample_rate_hz, sample_rate_hz)


class _EpochSampler(DistributedSampler):
    """Gives the crops the epoch, which Lightning sets on a DistributedSampler (``set_epoch``)."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class AudioDataModule(L.LightningDataModule):
    """Crops of your own recordings, in [-1, 1]; shorter recordings are followed by silence.

    Clips that cannot be read, hold no samples or have channels that cannot be mixed are set aside
    in ``quarantined`` (name -> reason) and counted in the log. A fit resumed at the end of an epoch
    continues exactly; one resumed within an epoch starts that epoch again.

    Args:
        folder: the recordings; see ``find_clips``.
        sample_rate_hz: rate of the batches.
        channels: channels of the batches; see ``mix_channels``.
        seconds: length of a crop, at most an hour.
        batch_size: crops per batch and process; an epoch leaves out the last, smaller batch.
        captions: table of captions; see ``find_clips``.
        caption: caption of every file where there is no table.
        val_share: share of the clips kept for validation.
        crop: ``random`` takes another place in every epoch (a function of ``seed``, epoch and
            file), ``first`` the beginning; validation always takes the beginning.
        check: ``header`` opens every file at the start, ``full`` decodes it, which finds damage
            inside.
        num_workers: processes that read files.
        seed: of the crops, the order and the split.

    Raises:
        UserError: for settings out of range; from ``setup`` also for no readable clip, and for
            fewer training clips than one batch needs.
    """

    EXPORTED = ("seconds",)  # settings for the card of an exported model
    batch_type = AudioBatch

    def __init__(
        self,
        folder: str,
        sample_rate_hz: int,
        channels: int,
        seconds: float,
        batch_size: int,
        captions: str | None = None,
        caption: str = "",
        val_share: float = 0.0,
        crop: Literal["random", "first"] = "random",
        check: Literal["header", "full"] = "header",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"sample_rate_hz": sample_rate_hz, "channels": channels, "batch_size": batch_size}
        for name, value in sizes.items():
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        check_clip_length("seconds", seconds, sample_rate_hz)
        for name, value, choices in (
            ("crop", crop, ("random", "first")),
            ("check", check, ("header", "full")),
        ):
            if value not in choices:
                raise UserError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        self.folder = folder
        self.captions = captions
        self.caption = caption
        self.val_share = val_share
        self.seed = seed
        self.sample_rate_hz = sample_rate_hz
        self.channels = channels
        self.seconds = seconds
        self.batch_size = batch_size
        self.crop = crop
        self.check = check
        self.num_workers = num_workers
        self.quarantined: dict[str, str] = {}
        self.train_clips: tuple[Clip, ...] = ()
        self.val_clips: tuple[Clip, ...] = ()

    def check_files(self) -> None:
        """Checks that the folder, the table and its clips exist. Raises as ``setup``."""
        self.setup("fit")

    def setup(self, stage: str | None = None) -> None:
        clips = find_clips(self.folder, self.captions, self.caption)
        problems = {clip.name: self._problem(clip) for clip in clips}
        self.quarantined = {name: problem for name, problem in problems.items() if problem}
        listed = "; ".join(
            f"{name}: {problem}" for name, problem in list(self.quarantined.items())[:5]
        )
        if len(self.quarantined) == len(clips):
            raise UserError(
                f"none of the {len(clips)} clips in {self.folder} can be used: {listed}"
            )
        if self.quarantined:
            log.warning(
                "%s: %d of %d clips set aside (%s)",
                self.folder,
                len(self.quarantined),
                len(clips),
                listed,
            )
        usable = [clip for clip in clips if clip.name not in self.quarantined]
        self.train_clips, self.val_clips = split_clips(usable, self.val_share, self.seed)
        needed = self.batch_size * self._world()
        if len(self.train_clips) < needed:
            raise UserError(
                f"{len(self.train_clips)} training clips do not fill one batch of {self.batch_size}"
                f" on {self._world()} process(es); lower batch_size or val_share, or add clips"
            )

    def _problem(self, clip: Clip) -> str:
        try:
            if self.check == "full":
                prepare(read_audio(clip.path), self.sample_rate_hz, self.channels)
                return ""
            facts = audio_facts(clip.path)
        except (UserError, OSError) as error:
            return str(error).split("\n")[0].removeprefix(f"{clip.path} ")
        if self.channels != 1 and facts.channels not in (1, self.channels):
            return f"{facts.channels} channels cannot be mixed to {self.channels}"
        return ""

    def _world(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_clips, is_training=True)

    def val_dataloader(self) -> DataLoader | list:
        return self._loader(self.val_clips, is_training=False) if self.val_clips else []

    def _loader(self, clips: Sequence[Clip], is_training: bool) -> DataLoader:
        crops = _Crops(clips, self, is_training and self.crop == "random")
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sampler = _EpochSampler(
            clips, self._world(), rank, shuffle=is_training, seed=self.seed, drop_last=is_training
        )
        return DataLoader(
            crops,
            self.batch_size,
            sampler=sampler,
            drop_last=is_training,
            num_workers=self.num_workers,
            collate_fn=crops.collate,
        )
