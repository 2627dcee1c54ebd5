"""Features of real scenes for the judges of sounds (``sound_probes.py``).

Scenes are heard clean and after the codec of the model. Features are kept in files under a hash of
what they come from. Shape suffixes: ``B`` clips, ``P`` patches, ``D`` features, ``C`` channels,
``N`` samples.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.evaluation import Clips, codec_round_trip
from benchmarks.sound_networks import RMS, Listen
from benchmarks.sound_scores import CLASSES
from datamodules.sounds.bank import SoundBank, load_bank
from datamodules.sounds.captions import scene_labels
from datamodules.sounds.scene_audio import compose
from zoo.errors import UserError
from zoo.files import sha256_of, written_beside
from zoo.types import Prompt

ROOT = Path(__file__).resolve().parents[1]
VERSION = 1  # raise it when features change in a way that the hash does not see
MODEL = "embedded/sounds"  # whose codec and whose scenes
CHUNK = 20  # clips that are composed and heard at a time
LOG_CHUNKS = 25  # a line in a log after so many, where there is no terminal


@dataclass(frozen=True)
class Draw:
    """Scenes of a split of the recordings: seeds ``first_seed`` to ``first_seed + count - 1``."""

    split: str
    first_seed: int
    count: int


@dataclass(frozen=True)
class Heard:
    """Features of scenes, clean and after the codec; the prompts' labels hold the truth.

    ``seconds_per_clip``: what hearing one clip took.
    """

    real_BPD: Tensor
    codec_BPD: Tensor
    prompts: tuple[Prompt, ...]
    seconds_per_clip: float


def scene_settings() -> dict:
    """The classes, licences and shares of scenes on which the model was trained.

    Raises ``UserError`` when its classes are not ``CLASSES``.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.load(ROOT / "configs" / "embedded" / "sounds.yaml")
    source = OmegaConf.to_container(config.data.source, resolve=False)
    if tuple(source["classes"]) != CLASSES:
        raise UserError("configs/embedded/sounds.yaml has other classes than the judges' CLASSES")
    return {
        "licences": source["bank"]["licences"],
        "classes": source["classes"],
        "relations": source["relations"],
        "three_share": source["three_share"],
        "seconds": source["seconds"],
    }


def scene_bank(sounds: Path, cache: Path) -> SoundBank:
    """The recordings of the model's scenes, from packages below ``sounds``."""
    settings = scene_settings()
    bank = load_bank(sounds, cache_dir=cache, licences=settings["licences"])
    return bank.select(classes=settings["classes"])


def scenes(bank: SoundBank, draw: Draw) -> Iterator[Clips]:
    """Scenes in chunks, with their truth as the labels of prompts."""
    settings = scene_settings()
    end = draw.first_seed + draw.count
    for start in range(draw.first_seed, end, CHUNK):
        composed = [
            compose(
                bank,
                seed,
                settings["seconds"],
                relations=settings["relations"],
                three_share=settings["three_share"],
                split=draw.split,
            )
            for seed in range(start, min(start + CHUNK, end))
        ]
        prompts = tuple(
            Prompt(
                f"scene-{scene.seed}",
                scene.caption,
                seconds=settings["seconds"],
                labels=scene_labels(scene),
            )
            for _, scene in composed
        )
        yield Clips(torch.stack([wave for wave, _ in composed]), bank.sample_rate_hz, prompts)


@torch.no_grad()
def heard_scenes(listen: Listen, bank: SoundBank, draw: Draw, what: str) -> Heard:
    """Composes scenes, sends them through the model's codec and hears both, with a progress bar."""
    from rich.progress import track

    import zoo

    backbone = zoo.load(MODEL)
    real, codec, prompts = [], [], []
    spent_s = 0.0
    chunks = track(
        scenes(bank, draw), f"{what} hears scenes", -(-draw.count // CHUNK), transient=True
    )
    for number, clips in enumerate(chunks):
        if number % LOG_CHUNKS == 0 and not sys.stdout.isatty():
            print(f"{what}: heard {len(prompts)} of {draw.count} scenes", flush=True)
        after = codec_round_trip(backbone, clips)
        start = time.perf_counter()
        real.append(listen(clips.wave_BCN, clips.sample_rate_hz))
        codec.append(listen(after.wave_BCN, after.sample_rate_hz))
        spent_s += time.perf_counter() - start
        prompts += clips.prompts
    return Heard(torch.cat(real), torch.cat(codec), tuple(prompts), spent_s / (2 * draw.count))


def content_key(bank: SoundBank, weights: str, fit: Draw, test: Draw) -> str:
    """A hash of all that features of a network with these weights come from."""
    digest = hashlib.sha256()
    facts = {
        "version": VERSION,
        "weights": weights,
        "codec": sha256_of(ROOT / "zoo" / "embedded" / "sounds" / "model.safetensors"),
        "scenes": scene_settings(),
        "seeds": [fit.first_seed, fit.count, test.first_seed, test.count],
        "rms": RMS,
        "clips": [[clip.id, clip.sound_class, clip.split] for clip in bank.clips],
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for clip in bank.clips:
        digest.update(bank.wave(clip).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file of the cache. Raises ``UserError`` for one that is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and start again") from error


def kept(path: Path, make: Callable[[], Heard]) -> Heard:
    """Features from a file, or made and written there."""
    if not path.is_file():
        heard = make()
        prompts = [
            {"id": own.id, "text": own.text, "seconds": own.seconds, "labels": dict(own.labels)}
            for own in heard.prompts
        ]
        facts = {"prompts": prompts, "seconds_per_clip": heard.seconds_per_clip}
        with written_beside(path) as beside:
            save_file(
                {"real": heard.real_BPD, "codec": heard.codec_BPD},
                str(beside),
                {"facts": json.dumps(facts, allow_nan=False)},
            )
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    prompts = tuple(Prompt(**record) for record in facts["prompts"])
    return Heard(tensors["real"], tensors["codec"], prompts, facts["seconds_per_clip"])
