"""Rendered solo-instrument music in four moods, with captions: data of the embedded models."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import torch

from datamodules.batches import AudioBatch, check_clip_length
from datamodules.music.render import _RENDER_RATE_HZ, PROGRAMS, RENDERERS, find_font
from datamodules.music.score import MOODS, WORDS, compose
from zoo.audio_files.resampling import resampled
from zoo.errors import UserError
from zoo.language import ARTICLE, with_articles
from zoo.types import Prompt

TEMPLATE = "A recording of {article} {word} {instrument} solo, high quality"
TEMPLATES = (
    *(TEMPLATE, TEMPLATE, TEMPLATE),
    "{article} {word} {instrument} solo",
    "{word} {instrument} music",
    "solo {instrument}, {word}",
)
NEGATIVE = "Low quality, multiple sound sources"
_VAL_SEED = 10_000_000  # seeds of validation clips start here
RMS = 0.06  # level of every clip, so that loudness does not reveal the mood


@dataclass(frozen=True)
class Clip:
    """Mood, instrument and seed of a rendered clip; ``flawed`` means two pieces under noise."""

    mood: str
    instrument: str
    seed: int
    flawed: bool = False


def held_out_pairs(instruments: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(word, instrument) pairs that training captions never use.

    They are three words of each mood, with the instruments in turn.
    """
    pairs = []
    for offset, mood in enumerate(MOODS):
        for index, word in enumerate(WORDS[mood][1:]):
            pairs.append((word, instruments[(index + offset) % len(instruments)]))
    return tuple(pairs)


def render_clip(
    clip: Clip, seconds: float, sample_rate_hz: int, renderer: str = "soundfont"
) -> np.ndarray:
    """Renders (2, round(seconds * sample_rate_hz)) int16 at a fixed RMS level; clips peaks."""
    notes = compose(clip.mood, clip.seed, seconds)
    wave = torch.from_numpy(RENDERERS[renderer](notes, clip.instrument, seconds).copy())
    wave = resampled(wave, _RENDER_RATE_HZ, sample_rate_hz)[:, : round(seconds * sample_rate_hz)]
    wave = _level(wave)
    if clip.flawed:
        rng = random.Random(f"flaw/{clip.seed}")
        other = Clip(rng.choice(MOODS), rng.choice(list(PROGRAMS)), clip.seed + 1)
        second = torch.from_numpy(render_clip(other, seconds, sample_rate_hz, renderer))
        second = second.float() / 32768
        generator = torch.Generator().manual_seed(clip.seed)
        noise = torch.randn(wave.shape, generator=generator) * RMS * rng.uniform(0.05, 0.4)
        wave = _level(wave + second + noise)
    return (wave.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()


def _level(wave: torch.Tensor) -> torch.Tensor:
    return wave * (RMS / wave.square().mean().sqrt().clamp(min=1e-6))


def _render_many(job: tuple[list[Clip], float, int, str]) -> np.ndarray:
    clips, seconds, rate, renderer = job
    torch.set_num_threads(1)
    return np.stack([render_clip(clip, seconds, rate, renderer) for clip in clips])


def clip_list(
    count: int, instruments: Sequence[str], first_seed: int, flawed_share: float
) -> list[Clip]:
    """``count`` clips, moods and instruments in turn; every ``1 / flawed_share``-th is flawed."""
    every = round(1 / flawed_share) if flawed_share else count + 1
    cells = [(mood, instrument) for instrument in instruments for mood in MOODS]
    return [
        Clip(*cells[i % len(cells)], seed=first_seed + i, flawed=(i % every == every - 1))
        for i in range(count)
    ]


def render_set(
    clips: Sequence[Clip],
    seconds: float,
    sample_rate_hz: int,
    renderer: str,
    workers: int,
    cache_dir: str | None,
) -> np.ndarray:
    """Renders all clips, or reads them from the cache.

    Args:
        clips: what to render.
        seconds: length of a clip.
        sample_rate_hz: of the result.
        renderer: a key of ``RENDERERS``.
        workers: processes that render.
        cache_dir: keeps the clips in a file, which is memory-mapped the next time; None: no cache.

    Returns:
        (n, 2, N) int16.
    """
    parts = [list(clips[i : i + 32]) for i in range(0, len(clips), 32)]
    jobs = [(part, seconds, sample_rate_hz, renderer) for part in parts]
    key = hashlib.sha256(
        json.dumps([[asdict(c) for c in clips], seconds, sample_rate_hz, renderer]).encode()
    ).hexdigest()[:16]
    file = Path(cache_dir) / f"music-{key}.npy" if cache_dir else None
    if file is not None and file.is_file():
        return np.load(file, mmap_mode="r")
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            waves = np.concatenate(list(pool.map(_render_many, jobs)))
    else:
        waves = np.concatenate([_render_many(job) for job in jobs])
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.part.npy")
        np.save(beside, waves)
        os.replace(beside, file)
    return waves


def caption(clip: Clip, rng: random.Random, held_out: Sequence[tuple[str, str]] = ()) -> str:
    """A caption of a clip, without words that are held out with its instrument."""
    if clip.flawed:
        return NEGATIVE
    words = [word for word in WORDS[clip.mood] if (word, clip.instrument) not in held_out]
    template = rng.choice(TEMPLATES)
    return with_articles(
        template.format(word=rng.choice(words), instrument=clip.instrument, article=ARTICLE)
    )


class MusicSet:
    """Rendered clips, with a new caption at each call (``datamodules.cache.ClipSet``)."""

    def __init__(
        self,
        waves: np.ndarray,
        clips: Sequence[Clip],
        seconds: float,
        held_out: Sequence[tuple[str, str]],
    ) -> None:
        self.waves = waves
        self.clips = clips
        self.seconds = seconds
        self.held_out = held_out

    def __len__(self) -> int:
        return len(self.clips)

    def wave(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.waves[index].astype(np.float32) / 32768)

    def prompt(self, index: int, rng: random.Random) -> Prompt:
        clip = self.clips[index]
        labels = {
            "mood": clip.mood,
            "instrument": clip.instrument,
            "events": [f"{clip.mood} {clip.instrument}"],
            "relation": "single",
        }
        if clip.flawed:
            labels["events"] = ["two pieces under noise"]
        return Prompt(
            f"clip-{clip.seed}",
            caption(clip, rng, self.held_out),
            seconds=self.seconds,
            labels=labels,
        )


class _Batches:
    """Batches as a pure function of (seed, epoch, batch number, rank).

    Its length keeps the trainer from reading ahead into the next epoch: a resumed run would
    otherwise begin with the old epoch's batches.
    """

    def __init__(self, module: MusicDataModule, clips: MusicSet, train: bool) -> None:
        self.module = module
        self.clips = clips
        self.train = train

    def __len__(self) -> int:
        if self.train:
            return self.module.batches_per_epoch
        return max(1, len(self.clips) // self.module.batch_size)

    def __iter__(self) -> Iterator[AudioBatch]:
        m = self.module
        epoch = 0 if m.trainer is None else m.trainer.current_epoch
        rank = 0 if m.trainer is None else m.trainer.global_rank
        samples = round((m.crop_seconds or m.seconds) * m.sample_rate_hz)
        size = min(m.batch_size, len(self.clips))
        for number in range(len(self)):
            if self.train:
                rng = random.Random(f"{m.seed}/{epoch}/{number}/{rank}")
                rows = rng.sample(range(len(self.clips)), size)
            else:
                rng = random.Random(f"val/{number}")
                rows = range(number * size, (number + 1) * size)
            waves = []
            for row in rows:
                wave = self.clips.wave(row)
                start = rng.randrange(wave.shape[-1] - samples + 1)
                waves.append(wave[:, start : start + samples])
            prompts = tuple(
                replace(self.clips.prompt(row, rng), seconds=samples / m.sample_rate_hz)
                for row in rows
            )
            yield AudioBatch(torch.stack(waves), m.sample_rate_hz, prompts)


class MusicDataModule(L.LightningDataModule):
    """Rendered music as ``AudioBatch``.

    Args:
        clips: how many training clips to render (0.5 MB each at 4 s).
        val_clips: how many validation clips to render; their seeds differ from those of training.
        seconds: length of a clip.
        crop_seconds: length of the random crops in a batch (None: whole clips).
        sample_rate_hz: of the clips.
        instruments: keys of ``PROGRAMS``.
        flawed_share: share of clips that are two pieces under noise, captioned with ``NEGATIVE``.
        batch_size: clips per batch.
        batches_per_epoch: training batches per epoch.
        renderer: a key of ``RENDERERS``.
        workers: processes that render.
        cache_dir: keeps rendered clips between runs.
        hold_out: leaves the word-instrument pairs of ``held_out_pairs`` out of the captions.
        seed: of the batches.

    Raises:
        UserError: for an unknown renderer or instrument, and crops longer than the clips.
    """

    EXPORTED = ("instruments", "seconds")  # settings for the card of an exported model
    batch_type = AudioBatch

    def __init__(
        self,
        clips: int = 4096,
        val_clips: int = 96,
        seconds: float = 4.096,
        crop_seconds: float | None = None,
        sample_rate_hz: int = 16_000,
        instruments: Sequence[str] = ("piano", "guitar", "harp"),
        flawed_share: float = 0.0,
        batch_size: int = 32,
        batches_per_epoch: int = 100,
        renderer: str = "soundfont",
        workers: int = 2,
        cache_dir: str | None = None,
        hold_out: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if renderer not in RENDERERS:
            raise UserError(
                f"renderer {renderer!r} is unknown: expected one of {', '.join(RENDERERS)}"
            )
        unknown = [name for name in instruments if name not in PROGRAMS]
        if unknown:
            raise UserError(
                f"instruments {unknown} are unknown: expected some of {', '.join(PROGRAMS)}"
            )
        check_clip_length("seconds", seconds, sample_rate_hz)
        if crop_seconds is not None:
            check_clip_length("crop_seconds", crop_seconds, sample_rate_hz)
        if crop_seconds is not None and crop_seconds > seconds:
            raise UserError(f"crop_seconds {crop_seconds} is longer than the clips ({seconds} s)")
        self.clips = clips
        self.val_clips = val_clips
        self.seconds = seconds
        self.crop_seconds = crop_seconds
        self.sample_rate_hz = sample_rate_hz
        self.instruments = tuple(instruments)
        self.flawed_share = flawed_share
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.renderer = renderer
        self.workers = workers
        self.cache_dir = cache_dir
        self.seed = seed
        self.held_out = held_out_pairs(self.instruments) if hold_out else ()
        self._sets: list[MusicSet] = []

    def check_files(self) -> None:
        """Checks that there is a SoundFont where one is played. Raises ``FileNotFoundError``."""
        if self.renderer == "soundfont":
            find_font()

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        for count, first_seed, flawed in (
            (self.clips, 0, self.flawed_share),
            (self.val_clips, _VAL_SEED, 0.0),
        ):
            clips = clip_list(count, self.instruments, first_seed, flawed)
            waves = render_set(
                clips,
                self.seconds,
                self.sample_rate_hz,
                self.renderer,
                self.workers,
                self.cache_dir,
            )
            self._sets.append(MusicSet(waves, clips, self.seconds, self.held_out))

    def clip_sets(self) -> tuple[MusicSet, MusicSet]:
        """Training and validation clips."""
        self.setup()
        return self._sets[0], self._sets[1]

    def train_dataloader(self) -> _Batches:
        return _Batches(self, self._sets[0], train=True)

    def val_dataloader(self) -> _Batches:
        return _Batches(self, self._sets[1], train=False)
