"""Recordings in memory: the clips of a sound bank, decoding, splits by recording, and a cache.

Shapes: ``N`` samples. Waves are mono float32 at the bank's rate, in [-1, 1].
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
SILENT = 1e-4  # a clip with a peak below this (-80 dBFS) is silent
TEST_SHARE = 0.25
SPLITS = ("train", "test")
CACHE_VERSION = 2


@dataclass(frozen=True)
class BankClip:
    """One recorded sound.

    - ``id``: stable (``opensfx/24``).
    - ``audioset_labels``: AudioSet classes that count as right.
    - ``licence``: an SPDX-like expression or ``unknown``.
    - ``split``: ``train``, ``test`` or ``both``.
    - ``seconds``: its length.
    - ``recording_split``: True if the class has three or more recordings, so that ``split`` keeps
      whole recordings apart. Otherwise ``split`` is ``both``, the class can be tested only on
      unseen scenes, and results must say so.
    - ``recording``: the same for clips cut from one original; empty for a clip on its own.
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
    """Clips and their waves.

    Args:
        clips: the clips.
        waves: clip id -> wave.
        sample_rate_hz: of the waves.
        quarantined: clip id -> why it was left out (unreadable, too short, silent, a copy).
        redraw_splits: the splits come from ``draw_splits``, not from the data, and may be redrawn.
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
        """A copy of the wave (N,): float32 mono at ``sample_rate_hz``, in [-1, 1].

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
        """A bank with the clips that pass all filters.

        ``split="train"`` (or ``"test"``) also keeps the clips of ``both``. Splits that the bank
        drew itself are redrawn over the clips that ``licences`` leave (until a split, class or
        family has been chosen), so that ``recording_split`` is right for the new bank.

        Raises ``UserError`` for an unknown split, class or family, and when nothing is left.
        """
        if split is not None and split not in SPLITS:
            raise UserError(
                f"split {split!r} is unknown: expected 'train' or 'test' (both contain the classes"
                " too small to split)"
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
            given = ", ".join(
                f"{name}={value if isinstance(value, str) else sorted(value)}"
                for name, value in filters.items()
                if value is not None
            )
            there = ", ".join(sorted({clip.licence for clip in self.clips})) or "none"
            raise UserError(
                f"no recorded sound is left with {given}; of {len(self.clips)} clips the licences"
                f" are: {there}"
            )
        redraw = self._redraw_splits and split is None and classes is None and families is None
        return SoundBank(clips, self._waves, self.sample_rate_hz, self.quarantined, redraw)


def draw_splits(clips: Sequence[BankClip]) -> tuple[BankClip, ...]:
    """Assigns every clip to a split.

    A class with three or more recordings is split by recording; smaller ones are ``both``.
    Recordings are ranked by the hash of their name, and the first quarter (at least one) is for
    testing. Trap: the split depends on which recordings there are, so test a model on the selection
    (sources, licences) that it was trained on.
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
    """Decodes a wave (N,), mono in [-1, 1] at ``sample_rate_hz``.

    ``first_with`` maps the hash of the stored samples to the first name with them; this adds
    ``name``. Raises ``UserError`` for bytes that are not audio, shorter than 0.05 s, silent or NaN,
    or a copy of another clip.
    """
    wave = decoded(data)
    wave_CN = wave.samples_CN
    rate_hz = wave.sample_rate_hz
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
    """Decoded clips before any filter: the content of the cache file."""

    clips: tuple[BankClip, ...]
    waves: Mapping[str, Tensor]
    quarantined: Mapping[str, str]


def cache_key(facts: Iterable[str]) -> str:
    """A short hash of everything that a cached bank depends on, for its file name."""
    text = "\n".join([f"version {CACHE_VERSION}", *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def read_cache(path: Path) -> Bundle:
    """Reads a cached bank. Raises ``UserError`` for a damaged file, which may be deleted."""
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
        waves = {clip.id: part for clip, part in zip(clips, parts, strict=True)}
        quarantined = {str(name): str(why) for name, why in dict(about["quarantined"]).items()}
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the cached sounds {path} are damaged ({error}); delete the file to rebuild it"
        ) from error
    return Bundle(clips, waves, quarantined)


def write_cache(path: Path, bundle: Bundle) -> None:
    """Writes a bank as one safetensors file, never half-written. Raises ``OSError``."""
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
