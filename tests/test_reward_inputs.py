"""Unusual audio and prompts: every reward gives a sensible number or a clear error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zoo.rewards.clap import ClapReward
from zoo.rewards.ensemble import EnsembleReward
from zoo.rewards.guards import GuardReward
from zoo.rewards.mood import EmotionReward
from zoo.types import Prompt

EMOTION = {"channels": [4, 4, 4, 4, 4, 4, 4], "n_mels": 32, "chunk_s": 0.5}
CLAP = {
    "checkpoint": "untrained",
    "towers": "tiny",
    "arguments": {
        "window_s": 1.024,
        "n_mels": 32,
        "channels": [4, 4, 4, 8],
        "width": 16,
        "depth": 1,
        "text_depth": 1,
    },
}


def ensemble() -> EnsembleReward:
    members = {"mood": EmotionReward(**EMOTION), "clap": ClapReward(**CLAP)}
    return EnsembleReward(
        members, {"guards": GuardReward(flatness=0.4, diversity=2.0)}, min_count=2
    )


REWARDS = {
    "emotion": lambda: EmotionReward(**EMOTION),
    "clap": lambda: ClapReward(**CLAP),
    "guards": lambda: GuardReward(flatness=0.4, diversity=2.0),
    "ensemble": ensemble,
}


@pytest.fixture(params=REWARDS)
def reward(request):
    return REWARDS[request.param]()


def asked(count: int = 1, **labels: str) -> list[Prompt]:
    return [Prompt(f"p{i}", "a sad piano", labels={"mood": "sad", **labels}) for i in range(count)]


def chord(rate_hz: int, level: float = 0.2, seconds: float = 1.1) -> torch.Tensor:
    time = torch.arange(round(rate_hz * seconds)) / rate_hz
    return level * (
        torch.sin(2 * math.pi * 220 * time) + torch.sin(2 * math.pi * 1300 * time)
    ).view(1, 1, -1)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 192_000])
def test_unusual_rates(reward, rate_hz):
    output = reward(chord(rate_hz), rate_hz, asked())
    assert all(torch.isfinite(value).all() for value in (output.score_B, *output.parts.values()))


@pytest.mark.parametrize(
    "wave",
    [
        torch.zeros(1, 1, 17_600),
        chord(16_000, 50.0).clamp(-1, 1),
        torch.ones(1, 2, 17_600),
        torch.ones(1, 1, 1),
    ],
    ids=["silent", "clipped", "constant", "one sample"],
)
def test_silent_clipped_and_tiny_clips(reward, wave):
    output = reward(wave, 16_000, asked())
    assert all(torch.isfinite(value).all() for value in (output.score_B, *output.parts.values()))


@pytest.mark.parametrize("shape", [(1, 1, 0), (1, 0, 100)])
def test_nothing_to_hear_is_refused(reward, shape):
    with pytest.raises(ValueError, match="samples|shape"):
        reward(torch.zeros(shape), 16_000, asked())


def test_stereo_is_heard_by_mono_networks(reward):
    wave = chord(16_000)
    mono, stereo = (reward(one, 16_000, asked()).score_B for one in (wave, wave.expand(-1, 2, -1)))
    torch.testing.assert_close(mono, stereo)


def test_a_wave_that_is_not_finite_has_no_score(reward):
    wave = chord(16_000).repeat(2, 1, 1)
    wave[1, 0, 100] = math.nan
    score_B = reward(wave, 16_000, asked(2)).score_B
    assert score_B.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "judge",
    [
        lambda: EmotionReward(**EMOTION, value="label"),
        lambda: EmotionReward(**EMOTION, value="label", chunk_rule="upstream", rms=None),
        lambda: ClapReward(**CLAP, windows="first"),
        lambda: ClapReward(**CLAP, int16=True),
    ],
    ids=[
        "emotion",
        "emotion without the last chunk",
        "clap of the first window",
        "clap of 16 bits",
    ],
)
def test_values_that_are_not_finite_count_also_in_unused_parts(judge, value):
    """The dropped last chunk, audio after the only window, an infinity that 16 bits clip."""
    wave = chord(16_000, seconds=1.24).repeat(2, 1, 1)
    wave[1, 0, -1] = value
    output = judge()(wave, 16_000, asked(2))
    assert all(
        one.isfinite().tolist() == [True, False] for one in (output.score_B, *output.parts.values())
    )


@pytest.mark.parametrize("rate_hz", [None, 0, -1, True, 16_000.5, math.nan, math.inf, "16000"])
def test_an_invalid_rate_is_refused_and_not_rounded(reward, rate_hz):
    with pytest.raises(ValueError, match="sample rate of the waves, a whole number of Hz"):
        reward(chord(16_000), rate_hz, asked())


@pytest.mark.parametrize("name", ["emotion", "clap"])
def test_rates_without_a_common_divisor_are_heard_as_their_neighbours_are(name):
    torch.manual_seed(0)
    reward = REWARDS[name]()
    odd, usual = (reward(chord(rate), rate, asked()).score_B for rate in (44_099, 44_100))
    torch.testing.assert_close(odd, usual, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (
            torch.zeros(1, 1, 16_000, dtype=torch.int16),
            "floating point.*int16",
        ),  # heard as it is, 90 dB too loud
        (np.zeros((1, 1, 16_000), np.float32), "a tensor.*ndarray"),
        (torch.zeros(0, 1, 16_000), "0 waves"),
        (torch.zeros(16_000), "shape"),
    ],
    ids=["int16", "numpy", "empty batch", "no batch"],
)
def test_an_invalid_batch_of_waves_is_refused(reward, wave, message):
    with pytest.raises(ValueError, match=message):
        reward(wave, 16_000, asked(len(wave)))


def test_a_label_reward_does_not_call_a_broken_clip_right_or_wrong():
    wave = chord(16_000).repeat(4, 1, 1) * math.nan
    prompts = [
        Prompt(mood, "a piano", labels={"mood": mood})
        for mood in ("happy", "angry", "sad", "tender")
    ]
    assert EmotionReward(**EMOTION, value="label")(wave, 16_000, prompts).score_B.isnan().all()


def test_a_prompt_without_a_mood_is_named_with_the_member_that_needs_it():
    bare = [Prompt("p7", "a piano")]
    with pytest.raises(ValueError, match="^prompt 'p7'.*'mood'.*happy"):
        EmotionReward(**EMOTION)(chord(16_000), 16_000, bare)
    with pytest.raises(ValueError, match="^member 'mood'.*'p7'.*'mood'"):
        ensemble()(chord(16_000), 16_000, bare)
    with pytest.raises(ValueError, match="'p0' asks for mood 'gloomy'"):
        ensemble()(chord(16_000), 16_000, asked(mood="gloomy"))
    assert GuardReward()(chord(16_000), 16_000, bare).score_B.tolist() == [0]


def test_the_whole_round_of_unusual_clips_is_combined():
    """Silence, clipping and copies in one round: finite, and the good clip is first."""
    wave = torch.cat(
        [
            chord(16_000),
            torch.zeros(1, 1, 17_600),
            chord(16_000, 50.0).clamp(-1, 1),
            torch.ones(1, 1, 17_600),
        ]
    )
    prompts = [Prompt("p", "a sad piano", labels={"mood": "sad"})] * 4
    reward = EnsembleReward(
        {"clap": ClapReward(**CLAP)}, {"guards": {"reward": GuardReward(), "weight": 5.0}}
    )
    output = reward.combine(reward(wave, 16_000, prompts), prompts)
    assert torch.isfinite(output.score_B).all() and output.score_B.argmax() == 0
    assert output.parts["guards"][0] == 0 and (output.parts["guards"][1:] < -0.9).all()
