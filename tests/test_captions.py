"""Scenes of sounds: truth against the audio, captions, wrong captions, determinism."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor
from toy_scenes import CLASSES, RATE_HZ, TEST_SHIFT_HZ, tone, tone_bank

from datamodules.sounds.captions import (
    MAX_CAPTION_BYTES,
    RELATIONS,
    TEMPLATES,
    Scene,
    SceneEvent,
    class_words,
    recaption,
    replace_class,
    swap_order,
)
from datamodules.sounds.scene_audio import compose, cut_event


def heard(wave_CN: Tensor, frequency_hz: float, start_s: float, end_s: float) -> float:
    """RMS of one pitch between two times."""
    part = wave_CN[:, round(start_s * RATE_HZ) : round(end_s * RATE_HZ)].double()
    if part.shape[-1] == 0:
        return 0.0
    time = torch.arange(part.shape[-1]) / RATE_HZ
    wave = torch.exp(-2j * math.pi * frequency_hz * time)
    return float((part * wave).mean(dim=-1).abs().square().sum().sqrt())


def pitch_of(event: SceneEvent) -> int:
    return CLASSES[event.sound_class] + TEST_SHIFT_HZ * event.clip_id.endswith("-test")


def overlap_s(first: SceneEvent, second: SceneEvent) -> float:
    return min(first.end_s, second.end_s) - max(first.start_s, second.start_s)


@pytest.mark.parametrize("clip_seconds", [0.3, 1.1, 6.0])
@pytest.mark.parametrize(
    ("relation", "sounds"),
    [("single", 1), ("together", 2), ("overlap", 3), ("then", 2), ("then", 3)],
)
def test_the_truth_matches_the_audio(relation: str, sounds: int, clip_seconds: float) -> None:
    bank = tone_bank(clip_seconds)
    for seed in range(6):
        wave_CN, scene = compose(bank, seed, relation=relation, sounds=sounds)
        assert wave_CN.shape == (2, round(4.096 * RATE_HZ)) and len(scene.events) == sounds
        assert len({event.sound_class for event in scene.events}) == sounds
        for event in scene.events:
            inside = heard(
                wave_CN,
                pitch_of(event),
                event.start_s + 0.02,
                min(event.end_s, event.start_s + 0.27),
            )
            before = heard(wave_CN, pitch_of(event), max(0, event.start_s - 0.25), event.start_s)
            after = heard(wave_CN, pitch_of(event), event.end_s, min(4.096, event.end_s + 0.25))
            assert inside > 0.02 and before < 0.25 * inside and after < 0.25 * inside, (seed, event)


@pytest.mark.parametrize("clip_seconds", [0.05, 0.3, 1.1, 6.0])
@pytest.mark.parametrize("sounds", [2, 3])
def test_relations_hold_in_time(sounds: int, clip_seconds: float) -> None:
    bank = tone_bank(clip_seconds)
    for seed in range(12):
        for relation in ("together", "overlap", "then"):
            _, scene = compose(bank, seed, relation=relation, sounds=sounds)
            onsets = [event.start_s for event in scene.events]
            assert (
                onsets == sorted(onsets)
                and onsets[0] >= 0
                and max(event.end_s for event in scene.events) <= 4.096 + 1e-6
            )
            for first, second in zip(scene.events, scene.events[1:], strict=False):
                late = second.start_s - first.start_s
                both = overlap_s(first, second)
                if relation == "then":
                    assert both <= -0.09, "silence between sounds that follow each other"
                elif relation == "overlap":
                    assert late >= 0.35 and both >= 0.3
                else:
                    assert late <= 0.1 and both >= 0.8


def test_long_sounds_in_a_row_leave_room_for_each_other() -> None:
    _, scene = compose(tone_bank(), 0, relation="then", sounds=3)
    assert all(event.end_s - event.start_s > 1.2 for event in scene.events)
    mixed = tone_bank(6.0)
    mixed._waves["tones/dog-train"] = tone(250, 0.2)
    for seed in range(20):
        _, scene = compose(mixed, seed, relation="then", sounds=2)
        lengths = {event.sound_class: event.end_s - event.start_s for event in scene.events}
        if "dog" in lengths:
            (other,) = lengths.keys() - {"dog"}
            assert lengths["dog"] + lengths[other] > 3.9


def test_levels_are_even_and_peaks_stay_below_full_scale() -> None:
    bank = tone_bank()
    bank._waves["tones/dog-train"] *= 0.001  # a recording far too quiet
    for seed in range(12):
        wave_CN, scene = compose(bank, seed, relation="together", sounds=2)
        assert math.isclose(float(wave_CN.square().mean().sqrt()), 0.08, rel_tol=1e-3)
        levels = [
            heard(wave_CN, pitch_of(event), event.start_s + 0.02, event.end_s - 0.02)
            for event in scene.events
        ]
        assert 20 * abs(math.log10(levels[0] / levels[1])) < 7
    click = tone_bank(0.06)
    for seed in range(12):
        wave_CN, _ = compose(click, seed, relation="single")
        assert 0.3 < float(wave_CN.abs().max()) <= 0.951


def test_cuts_are_faded_and_silence_at_the_ends_does_not_count() -> None:
    wave = torch.cat([torch.zeros(RATE_HZ), tone(500, 2.0), torch.zeros(RATE_HZ)])
    event = cut_event(wave, 0, 4 * RATE_HZ, RATE_HZ, random.Random(0))
    assert 2.0 <= len(event) / RATE_HZ <= 2.03
    cropped = cut_event(wave, 0, RATE_HZ // 2, RATE_HZ, random.Random(0))
    assert (
        len(cropped) <= RATE_HZ // 2
        and float(cropped[:4].abs().max()) < 0.05
        and float(cropped[-4:].abs().max()) < 0.05
    )
    assert math.isclose(float(cropped[100:-100].square().mean().sqrt()), 1, rel_tol=0.05)
    with pytest.raises(ValueError, match="silent"):
        cut_event(torch.zeros(100), 0, 50, RATE_HZ, random.Random(0))


def test_a_crop_of_a_recording_that_is_mostly_silent_holds_its_sound() -> None:
    wave = torch.cat([tone(500, 0.1), torch.zeros(20 * RATE_HZ), tone(500, 0.1)])
    for seed in range(20):
        event = cut_event(wave, 0, RATE_HZ // 2, RATE_HZ, random.Random(seed))
        assert len(event) > 0.05 * RATE_HZ and math.isclose(
            float(event[60:-60].square().mean().sqrt()), 1, rel_tol=0.2
        )


def test_sounds_have_places_in_the_stereo_field() -> None:
    sides = [
        compose(tone_bank(), seed, relation="single")[0].square().sum(dim=1) for seed in range(20)
    ]
    balance_db = [10 * math.log10(float(side[0] / side[1])) for side in sides]
    assert min(balance_db) < -2 and max(balance_db) > 2 and max(map(abs, balance_db)) < 8


def test_a_noise_floor_lies_below_the_scene() -> None:
    clean, scene = compose(tone_bank(0.3), 3, relation="single")
    noisy, same = compose(tone_bank(0.3), 3, relation="single", noise_db=-40)
    assert same == scene
    assert math.isclose(float((noisy - clean).square().mean().sqrt()), 0.08 * 0.01, rel_tol=0.1)


def test_a_scene_is_a_pure_function_of_its_seed() -> None:
    torch.manual_seed(1)
    first, scene = compose(tone_bank(), 5)
    torch.manual_seed(2)
    again, same = compose(tone_bank(), 5)
    other, different = compose(tone_bank(), 6)
    assert torch.equal(first, again) and scene == same
    assert different != scene and not torch.equal(first, other)


def test_shares_of_relations_are_kept() -> None:
    bank = tone_bank(0.3)
    scenes = [
        compose(bank, seed, relations={"single": 0.5, "then": 0.5}, three_share=0.5)[1]
        for seed in range(200)
    ]
    assert 75 < sum(scene.relation == "single" for scene in scenes) < 125
    assert {scene.relation for scene in scenes} == {"single", "then"}
    assert 30 < sum(len(scene.events) == 3 for scene in scenes) < 70


def event(name: str, start_s: float = 0.0) -> SceneEvent:
    return SceneEvent(
        name, f"tones/{name}", f"a {class_words(name)} sounding", (), start_s, start_s + 1
    )


def test_captions_name_the_events_in_the_order_that_they_claim() -> None:
    scene = Scene(
        "then",
        (event("dog"), event("bell", 1.5)),
        0,
        "{0} followed by {1}",
        ("a dog sounding", "bell"),
    )
    assert (
        scene.caption == "a dog sounding followed by bell"
        and swap_order(scene) == "bell followed by a dog sounding"
    )
    wordings = {recaption(scene, random.Random(i)).caption for i in range(200)}
    assert len(wordings) > 30
    for text in wordings:
        dog_first = text.index("dog") < text.index("bell")
        assert dog_first == (" after " not in text), text


def test_the_order_in_the_caption_is_free_for_simultaneous_sounds() -> None:
    scene = compose(tone_bank(), 0, relation="together", sounds=2)[1]
    first, second = (class_words(e.sound_class) for e in scene.events)
    captions = [recaption(scene, random.Random(i)).caption for i in range(200)]
    assert 60 < sum(text.index(first) < text.index(second) for text in captions) < 140


@pytest.mark.parametrize("sounds", [2, 3])
def test_swapped_captions_differ_in_order_only(sounds: int) -> None:
    for seed in range(20):
        scene = compose(tone_bank(), seed, relation="then", sounds=sounds)[1]
        swapped = swap_order(scene)
        words, before = (sorted(text.replace(",", "").split()) for text in (swapped, scene.caption))
        assert swapped != scene.caption and words == before
    assert all(
        swap_order(compose(tone_bank(), seed, relation=name)[1]) is None
        for seed in range(3)
        for name in RELATIONS[:3]
    )


def test_a_replaced_class_is_not_in_the_scene() -> None:
    phrases = {name: [f"a {class_words(name)} sounding"] for name in CLASSES}
    for seed in range(20):
        scene = compose(tone_bank(), seed, relation="then", sounds=2)[1]
        text = replace_class(scene, phrases, random.Random(seed))
        there = {class_words(e.sound_class) for e in scene.events}
        assert sum(word in text for word in there) == 1
        assert (
            sum(class_words(name) in text for name in CLASSES if class_words(name) not in there)
            == 1
        )
    assert (
        replace_class(scene, {e.sound_class: [e.phrase] for e in scene.events}, random.Random(0))
        is None
    )


def test_every_template_has_one_field_per_event() -> None:
    for relation, counts in TEMPLATES.items():
        for count, templates in counts.items():
            for template in templates:
                fields = [template.count(f"{{{i}}}") for i in range(count)]
                assert fields == [1] * count and template.count("{") == count, (relation, template)


def test_captions_that_are_too_long_fall_back_to_class_names() -> None:
    events = tuple(
        SceneEvent(name, name, "a very long description " * 4, (), i, i + 1)
        for i, name in enumerate(CLASSES)
    )[:3]
    scene = recaption(Scene("then", events, 0, "", ()), random.Random(0))
    assert len(scene.caption.encode()) <= MAX_CAPTION_BYTES and scene.words == (
        "dog",
        "bell",
        "siren",
    )
    with pytest.raises(ValueError, match="max_caption_bytes.*12"):
        recaption(scene, random.Random(0), 12)


def test_captions_fit_the_embedded_text_encoder() -> None:
    """The longest caption of unknown words fits 64 tokens; connecting words have own tokens."""
    from zoo.conditioners.text import WORDS, tokenize

    assert (
        len(tokenize("x" * MAX_CAPTION_BYTES)) <= 64
        and len(tokenize("z " * (MAX_CAPTION_BYTES // 2) + "z")) <= 64
    )
    connectors = {
        word
        for counts in TEMPLATES.values()
        for ts in counts.values()
        for t in ts
        for word in t.split()
    }
    words = {word.strip(",") for word in connectors if "{" not in word}
    assert words and words <= set(WORDS)


def test_class_names_of_the_permissive_sounds_are_words_of_the_vocabulary() -> None:
    """Classes of the sources that trained the shipped weights have one token each."""
    from datamodules.sounds.bank import load_rules
    from zoo.conditioners.text import WORDS

    classes = {rule.sound_class for rule in load_rules() if rule.source in ("sonic-pi", "opensfx")}
    missing = {word for name in classes for word in class_words(name).split()} - set(WORDS)
    assert len(classes) > 40 and not missing
