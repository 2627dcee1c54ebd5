"""Best of n: of n samples of a prompt, keep the one that a reward scores highest.

It needs no training, only n times the sampling and n reward calls per clip that is kept, so it is
what fine-tuning by the same reward has to be compared with. What it gains is read from another
judge: a reward that picks is never its own judge.

From S >= n samples per prompt the expectation over all groups of n of them is computed, exactly and
in closed form. It uses every sample, and its value does not depend on their order, where S / n
fixed groups would waste the rest and depend on it. The mean over the same groups is the mean of the
S samples, so the gain is the difference to the mean of the same n clips.

Ties: whoever picks keeps the first (``first_best``). The samples of a prompt come in no meaningful
order, so the expectation shares a tie equally among the tied.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.generation import generate_each, score
from zoo.statistics.clustered import Clustered, clustered_mean
from zoo.types import Backbone, Prompt, Scorer, Waveform


@dataclass(frozen=True)
class Cost:
    """Of one clip that is kept.

    - ``network_evaluations``: rows that the denoiser computes, guidance included.
    - ``reward_calls``: clips that the reward scores.
    """

    network_evaluations: int
    reward_calls: int


def cost(sampler: Sampler, n: int = 1) -> Cost:
    """Of the best of ``n``; a single clip needs no reward."""
    _check_count(n)
    return Cost(n * sampler.network_evaluations, n if n > 1 else 0)


@dataclass(frozen=True)
class BestOfN:
    """What ``judge`` says of the clips that ``by`` picks.

    - ``mean``: of all clips. ``best``: of the picked. ``gain``: the difference, paired by prompt.
    - ``best_P``, ``mean_P``: the same of every prompt, in order.
    - ``is_judged``: False where the judge is the reward that picks; the numbers then say how hard
      it picked, and nothing about the clips.
    """

    n: int
    by: str
    judge: str
    mean: Clustered
    best: Clustered
    gain: Clustered
    best_P: tuple[float, ...]
    mean_P: tuple[float, ...]

    @property
    def gain_P(self) -> tuple[float, ...]:
        return tuple(best - mean for best, mean in zip(self.best_P, self.mean_P, strict=True))

    @property
    def is_judged(self) -> bool:
        return self.by != self.judge


def chance_of_best(score_S: ArrayLike, n: int) -> np.ndarray:
    """The chance of each of S samples (S,) to be kept from n of them, drawn without repetition.

    ``chance_S @ judge_S`` is the expected judge's score of the best of n.

    Raises ``UserError`` for n < 1, fewer than n samples, and scores that are not finite.
    """
    _check_count(n)
    score = _finite(score_S, "scores")
    if len(score) < n:
        raise UserError(
            f"the best of {n} needs at least {n} samples of every prompt, got {len(score)}"
        )
    chance = np.empty(len(score))
    groups = comb(len(score), n)
    for value in np.unique(score):
        tied = score == value
        at_most = int((score <= value).sum())  # groups without a better sample are drawn from these
        below = at_most - int(tied.sum())
        chance[tied] = (comb(at_most, n) - comb(below, n)) / groups / tied.sum()
    return chance


def first_best(score_S: ArrayLike) -> int:
    """The place of the highest score, of equal ones the first.

    Raises ``UserError`` for no scores and for scores that are not finite.
    """
    score = _finite(score_S, "scores")
    if not len(score):
        raise UserError("expected at least one sample to choose from")
    return int(score.argmax())


def best_of_n(
    scores: Mapping[str, Sequence[ArrayLike]],
    by: str,
    judge: str,
    n: int,
    prompts: Sequence[Hashable],
    classes: Sequence[Hashable] | None = None,
    *,
    show_itself: bool = False,
) -> BestOfN:
    """The expected score of the best of ``n`` by one reward, as another judge scores it.

    Args:
        scores: name -> one row per prompt, with a number per sample, such as a matrix of (prompts,
            samples). Rows may differ in length; those of one prompt agree.
        by: the name of the scores that pick.
        judge: the name of the scores that judge.
        n: samples that are picked from.
        prompts: one per row: intervals are over these. Give equal ones to rows that are not
            independent, such as captions of the same pair of sounds.
        classes: one per row: means are then over classes of their means (``clustered_mean``).
        show_itself: allows ``judge`` to be ``by``; the result is marked (``is_judged``).

    Raises:
        UserError: for fewer samples than ``n``, scores that are not finite or do not fit each
            other, an unknown name, and a reward that would judge its own choice.
    """
    for name in (by, judge):
        if name not in scores:
            raise UserError(f"there are no scores by {name!r}, only by {', '.join(scores)}")
    if by == judge and not show_itself:
        raise UserError(
            f"{by} picks the clips, so it cannot judge them: it prefers its own choice by"
            " construction; name another judge"
        )
    picking = [_finite(row, f"scores by {by}") for row in scores[by]]
    judging = [_finite(row, f"scores by {judge}") for row in scores[judge]]
    counts = [[len(row) for row in rows] for rows in (picking, judging)]
    if counts[0] != counts[1] or len(picking) != len(prompts):
        raise UserError(
            f"expected one row per prompt and equal rows, got {len(prompts)} prompts, rows of"
            f" {counts[0]} samples by {by} and of {counts[1]} by {judge}"
        )
    best_P = tuple(
        float(chance_of_best(picked, n) @ judged)
        for picked, judged in zip(picking, judging, strict=True)
    )
    mean_P = tuple(float(judged.mean()) for judged in judging)
    gain_P = [best - mean for best, mean in zip(best_P, mean_P, strict=True)]
    found = [clustered_mean(column, prompts, classes) for column in (mean_P, best_P, gain_P)]
    return BestOfN(n, by, judge, *found, best_P, mean_P)


@dataclass(frozen=True)
class Chosen:
    """The best of some samples of a prompt.

    - ``wave``: the sample that is kept; ``seed``: of its noise.
    - ``seeds``, ``scores``: of all that it was chosen from, in order.
    """

    prompt: Prompt
    wave: Waveform
    seed: int
    seeds: tuple[int, ...]
    scores: tuple[float, ...]


def generate_best(
    backbone: Backbone,
    reward: Scorer,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampler: Sampler,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Chosen]:
    """Makes one clip per prompt and seed, as ``zoo.generate`` does, and keeps each prompt's best.

    Args:
        backbone: makes the clips.
        reward: picks.
        prompts: one clip is kept of each.
        seeds: of the clips of every prompt; of equal scores the first is kept.
        sampler: steps and guidance.
        batch_size: clips that are made at a time.
        progress: called with (finished, all) clips after each batch.

    Raises:
        UserError: for no seed, one that is given twice, and a score that is not finite.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"expected different seeds to choose among, got {list(seeds)}")
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    waves = generate_each(backbone, jobs, sampler, batch_size, progress)
    score_B: list[float] = []
    for start in range(0, len(jobs), batch_size):
        own = slice(start, start + batch_size)
        score_B += score(reward, waves[own], [prompt for prompt, _ in jobs[own]]).score_B.tolist()
    chosen = []
    for row, prompt in enumerate(prompts):
        start = row * len(seeds)
        own_scores = tuple(score_B[start : start + len(seeds)])
        best = first_best(own_scores)
        chosen.append(Chosen(prompt, waves[start + best], seeds[best], tuple(seeds), own_scores))
    return chosen


def _check_count(n: int) -> None:
    if isinstance(n, bool) or int(n) != n or n < 1:
        raise UserError(f"invalid n {n} of a best of n: expected a whole number >= 1")


def _finite(values: ArrayLike, what: str) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise UserError(f"{what}: expected one number per sample, got shape {numbers.shape}")
    bad = int((~np.isfinite(numbers)).sum())
    if bad:
        raise UserError(
            f"{what}: {bad} of {len(numbers)} numbers of a prompt are NaN or infinite; leave these"
            " clips out and say how many"
        )
    return numbers
