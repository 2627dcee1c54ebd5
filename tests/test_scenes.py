"""Streams of scenes, their splits and invalid settings; prompts of two sounds."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from toy_scenes import RATE_HZ, tone_bank

from datamodules.cache import LatentCache
from datamodules.sounds.scene_audio import compose
from datamodules.sounds.scene_prompts import scene_prompts
from datamodules.sounds.scenes import SceneDataModule
from zoo.instantiate import check, instantiate
from zoo.types import Prompt


def scenes(**changes) -> SceneDataModule:
    settings = {
        "bank": tone_bank(1.0),
        "batch_size": 4,
        "batches_per_epoch": 2,
        "clips": 8,
        "val_clips": 4,
    }
    return SceneDataModule(**(settings | changes))


def test_batches_are_a_pure_function_of_seed_and_epoch() -> None:
    first, again = list(scenes().train_dataloader()), list(scenes().train_dataloader())
    assert (
        len(first) == 2
        and first[0].wave_BCN.shape == (4, 2, 16384)
        and first[0].sample_rate_hz == RATE_HZ
    )
    assert all(
        torch.equal(a.wave_BCN, b.wave_BCN) and a.prompts == b.prompts
        for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0].wave_BCN, first[1].wave_BCN)
    assert next(iter(scenes(seed=1).train_dataloader())).prompts != first[0].prompts

    class Trainer:
        current_epoch, global_rank = 1, 0

    later = scenes()
    later.trainer = Trainer()
    assert next(iter(later.train_dataloader())).prompts != first[0].prompts


def test_truth_and_wrong_captions_are_in_the_labels() -> None:
    for prompt in (p for batch in scenes().train_dataloader() for p in batch.prompts):
        labels = prompt.labels
        count = len(prompt.labels["events"])
        assert [
            len(labels[key])
            for key in ("audioset", "onsets_s", "ends_s", "clips", "recording_split")
        ] == [count] * 5
        assert labels["audioset"] == [[name.title()] for name in labels["events"]]
        assert (labels["swapped"] is not None) == (labels["relation"] == "then")
        assert len(labels["negatives"]) == 1 and prompt.text not in labels["negatives"]
        assert labels["recording_split"] == [name != "train" for name in labels["events"]]


def test_each_split_uses_its_own_recordings() -> None:
    data = scenes(batches_per_epoch=8, val_clips=32)
    trained = {
        clip
        for batch in data.train_dataloader()
        for p in batch.prompts
        for clip in p.labels["clips"]
    }
    tested = {
        clip for batch in data.val_dataloader() for p in batch.prompts for clip in p.labels["clips"]
    }
    assert trained & tested == {"tones/train-both"}
    assert {clip.rsplit("-")[-1] for clip in trained} == {"train", "both"}
    assert {clip.rsplit("-")[-1] for clip in tested} == {"test", "both"}


def test_clip_sets_feed_the_latent_cache() -> None:
    class Halves:  # a codec that forgets every second sample
        def encode(self, wave_BCN: Tensor) -> Tensor:
            return wave_BCN[:, :, ::2]

    data = scenes()
    cache = LatentCache(data, Halves())
    cache.setup()
    batch = next(iter(cache.train_dataloader()))
    assert batch.latent_BCT.shape == (4, 2, 8192)
    seeds = [int(prompt.id.removeprefix("scene-")) for prompt in batch.prompts]
    wave_CN, scene = compose(data.bank, seeds[0])
    assert torch.allclose(batch.latent_BCT[0], wave_CN[:, ::2], atol=1e-3)
    assert batch.prompts[0].labels["events"] == [e.sound_class for e in scene.events]
    assert len({data.clip_sets()[0].prompt(0, random.Random(i)).text for i in range(20)}) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"relations": {"single": 0.5, "then": 0.4}},
            r"sum to 1, got single 0.5, then 0.4 \(sum 0.9\)",
        ),
        ({"relations": {"single": 1.5, "then": -0.5}}, "0 or more"),
        ({"relations": {"togehter": 1.0}}, "did you mean 'together'"),
        ({"relations": {}}, "sum 0"),
        ({"seconds": 1e9}, r"seconds 1e\+09: .*3600 s"),
        ({"three_share": 1.2}, "three_share 1.2"),
        ({"classes": ["dog", "bel"]}, "did you mean 'bell'"),
        (
            {"classes": ["dog", "bell"]},
            "3 sounds needs 3 classes, but only 2 .* split 'train'.*three_share: 0",
        ),
        ({"licences": ["MIT"]}, "no recorded sound is left"),
        ({"seconds": 1.2}, "1.2 s are too short for 3 sounds .* at least 1.5 s"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenes(**changes)


def test_two_classes_are_enough_without_scenes_of_three() -> None:
    batch = next(iter(scenes(classes=["dog", "bell"], three_share=0.0).train_dataloader()))
    assert {name for prompt in batch.prompts for name in prompt.labels["events"]} == {"dog", "bell"}
    with pytest.raises(ValueError, match="a scene 'single' has one sound, not 2"):
        compose(tone_bank(), 0, relation="single", sounds=2)


NAMES = ["dog", "bell", "train", "helicopter", "horse"]


def events_of(prompts: tuple[Prompt, ...]) -> set[tuple[str, str]]:
    return {tuple(sorted(prompt.labels["events"])) for prompt in prompts}


def test_prompts_of_two_sounds_in_every_relation_and_order() -> None:
    train, held = scene_prompts(NAMES, held_out_share=0.3, negative="noise", seconds=4.0, seed=1)
    assert len(train) == 7 * 3 and len(held) == 3 * 3 and len({p.id for p in train + held}) == 30
    assert not events_of(train) & events_of(held) and events_of(train) | events_of(held) == {
        (a, b) for a in NAMES for b in NAMES if a < b
    }
    assert {name for pair in events_of(train) for name in pair} == set(NAMES)
    assert {(p.negative, p.seconds) for p in train + held} == {("noise", 4.0)}
    assert scene_prompts(NAMES, held_out_share=0.3, negative="noise", seconds=4.0, seed=1) == (
        train,
        held,
    )
    assert scene_prompts(NAMES, held_out_share=0.3, seed=2) != scene_prompts(
        NAMES, held_out_share=0.3, seed=1
    )


def test_prompt_labels_say_what_the_text_asks_for() -> None:
    prompts, held = scene_prompts(["helicopter", "bell"], ["then"], held_out_share=0.0)
    assert not held and [p.labels["events"] for p in prompts] == [
        ["bell", "helicopter"],
        ["helicopter", "bell"],
    ]
    for prompt in prompts:
        first, second = prompt.labels["events"]
        assert (prompt.text.index(first) < prompt.text.index(second)) == (
            " after " not in prompt.text
        )
        assert prompt.labels["swapped"] not in (None, prompt.text)
        assert (
            "Helicopter" in prompt.labels["audioset"][prompt.labels["events"].index("helicopter")]
        )
    (together,), _ = scene_prompts(["helicopter", "bell"], ["together"], held_out_share=0.0)
    assert together.labels["swapped"] is None and together.labels["relation"] == "together"


def test_given_or_counted_pairs_and_sources() -> None:
    pairs = [["dog", "bell"], ["train", "bell"]]
    train, _ = scene_prompts(NAMES, ["together"], pairs=pairs, held_out_share=0)
    assert events_of(train) == {("bell", "dog"), ("bell", "train")}
    assert len(scene_prompts(NAMES, ["together"], count=4, held_out_share=0)[0]) == 4
    train, _ = scene_prompts(["bell", "train"], ["together"], held_out_share=0, sources=["opensfx"])
    assert {"railroad", "passing", "bell"} & set(train[0].text.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ["dog", "helicoptr"]},
            "no sound class 'helicoptr'; did you mean 'helicopter'",
        ),
        ({"classes": ["dog", "dog"]}, "invalid pair"),
        ({"classes": ["dog"]}, "no pairs of sounds to train on"),
        ({"relations": ["than"]}, "did you mean 'then'"),
        ({"relations": ["single"]}, "single. is unknown"),
        ({"relations": []}, "one relation"),
        ({"pairs": [["dog", "cat"]]}, "'cat' is not one of the classes"),
        ({"count": 11}, "there are 10 pairs of sounds; give 1 to 10"),
        ({"held_out_share": 1.0}, "0 <= share < 1"),
        ({"held_out_share": 0.9}, "held_out_share 0.9"),
        ({"sources": ["opensfk"]}, "did you mean 'opensfx'"),
        ({"sources": ["opensfx"]}, "no sound class 'dog' in the sources opensfx"),
    ],
)
def test_bad_prompt_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene_prompts(**({"classes": NAMES} | changes))


def test_rounds_of_scene_prompts_as_a_config_builds_them() -> None:
    prompts = {
        "_target_": "datamodules.sounds.scene_prompts.scene_prompts",
        "classes": NAMES,
        "relations": ["then"],
        "seed": 3,
    }
    node = {
        "_target_": "datamodules.prompts.PromptDataModule",
        "prompts": prompts,
        "prompts_per_round": 4,
        "repeats": 2,
    }
    check(node, "data")
    data = instantiate(node, "data")
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 8 and {p.labels["relation"] for p in batch.prompts} == {"then"}
    held = next(iter(data.val_dataloader())).prompts
    assert len(held) == 4 and not events_of(held) & events_of(data.train_prompts)
    for changes, message in (
        ({"template": "a {word}"}, "exactly one of template"),
        ({"seconds": 2.0}, "below data.prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            instantiate(node | changes, "data")
    with pytest.raises(ValueError, match="data.prompts.*did you mean 'train'"):
        instantiate(node | {"prompts": prompts | {"classes": ["dog", "trian"]}}, "data")
