"""Composes one to three recorded sounds into a stereo scene with its truth.

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
RMS = 0.08  # level of a scene; lower where its peaks would exceed _PEAK
_PEAK = 0.95
_FADE_S = 0.01  # raised cosine at both ends of an event
_FRAME_S = 0.01  # loudness is measured in frames of this length
_SILENCE_DB = -40.0  # frames this far below the loudest one are cut off at the ends
_QUIET_DB = -30.0  # frames this far below the loudest one do not count in the level of an event
_PAN = 0.5  # events are panned at most half way to one side, at equal power
_SHORTEST_S = 0.5  # the least time that an event needs
_GAP_S = 0.1  # silence between events that follow each other


def _frames(wave: Tensor, frame: int) -> Tensor:
    """RMS of each frame; the last one may be partial."""
    wave = torch.nn.functional.pad(wave, (0, -len(wave) % frame))
    return wave.reshape(-1, frame).square().mean(dim=1).sqrt()


def _trim(wave: Tensor, frame: int) -> Tensor:
    """Cuts the silence at both ends, except for one frame each for the fades."""
    levels = _frames(wave, frame)
    loud = (levels > levels.max() * 10 ** (_SILENCE_DB / 20)).nonzero().flatten()
    return wave[max(0, int(loud[0]) - 1) * frame : (int(loud[-1]) + 2) * frame]


def cut_event(
    wave: Tensor, shortest: int, longest: int, sample_rate_hz: int, rng: random.Random
) -> Tensor:
    """Cuts one event from a recording, with RMS 1 over its active part.

    Longer recordings are cropped at the loudest of three random active places; shorter ones are
    repeated after small gaps until they last ``shortest`` samples.

    Args:
        wave: (N,), the recording.
        shortest: samples to fill by repeating.
        longest: the largest number of samples.
        sample_rate_hz: of the wave.
        rng: draws crops and gaps.

    Raises:
        UserError: for silence.
    """
    if not len(wave) or not wave.abs().max() > 0:
        raise UserError("the recording is silent; remove it from the bank")
    frame = round(_FRAME_S * sample_rate_hz)
    piece = _trim(wave, frame)
    if len(piece) > longest:
        levels = _frames(piece, frame)
        active = (levels > levels.max() * 10 ** (_QUIET_DB / 20)).nonzero().flatten().tolist()
        crops = []
        for _ in range(3):  # each contains an active frame
            start = rng.choice(active) * frame - rng.randrange(longest - frame)
            start = min(max(0, start), len(piece) - longest)
            crops.append(piece[start : start + longest])
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
        room = samples - (count - 1) * gap
        pieces = [torch.empty(0)] * count
        shortest_first = sorted(range(count), key=lambda i: len(waves[i]))
        for rank, place in enumerate(shortest_first):  # longer recordings get the remaining time
            longest = int(room / (count - rank))
            pieces[place] = cut_event(
                waves[place], int(rng.uniform(0.1, 0.6) * longest), longest, rate, rng
            )
            room -= len(pieces[place])
        # the remaining time is silence before, between and after the events
        cuts = sorted(rng.randrange(room + 1) for _ in range(count))
        starts = [cut + sum(len(piece) + gap for piece in pieces[:i]) for i, cut in enumerate(cuts)]
        return list(zip(starts, pieces, strict=True))
    if relation == "overlap":
        slot = 2 * samples // (count + 1)  # each event begins at the middle of the one before
        pieces = [cut_event(wave, int(0.75 * slot), slot, rate, rng) for wave in waves]
        starts = [sum(len(piece) // 2 for piece in pieces[:i]) for i in range(count)]
        end = max(start + len(piece) for start, piece in zip(starts, pieces, strict=True))
        first = rng.randrange(samples - end + 1)
        return [(first + start, piece) for start, piece in zip(starts, pieces, strict=True)]
    if relation == "single":
        span = samples
        shortest = rng.uniform(0.1, 0.5)
    else:
        span = round(rng.uniform(0.6, 0.95) * samples)
        shortest = 0.6
    pieces = [cut_event(wave, int(shortest * span), span, rate, rng) for wave in waves]
    first = rng.randrange(samples - max(map(len, pieces)) + 1)
    # together: all begin within a tenth of a second
    late = round(0.1 * rate) if relation == "together" else 0
    return [(min(first + rng.randrange(late + 1), samples - len(piece)), piece) for piece in pieces]


def by_class(clips: Sequence[BankClip], split: str) -> dict[str, tuple[BankClip, ...]]:
    """Class -> recordings of a split ("train", "test") or of both, in alphabetical order."""
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
    """Composes the scene ``seed``: a pure function of its arguments.

    Classes are drawn evenly and all differ; then recordings are drawn. Every event has about the
    same RMS over its active part (+-3 dB) and a place in the stereo field. The scene has RMS 0.08,
    or less where peaks would exceed 0.95.

    Args:
        bank: the recordings.
        seed: of the scene.
        seconds: length of the scene.
        relation: a key of ``captions.TEMPLATES``; None: drawn by ``relations``.
        sounds: 1 to 3; None: drawn by ``three_share``.
        relations: relation -> its share of scenes.
        three_share: share of scenes with three sounds among those with more than one.
        split: "train" or "test", for the recordings.
        noise_db: level of white noise relative to the scene (such as -50); None: no noise.
        max_caption_bytes: longer captions fall back to the names of the classes.

    Returns:
        The wave (2, N), float32 at the bank's rate, and the truth of the scene.

    Raises:
        UserError: for too few classes, too few seconds, and unknown relations.
    """
    rng = random.Random(f"scene/{seed}")
    if relation is None:
        relation = rng.choices(list(relations), list(relations.values()))[0]
    check_relations([relation])
    if sounds is None:
        if relation == "single":
            sounds = 1
        else:
            sounds = 3 if rng.random() < three_share else 2
    clips = by_class(bank.clips, split)
    check_room(relation, sounds, len(clips), seconds, split)
    rate = bank.sample_rate_hz
    samples = round(seconds * rate)
    chosen = [rng.choice(clips[name]) for name in rng.sample(list(clips), sounds)]
    placed = _layout(relation, [bank.wave(clip) for clip in chosen], samples, rate, rng)
    wave_CN = torch.zeros(2, samples)
    events = []
    for clip, (start, piece) in zip(chosen, placed, strict=True):
        angle = math.pi / 4 * (1 + rng.uniform(-_PAN, _PAN))
        level = 10 ** (rng.uniform(-3, 3) / 20)
        gains = torch.tensor([[math.cos(angle)], [math.sin(angle)]]) * math.sqrt(2) * level
        wave_CN[:, start : start + len(piece)] += gains * piece
        events.append(
            SceneEvent(
                sound_class=clip.sound_class,
                clip_id=clip.id,
                phrase=clip.caption,
                audioset_labels=clip.audioset_labels,
                start_s=start / rate,
                end_s=(start + len(piece)) / rate,
                recording_split=clip.recording_split,
            )
        )
    events.sort(key=lambda event: event.start_s)
    wave_CN *= min(RMS / float(wave_CN.square().mean().sqrt()), _PEAK / float(wave_CN.abs().max()))
    if noise_db is not None:
        noise = torch.randn(wave_CN.shape, generator=torch.Generator().manual_seed(seed))
        wave_CN = (wave_CN + noise * RMS * 10 ** (noise_db / 20)).clamp(-1, 1)
    return wave_CN, worded(relation, events, seed, rng, max_caption_bytes)


def check_room(relation: str, sounds: int, classes: int, seconds: float, split: str) -> None:
    """Raises ``UserError`` where a scene cannot be composed.

    Args:
        relation: of the sounds.
        sounds: how many the scene has.
        classes: how many have recordings in the split.
        seconds: length of the scene.
        split: for the message.
    """
    if relation == "single" and sounds != 1:
        raise UserError(f"a scene {relation!r} has one sound, not {sounds}")
    if relation != "single" and sounds not in (2, 3):
        raise UserError(f"a scene {relation!r} has two or three sounds, not {sounds}")
    if classes < sounds:
        raise UserError(
            f"a scene of {sounds} sounds needs {sounds} classes, but only {classes} have recordings"
            f" in the split {split!r}; add classes or licences, or use fewer sounds"
            " (three_share: 0 leaves out scenes of three)"
        )
    if seconds < sounds * _SHORTEST_S:
        raise UserError(
            f"{seconds} s are too short for {sounds} sounds ({relation}); use at least"
            f" {sounds * _SHORTEST_S} s, or fewer sounds"
        )
