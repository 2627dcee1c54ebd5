"""Guards: measures by hand, penalties at their bounds, and diversity over a round."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.instantiate import instantiate
from zoo.rewards.guards import (
    GuardReward,
    clipping_share,
    distance_to_others,
    level_dbfs,
    mel_statistics,
    silence_share,
    spectral_flatness,
)
from zoo.types import Prompt

RATE_HZ = 16_000


def tone(
    hz: float = 440.0, rate_hz: int = RATE_HZ, amplitude: float = 1.0, seconds: float = 1.0
) -> torch.Tensor:
    time = torch.arange(round(rate_hz * seconds)) / rate_hz
    return (amplitude * torch.sin(2 * math.pi * hz * time)).view(1, 1, -1)


def noise(rate_hz: int = RATE_HZ, seed: int = 0, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 1, rate_hz, generator=torch.Generator().manual_seed(seed)) * 0.1


def asked(*ids: str) -> list[Prompt]:
    return [Prompt(name, "a piano") for name in ids]


def test_levels():
    assert level_dbfs(tone()).item() == pytest.approx(-3.0103, abs=1e-3)
    assert level_dbfs(tone(amplitude=0.1)).item() == pytest.approx(-23.0103, abs=1e-3)
    assert level_dbfs(torch.zeros(1, 2, 100)).item() == pytest.approx(-120)
    one_side = torch.cat([tone(), torch.zeros_like(tone())], dim=1)
    assert level_dbfs(one_side).item() == pytest.approx(-6.0206, abs=1e-3)


def test_shares():
    half = torch.cat([tone(), torch.zeros(1, 1, RATE_HZ)], dim=2)
    assert silence_share(half, 800, -60.0).item() == 0.5
    assert (
        silence_share(tone(seconds=0.01), 800, -60.0).item() == 0
    )  # shorter than a frame: one frame
    assert silence_share(torch.zeros(1, 1, 1), 800, -60.0).item() == 1
    assert (
        silence_share(torch.cat([tone(), torch.zeros_like(tone())], dim=1), 800, -60.0).item() == 0
    )  # heard on one side
    wave = torch.zeros(1, 2, 10)
    wave[0, 0, :3], wave[0, 1, 0] = 1.0, -1.5
    assert clipping_share(wave, 0.999).item() == pytest.approx(4 / 20)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000, 192_000])
def test_flatness_of_noise_tone_and_silence_at_any_rate(rate_hz):
    assert spectral_flatness(noise(rate_hz), rate_hz).item() == pytest.approx(
        math.exp(-0.5772), abs=0.03
    )
    assert spectral_flatness(tone(rate_hz=rate_hz), rate_hz).item() < 0.01
    assert spectral_flatness(torch.zeros(1, 1, rate_hz), rate_hz).item() == 0
    offset = spectral_flatness(
        noise(rate_hz) + 5.0, rate_hz
    ).item()  # below 50 Hz, so it is not heard as a tone
    assert offset == pytest.approx(spectral_flatness(noise(rate_hz), rate_hz).item(), abs=0.02)


def test_a_good_clip_is_not_punished_and_the_parts_are_measurements():
    output = GuardReward(flatness=0.4)(tone(amplitude=0.2), RATE_HZ, asked("p"))
    assert output.score_B.tolist() == [0]
    assert output.parts["level_dbfs"].item() == pytest.approx(-16.99, abs=0.01)
    measured = {"level_dbfs", "silence_share", "clipping_share", "flatness"}
    assert set(output.parts) == measured | {
        f"{name}_penalty" for name in ("loudness", "silence", "clipping", "flatness")
    }


@pytest.mark.parametrize(
    ("wave", "guard", "penalty"),
    [
        (
            tone(amplitude=10 ** (-46.9897 / 20)),
            "loudness",
            -0.5,
        ),  # a level of -50 dB, 10 of 20 dB below the bound of -40
        (
            tone(amplitude=10.0),
            "loudness",
            -1.0,
        ),  # 17 dB: 23 above the upper bound, more than the scale
        (torch.zeros(1, 1, RATE_HZ), "loudness", -1.0),
        (torch.zeros(1, 1, RATE_HZ), "silence", -1.0),
        (tone(amplitude=100.0).clamp(-1, 1), "clipping", -0.99),
        (noise(), "flatness", -0.27),
    ],
)
def test_penalties_grow_from_the_bound_to_the_worst(wave, guard, penalty):
    output = GuardReward(flatness=0.4)(wave, RATE_HZ, asked("p"))
    assert output.parts[f"{guard}_penalty"].item() == pytest.approx(penalty, abs=0.03)
    names = [name for name in output.parts if name.endswith("_penalty")]
    assert output.score_B.item() == pytest.approx(
        sum(output.parts[name].item() for name in names), abs=1e-6
    )


@pytest.mark.parametrize("level_db", [-30, 0])
def test_loudness_is_at_worst_by_its_scale_outside_either_bound(level_db):
    wave = tone(amplitude=2**0.5 * 10 ** (level_db / 20))
    reward = GuardReward(
        loudness_dbfs=(-20, -10), loudness_scale_db=40.0, silence_share=None, clipping_share=None
    )
    assert reward(wave, RATE_HZ, asked("p")).score_B.item() == pytest.approx(
        -0.25, abs=1e-3
    )  # 10 of 40 dB


def test_a_guard_without_limit_is_off():
    reward = GuardReward(loudness_dbfs=None, silence_share=None)
    output = reward(torch.zeros(1, 1, RATE_HZ), RATE_HZ, asked("p"))
    assert (
        set(output.parts) == {"clipping_share", "clipping_penalty"} and output.score_B.item() == 0
    )


def test_a_wave_that_is_not_finite_has_no_score_whatever_is_on():
    wave = noise(count=3)
    wave[0, 0, 5], wave[1, 0, 5] = math.nan, math.inf
    for reward in (
        GuardReward(),
        GuardReward(loudness_dbfs=None, silence_share=None, clipping_share=0.5),
    ):
        assert reward(wave, RATE_HZ, asked("p", "q", "r")).score_B.isfinite().tolist() == [
            False,
            False,
            True,
        ]


def test_mel_statistics_ignore_level_and_rate():
    wave = torch.cat([tone(440), tone(445), tone(3000), 0.01 * tone(440)])
    one, near, far, quiet = mel_statistics(wave, RATE_HZ)
    distance = lambda a, b: (a - b).square().mean().sqrt().item()
    assert (
        distance(one, quiet) < 0.01
        and distance(one, near) < distance(one, far) / 3
        and distance(one, far) > 3
    )
    (high,) = mel_statistics(tone(440, 32_000), 32_000)
    assert distance(one, high) < 1.0
    assert torch.isfinite(mel_statistics(torch.zeros(1, 1, 100), RATE_HZ)).all()


def test_distance_to_others_orders_samples_by_what_they_contribute():
    vector = torch.randn(6, 5)
    ids = ["p", "q", "p", "p", "p", "r"]
    distance, has_others = distance_to_others(vector, ids, cosine=False)
    assert has_others.tolist() == [True, False, True, True, True, False]
    rows = [0, 2, 3, 4]
    apart = (vector[rows][:, None] - vector[rows][None]).square().mean(dim=2).sqrt()
    for i, row in enumerate(rows):
        kept = [j for j in range(4) if j != i]
        whole = apart.sum() / 12
        without = apart[kept][:, kept].sum() / 6
        assert distance[row].item() == pytest.approx(apart[i].sum().item() / 3, rel=1e-5)
        assert (whole - without).item() == pytest.approx(
            2 * (distance[row] - whole).item() / (4 - 2), rel=1e-4, abs=1e-6
        )


def test_copies_within_a_prompt_are_punished_over_the_round():
    reward = GuardReward(diversity=3.0)
    wave = torch.cat([tone(440), tone(440), tone(300), tone(3000), noise()])
    prompts = asked("same", "same", "other", "other", "alone")
    single = reward(wave, RATE_HZ, prompts)
    assert "diversity_penalty" not in single.parts and single.vectors["diversity"].shape[0] == 5
    output = reward.combine(single, prompts)
    penalty = output.parts["diversity_penalty"]
    assert penalty[:2].tolist() == pytest.approx([-1, -1], abs=1e-3) and penalty[2:].tolist() == [
        0,
        0,
        0,
    ]
    assert output.parts["diversity_db"][4] == pytest.approx(
        output.parts["diversity_db"][:4].mean().item()
    )
    torch.testing.assert_close(output.score_B, single.score_B + penalty)
    with pytest.raises(ValueError, match=r"data\.repeats"):
        reward.combine(reward(wave[:2], RATE_HZ, asked("p", "q")), asked("p", "q"))
    plain = GuardReward()
    assert plain.combine(output, prompts) is output  # nothing to add


def test_diversity_of_an_embedding():
    reward = instantiate(
        {
            "_target_": "zoo.rewards.guards.GuardReward",
            "diversity": 0.5,
            "embedder": "embedded/clap",
        },
        "module.reward",
    )
    wave = torch.cat([tone(440), tone(440), noise()])
    prompts = asked("p", "p", "p")
    output = reward.combine(reward(wave, RATE_HZ, prompts), prompts)
    assert (
        output.parts["diversity_cosine"][0]
        == output.parts["diversity_cosine"][1]
        < output.parts["diversity_cosine"][2]
    )
    assert GuardReward(**reward.arguments).arguments == reward.arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loudness_dbfs": [-6, -40]}, "low below high"),
        ({"loudness_dbfs": [-6]}, "low, high"),
        ({"silence_share": 1.5}, r"silence_share must be in \[0, 1\)"),
        ({"clipping_share": -0.1}, "clipping_share must be in"),
        ({"flatness": 1.0}, "flatness must be in"),
        ({"diversity": 0.0}, "diversity must be above 0"),
        ({"frame_s": 0.0}, "frame_s must be above 0"),
        ({"silence_dbfs": -120.0}, "above -120.0, the level of digital silence"),
        ({"silence_dbfs": math.nan}, "above -120.0, the level of digital silence"),
        (
            {"loudness_dbfs": None, "silence_share": None, "clipping_share": None},
            "all guards are off",
        ),
        ({"embedder": "embedded/clap"}, "only for diversity"),
        (
            {"diversity": 1.0, "embedder": {"architecture": "emotion"}},
            "EmotionReward has no embed_audio; expected a CLAP",
        ),
        ({"diversity": 1.0, "embedder": "embedded/clap"}, "embedder: 'embedded/clap' is a name"),
    ],
)
def test_invalid_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GuardReward(**arguments)
