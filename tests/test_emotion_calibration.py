"""Scores relative to the base model: statistics by hand, no preferred class, errors."""

import math

import pytest
import torch

from zoo.rewards.mood import MOODS, EmotionReward, class_log_odds, emotion_score
from zoo.rewards.mood_calibration import class_statistics, rescored
from zoo.types import Prompt

RATE = 16_000


def small(**settings) -> EmotionReward:
    """A classifier whose batch norms are fitted to noise, so that it distinguishes clips."""
    torch.manual_seed(0)
    reward = EmotionReward(
        channels=(4, 4, 4, 8, 8, 8, 8), n_mels=32, chunk_s=0.25, **settings
    ).requires_grad_(False)
    norms = [
        module
        for module in reward.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.training = True
        norm.momentum = 1.0
    reward.classifier(generations(seed=9)[:, 0, :4000])
    for norm in norms:
        norm.training = False
    return reward


def generations(count: int = 12, seed: int = 1) -> torch.Tensor:
    """(count, 1, 0.5 s) noises of different colours."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, RATE // 2, generator=generator)
    tilt = torch.linspace(0, 0.9, count).view(-1, 1, 1)
    return 0.1 * (noise + tilt * noise.roll(1, dims=2))


def asking_for(*moods: str) -> list[Prompt]:
    return [Prompt(str(index), "x", labels={"mood": mood}) for index, mood in enumerate(moods)]


def test_log_odds_of_every_class_are_those_of_its_probability():
    p = torch.tensor([[0.7, 0.1, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
    assert torch.allclose(class_log_odds(p.log() + 3.0), (p / (1 - p)).log(), atol=1e-6)
    for index in range(4):
        one = emotion_score(p.log(), p, torch.tensor([index, index]), "log_odds")
        assert torch.allclose(one, class_log_odds(p.log())[:, index])


def test_the_calibrated_score_counts_deviations_above_the_base():
    p = torch.tensor([[0.8, 0.2]])
    odds = math.log(4)
    statistics = (torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.25]))
    for target, expected in ((0, (odds - 2) / 0.5), (1, (-odds + 1) / 0.25)):
        score = emotion_score(p.log(), p, torch.tensor([target]), "calibrated", statistics)
        assert score.item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="needs statistics"):
        emotion_score(p.log(), p, torch.tensor([0]), "calibrated")


def test_statistics_are_the_mean_and_sample_deviation_over_clips_however_they_are_batched():
    reward, wave = small(), generations()
    odds = class_log_odds(reward.chunk_logits(wave, RATE).mean(dim=1)).double()
    found = class_statistics(reward, [(wave[:5], RATE), (wave[5:6], RATE), (wave[6:], RATE)])
    assert (found.clips, found.class_names) == (12, MOODS)
    assert found.mean == pytest.approx(odds.mean(dim=0).tolist(), abs=1e-5)
    assert found.std == pytest.approx(odds.std(dim=0).tolist(), rel=1e-3)


def test_a_classifier_with_a_favourite_class_has_none_after_calibration():
    reward = small(value="log_odds")
    wave = generations()
    reward.classifier.dense2.bias[0] += 20.0
    happy = reward(wave, RATE, asking_for(*["happy"] * 12))
    angry = reward(wave, RATE, asking_for(*["angry"] * 12))
    assert happy.parts["accuracy"].mean() == 1 and angry.score_B.mean() < happy.score_B.mean() - 20
    statistics = class_statistics(reward, [(wave, RATE)])
    fair = rescored(reward, "calibrated", class_mean=statistics.mean, class_std=statistics.std)
    scores = {mood: fair(wave, RATE, asking_for(*[mood] * 12)) for mood in ("happy", "angry")}
    for mood, output in scores.items():
        assert output.score_B.mean().abs() < 1e-2 and output.score_B.std().item() == pytest.approx(
            1, abs=0.02
        ), mood
    right = sum(output.parts["calibrated_accuracy"].sum() for output in scores.values())
    assert 0 < right <= 12  # a clip is highest above the base in one class only
    assert torch.equal(scores["happy"].parts["accuracy"], happy.parts["accuracy"])
    assert "calibrated_accuracy" not in happy.parts


def test_rescored_changes_the_score_and_nothing_else():
    reward = small()
    wave = generations(2)
    before = torch.get_rng_state()
    other = rescored(reward, "log_odds", chunk_rule="overlap", hop_s=0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert (other.value, other.chunk_rule, other.hop_s, reward.value) == (
        "log_odds",
        "overlap",
        0.1,
        "value",
    )
    assert other.arguments["channels"] == reward.arguments["channels"] and not any(
        p.requires_grad for p in other.parameters()
    )
    assert torch.equal(
        rescored(other, "value", "full")(wave, RATE, asking_for("sad", "happy")).score_B,
        reward(wave, RATE, asking_for("sad", "happy")).score_B,
    )
    assert next(rescored(reward.to(torch.bfloat16)).parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="needs class_mean and class_std"):
        rescored(reward, "calibrated")


def test_statistics_survive_saving_and_gradients_flow_through_them():
    reward = small(
        value="calibrated", class_mean=[0.0, 1.0, 2.0, -3.0], class_std=[1.0, 2.0, 0.5, 1.0]
    )
    again = EmotionReward(**reward.arguments)
    again.load_state_dict(reward.state_dict())
    wave = generations(2).requires_grad_()
    score = again(wave, RATE, asking_for("sad", "tender")).score_B
    assert (
        torch.equal(score, reward(wave, RATE, asking_for("sad", "tender")).score_B)
        and reward.differentiable
    )
    score.sum().backward()
    assert torch.isfinite(wave.grad).all() and wave.grad.abs().sum() > 0


def test_uninformative_generations_are_refused():
    reward = small()
    for batches in ([], [(generations(1), RATE)]):
        with pytest.raises(ValueError, match="at least two generations"):
            class_statistics(reward, batches)
    with pytest.raises(ValueError, match="log-odds of happy .* are they all silent"):
        class_statistics(reward, [(torch.zeros(3, 1, RATE), RATE)])
    with pytest.raises(ValueError, match="log-odds of happy .* must be finite"):
        class_statistics(reward, [(torch.full((3, 1, RATE), torch.nan), RATE)])
