"""A tone at 16, 44.1 and 48 kHz gets the same score, every time."""

import math

import pytest
import torch
from toy_clap import SHORT, tokenizer_file

from zoo.importers.pretrained_clap import with_files
from zoo.rewards.clap import ClapReward
from zoo.rewards.mood import EmotionReward
from zoo.types import Prompt

RATES_HZ = (16_000, 44_100, 48_000)
SECONDS = 1.024
PROMPTS = [
    Prompt("p0", "a piano solo", labels={"mood": "happy"}),
    Prompt("p1", "a dog barks", labels={"mood": "sad"}),
]
SMALL = {
    "window_s": SECONDS,
    "n_mels": 32,
    "channels": [4, 4, 4, 8],
    "width": 16,
    "depth": 1,
    "text_depth": 1,
}


def chord(rate_hz: int, channels: int = 1) -> torch.Tensor:
    """Two clips (2, channels, N): an A and an A major chord, far below 8 kHz, with fades."""
    seconds = torch.arange(round(SECONDS * rate_hz), dtype=torch.float64) / rate_hz
    tone = lambda hz: torch.sin(2 * math.pi * hz * seconds)
    fade = torch.sin(math.pi * seconds / SECONDS) ** 2
    clips = torch.stack([tone(440), (tone(440) + tone(554.37) + tone(659.26)) / 3]) * fade * 0.3
    return clips.float()[:, None].repeat(1, channels, 1)


def rewards(tmp_path):
    return {
        "clap": ClapReward("tiny", "tiny", SMALL),
        "clap/compat": ClapReward("tiny", "tiny", SMALL, compat=True),
        "clap/transformers": ClapReward(
            "random",
            "transformers",
            with_files({**SHORT, "tokenizer": str(tokenizer_file(tmp_path))}),
        ),
        "emotion": EmotionReward("log_odds", channels=[4] * 7, n_mels=32, chunk_s=0.5),
    }


@pytest.mark.parametrize("name", ["clap", "clap/compat", "clap/transformers", "emotion"])
def test_a_tone_scores_alike_at_every_rate_and_always(tmp_path, name):
    reward = rewards(tmp_path)[name]
    with torch.no_grad():
        scores = {rate: reward(chord(rate), rate, PROMPTS).score_B for rate in RATES_HZ}
        for rate in RATES_HZ:
            assert torch.equal(reward(chord(rate), rate, PROMPTS).score_B, scores[rate])
            torch.testing.assert_close(
                reward(chord(rate, 2), rate, PROMPTS).score_B, scores[rate], rtol=0, atol=1e-5
            )
            torch.testing.assert_close(scores[rate], scores[48_000], rtol=0, atol=5e-3)
        wrong = reward(
            chord(16_000), 48_000, PROMPTS
        ).score_B  # 16 kHz audio said to be 48 kHz: another sound
        assert (wrong - scores[48_000]).abs().max() > 3 * max(
            (scores[r] - scores[48_000]).abs().max() for r in RATES_HZ
        )


def test_compat_is_a_switch_of_its_own_and_part_of_the_number_s_name():
    plain = ClapReward("tiny", "tiny", SMALL)
    compat = ClapReward("tiny", "tiny", SMALL, compat=True)
    compat.load_state_dict(plain.state_dict())
    assert not plain.int16 and compat.int16 and plain.differentiable and not compat.differentiable
    assert (plain.arguments["compat"], compat.arguments["compat"], compat.arguments["int16"]) == (
        False,
        True,
        False,
    )
    again = ClapReward(**compat.arguments)
    assert again.int16 and again.name == "clap/tiny/compat"
    loud = 3 * chord(16_000)
    heard, cut = plain.cut(loud, 16_000), compat.cut(loud, 16_000)
    steps = cut * 32_767
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=2e-3)
    assert (
        cut.abs().max() <= 1
        and (heard.clamp(-1, 1) - cut).abs().max() <= 1 / 32_767 + 1e-6
        and not torch.equal(heard, cut)
    )
    outputs = [reward(chord(16_000), 16_000, PROMPTS) for reward in (plain, compat)]
    assert [list(output.parts) for output in outputs] == [["clap/tiny"], ["clap/tiny/compat"]]
