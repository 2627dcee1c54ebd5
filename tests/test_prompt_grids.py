"""Lists of emotions and instruments by name, and the article before a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.prompt_grids import EMOTIONS, INSTRUMENTS, emotion_words, instrument_names
from datamodules.prompt_sources import template_prompts
from datamodules.prompts import PromptDataModule
from zoo.configuration import read_configuration
from zoo.language import article_of
from zoo.rewards.mood import MOODS, class_indices


@pytest.mark.parametrize(
    ("name", "counts"),
    [("emotions_4", (1, 1, 1, 1)), ("emotions_16", (4,) * 4), ("emotions_59", (14, 15, 15, 15))],
)
def test_emotions_have_the_sizes_of_the_paper_and_no_word_twice(
    name: str, counts: tuple[int, ...]
) -> None:
    words = EMOTIONS[name]
    assert tuple(words) == MOODS and tuple(map(len, words.values())) == counts
    every = [word for chosen in words.values() for word in chosen]
    assert len(set(every)) == len(every) == int(name.partition("_")[2])
    assert all(chosen[0] == mood for mood, chosen in words.items())


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_instruments_have_the_sizes_of_the_paper_and_the_piano(name: str) -> None:
    assert len(set(INSTRUMENTS[name])) == len(INSTRUMENTS[name]) == int(name.partition("_")[2])
    assert "piano" in INSTRUMENTS[name]


def test_longer_lists_hold_the_shorter_ones() -> None:
    for shorter, longer in (("emotions_4", "emotions_16"), ("emotions_16", "emotions_59")):
        assert all(set(EMOTIONS[shorter][mood]) < set(EMOTIONS[longer][mood]) for mood in MOODS)
    sets = [set(INSTRUMENTS[f"instruments_{count}"]) for count in (1, 2, 3, 10, 30)]
    assert all(small < large for small, large in zip(sets, sets[1:]))


def test_a_name_gives_a_copy_and_a_literal_stays() -> None:
    emotion_words("emotions_4")["happy"].append("x")
    instrument_names("instruments_1").append("x")
    assert EMOTIONS["emotions_4"]["happy"] == ["happy"] and INSTRUMENTS["instruments_1"] == [
        "piano"
    ]
    assert emotion_words({"sad": ["blue"]}) == {"sad": ["blue"]} and instrument_names(["lute"]) == [
        "lute"
    ]


def test_the_article_fits_every_word_of_the_lists() -> None:
    every = [word for chosen in EMOTIONS["emotions_59"].values() for word in chosen]
    assert {word for word in every if article_of(word) == "an"} == {
        "upbeat",
        "excited",
        "energetic",
        "angry",
        "aggressive",
        "intense",
        "agitated",
        "anxious",
    }
    texts = [
        p.text
        for p in template_prompts(
            "A recording of {article} {word} {instrument}", emotion_words("emotions_4"), ["harp"]
        )
    ]
    assert texts[:2] == ["A recording of a happy harp", "A recording of an angry harp"]


def test_the_largest_grid_asks_for_its_class_in_every_prompt() -> None:
    data = PromptDataModule(
        "A recording of {article} {word} {instrument} solo", "emotions_59", "instruments_30"
    )
    assert len(data.train_prompts) == 59 * 30
    asked = class_indices(data.train_prompts, "mood", MOODS)
    assert asked.bincount().tolist() == [14 * 30, 15 * 30, 15 * 30, 15 * 30]
    assert all(
        prompt.labels["word"] in prompt.text and prompt.labels["instrument"] in prompt.text
        for prompt in data.train_prompts
    )


@pytest.mark.parametrize(
    ("word", "article"),
    [
        ("aggressive", "an"),
        ("hour", "an"),
        ("European", "a"),
        ("ukulele", "a"),
        ("unhappy", "an"),
        ("unique", "a"),
        ("one-man", "a"),
        ("only", "an"),
        ("harp", "a"),
        ("", "a"),
    ],
)
def test_the_article_follows_the_sound(word: str, article: str) -> None:
    assert article_of(word) == article


def test_the_article_fits_the_next_word() -> None:
    prompts = template_prompts(
        "{word}: {article} {instrument}", {"sad": ["sad", "angry"]}, ["harp", "organ", "ukulele"]
    )
    assert [prompt.text for prompt in prompts][:4] == [
        "sad: a harp",
        "sad: an organ",
        "sad: a ukulele",
        "angry: a harp",
    ]


def test_every_shipped_prompt_has_the_right_article_but_those_of_the_public_code() -> None:
    import random
    import re

    from datamodules.music.music import Clip, caption

    texts = [caption(Clip("angry", "harp", seed), random.Random(seed)) for seed in range(60)]
    configs = Path(__file__).resolve().parents[1] / "configs" / "ddpo"
    for name in ("quickstart", "quickstart_smoke", "paper_questions", "music_rlhf/base"):
        node = read_configuration([configs / f"{name}.yaml"]).data
        words = emotion_words(node["words"])
        instruments = instrument_names(node["instruments"])
        texts += [prompt.text for prompt in template_prompts(node["template"], words, instruments)]
    assert any("an aggressive" in text for text in texts) and any(
        "an intense" in text for text in texts
    )
    assert not [text for text in texts if re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text)]
