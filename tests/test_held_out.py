"""The held-out scorer is only logged; its callback acts when it falls while the reward rises."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from toy_ddpo import fitted, module, recorded, trainer, weights
from toys import Given, Rounds, ToyReward, prompt_round

from lightning_modules.callbacks import MetricsCSV
from lightning_modules.rl.held_out import (
    Evaluation,
    HeldOutSample,
    HeldOutWatch,
    WithHeldOut,
    change,
    held_out_summary,
    not_finite_warning,
    with_held_out,
)
from lightning_modules.rl.rollouts import RewardError
from lightning_modules.rl.settings import OptimizerSettings, UpdateSettings
from zoo.rewards.mood import EmotionReward
from zoo.types import Prompt, RewardOutput


class Against(ToyReward):
    """Falls as the toys' reward rises."""

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        output = super().__call__(wave_BCN, sample_rate_hz, prompts)
        return RewardOutput(-output.score_B, {"clap/small": output.parts["level"]})


class Broken(ToyReward):
    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        raise KeyError("weights")


def sample(
    name: str, score: float, scorer: float | None = None, mood: str = "sad", index: int = 0
) -> HeldOutSample:
    parts = {"level": score + 1} | ({} if scorer is None else {"held_out_scorer": scorer})
    return HeldOutSample(Prompt(name, name, labels={"mood": mood}), index, score, parts)


def test_the_second_reward_is_a_part_and_the_one_that_fails_is_named():
    prompts = [Prompt("a", "x", labels={"mood": "sad"})]
    both = with_held_out(ToyReward(), Against())
    output = both(torch.ones(1, 1, 8), 8, prompts)
    assert isinstance(both, WithHeldOut) and not both.differentiable
    assert (
        output.parts["held_out_scorer"] == -output.score_B
        and output.parts["held_out_scorer/clap/small"] == 1
    )
    assert output.parts["level"] == 1
    for pair in ((Broken(), Against()), (ToyReward(), Broken())):
        with pytest.raises(RewardError, match="Broken.*KeyError"):
            WithHeldOut(*pair)(torch.ones(1, 1, 8), 8, prompts)
    reward = ToyReward()
    assert with_held_out(reward, None) is reward


def test_the_summary_by_arithmetic():
    samples = [
        sample("a", 1.0, 4.0, "happy"),
        sample("b", 3.0, math.nan),
        sample("c", math.nan, 2.0),
    ]
    summary = held_out_summary(samples, "mood")
    assert (
        summary["held_out/mean"] == 2
        and summary["held_out/sad/mean"] == 3
        and summary["held_out_part/level"] == 3
    )
    assert summary["held_out_scorer/mean"] == 3 and summary["held_out_scorer/happy/mean"] == 4
    assert summary["held_out_scorer/not_finite"] == 1 and summary["held_out/not_finite"] == 1
    assert held_out_summary([sample("a", 1.0)], "mood")["held_out/not_finite"] == 0
    assert not any("scorer" in name for name in held_out_summary([sample("a", 1.0)], "mood"))
    assert held_out_summary([], "mood") == {}


def test_clips_without_a_score_are_reported_with_their_prompts():
    samples = [
        sample("a", 1.0),
        sample("b", math.nan),
        sample("b", math.inf, index=1),
        sample("c", math.nan),
    ]
    warning = not_finite_warning(samples)
    assert "3 of 4" in warning and "'b', 'c'" in warning and "'a'" not in warning
    assert not_finite_warning(samples[:1]) is None
    many = not_finite_warning([sample(f"p{i}", math.nan) for i in range(9)])
    assert "9 of 9" in many and "6 more" in many


class NoScore(ToyReward):
    """NaN for the first clip of every call, like a reward that cannot score a clip."""

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        output = super().__call__(wave_BCN, sample_rate_hz, prompts)
        score = output.score_B.clone()
        score[0] = math.nan
        return RewardOutput(score, output.parts)


def test_an_evaluation_with_nan_says_so(recwarn):
    ddpo = module({"scoring.on_bad_reward": "drop"}, reward=NoScore())
    ddpo.log_dict = lambda metrics: None
    ddpo.on_validation_epoch_start()
    ddpo.validation_step(prompt_round(4), 0)
    ddpo.on_validation_epoch_end()
    count = ddpo.held_out["held_out/not_finite"]
    assert count >= 1 and math.isfinite(ddpo.held_out["held_out/mean"])
    assert any(f"{count:.0f} of 4 held-out clips" in str(warning.message) for warning in recwarn)


def evaluation(round_number: float, *pairs: tuple[float, float]) -> Evaluation:
    return Evaluation.of([sample(f"p{i}", *pair) for i, pair in enumerate(pairs)], round_number)


def test_changes_are_paired():
    before = evaluation(0, (0.0, 10.0), (0.0, 20.0), (0.0, 90.0))
    now = evaluation(1, (1.0, 9.0), (2.0, 18.0), (3.0, 87.0))
    found = change(before, now)  # differences -1, -2, -3: mean -2, deviation 1, error 1 / sqrt(3)
    assert (found.reward, found.scorer) == (2.0, -2.0) and found.scorer_errors == pytest.approx(
        -2 * math.sqrt(3)
    )
    assert change(before, before).scorer_errors == 0
    alike = change(evaluation(0, (0.0, 1.0), (0.0, 2.0)), evaluation(1, (0.0, 0.0), (0.0, 1.0)))
    assert alike.scorer_errors == -math.inf  # all by the same: no doubt about the sign
    assert Evaluation.restored(now.state()) == now
    with pytest.raises(ValueError, match="round 0.*round 1.* 1 clip"):
        change(before, evaluation(1, (0.0, 1.0), (0.0, math.nan), (math.nan, 1.0)))


def test_clips_of_one_prompt_are_one_change():
    before = Evaluation.of([sample(name, 0.0, 0.0, index=i) for name in "ab" for i in range(5)], 0)
    after = [
        sample(name, 1.0, {"a": -1.0, "b": -3.0}[name], index=i) for name in "ab" for i in range(5)
    ]
    assert change(before, Evaluation.of(after, 1)).scorer_errors == pytest.approx(
        -2.0
    )  # -2 over an error of 1, not of 1/3
    one = [
        sample("a", 1.0, -1.0 - i, index=i) for i in range(5)
    ]  # one prompt: over its clips, there is nothing else
    assert change(before, Evaluation.of(one, 1)).scorer_errors == pytest.approx(
        -3 / math.sqrt(2.5 / 5)
    )


class Stage:
    """A run as the callback sees it; ``says`` runs an evaluation of four clips around means."""

    def __init__(self, watch: HeldOutWatch, kl_coef: float = 0.0) -> None:
        self.watch = watch
        self.round = 0
        self.module = SimpleNamespace(held_out_reward=Against(), held_out={}, held_out_samples=[])
        self.module.optimizer = OptimizerSettings(learning_rate=0.1)
        self.module.update = UpdateSettings(kl_coef=kl_coef)
        self.trainer = SimpleNamespace(
            sanity_checking=False, should_stop=False, enable_validation=True, callback_metrics={}
        )
        watch.on_fit_start(self.trainer, self.module)

    def says(self, reward: float, scorer: float, noise: float = 0.01) -> bool:
        spread = (-noise, noise, -noise, noise)
        self.module.held_out_samples = [
            sample(f"p{i}", reward, scorer + self.round * s) for i, s in enumerate(spread)
        ]
        self.round += 1
        self.trainer.callback_metrics = {"round": torch.tensor(float(self.round))}
        self.watch.on_validation_end(self.trainer, self.module)
        return self.trainer.should_stop


def test_it_stops_when_the_scorer_falls_below_its_best_while_the_reward_rises():
    stage = Stage(HeldOutWatch())
    assert [stage.says(*pair) for pair in ((0, 0), (1, 1), (2, 1.0), (3, 0.5))] == [
        False,
        False,
        False,
        True,
    ]
    assert stage.module.held_out["held_out_scorer/rise_errors"] < -1
    assert (
        stage.module.held_out["held_out_scorer/interventions"] == 1
        and stage.watch.reference.round == 2
    )


def test_it_continues_when_both_fall_or_only_noise_or_the_start_counts():
    stage = Stage(HeldOutWatch())
    assert not any(stage.says(*pair) for pair in ((0, 0), (1, 1), (-1, 0.5)))
    stage = Stage(HeldOutWatch())
    assert not any(stage.says(*pair, noise=5.0) for pair in ((0, 0), (1, -0.5), (2, -0.6)))
    stage = Stage(HeldOutWatch(compare_with="start"))
    assert [stage.says(*pair) for pair in ((0, 0), (1, 1), (2, 0.5), (3, -0.5))] == [
        False,
        False,
        False,
        True,
    ]


def test_the_check_before_a_resumed_run_is_not_an_evaluation():
    stage = Stage(HeldOutWatch(patience=2))
    stage.says(0, 0), stage.says(1, -1)
    stage.trainer.sanity_checking = True
    assert not stage.says(1, -1) and stage.watch.fallen_for == 1
    stage.trainer.sanity_checking = False
    assert not stage.says(2, 0.5) and stage.watch.fallen_for == 0


def test_patience_counts_evaluations_in_a_row():
    stage = Stage(HeldOutWatch(patience=2))
    assert [stage.says(*pair) for pair in ((0, 0), (1, -1), (1, 0.5), (2, -1), (3, -1))] == [
        False
    ] * 4 + [True]


@pytest.mark.parametrize(
    ("action", "setting_of", "factor", "values"),
    [
        ("lower_rate", lambda module: module.optimizer.learning_rate, None, (0.05, 0.025)),
        ("raise_kl", lambda module: module.update.kl_coef, 3.0, (0.6, 1.8)),
    ],
)
def test_annealing_goes_on_from_where_a_checkpoint_was(action, setting_of, factor, values):
    stage = Stage(HeldOutWatch(action, factor=factor), kl_coef=0.2)
    assert not any(stage.says(*pair) for pair in ((0, 0), (1, -1)))
    assert setting_of(stage.module) == pytest.approx(values[0])
    again = HeldOutWatch(action, factor=factor)
    again.load_state_dict(stage.watch.state_dict())
    resumed = Stage(again, kl_coef=0.2)
    assert setting_of(resumed.module) == pytest.approx(values[0])
    resumed.watch.on_fit_start(resumed.trainer, resumed.module)  # once more changes nothing
    resumed.says(2, -1)
    assert setting_of(resumed.module) == pytest.approx(values[1]) and again.interventions == 2
    other = HeldOutWatch("stop")
    other.load_state_dict(stage.watch.state_dict())
    assert other.interventions == 0 and other.reference == stage.watch.reference


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "halt"}, "action 'halt' is unknown"),
        ({"compare_with": "bset"}, "did you mean 'best'"),
        ({"patience": 0}, "patience 1, got 1.0 and 0"),
        ({"standard_errors": -1.0}, "standard_errors must be at least 0"),
        ({"factor": 0.5}, "action 'stop' takes no factor, got 0.5"),
        ({"action": "lower_rate", "factor": 2.0}, "a factor between 0 and 1, got 2.0"),
        ({"action": "raise_kl", "factor": 0.5}, "a factor above 1, got 0.5"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HeldOutWatch(**settings)


def test_missing_settings_are_reported_before_anything_is_sampled():
    with pytest.raises(
        ValueError, match="multiplies update.kl_coef, which is 0.0; begin with a small one"
    ):
        Stage(HeldOutWatch("raise_kl"))
    with pytest.raises(ValueError, match=r"module\.held_out_reward"):
        fitted(module(), callbacks=[HeldOutWatch()], val=Given(prompt_round(4)))
    with pytest.raises(ValueError, match="needs evaluations: give held-out prompts"):
        fitted(module(held_out_reward=Against()), callbacks=[HeldOutWatch()])
    with pytest.raises(ValueError, match="held_out_on_training=true.*held_out_reward"):
        module({"scoring.held_out_on_training": True})


def test_the_scorer_is_logged_and_never_trained_on(tmp_path):
    networks = [EmotionReward(channels=[4] * 7, n_mels=32, chunk_s=0.5) for _ in range(2)]
    assert all(
        name.startswith("backbone.")
        for name in module(reward=networks[0], held_out_reward=networks[1]).trainable()
    )
    plain = module()
    scored = module(held_out_reward=Against())
    fitted(plain, epochs=2, val=Given(prompt_round(4)))
    table = MetricsCSV(tmp_path / "metrics.csv")
    fitted(scored, epochs=2, val=Given(prompt_round(4)), callbacks=[table])
    assert all(torch.equal(value, weights(scored)[name]) for name, value in weights(plain).items())
    names = {
        "held_out_scorer/mean",
        "held_out_scorer/sad/mean",
        "held_out_part/held_out_scorer/clap/small",
        "held_out_part/level",
    }
    assert all(names <= set(row) and "reward_part/held_out_scorer" not in row for row in table.rows)
    assert table.rows[0]["held_out_scorer/mean"] == pytest.approx(
        -table.rows[0]["held_out/mean"], rel=1e-6
    )
    row = recorded(
        module({"scoring.held_out_on_training": True}, held_out_reward=Against())
    ).rounds[0]
    assert row["reward_part/held_out_scorer"] == pytest.approx(-row["reward/mean"], rel=1e-6)


def learner(**changes):
    sizes = {
        "sampler.batch_size": 32,
        "update.batch_size": 32,
        "advantages.kind": "batch",
        "optimizer.learning_rate": 2e-2,
        "adapter.rank": 4,
    }
    return module({"adapter.targets": "all"}, **sizes, held_out_reward=Against(), **changes)


@pytest.mark.long
def test_a_run_is_stopped_or_annealed_and_a_resumed_one_knows_it(tmp_path):
    """A scorer that is the opposite of the toy's reward falls within a few rounds."""
    watch = HeldOutWatch(compare_with="start")
    run = fitted(learner(), size=64, epochs=12, val=Given(prompt_round(32)), callbacks=[watch])
    assert watch.interventions == 1 and 1 < run.current_epoch < 12

    first = HeldOutWatch("lower_rate", compare_with="start", factor=0.1)
    rounds = run.current_epoch
    run = fitted(
        learner(),
        size=64,
        epochs=rounds,
        val=Given(prompt_round(32)),
        callbacks=[first],
        default_root_dir=tmp_path,
    )
    run.save_checkpoint(tmp_path / "half.ckpt")
    assert first.interventions == 1
    second = HeldOutWatch("lower_rate", compare_with="start", factor=0.1)
    resumed = learner()
    rates = []

    class Rates(MetricsCSV):
        def on_train_batch_end(self, trainer, *_):
            rates.append(float(trainer.callback_metrics["learning_rate"]))

    again = trainer(rounds + 1, callbacks=[second, Rates(tmp_path / "m.csv")])
    again.fit(
        resumed,
        Rounds(64, start=rounds),
        Given(prompt_round(32)),
        ckpt_path=tmp_path / "half.ckpt",
        weights_only=True,
    )
    assert (
        rates == [pytest.approx(2e-3)]
        and second.reference == first.reference
        and second.interventions >= 1
    )
