"""One to three recorded sounds composed in time to a stereo scene, with its truth.

Shapes: ``C`` channels, ``N`` samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datamodules.sounds.bank import BankClip, SoundBank
from datamodules.sounds.captions import (
    MAX_CAPTION_BYTES,
    Scene,
    SceneEvent,
    check_relations,
    worded,
)
from zoo.errors import UserError

SHARES = {"single": 0.35, "together": 0.2, "overlap": 0.15, "then": 0.3}
RMS = 0.08  # level of a scene, lower only where its peaks would pass _PEAK
_PEAK = 0.95
_FADE_S = 0.01  # raised cosine at both ends of an event
_FRAME_S = 0.01  # loudness is looked at in frames of this length
_SILENCE_DB, _QUIET_DB = (
    -40.0,
    -30.0,
)  # below the loudest frame: cut off at the ends; not counted in an event's level
_PAN = 0.5  # events are panned at most half way to one side, at equal power
_SHORTEST_S = 0.5  # what an event of a scene needs at the least
_GAP_S = 0.1  # silence between events that follow each other


def _frames(wave: Tensor, frame: int) -> Tensor:
    """RMS of each whole or begun frame."""
    wave = torch.nn.functional.pad(wave, (0, -len(wave) % frame))
    return wave.reshape(-1, frame).square().mean(dim=1).sqrt()


def _trim(wave: Tensor, frame: int) -> Tensor:
    """Without the silence at both ends, but for one frame, which the fades take."""
    levels = _frames(wave, frame)
    loud = (levels > levels.max() * 10 ** (_SILENCE_DB / 20)).nonzero().flatten()
    return wave[max(0, int(loud[0]) - 1) * frame : (int(loud[-1]) + 2) * frame]


def cut_event(
    wave: Tensor, shortest: int, longest: int, sample_rate_hz: int, rng: random.Random
) -> Tensor:
    """One event of at most ``longest`` samples from a recording (N,), at RMS 1 over its active
    part.

    Longer recordings are cropped where they sound (the loudest of three random places); shorter
    ones are repeated after small gaps until they last ``shortest`` samples. Raises ``UserError``
    for silence.
    """
    if not len(wave) or not wave.abs().max() > 0:
        raise UserError("the recording is silent; remove it from the bank")
    frame = round(_FRAME_S * sample_rate_hz)
    piece = _trim(wave, frame)
    if len(piece) > longest:
        levels = _frames(piece, frame)
        active = (levels > levels.max() * 10 ** (_QUIET_DB / 20)).nonzero().flatten().tolist()
        starts = [
            rng.choice(active) * frame - rng.randrange(longest - frame) for _ in range(3)
        ]  # each holds an active frame
        crops = [
            piece[start : start + longest]
            for start in (min(max(0, s), len(piece) - longest) for s in starts)
        ]
        piece = _trim(max(crops, key=lambda crop: float(crop.square().sum())), frame)
    levels = _frames(piece, frame)
    active = levels[levels > levels.max() * 10 ** (_QUIET_DB / 20)]
    piece = piece / active.square().mean().sqrt()
    fade = min(round(_FADE_S * sample_rate_hz), len(piece) // 2)
    ramp = 0.5 - 0.5 * torch.cos(torch.arange(fade) * math.pi / max(fade, 1))
    piece = torch.cat(
        [
            piece[:fade] * ramp,
            piece[fade : len(piece) - fade],
            piece[len(piece) - fade :] * ramp.flip(0),
        ]
    )
    whole = piece
    while len(whole) < shortest:
        gap = round(rng.uniform(0.05, 0.3) * sample_rate_hz)
        if len(whole) + gap + len(piece) > longest:
            break
        whole = torch.cat([whole, whole.new_zeros(gap), piece])
    return whole


def _layout(
    relation: str, waves: Sequence[Tensor], samples: int, rate: int, rng: random.Random
) -> list[tuple[int, Tensor]]:
    """(first sample, event at RMS 1) of each recording, so that ``relation`` holds."""
    count = len(waves)
    if relation == "then":
        gap = round(_GAP_S * rate)
        room, pieces = samples - (count - 1) * gap, [torch.empty(0)] * count
        for rank, place in enumerate(
            sorted(range(count), key=lambda i: len(waves[i]))
        ):  # the long ones take what is left
            longest = int(room / (count - rank))
            pieces[place] = cut_event(
                waves[place], int(rng.uniform(0.1, 0.6) * longest), longest, rate, rng
            )
            room -= len(pieces[place])
        cuts = sorted(
            rng.randrange(room + 1) for _ in range(count)
        )  # the rest is silence before, between and behind
        starts = [cut + sum(len(piece) + gap for piece in pieces[:i]) for i, cut in enumerate(cuts)]
        return list(zip(starts, pieces, strict=True))
    if relation == "overlap":
        slot = 2 * samples // (count + 1)  # each begins when half of the one before has passed
        pieces = [cut_event(wave, int(0.75 * slot), slot, rate, rng) for wave in waves]
        starts = [sum(len(piece) // 2 for piece in pieces[:i]) for i in range(count)]
        first = rng.randrange(
            samples
            - max(start + len(piece) for start, piece in zip(starts, pieces, strict=True))
            + 1
        )
        return [(first + start, piece) for start, piece in zip(starts, pieces, strict=True)]
    span = samples if relation == "single" else round(rng.uniform(0.6, 0.95) * samples)
    shortest = rng.uniform(0.1, 0.5) if relation == "single" else 0.6
    pieces = [cut_event(wave, int(shortest * span), span, rate, rng) for wave in waves]
    first = rng.randrange(samples - max(map(len, pieces)) + 1)
    late = (
        round(0.1 * rate) if relation == "together" else 0
    )  # together: all begin within a tenth of a second
    return [(min(first + rng.randrange(late + 1), samples - len(piece)), piece) for piece in pieces]


def by_class(clips: Sequence[BankClip], split: str) -> dict[str, tuple[BankClip, ...]]:
    """Recordings of a split ("train", "test"), those of both splits among them, by class in
    alphabetical order.
    """
    found: dict[str, tuple[BankClip, ...]] = {}
    for clip in sorted(clips, key=lambda clip: (clip.sound_class, clip.id)):
        if clip.split in (split, "both"):
            found[clip.sound_class] = (*found.get(clip.sound_class, ()), clip)
    return found


def compose(
    bank: SoundBank,
    seed: int,
    seconds: float = 4.096,
    relation: str | None = None,
    sounds: int | None = None,
    relations: Mapping[str, float] = SHARES,
    three_share: float = 0.2,
    split: str = "train",
    noise_db: float | None = None,
    max_caption_bytes: int = MAX_CAPTION_BYTES,
) -> tuple[Tensor, Scene]:
    """Scene ``seed``:

    ``wave_CN`` (2, N) float32 at the bank's rate and its truth; a pure function of the arguments.

    ``relation`` and ``sounds`` (1 to 3) are drawn by the shares ``relations`` and ``three_share``
    (of scenes that have more than one sound) unless they are given. Classes are drawn evenly, all
    different, then recordings of ``split``. Every event has about the same RMS over its active part
    (+-3 dB) and a place in the stereo field; the scene has RMS 0.08, less where peaks would pass
    0.95. ``noise_db``: level of white noise below the scene's, None for none.

    Raises ``UserError`` for too few classes, too few seconds, and unknown relations.
    """
    rng = random.Random(f"scene/{seed}")
    if relation is None:
        relation = rng.choices(list(relations), list(relations.values()))[0]
    check_relations([relation])
    if sounds is None:
        sounds = 1 if relation == "single" else 3 if rng.random() < three_share else 2
    clips = by_class(bank.clips, split)
    check_room(relation, sounds, len(clips), seconds, split)
    rate, samples = bank.sample_rate_hz, round(seconds * bank.sample_rate_hz)
    chosen = [rng.choice(clips[name]) for name in rng.sample(list(clips), sounds)]
    wave_CN, events = torch.zeros(2, samples), []
    for clip, (start, piece) in zip(
        chosen, _layout(relation, [bank.wave(c) for c in chosen], samples, rate, rng), strict=True
    ):
        angle = math.pi / 4 * (1 + rng.uniform(-_PAN, _PAN))
        gains = (
            torch.tensor([[math.cos(angle)], [math.sin(angle)]])
            * math.sqrt(2)
            * 10 ** (rng.uniform(-3, 3) / 20)
        )
        wave_CN[:, start : start + len(piece)] += gains * piece
        times = (start / rate, (start + len(piece)) / rate)
        about = (clip.sound_class, clip.id, clip.caption, clip.audioset_labels)
        events.append(SceneEvent(*about, *times, clip.recording_split))
    events.sort(key=lambda event: event.start_s)
    wave_CN *= min(RMS / float(wave_CN.square().mean().sqrt()), _PEAK / float(wave_CN.abs().max()))
    if noise_db is not None:
        noise = torch.randn(wave_CN.shape, generator=torch.Generator().manual_seed(seed))
        wave_CN = (wave_CN + noise * RMS * 10 ** (noise_db / 20)).clamp(-1, 1)
    return wave_CN, worded(relation, events, seed, rng, max_caption_bytes)


def check_room(relation: str, sounds: int, classes: int, seconds: float, split: str) -> None:
    """Raises ``UserError`` where a scene cannot be composed."""
    if not (sounds == 1 if relation == "single" else sounds in (2, 3)):
        wanted = "one sound" if relation == "single" else "two or three sounds"
        raise UserError(f"a scene {relation!r} has {wanted}, not {sounds}")
    if classes < sounds:
        raise UserError(
            f"a scene of {sounds} sounds needs as many classes, but only {classes} have recordings"
            f" in the split {split!r}; add classes or licences, or lower the number of sounds"
            " (three_share: 0 leaves out scenes of three)"
        )
    if seconds < sounds * _SHORTEST_S:
        raise UserError(
            f"{seconds} s are too short for {sounds} sounds ({relation}); give at least"
            f" {sounds * _SHORTEST_S} s, or fewer sounds"
        )
