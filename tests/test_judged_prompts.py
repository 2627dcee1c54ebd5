"""A prompt that a reward cannot score is named before anything is sampled, also in an ensemble."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_ddpo import module, trainer
from toys import ToyBackbone, ToyReward

from datamodules.prompts import PromptDataModule
from zoo.rewards.ensemble import EnsembleReward
from zoo.rewards.mood import EmotionReward

CHANNELS = (4,) * 7


class Silent(ToyBackbone):
    """A stand-in that is never called."""

    def encode_prompts(self, prompts):
        raise AssertionError("a prompt was encoded")


def data(folder: Path, labels: dict[str, str]) -> PromptDataModule:
    rows = [
        {"text": "a gloomy harp", "labels": {"mood": "sad"}},
        {"text": "a merry harp", "labels": labels},
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return PromptDataModule(
        file=str(folder / "prompts.jsonl"), seconds=1.0, prompts_per_round=2, repeats=2
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {},
            (
                r"prompt 'a-merry-harp-\w+' has no label 'mood' \(its labels: none\); .* one of"
                r" happy, angry, sad, tender"
            ),
        ),
        (
            {"mood": "sadd"},
            "asks for mood 'sadd', which the classifier does not know; did you mean 'sad'",
        ),
    ],
)
def test_a_file_without_moods_is_refused_under_an_emotion_reward(
    tmp_path: Path, labels: dict[str, str], message: str
) -> None:
    mood = EmotionReward(channels=CHANNELS)
    for reward, begins in (
        (mood, "^prompt"),
        (EnsembleReward({"mood": mood, "level": ToyReward()}), "^mood: prompt"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            trainer().fit(module(backbone=Silent(), reward=reward), data(tmp_path, labels))
        assert raised.match(begins)


def test_the_held_out_reward_is_checked_too(tmp_path: Path) -> None:
    ddpo = module(backbone=Silent(), held_out_reward=EmotionReward(channels=CHANNELS))
    with pytest.raises(ValueError, match="has no label 'mood'"):
        trainer().fit(ddpo, data(tmp_path, {}))


def test_rewards_without_labels_are_not_checked(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a prompt was encoded"):
        trainer().fit(module(backbone=Silent()), data(tmp_path, {}))
