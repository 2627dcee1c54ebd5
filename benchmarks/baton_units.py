"""The units of ``benchmarks/baton_sounds.py``: what makes each file, and from which others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.baton_chain import (
    BASE,
    EVALUATION_CLIPS,
    EVALUATION_SEED,
    SAMPLER,
    SCENE_SEED,
    SCENES,
    annotate,
    captions,
    clip_seeds,
    fitted,
    part_of_prompts,
    rater_labels,
    train_head,
    write_label_files,
    write_scenes,
)
from benchmarks.baton_figures import both_by_judges, measured
from benchmarks.evaluation import write_json
from benchmarks.units import Unit
from datamodules.preferences.dialects import read_labels
from lightning_modules.own_clips import make_clips
from zoo.audio_files import read_audio
from zoo.generations import read_samples
from zoo.rewards.guards import level_dbfs
from zoo.types import Prompt


@dataclass(frozen=True)
class Arm:
    """What a fine-tuning run learns from.

    - ``labels``: label files of the seed.
    - ``rewards``: how labels become weights (``RewardTransform``), as overrides.
    """

    title: str
    labels: tuple[str, ...] = ("hd", "rd")
    rewards: tuple[str, ...] = ("kind=raw",)
    steps: int = 150


CENTRED = ("kind=centred",)
ONE = ("kind=constant", "value=1")
NOTHING = ("kind=constant", "value=0")
ARMS = {
    "raw": Arm("BATON raw"),
    "centred": Arm("BATON centred", rewards=CENTRED),
    "unfiltered": Arm("unfiltered, r = 1", rewards=ONE),
    "real_only": Arm("real only, r = 0", rewards=NOTHING),
}
DIAGNOSIS = {
    "positives": Arm("positives of A, r = 1", ("positives",), ONE),
    "double": Arm("BATON raw, 300 steps", steps=300),
    "centred_double": Arm("BATON centred, 300 steps", rewards=CENTRED, steps=300),
    "real_double": Arm("real only, 300 steps", rewards=NOTHING, steps=300),
}
EVERY_ARM = ARMS | DIAGNOSIS
DRIFT_CLIPS = 96
TRAIN_CAPTIONS = 90  # of those that the rater labelled


@dataclass(frozen=True)
class Places:
    """Where things are: the sound packages, the judges' cache, and the results."""

    sounds: Path
    judges: Path
    out: Path

    def of_seed(self, seed: int) -> Path:
        return self.out / f"seed{seed}"

    def result(self, seed: int, arm: str, where: str = "held_out") -> Path:
        return self.out / where / f"seed{seed}_{arm}.json"

    def base(self, where: str = "held_out") -> Path:
        return self.out / where / "base.json"

    @property
    def scenes(self) -> Path:
        return self.out / "scenes" / "pd.jsonl"

    @property
    def filter(self) -> Path:
        return self.out / "filter.json"

    @property
    def codec(self) -> Path:
        return self.out / "codec.json"

    def head_scores(self, seed: int) -> Path:
        return self.out / "head_scores" / f"seed{seed}.json"


@cache
def _judges(places: Places, names: str) -> Mapping[str, Any]:
    from benchmarks.sound_probes import load_judges

    return load_judges(places.sounds, places.judges, names)


def evaluation_prompts(where: str) -> tuple[Prompt, ...]:
    """The captions of an evaluation: "held_out", or "trained" ones that the rater labelled."""
    found = captions()
    return found.held_out if where == "held_out" else found.parts["head"][:TRAIN_CAPTIONS]


def evaluate(places: Places, model: str | Path, where: str, file: Path) -> None:
    """Makes the evaluation clips of a model, measures them and writes the record."""
    import zoo

    folder = file.with_suffix("")
    seeds = [EVALUATION_SEED + index for index in range(EVALUATION_CLIPS)]
    make_clips(folder, zoo.load(model), evaluation_prompts(where), seeds, SAMPLER)
    record = measured(folder, _judges(places, "ABC"), zoo.load("embedded/clap"))
    write_json(file, record.to_json())


def make_scenes(places: Places) -> None:
    """Real scenes of the train recordings, composed as the base model's training data were."""
    from benchmarks.sound_features import Draw, scene_bank, scenes

    bank = scene_bank(places.sounds, places.judges)
    write_scenes(places.scenes.parent, scenes(bank, Draw("train", SCENE_SEED, SCENES)))


def make_data(places: Places, seed: int) -> None:
    """Clips of the base model for all training captions, and the rater's labels of them."""
    import zoo

    found = captions()
    folder = places.of_seed(seed)
    clips = make_clips(folder / "clips", zoo.load(BASE), found.train, clip_seeds(seed), SAMPLER)
    labels = rater_labels(clips, _judges(places, "A")["A"])
    write_label_files(folder, clips, labels, found)


def score_base(places: Places, seed: int) -> None:
    """What the head of a seed says of the base model's evaluation clips."""
    import zoo

    samples = read_samples(places.base().with_suffix(""))
    head = zoo.load(places.of_seed(seed) / "head" / "model")
    waves = [read_audio(sample.path) for sample in samples]
    scores = zoo.score(head, waves, [sample.prompt for sample in samples]).score_B
    write_json(places.head_scores(seed), {"scores": scores.tolist()})


def codec_drift(places: Places, seed: int) -> None:
    """What another pass through the codec does to the base model's clips, which training encodes.

    ``level_db``: mean change; ``latents``: root mean square change over the deviation of latents.
    """
    import zoo

    backbone = zoo.load(BASE)
    clips = read_samples(places.of_seed(seed) / "clips")[:DRIFT_CLIPS]
    changes, errors, spreads = [], [], []
    for start in range(0, len(clips), 16):
        rows = clips[start : start + 16]
        wave_BCN = torch.stack([read_audio(row.path).samples_CN for row in rows])
        with torch.no_grad():
            latents = backbone.encode(wave_BCN)
            again_BCN = backbone.decode(latents)[..., : wave_BCN.shape[-1]]
            moved = backbone.encode(again_BCN) - latents
        changes.append(level_dbfs(again_BCN) - level_dbfs(wave_BCN))
        errors.append(moved.square().mean())
        spreads.append(latents.var(correction=0))
    ratio = (torch.stack(errors).mean() / torch.stack(spreads).mean()).sqrt()
    found = {"level_db": float(torch.cat(changes).mean()), "latents": float(ratio)}
    write_json(places.codec, found | {"clips": len(clips)})


def filter_gain(places: Places, seed: int) -> None:
    """What the weights of BATON ask for: the judges' gain of clips that are drawn by their weight.

    Of every third training caption: HD by the rater's label, RD by the head's score. It is what
    perfect imitation of the weighted clips would give on the captions of training.
    """
    folder = places.of_seed(seed)
    found = captions()
    kept = {prompt.id for prompt in found.train[::3]}
    samples = [one for one in read_samples(folder / "clips") if one.prompt.id in kept]
    weight_of = {}
    for name in ("hd", "rd"):
        for one in read_labels(folder / f"{name}.jsonl").checked():
            weight_of[one.audio] = one.score if one.label is None else one.label
    judges = {name: judge for name, judge in _judges(places, "ABC").items() if name != "A"}
    parts = part_of_prompts(found)
    rows = []
    for start in range(0, len(samples), 16):
        batch = samples[start : start + 16]
        heard = both_by_judges(batch, judges)
        for place, sample in enumerate(batch):
            rows.append(
                {
                    "caption": sample.prompt.id,
                    "part": "RD" if parts[sample.prompt.id] == "scored" else "HD",
                    "weight": weight_of[sample.path.name],
                    **{name: column[place] for name, column in heard.items()},
                }
            )
    write_json(places.filter, {"clips": rows})


def tune(places: Places, seed: int, name: str) -> None:
    """Fine-tunes an arm of a seed and evaluates it on the held-out captions."""
    arm = EVERY_ARM[name]
    out_dir = places.of_seed(seed) / name
    fitted("quickstart.yaml", arm_overrides(arm, places, seed, out_dir))
    evaluate(places, out_dir / "model", "held_out", places.result(seed, name))


def arm_overrides(arm: Arm, places: Places, seed: int, out_dir: Path) -> list[str]:
    """What an arm changes in the quickstart: its data, and the settings of the protocol."""
    folder = places.of_seed(seed)
    files = [str(folder / f"{name}.jsonl") for name in arm.labels]
    labelled = {
        "_target_": "datamodules.preferences.rated.LabelFiles",
        "files": files,
        "audio_root": str(folder / "clips"),
    }
    pretrain = {
        "_target_": "datamodules.preferences.recorded.CaptionedFiles",
        "files": str(places.scenes),
        "audio_root": str(places.scenes.parent),
        "sample_rate_hz": 16_000,
        "channels": 2,
        "seconds": 4.096,
    }
    return [
        f"data.labelled={json.dumps(labelled, allow_nan=False)}",
        f"data.pretrain={json.dumps(pretrain, allow_nan=False)}",
        *(f"data.rewards.{setting}" for setting in arm.rewards),
        f"data.cache_dir={places.out / 'latents'}",
        f"trainer.max_steps={arm.steps}",
        "trainer.callbacks=[]",
        f"seed={seed}",
        f"out_dir={out_dir}",
        "resume=true",
    ]


def preparation(places: Places, seeds: Sequence[int]) -> list[Unit]:
    """Evaluation of the base model; data, head, scores and headroom of every seed."""
    base = places.base()
    units = [
        Unit(base, evaluate, (places, BASE, "held_out", base)),
        Unit(places.scenes, make_scenes, (places,)),
    ]
    for seed in seeds:
        folder = places.of_seed(seed)
        labels = folder / "hd.jsonl"
        head = folder / "head" / "model" / "config.json"
        units += [
            Unit(labels, make_data, (places, seed)),
            Unit(head, train_head, (folder, seed), (labels,)),
            Unit(places.head_scores(seed), score_base, (places, seed), (head, base)),
            Unit(folder / "rd.jsonl", annotate, (folder,), (head,)),
        ]
    labels = places.of_seed(seeds[0]) / "hd.jsonl"
    scored = places.of_seed(seeds[0]) / "rd.jsonl"
    return [
        *units,
        Unit(places.codec, codec_drift, (places, seeds[0]), (labels,)),
        Unit(places.filter, filter_gain, (places, seeds[0]), (labels, scored)),
    ]


def training(
    places: Places, seeds: Sequence[int], arms: Sequence[str], on_trained: bool
) -> list[Unit]:
    """Every arm of a seed before the next seed, so that what is there can be compared."""
    units = []
    if on_trained:
        base = places.base("trained")
        units.append(Unit(base, evaluate, (places, BASE, "trained", base)))
    for seed in seeds:
        for name in arms:
            done = places.result(seed, name)
            units.append(Unit(done, tune, (places, seed, name)))
            if on_trained:
                model = places.of_seed(seed) / name / "model"
                again = places.result(seed, name, "trained")
                work = (places, model, "trained", again)
                units.append(Unit(again, evaluate, work, (done,)))
    return units
