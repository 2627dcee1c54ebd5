"""The mood reward: architecture, chunk rules, four scores, invariances, gradients, errors."""

import math

import pytest
import torch
import torchaudio

from zoo.rewards.mood import (
    EmotionReward,
    ShortChunkResNet,
    chunk_starts,
    class_indices,
    cut_chunks,
    emotion_score,
    level_normalised,
)
from zoo.types import Prompt, Reward


def small(**settings) -> EmotionReward:
    torch.manual_seed(0)
    return EmotionReward(channels=(4, 4, 4, 8, 8, 8, 8), n_mels=32, chunk_s=0.512, **settings)


def prompts(*moods: str) -> list[Prompt]:
    return [
        Prompt(id=f"{index}-{mood}", text=f"a {mood} piano solo", labels={"mood": mood})
        for index, mood in enumerate(moods)
    ]


def test_emopia_sizes_give_the_published_parameter_count_and_names():
    network = ShortChunkResNet(22_050, 1024, 512, 128, (128, 128, 256, 256, 256, 256, 512), 4)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(12.08e6, rel=1e-3)
    names = {name.split(".")[0] for name in network.state_dict()}
    assert names == {
        "spec",
        "spec_bn",
        *(f"layer{i}" for i in range(1, 8)),
        "dense1",
        "bn",
        "dense2",
    }
    stage = {name.split(".")[1] for name in network.state_dict() if name.startswith("layer3.")}
    assert stage == {"conv_1", "bn_1", "conv_2", "bn_2", "conv_3", "bn_3"}
    assert network.eval()(torch.randn(2, 66_150)).shape == (2, 4)


def test_the_embedded_size_is_below_its_budget():
    assert sum(p.numel() for p in EmotionReward().parameters()) <= 350_000


def test_log_mel_equals_torchaudio():
    network = ShortChunkResNet(16_000, 1024, 256, 96, (4,) * 7, 4)
    wave = torch.randn(2, 8000) * 0.1
    expected = torchaudio.transforms.AmplitudeToDB()(network.spec(wave))
    assert torch.allclose(network.log_mel(wave)[:, 0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("seconds", "rule", "hop_s", "expected"),
    [
        (5.0, "full", None, 1),
        (5.99, "full", None, 1),
        (10.0, "full", None, 3),
        (2.9, "full", None, 1),
        (10.0, "upstream", None, 2),
        (10.0, "overlap", 1.0, 8),
        (10.0, "overlap", 2.0, 5),  # 0 2 4 6, and 7 so that the end is heard
        (2.0, "overlap", 1.0, 1),
    ],
)
def test_chunk_counts(seconds, rule, hop_s, expected):
    rate = 22_050
    starts = chunk_starts(
        int(seconds * rate), 3 * rate, rule, None if hop_s is None else int(hop_s * rate)
    )
    assert len(starts) == expected
    if rule == "overlap" and seconds > 3:
        assert starts[-1] == int(seconds * rate) - 3 * rate


def test_upstream_rule_refuses_a_clip_without_a_chunk_instead_of_nan():
    with pytest.raises(ValueError, match="leaves out the last chunk"):
        chunk_starts(5 * 22_050, 3 * 22_050, "upstream")
    with pytest.raises(ValueError, match="hop_s"):
        chunk_starts(100, 10, "overlap", 0)
    with pytest.raises(ValueError, match="unknown chunk rule"):
        chunk_starts(100, 10, "other")


def test_cut_chunks_pads_with_zeros():
    chunks = cut_chunks(torch.arange(1.0, 6.0).unsqueeze(0), [0, 3], 3)
    assert chunks.tolist() == [[[1, 2, 3], [4, 5, 0]]]


def test_scores_by_arithmetic():
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1]])
    z = p.log()
    target = torch.tensor([0, 0])
    assert torch.allclose(emotion_score(z, p, target, "value"), torch.tensor([0.0, -0.3]))
    assert emotion_score(z, p, target, "label").tolist() == [1, 0]
    assert torch.allclose(emotion_score(z, p, target, "probability"), torch.tensor([0.7, 0.2]))
    odds = torch.tensor([math.log(0.7 / 0.3), math.log(0.2 / 0.8)])
    assert torch.allclose(emotion_score(z, p, target, "log_odds"), odds, atol=1e-6)


def test_the_score_does_not_depend_on_level_and_silence_is_finite():
    reward = small()
    wave = torch.randn(2, 2, 16_000) * 0.1
    score = reward(wave, 16_000, prompts("happy", "sad"))
    quiet = reward(wave * 0.003, 16_000, prompts("happy", "sad"))
    for name in score.parts:
        assert torch.allclose(score.parts[name], quiet.parts[name], atol=1e-4), name
    silence = torch.zeros(1, 2, 16_000, requires_grad=True)
    reward = small(value="log_odds")
    output = reward(silence, 16_000, prompts("angry"))
    output.score_B.sum().backward()
    assert torch.isfinite(output.score_B).all() and torch.isfinite(silence.grad).all()


def test_level_normalised():
    wave = torch.randn(2, 1000) * torch.tensor([[1.0], [0.01]])
    assert torch.allclose(
        level_normalised(wave, 0.08).square().mean(dim=1).sqrt(), torch.full((2,), 0.08), rtol=1e-4
    )


@pytest.mark.parametrize("value", ["value", "probability", "log_odds"])
def test_gradients_reach_the_wave(value):
    reward = small(value=value)
    wave = (torch.randn(4, 1, 16_000) * 0.1).requires_grad_()
    output = reward(wave, 16_000, prompts("happy", "angry", "sad", "tender"))
    assert reward.differentiable
    output.score_B.sum().backward()
    assert wave.grad.abs().sum() > 0


def test_the_label_form_is_not_differentiable():
    reward = small(value="label")
    assert not reward.differentiable
    output = reward(torch.randn(1, 1, 16_000), 16_000, prompts("happy"))
    assert torch.equal(output.score_B, output.parts["accuracy"])


def test_resampled_audio_scores_alike():
    time = torch.arange(32_000) / 32_000
    wave = (
        sum(torch.sin(2 * math.pi * f * time) for f in (220, 277, 440, 1200)).view(1, 1, -1) * 0.1
    )
    reward = small()
    high = reward(wave, 32_000, prompts("sad")).parts
    low = reward(torchaudio.functional.resample(wave, 32_000, 16_000), 16_000, prompts("sad")).parts
    assert all(torch.allclose(high[name], low[name], atol=1e-3) for name in high)


def test_stays_in_evaluation_mode_inside_a_training_module():
    reward = small()
    torch.nn.ModuleList([reward]).train()
    assert not any(module.training for module in reward.modules())


def test_every_clip_is_scored_alone():
    reward = small(chunk_rule="overlap", hop_s=0.1)
    wave = torch.randn(3, 1, 20_000)
    moods = prompts("happy", "sad", "tender")
    together = reward(wave, 16_000, moods).parts["p_sad"]
    alone = torch.cat(
        [reward(wave[i : i + 1], 16_000, moods[i : i + 1]).parts["p_sad"] for i in range(3)]
    )
    assert torch.allclose(together, alone, atol=1e-5)


def test_refusals_name_the_prompt_and_the_classes():
    reward = small()
    wave = torch.randn(1, 1, 16_000)
    with pytest.raises(ValueError, match=r"'p7'.*no label 'mood'.*happy, angry, sad, tender"):
        reward(wave, 16_000, [Prompt(id="p7", text="x")])
    with pytest.raises(ValueError, match=r"'p7'.*'hapy'.*did you mean 'happy'"):
        reward(wave, 16_000, [Prompt(id="p7", text="x", labels={"mood": "hapy"})])
    with pytest.raises(ValueError, match="sample rate"):
        reward(wave, None, prompts("sad"))
    with pytest.raises(ValueError, match="sample rate"):
        reward(wave, 0, prompts("sad"))
    with pytest.raises(ValueError, match="batch, channels, samples"):
        reward(wave[0], 16_000, prompts("sad"))
    with pytest.raises(ValueError, match="1 waves came with 2 prompts"):
        reward(wave, 16_000, prompts("sad", "sad"))


def chord(rate_hz: int) -> torch.Tensor:
    """(1, 1, 1 s) two tones below 3 kHz, the same sound at any rate."""
    time = torch.arange(rate_hz) / rate_hz
    return (
        0.1 * torch.sin(2 * math.pi * 440 * time) + 0.05 * torch.sin(2 * math.pi * 2500 * time)
    ).view(1, 1, -1)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 192_000])
def test_any_rate_is_resampled(rate_hz):
    heard = small(rms=None).prepare(chord(rate_hz), rate_hz)
    assert heard.shape == (1, 16_000)
    assert torch.allclose(heard[0, 400:-400], chord(16_000)[0, 0, 400:-400], atol=5e-3)


def test_stereo_is_averaged():
    reward = small(rms=None)
    wave = torch.randn(2, 2, 16_000) * 0.1
    stereo, mono = (
        reward(one, 16_000, prompts("sad", "happy"))
        for one in (wave, wave.mean(dim=1, keepdim=True))
    )
    assert torch.equal(stereo.score_B, mono.score_B)
    opposite = torch.stack(
        [wave[:1, 0], -wave[:1, 0]], dim=1
    )  # cancels itself: judged as the silence that it is in mono
    silent = reward(torch.zeros(1, 1, 16_000), 16_000, prompts("sad"))
    assert torch.equal(reward(opposite, 16_000, prompts("sad")).score_B, silent.score_B)


@pytest.mark.parametrize("rms", [0.08, None])
@pytest.mark.parametrize("value", ["value", "label", "probability", "log_odds", "calibrated"])
def test_silent_clipped_and_one_sample_clips_have_finite_scores(value, rms):
    reward = small(
        value=value, rms=rms, class_mean=[0.0, 0.5, -0.5, 0.0], class_std=[1.0, 2.0, 0.5, 1.0]
    )
    square = (torch.arange(16_000) // 40 % 2 * 2.0 - 1).view(1, 1, -1)
    for wave in (
        torch.zeros(1, 1, 16_000),
        square,
        30 * square,
        torch.ones(1, 1, 16_000),
        torch.ones(1, 1, 1),
    ):
        output = reward(wave, 16_000, prompts("tender"))
        assert all(torch.isfinite(part).all() for part in (output.score_B, *output.parts.values()))


def test_a_clip_without_samples_or_channels_is_refused():
    for shape, message in (
        ((1, 1, 0), "0 samples"),
        ((1, 0, 100), r"batch, channels, samples.*got shape \(1, 0, 100\)"),
    ):
        with pytest.raises(ValueError, match=message):
            small()(torch.zeros(shape), 16_000, prompts("sad"))


def test_labels_may_be_words_for_classes():
    words = {"joyful": "happy", "mournful": "sad", "Q3": "sad"}
    reward = small(classes_of=words)
    assert reward.wanted_classes(prompts("joyful", "Q3", "mournful", "angry")).tolist() == [
        0,
        2,
        2,
        1,
    ]
    with pytest.raises(
        ValueError,
        match="'joyfull'.*'joyful'.*happy, angry, sad, tender",
    ):
        reward.wanted_classes(prompts("joyfull"))
    with pytest.raises(ValueError, match=r"mood.*\['sad'\]"):
        reward.wanted_classes([Prompt("a", "x", labels={"mood": ["sad"]})])
    with pytest.raises(ValueError, match="classes_of.*merry.*happy"):
        small(classes_of={"joyful": "merry"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value": "vale"}, "value must be one of"),
        (
            {"value": "calibrated"},
            "'calibrated' needs class_mean and class_std, measured .*class_statistics",
        ),
        ({"class_mean": [0.0] * 4}, "belong together"),
        (
            {"class_mean": [0.0] * 3, "class_std": [1.0] * 4},
            "class_mean needs one number for each of happy.*got 3",
        ),
        (
            {"class_mean": [0.0] * 4, "class_std": [1.0, 1.0, 0.0, 1.0]},
            "class_std must be finite and positive",
        ),
        (
            {"class_mean": [0.0, 0.0, 0.0, math.nan], "class_std": [1.0] * 4},
            "class_mean must be finite",
        ),
        ({"activation": "relu"}, "activation must be one of"),
        ({"chunk_rule": "half"}, "chunk_rule must be one of"),
        ({"class_names": ["a", "a"]}, "different names"),
        ({"channels": (4, 4)}, "7 stages"),
        ({"n_mels": 256}, "n_mels must be 1..128"),
        ({"chunk_s": 0.0}, "chunk_s 0.0 at 16000 Hz must be longer than half of n_fft, 1024"),
        ({"chunk_s": math.nan}, "chunk_s nan"),
        ({"sample_rate_hz": 0}, "at 0 Hz"),
        ({"rms": 0.0}, "rms .*got 0.0"),  # every clip would be silent
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        EmotionReward(**settings)


def test_arguments_rebuild_the_reward():
    reward = small(
        value="log_odds",
        activation="sigmoid",
        class_names=["Q1", "Q2"],
        label_key="quadrant",
        rms=None,
    )
    again = EmotionReward(**reward.arguments)
    again.load_state_dict(reward.state_dict())
    wave = torch.randn(1, 1, 16_000)
    asked = [Prompt(id="a", text="x", labels={"quadrant": "Q2"})]
    assert torch.equal(reward(wave, 16_000, asked).score_B, again(wave, 16_000, asked).score_B)
    assert isinstance(reward, Reward)
    assert class_indices(asked, "quadrant", ("Q1", "Q2")).tolist() == [1]
