"""Best of n: its arithmetic by hand, refusals, and what it costs by counting networks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from toys import ToyBackbone, ToyReward, prompts

from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.evaluation.best_of_n import best_of_n, chance_of_best, cost, first_best, generate_best
from zoo.generation import generate, score
from zoo.types import RewardOutput

CASES = {
    "all": ([0.1, 0.9, 0.5], 3, [0, 1, 0]),
    "pairs": ([0.1, 0.9, 0.5], 2, [0, 2 / 3, 1 / 3]),
    "one": ([0.1, 0.9, 0.5], 1, [1 / 3] * 3),
    "tie": ([0.9, 0.9, 0.5], 3, [0.5, 0.5, 0]),
    "tie below": ([1.0, 0.5, 0.5], 2, [2 / 3, 1 / 6, 1 / 6]),
    "equal": ([0.3] * 4, 2, [0.25] * 4),
}


@pytest.mark.parametrize(("scores", "n", "chances"), CASES.values(), ids=CASES)
def test_chances_by_hand(scores, n, chances):
    assert chance_of_best(scores, n) == pytest.approx(chances)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_the_expectation_is_that_over_all_groups(n):
    generator = np.random.default_rng(n)
    picking = generator.integers(0, 4, 7).astype(float)  # with ties
    judging = generator.normal(size=7)
    groups = []
    for group in combinations(range(7), n):
        own = picking[list(group)]
        groups.append(judging[list(group)][own == own.max()].mean())
    chance = chance_of_best(picking, n)
    assert chance @ judging == pytest.approx(np.mean(groups)) and chance.sum() == pytest.approx(1)


def test_the_chances_hold_for_the_first_of_equals_in_any_order():
    """What ``first_best`` keeps, on average over the order of the samples."""
    generator = np.random.default_rng(0)
    picking = np.array([1.0, 1.0, 0.0, 1.0])
    kept = np.zeros(4)
    for _ in range(4000):
        group = generator.permutation(4)[:3]
        kept[group[first_best(picking[group])]] += 1 / 4000
    assert kept == pytest.approx(chance_of_best(picking, 3), abs=0.03)
    assert first_best([0.2, 0.7, 0.7]) == 1


def test_the_gain_of_another_judge_is_over_prompts():
    scores = {
        "clap": [[0.1, 0.9, 0.5], [0.2, 0.1, 0.3], [0.6, 0.5, 0.4]],
        "judge": [[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.9, 0.0, 0.0]],
    }
    found = best_of_n(scores, "clap", "judge", 3, ["a", "b", "c"])
    # picks 1.0, 0.5 and 0.9 where the means are 0.5, 0.5 and 0.3: gains 0.5, 0 and 0.6
    assert found.mean.value == pytest.approx((0.5 + 0.5 + 0.3) / 3)
    assert found.best.value == pytest.approx(2.4 / 3) and found.gain.value == pytest.approx(1.1 / 3)
    assert found.gain.error == pytest.approx(np.std([0.5, 0, 0.6], ddof=1) / 3**0.5)
    assert (found.gain.prompts, found.is_judged) == (3, True)
    pairs = best_of_n(scores, "clap", "judge", 2, ["a", "b", "c"])
    # two thirds the best, one third the second: 5 / 6, 2 / 3 and 3 / 5
    assert pairs.best.value == pytest.approx((5 / 6 + 2 / 3 + 0.6) / 3)
    assert pairs.mean.value == pytest.approx(found.mean.value)
    clustered = best_of_n(scores, "clap", "judge", 3, ["a", "a", "c"])
    assert clustered.gain.prompts == 2 and clustered.gain.value == pytest.approx((0.25 + 0.6) / 2)
    by_class = best_of_n(scores, "clap", "judge", 3, ["a", "b", "c"], ["x", "x", "y"])
    assert by_class.gain.value == pytest.approx((0.25 + 0.6) / 2)


def test_rows_may_differ_in_length_and_a_reward_is_shown_but_not_its_own_judge():
    scores = {"clap": [[0.1, 0.9], [0.3, 0.2, 0.1]]}
    with pytest.raises(UserError, match="clap picks the clips"):
        best_of_n(scores, "clap", "clap", 2, ["a", "b"])
    shown = best_of_n(scores, "clap", "clap", 2, ["a", "b"], show_itself=True)
    assert not shown.is_judged
    assert shown.best.value == pytest.approx((0.9 + (2 * 0.3 + 0.2) / 3) / 2)


GOOD = {"clap": [[0.1, 0.9], [0.3, 0.2]], "judge": [[0.0, 1.0], [1.0, 0.0]]}
BAD = {
    "fewer samples than n": ({}, {"n": 3}, "needs at least 3 samples"),
    "n of 0": ({}, {"n": 0}, "invalid n 0"),
    "half an n": ({}, {"n": 1.5}, "invalid n 1.5"),
    "NaN in the reward": ({"clap": [[0.1, float("nan")], [0, 1]]}, {}, "by clap: 1 of 2"),
    "NaN in the judge": ({"judge": [[0.1, 0.2], [float("inf"), 1]]}, {}, "by judge: 1 of 2"),
    "unequal rows": ({"judge": [[0.1, 0.2], [0.1, 0.2, 0.3]]}, {}, "equal rows"),
    "a row too few": ({"judge": [[0.1, 0.2]]}, {}, "equal rows"),
    "a prompt too few": ({}, {"prompts": ["a"]}, "1 prompts"),
    "an unknown judge": ({}, {"judge": "else"}, "no scores by 'else'"),
    "a table per prompt": ({"judge": [[[0.1, 0.2]], [[1.0, 0.0]]]}, {}, "one number per sample"),
}


@pytest.mark.parametrize(("scores", "settings", "error"), BAD.values(), ids=BAD)
def test_refusals(scores, settings, error):
    call = {"by": "clap", "judge": "judge", "n": 2, "prompts": ["a", "b"], **settings}
    with pytest.raises(UserError, match=error):
        best_of_n({**GOOD, **scores}, **call)


class Counting(ToyBackbone):
    """Counts the rows that its network computes."""

    rows = 0

    def predict(self, latent_BCT, time_B, conditioning):
        self.rows += len(latent_BCT)
        return super().predict(latent_BCT, time_B, conditioning)


class CountingReward(ToyReward):
    def __init__(self) -> None:
        self.clips = 0

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        self.clips += len(wave_BCN)
        return super().__call__(wave_BCN, sample_rate_hz, prompts)


SAMPLERS = {
    "plain": Sampler(3),
    "guided": Sampler(3, 2.0),
    "detached": Sampler(3, 2.0, detach_unconditional=True),
    "second order": Sampler(4, 2.0, rule="dpmpp_2m_sde"),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_best_clip_is_kept_and_costs_what_is_counted(sampler):
    backbone = Counting()
    reward = CountingReward()
    chosen = generate_best(backbone, reward, prompts(2), [5, 3, 8], sampler, batch_size=2)
    price = cost(sampler, 3)
    assert (backbone.rows, reward.clips) == (2 * price.network_evaluations, 2 * price.reward_calls)
    for one, prompt in zip(chosen, prompts(2), strict=True):
        assert one.prompt == prompt and one.seeds == (5, 3, 8)
        assert one.scores[one.seeds.index(one.seed)] == max(one.scores)
        assert len(set(one.scores)) == 3  # else every choice would be right
        again = generate(
            ToyBackbone(),
            prompt,
            seeds=one.seed,
            steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            rule=sampler.rule,
        )[0]
        assert torch.allclose(one.wave.samples_CN, again.samples_CN, atol=1e-5)
        assert score(ToyReward(), again, prompt).score_B.item() == pytest.approx(
            max(one.scores), abs=1e-5
        )


def test_one_clip_needs_no_reward_and_twice_the_same_noise_is_no_choice():
    assert (cost(Sampler(10, 3.0)).network_evaluations, cost(Sampler(10)).reward_calls) == (20, 0)
    with pytest.raises(UserError, match="different seeds"):
        generate_best(ToyBackbone(), ToyReward(), prompts(1), [1, 1], Sampler(2))
    with pytest.raises(UserError, match="invalid n 0"):
        cost(Sampler(2), 0)


class Silent(ToyReward):
    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(torch.full((len(wave_BCN),), float("nan")))


def test_a_reward_that_returns_nan_picks_nothing():
    with pytest.raises(UserError, match="2 of 2 numbers"):
        generate_best(ToyBackbone(), Silent(), prompts(1), [0, 1], Sampler(2))
