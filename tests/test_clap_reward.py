"""The CLAP reward: preparation of audio, cosine, cached texts, gradients, artefacts, errors."""

import json
import math

import pytest
import torch

import zoo
from zoo.hub.artifact import load_artifact, save_artifact
from zoo.rewards.clap import ClapReward, int16_round_trip, padded, window_starts
from zoo.types import Prompt

RATE = 16_000
SMALL = {
    "window_s": 1.024,
    "n_mels": 32,
    "channels": [4, 4, 4, 8],
    "width": 16,
    "depth": 1,
    "text_depth": 1,
    "embedding": 8,
}
WINDOW = 16_384


def small(**settings) -> ClapReward:
    return ClapReward("small", "tiny", SMALL, **settings).requires_grad_(False)


def noise(count: int = 2, samples: int = WINDOW, channels: int = 1, seed: int = 1) -> torch.Tensor:
    return (
        torch.randn(count, channels, samples, generator=torch.Generator().manual_seed(seed)) * 0.1
    )


PROMPTS = (Prompt("a", "a dog barking"), Prompt("b", "rain then thunder"))


def test_windows_cover_the_clip_and_are_never_random():
    assert window_starts(5, 10) == [0] and window_starts(10, 10) == [0]
    assert window_starts(491_520, 480_000) == [0, 11_520]  # 10.24 s heard in windows of 10 s
    assert window_starts(30, 10) == [0, 10, 20] and window_starts(25, 10) == [0, 8, 15]
    assert window_starts(45, 10) == [0, 9, 18, 26, 35]  # as few as cover it
    assert window_starts(30, 10, "first") == [0]


def test_short_clips_are_repeated_whole_then_zeros():
    wave = torch.tensor([[1.0, 2, 3]])
    assert padded(wave, 8).tolist() == [[1, 2, 3, 1, 2, 3, 0, 0]]
    assert padded(wave, 8, "zero").tolist() == [[1, 2, 3, 0, 0, 0, 0, 0]]
    assert padded(wave, 3).tolist() == padded(wave, 2).tolist() == [[1, 2, 3]]


def test_int16_cuts_towards_zero():
    wave = torch.tensor([[0.5, -0.5, 2.0, -2.0, 1e-5]])
    assert (int16_round_trip(wave) * 32767).round().tolist() == [[16383, -16383, 32767, -32767, 0]]


def test_the_score_is_the_plain_cosine_and_carries_the_checkpoint_s_name():
    reward = small()
    output = reward(noise(), RATE, PROMPTS)
    audio = reward.embed_audio(noise(), RATE)
    text = reward.embed_text([prompt.text for prompt in PROMPTS])
    assert torch.allclose(audio.norm(dim=1), torch.ones(2)) and torch.allclose(
        text.norm(dim=1), torch.ones(2)
    )
    assert torch.allclose(output.score_B, (audio * text).sum(dim=1), atol=1e-6)
    assert list(output.parts) == ["clap/small"] and torch.equal(
        output.parts["clap/small"], output.score_B
    )


def test_windows_are_averaged_and_brought_to_unit_length():
    reward = small()
    wave = noise(samples=2 * WINDOW)
    one, two = (reward.embed_audio(half, RATE) for half in wave.chunk(2, dim=2))
    mean = (one + two) / 2
    assert torch.allclose(
        reward.embed_audio(wave, RATE), mean / mean.norm(dim=1, keepdim=True), atol=1e-6
    )
    first = small(windows="first")
    first.load_state_dict(reward.state_dict())
    assert torch.allclose(first.embed_audio(wave, RATE), one, atol=1e-6)


def test_the_given_rate_is_used():
    reward = small()
    seconds = torch.arange(int(1.024 * 48_000)) / 48_000
    tone = (0.1 * torch.sin(2 * math.pi * 440 * seconds))[None, None]
    same = 0.1 * torch.sin(2 * math.pi * 440 * torch.arange(WINDOW) / RATE)[None, None]
    heard = reward.embed_audio(tone, 48_000)
    assert float((heard * reward.embed_audio(same, RATE)).sum()) > 0.999
    wrong_rate = reward.cut(tone, RATE)[0, 0]
    assert torch.fft.rfft(wrong_rate).abs().argmax() * RATE / WINDOW == pytest.approx(
        440 / 3, abs=1
    )  # the bug that is kept out
    assert torch.fft.rfft(
        reward.cut(tone, 48_000)[0, 0]
    ).abs().argmax() * RATE / WINDOW == pytest.approx(440, abs=1)


def test_stereo_is_mixed_and_the_level_has_no_effect():
    reward = small()
    wave = noise(channels=2)
    assert torch.allclose(
        reward.embed_audio(wave, RATE),
        reward.embed_audio(wave.mean(dim=1, keepdim=True), RATE),
        atol=1e-6,
    )
    assert torch.allclose(
        reward.embed_audio(wave, RATE), reward.embed_audio(0.1 * wave, RATE), atol=1e-4
    )


def test_the_gradient_reaches_the_wave_and_climbing_it_raises_the_score():
    reward = small()
    wave = noise().requires_grad_()
    output = reward(wave, RATE, PROMPTS)
    output.score_B.sum().backward()
    assert torch.isfinite(wave.grad).all() and (wave.grad.abs().amax(dim=(1, 2)) > 0).all()
    step = wave.grad / wave.grad.norm(dim=2, keepdim=True)
    with torch.no_grad():
        assert (reward(wave + 0.05 * step, RATE, PROMPTS).score_B > output.score_B).all()


def test_without_gradient_in_16_bits():
    reward = small(int16=True)
    assert not reward.differentiable
    assert not reward(noise().requires_grad_(), RATE, PROMPTS).score_B.requires_grad


def test_texts_are_embedded_once_until_the_weights_change(monkeypatch):
    reward = small()
    asked = []
    embed = reward.towers.embed_text
    monkeypatch.setattr(
        reward.towers, "embed_text", lambda texts: asked.append(list(texts)) or embed(texts)
    )
    first = reward.embed_text(["rain", "wind", "rain"])
    assert asked == [["rain"], ["wind"]] and torch.equal(first[0], first[2])
    assert torch.equal(reward.embed_text(["wind"])[0], first[1]) and len(asked) == 2
    other = small()
    reward.load_state_dict(other.state_dict())
    assert torch.equal(reward.embed_text(["rain"]), other.embed_text(["rain"])) and len(asked) == 3
    with torch.no_grad():
        reward.towers.text_pool.out.bias.add_(1)
    assert (
        not torch.equal(reward.embed_text(["rain"]), other.embed_text(["rain"])) and len(asked) == 4
    )
    assert reward.double().embed_text(["rain"]).shape == (1, 8) and len(asked) == 5


def test_cached_texts_belong_to_the_current_weights():
    """Replaced weights do not count writes, and those made in inference mode count none at all."""
    reward, other = small(), small()
    for source in (reward, other):
        weights = {name: tensor.clone() for name, tensor in source.state_dict().items()}
        reward.load_state_dict(weights, assign=True)
        assert torch.equal(reward.embed_text(["rain"]), source.embed_text(["rain"]))
    with torch.inference_mode():
        assert small().embed_text(["rain"]).isfinite().all()


def test_cached_texts_do_not_depend_on_the_first_caller():
    reward = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = reward.embed_text(["rain"])
    assert torch.equal(first, reward.towers.embed_text(["rain"]).detach())


def test_the_embedded_clap_in_bfloat16_turns_no_embedding():
    full, half = (zoo.load("embedded/clap", dtype=dtype) for dtype in (None, "bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    wave_BCN = noise(4, 65_536)
    assert torch.equal(half.towers.log_mel(wave_BCN[:, 0]), full.towers.log_mel(wave_BCN[:, 0]))
    turned_B = (full.embed_audio(wave_BCN, RATE) * half.embed_audio(wave_BCN, RATE)).sum(dim=-1)
    assert turned_B.min() > 0.9998
    captions = [prompt.text for prompt in PROMPTS]
    assert (full.embed_text(captions) * half.embed_text(captions)).sum(dim=-1).min() > 0.9998
    scores = [reward(wave_BCN[:2], RATE, PROMPTS).score_B for reward in (full, half)]
    assert scores[1].dtype == torch.float32
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=0.01)


def test_the_cache_of_texts_is_bounded(monkeypatch):
    monkeypatch.setattr("zoo.rewards.clap._CACHED_TEXTS", 3)
    reward = small()
    rows = reward.embed_text([f"bird {i}" for i in range(5)])
    assert rows.shape == (5, 8) and list(reward._texts) == ["bird 2", "bird 3", "bird 4"]
    reward.embed_text(["bird 2", "bird 5"])
    assert list(reward._texts) == [
        "bird 4",
        "bird 2",
        "bird 5",
    ]  # what was asked for longest ago goes


def test_order_matters_to_both_towers():
    reward = small()
    there = reward.embed_text(["rain then wind", "wind then rain"])
    assert not torch.allclose(there[0], there[1], atol=1e-4)
    low, high = (
        torch.sin(2 * math.pi * hz * torch.arange(WINDOW // 2) / RATE) for hz in (200, 2000)
    )
    clips = torch.stack([torch.cat([low, high]), torch.cat([high, low])])[:, None]
    heard = reward.embed_audio(clips, RATE)
    assert not torch.allclose(heard[0], heard[1], atol=1e-4)


def test_a_wave_that_is_not_finite_spoils_its_own_row_only():
    wave = noise()
    clean = small().requires_grad_(False)
    right = clean(wave, RATE, PROMPTS).score_B
    for bad in (math.nan, math.inf):
        spoilt = wave.clone()
        spoilt[1, 0, 100] = bad
        score = clean(spoilt, RATE, PROMPTS).score_B
        assert score[1].isnan() and torch.allclose(score[0], right[0], atol=1e-6)


def test_silence_clipping_and_very_short_clips_are_finite():
    reward = small()
    for wave in (torch.zeros(2, 1, WINDOW), noise().sign(), noise(samples=1), noise(samples=37)):
        assert torch.isfinite(reward(wave, RATE, PROMPTS).score_B).all()
    for rate in (8_000, 44_100, 192_000):
        assert torch.isfinite(reward(noise(samples=rate // 2), rate, PROMPTS).score_B).all()


def test_what_it_refuses():
    reward = small()
    with pytest.raises(ValueError, match="0 samples"):
        reward(torch.zeros(2, 1, 0), RATE, PROMPTS)
    for shape in ((2, WINDOW), (WINDOW,), (2, 0, WINDOW)):
        with pytest.raises(ValueError, match="batch, channels, samples"):
            reward.embed_audio(torch.zeros(shape), RATE)
    for rate in (None, 0, -1, 44_100.5):
        with pytest.raises(ValueError, match="sample rate"):
            reward(noise(), rate, PROMPTS)
    with pytest.raises(ValueError, match="'silent' has no text"):
        reward(noise(), RATE, [PROMPTS[0], Prompt("silent", "  ")])
    with pytest.raises(ValueError, match="tokens"):
        reward(noise(), RATE, [PROMPTS[0], Prompt("long", "rain and " * 60)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": ""}, "name the CLAP"),
        ({"checkpoint": "a b"}, "name the CLAP"),
        ({"checkpoint": "x", "towers": "tinny"}, "did you mean 'tiny'"),
        ({"checkpoint": "x", "windows": "frist"}, "did you mean 'first'"),
        ({"checkpoint": "x", "padding": "loop"}, "choose from repeat, zero"),
        (
            {"checkpoint": "x"},
            "pretrained",
        ),  # transformers' ClapModel is the default, and has sizes of many kinds
        ({"checkpoint": "x", "arguments": {"n_mel": 32}}, "n_mel:.*n_mels"),
        ({"checkpoint": "x", "towers": "tiny", "arguments": {"n_mels": "32"}}, "expects int"),
        ({"checkpoint": "x", "towers": "tiny", "arguments": {"n_mels": 40}}, "multiple of 16"),
        (
            {"checkpoint": "x", "towers": "tiny", "arguments": {"window_s": 1.0}},
            r"multiple of 4 \* hop_samples = 1024",
        ),
        (
            {"checkpoint": "x", "towers": "tiny", "arguments": {"channels": [4, 4]}},
            "4 convolutions",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClapReward(**arguments)


def test_an_artefact_gives_the_same_score_to_the_bit(tmp_path):
    reward = small(windows="first")
    save_artifact(
        tmp_path, kind="reward", architecture="clap", arguments=reward.arguments, module=reward
    )
    loaded = load_artifact(tmp_path)
    assert torch.equal(
        loaded(noise(), RATE, PROMPTS).score_B, reward(noise(), RATE, PROMPTS).score_B
    )
    assert json.loads((tmp_path / "config.json").read_text())["arguments"] == reward.arguments
    assert loaded.arguments == reward.arguments and loaded.windows == "first"


def test_the_towers_that_ship_are_small():
    reward = ClapReward("x", "tiny")
    assert reward.towers.window_samples == 65_536  # 4.096 s
    assert (
        2 * sum(value.numel() for value in reward.state_dict().values()) < 2e6
    )  # bytes in half precision


def test_an_assumed_rate_replaces_the_real_one_with_a_warning(tmp_path):
    wave = noise()
    plain = small(compat=True)
    reward = small(compat=True, assume_rate_hz=48_000)
    reward.load_state_dict(plain.state_dict())
    output = reward(wave, RATE, PROMPTS)
    assert torch.equal(output.score_B, plain(wave, 48_000, PROMPTS).score_B)
    assert not torch.equal(output.score_B, plain(wave, RATE, PROMPTS).score_B)
    assert list(output.parts) == ["clap/small/compat/as-48000-hz"]
    assert reward.cut(wave, RATE).shape == (
        2,
        1,
        WINDOW,
    ), "a third as long, then repeated to a window"
    save_artifact(
        tmp_path / "out",
        kind="reward",
        architecture="clap",
        arguments=reward.arguments,
        module=reward,
    )
    assert torch.equal(load_artifact(tmp_path / "out")(wave, RATE, PROMPTS).score_B, output.score_B)
    for wrong in ({"assume_rate_hz": 48_000}, {"assume_rate_hz": 0, "compat": True}):
        with pytest.raises(ValueError, match="compat.*Hz"):
            small(**wrong)
    with pytest.raises(ValueError, match="needs the sample rate"):
        reward(wave, None, PROMPTS)
