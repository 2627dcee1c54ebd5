"""Recordings in memory: the clips of a sound bank, decoding, splits by recording, and a cache of
one file.

Shapes: ``N`` samples; waves are mono float32 at the bank's rate, never louder than 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from datamodules.sounds.licences import allows
from zoo.audio_files import decoded, resample
from zoo.errors import UserError, did_you_mean
from zoo.files import parsed_json, written_beside
from zoo.types import Waveform

SHORTEST_S = 0.05
SILENT = 1e-4  # a clip whose loudest sample is below this (-80 dBFS) holds no sound
TEST_SHARE = 0.25
SPLITS = ("train", "test")
CACHE_VERSION = 2


@dataclass(frozen=True)
class BankClip:
    """One recorded sound.

    ``id`` is stable (``opensfx/24``); ``audioset_labels`` are what a tagger may rightly answer.

    ``licence`` is an SPDX-like expression or ``unknown``; ``recording`` is shared by clips cut from
    one original (empty: the clip is one of its own); ``seconds`` is its length.
    ``recording_split``: its class has three recordings or more, so that ``split`` (``train`` or
    ``test``) keeps whole recordings apart. Otherwise ``split`` is ``both``: such a class can be
    tested on unseen scenes only, and results must say so.
    """

    id: str
    sound_class: str
    caption: str
    family: str
    audioset_labels: tuple[str, ...]
    licence: str
    credit: str
    split: str
    seconds: float
    recording_split: bool
    recording: str = ""


class SoundBank:
    """Clips and their waves (by clip id).

    ``quarantined``: what was left out (unreadable, too short, silent, a copy) and why.

    ``redraw_splits``: the splits were drawn by ``draw_splits``, not stated by somebody, and may be
    drawn again.
    """

    def __init__(
        self,
        clips: Sequence[BankClip],
        waves: Mapping[str, Tensor],
        sample_rate_hz: int,
        quarantined: Mapping[str, str] | None = None,
        redraw_splits: bool = False,
    ) -> None:
        self.clips = tuple(clips)
        self.quarantined = dict(quarantined or {})
        self.sample_rate_hz = sample_rate_hz
        self._waves = waves
        self._redraw_splits = redraw_splits

    def __len__(self) -> int:
        return len(self.clips)

    def wave(self, clip: BankClip) -> Tensor:
        """(N,) float32 mono at ``sample_rate_hz``, in [-1, 1]; a copy.

        Raises ``UserError`` for a clip of another bank.
        """
        if clip.id not in self._waves:
            raise UserError(
                f"this bank has no clip {clip.id!r};"
                f" {did_you_mean(clip.id, [c.id for c in self.clips], 4)}"
            )
        return self._waves[clip.id].clone()

    def classes(self) -> tuple[str, ...]:
        """Names of the classes that have clips, sorted."""
        return tuple(sorted({clip.sound_class for clip in self.clips}))

    def select(
        self,
        licences: Collection[str] | None = None,
        split: str | None = None,
        classes: Collection[str] | None = None,
        families: Collection[str] | None = None,
    ) -> SoundBank:
        """The clips that pass all filters.

        ``split="train"`` (or ``"test"``) keeps the clips of ``both`` too.

        Where the bank drew its splits itself, they are drawn anew over what ``licences`` leave
        (until a split, class or family has been chosen), so that ``recording_split`` is true of the
        bank at hand.

        Raises ``UserError`` for an unknown split, class or family, and when nothing is left.
        """
        if split is not None and split not in SPLITS:
            raise UserError(
                f"unknown split {split!r}; choose 'train' or 'test' (both hold the classes too"
                " small to split)"
            )
        for kind, wanted, there in (
            ("class", classes, "sound_class"),
            ("family", families, "family"),
        ):
            known = {getattr(clip, there) for clip in self.clips}
            if isinstance(wanted, str):
                raise UserError(f"expected a list of {kind} names, got the text {wanted!r}")
            if unknown := sorted(set(wanted or ()) - known):
                raise UserError(
                    f"this bank has no {kind} {unknown[0]!r}; {did_you_mean(unknown[0], known)}"
                )
        if isinstance(licences, str):
            raise UserError(
                f"licences is a list of licence ids, got the text {licences!r}; write [{licences}]"
            )
        clips = self.clips
        if licences is not None:
            clips = tuple(clip for clip in clips if allows(clip.licence, licences))
            clips = draw_splits(clips) if self._redraw_splits else clips
        clips = tuple(
            clip
            for clip in clips
            if (split is None or clip.split in (split, "both"))
            and (classes is None or clip.sound_class in classes)
            and (families is None or clip.family in families)
        )
        if not clips:
            filters = {
                "licences": licences,
                "split": split,
                "classes": classes,
                "families": families,
            }
            said = ", ".join(
                f"{k}={v if isinstance(v, str) else sorted(v)}"
                for k, v in filters.items()
                if v is not None
            )
            there = ", ".join(sorted({clip.licence for clip in self.clips})) or "none"
            raise UserError(
                f"no recorded sound is left with {said}; of {len(self.clips)} clips the licences"
                f" are: {there}"
            )
        redraw = self._redraw_splits and split is None and classes is None and families is None
        return SoundBank(clips, self._waves, self.sample_rate_hz, self.quarantined, redraw)


def draw_splits(clips: Sequence[BankClip]) -> tuple[BankClip, ...]:
    """Gives every clip its split.

    A class of three recordings or more is split by recording; smaller ones are ``both``.

    Recordings are ranked by the hash of their name and the first quarter (at least one) is for
    testing. The draw depends on which recordings are there and on nothing else: test a model on the
    selection (sources, licences) that it was trained on.
    """
    recordings: dict[str, set[str]] = {}
    for clip in clips:
        recordings.setdefault(clip.sound_class, set()).add(clip.recording or clip.id)
    tests: dict[str, set[str]] = {}
    for name, group in recordings.items():
        if len(group) >= 3:
            ranked = sorted(
                group, key=lambda recording: hashlib.sha256(recording.encode()).digest()
            )
            tests[name] = set(ranked[: max(1, round(TEST_SHARE * len(ranked)))])

    def split_of(clip: BankClip) -> BankClip:
        if clip.sound_class not in tests:
            return replace(clip, split="both", recording_split=False)
        side = "test" if (clip.recording or clip.id) in tests[clip.sound_class] else "train"
        return replace(clip, split=side, recording_split=True)

    return tuple(map(split_of, clips))


def decode(data: bytes, sample_rate_hz: int, name: str, first_with: dict[str, str]) -> Tensor:
    """Wave (N,) mono in [-1, 1] at ``sample_rate_hz``.

    ``first_with``: hash of the stored samples -> the first name that had them; ``name`` is entered.

    Raises ``UserError`` for bytes that are no audio, shorter than 0.05 s, silent or NaN, or a copy
    of another clip
    """
    wave = decoded(data)
    wave_CN, rate_hz = wave.samples_CN, wave.sample_rate_hz
    seconds = wave_CN.shape[1] / rate_hz
    if seconds < SHORTEST_S:
        raise UserError(f"lasts {seconds:.3f} s; the shortest allowed is {SHORTEST_S} s")
    samples = wave_CN.T.contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{rate_hz} {wave_CN.shape}".encode() + samples).hexdigest()
    mono_1N = wave_CN.mean(0, keepdim=True)
    if mono_1N.abs().max() < SILENT:
        raise UserError(f"is silent (no sample above {SILENT})")
    if digest in first_with:
        raise UserError(f"is a copy of {first_with[digest]}")
    first_with[digest] = name
    wave_N = resample(Waveform(mono_1N, rate_hz), sample_rate_hz).samples_CN[0]
    return wave_N / wave_N.abs().max().clamp(min=1.0)


@dataclass(frozen=True)
class Bundle:
    """Decoded clips before any filter: what the cache file holds."""

    clips: tuple[BankClip, ...]
    waves: Mapping[str, Tensor]
    quarantined: Mapping[str, str]


def cache_key(facts: Iterable[str]) -> str:
    """A file name's worth of hash over everything that a cached bank depends on."""
    text = "\n".join([f"version {CACHE_VERSION}", *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def read_cache(path: Path) -> Bundle:
    """Raises ``UserError`` for a damaged file, saying that it may be deleted."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = parsed_json(file.metadata()["bank"])
            flat_N = file.get_tensor("samples")
        clips = tuple(
            BankClip(**{**c, "audioset_labels": tuple(c["audioset_labels"])})
            for c in about["clips"]
        )
        parts = flat_N.split(about["lengths"])
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the cached sounds {path} are damaged ({error}); delete the file, it is made again"
        ) from error
    return Bundle(
        clips,
        {clip.id: part for clip, part in zip(clips, parts, strict=True)},
        about["quarantined"],
    )


def write_cache(path: Path, bundle: Bundle) -> None:
    """One safetensors file, written beside and moved. Raises ``OSError``."""
    from safetensors.torch import save_file

    waves = [bundle.waves[clip.id] for clip in bundle.clips]
    about = {
        "clips": [asdict(clip) for clip in bundle.clips],
        "lengths": [len(wave) for wave in waves],
        "quarantined": dict(bundle.quarantined),
    }
    with written_beside(path) as temporary:
        metadata = {"bank": json.dumps(about, allow_nan=False)}
        save_file({"samples": torch.cat(waves)}, str(temporary), metadata=metadata)
