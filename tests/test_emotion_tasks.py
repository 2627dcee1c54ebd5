"""EMOPIA's tasks: names of classes, untrained classifiers, and settings of the trainer."""

from __future__ import annotations

import pytest
import torch
from test_emotion_training import loader, small, tones, trainer
from toys import supervised

from lightning_modules.mood_classifier import Emotion
from zoo.rewards.mood_tasks import TASKS, classes_of, untrained_classifier
from zoo.types import Prompt


def test_an_untrained_classifier_has_emopias_sizes() -> None:
    reward = untrained_classifier()
    assert sum(parameter.numel() for parameter in reward.parameters()) == pytest.approx(
        12.08e6, rel=1e-3
    )
    assert (reward.sample_rate_hz, reward.chunk_samples, reward.activation, reward.rms) == (
        22_050,
        66_150,
        "sigmoid",
        None,
    )
    assert reward.class_names == ("happy", "angry", "sad", "tender")


@pytest.mark.parametrize(
    ("task", "of_quadrants"),
    [("ar_va", [0, 1, 2, 3]), ("arousal", [0, 0, 1, 1]), ("valence", [0, 1, 1, 0])],
)
def test_quadrants_and_moods_are_classes_of_every_task(task: str, of_quadrants: list[int]) -> None:
    reward = untrained_classifier(task, channels=(4,) * 7)
    for names in (("Q1", "Q2", "Q3", "Q4"), ("happy", "angry", "sad", "tender")):
        prompts = [Prompt(name, "piano", labels={"mood": name}) for name in names]
        assert reward.wanted_classes(prompts).tolist() == of_quadrants
    assert reward.class_names == TASKS[task] and reward.classifier.dense2.out_features == len(
        TASKS[task]
    )


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="'arousel'.*'arousal'"):
        classes_of("arousel")
    with pytest.raises(ValueError, match="no EMOPIA task 'x'"):
        untrained_classifier("x")


def test_the_rate_restarts_every_sixteen_epochs() -> None:
    setup = supervised(
        Emotion, small(), learning_rate=1e-4, optimizer="adam", weight_decay=1e-4, restart_epochs=16
    ).configure_optimizers()
    optimizer = setup["optimizer"]
    schedule = setup["lr_scheduler"]["scheduler"]
    assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert setup["lr_scheduler"]["interval"] == "epoch"
    rates = []
    for _ in range(18):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert (
        rates[0] == rates[16] == pytest.approx(1e-4)
        and rates[8] == pytest.approx(5e-5)
        and rates[15] < 1e-6 < rates[17]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "invalid name 'sgd'"),
        ({"total_steps": 4, "restart_epochs": 2}, "two schedules"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        supervised(Emotion, small(), **settings)


def test_a_proper_loss_does_not_train_sigmoid_outputs() -> None:
    with pytest.raises(ValueError, match="activation='softmax'"):
        supervised(Emotion, small(activation="sigmoid"), loss="cross_entropy")


def test_the_best_epoch_is_kept_not_the_last() -> None:
    seen = []

    class Recorded(Emotion):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            if not self.trainer.sanity_checking:
                weights = {
                    name: value.clone()
                    for name, value in self.reward.classifier.state_dict().items()
                }
                seen.append((self.report.clip_vote, weights))

    torch.manual_seed(0)
    module = supervised(Recorded, small(), learning_rate=3e-2, keep_best=True)
    trainer(max_epochs=4).fit(
        module, loader([tones(16, seed) for seed in range(3)]), loader([tones(16, 99)])
    )
    accuracies = [accuracy for accuracy, _ in seen]
    best = accuracies.index(max(accuracies))
    kept = module.reward.classifier.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in seen[best][1].items())
    assert best < 3, f"the test tells nothing where the last epoch is the best: {accuracies}"
    assert module.report.clip_vote == max(accuracies)


@pytest.mark.parametrize(
    ("rule", "seconds", "chunks"),
    [
        ("full", 5.0, 1),
        ("full", 10.0, 3),
        ("full", 2.9, 1),
        ("overlap", 2.9, 1),
        ("overlap", 10.0, 8),
        ("upstream", 6.0, 1),
        ("upstream", 10.0, 2),
    ],
)
def test_chunks_of_a_clip_by_rule_and_no_nan(rule: str, seconds: float, chunks: int) -> None:
    """One chunk at 5 s and three at 10 s; a clip shorter than a chunk is also scored."""
    reward = untrained_classifier(channels=(4,) * 7, chunk_rule=rule)
    wave = torch.randn(1, 1, round(seconds * 22_050)) * 0.1
    assert reward.chunk_logits(wave, 22_050).shape == (1, chunks, 4)
    assert (
        reward(wave, 22_050, [Prompt("p", "piano", labels={"mood": "sad"})])
        .score_B.isfinite()
        .all()
    )


@pytest.mark.parametrize("seconds", [2.9, 5.99])
def test_the_authors_rule_has_no_chunk_below_six_seconds(seconds: float) -> None:
    reward = untrained_classifier(channels=(4,) * 7, chunk_rule="upstream")
    with pytest.raises(ValueError, match="leaves out the last chunk"):
        reward(
            torch.randn(1, 1, round(seconds * 22_050)),
            22_050,
            [Prompt("p", "piano", labels={"mood": "sad"})],
        )
