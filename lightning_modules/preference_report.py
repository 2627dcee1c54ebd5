"""What a preference head is worth: beside the majority and beside the CLAP's own cosine.

A judge is one probability per clip. The head's is its own; the cosine's is fitted to the training
labels by a logistic line, so that it too can be called right or calibrated; the majority says the
mean training label of every clip.

Every figure has a 95 % interval over prompts, because clips of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import RatedClip
from lightning_modules.preference_losses import probability_loss_each
from zoo.errors import UserError
from zoo.evaluation.best_of_n import chance_of_best
from zoo.statistics.bootstrap import percentile_interval
from zoo.statistics.clustered import Clustered, clustered_mean
from zoo.statistics.ranking import area_under_curve, calibration_error, over_drawn_prompts

_MEANINGS = {
    "accuracy": "share of clips on the right side of .5",
    "auc": "a good clip scores above a bad one",
    "ranking": "the same among clips of one prompt",
    "best_of_n_gain": "label of the chosen clip less its prompt's mean",
    "log_loss": "nats; lower is better",
    "calibration_error": "lower is better",
}
_SHARES = ("accuracy", "auc", "ranking")


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval over prompts; None for one prompt."""

    value: float
    low: float | None
    high: float | None

    @staticmethod
    def of(found: Clustered) -> Figure:
        return Figure(found.value, found.low, found.high)

    def as_share(self) -> Figure:
        """With bounds inside 0..1; Student's t knows no limits."""
        if self.low is None or self.high is None:
            return self
        return Figure(self.value, max(0.0, self.low), min(1.0, self.high))


@dataclass(frozen=True)
class PreferenceReport:
    """``judges``: "head", "cosine", "majority" -> name of a metric -> figure.

    ``head_less_cosine``: differences on the same clips. A metric that the labels do not define is
    left out: AUC with one kind of label, ranking without two labels in a prompt, best of n where no
    prompt has two clips.
    """

    clips: int
    prompts: int
    pairs: int
    positive_share: float
    clips_per_prompt: float
    judges: dict[str, dict[str, Figure]]
    head_less_cosine: dict[str, Figure]

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a logger, without intervals: ``accuracy``, ``cosine/accuracy`` ..."""
        numbers: dict[str, float] = {}
        for judge, figures in self.judges.items():
            prefix = "" if judge == "head" else f"{judge}/"
            numbers |= {f"{prefix}{name}": figure.value for name, figure in figures.items()}
        differences = self.head_less_cosine.items()
        return numbers | {f"head_less_cosine/{name}": one.value for name, one in differences}

    def table(self) -> str:
        """The figures as lines of text, intervals in brackets."""
        names = [name for name in _MEANINGS if name in self.judges["head"]]
        lines = [
            f"{self.clips} clips of {self.prompts} prompts, {self.positive_share:.0%} good;"
            " 95 % intervals over prompts"
        ]
        for name in names:
            cells = [f"{judge} {_shown(own[name])}" for judge, own in self.judges.items()]
            if name in self.head_less_cosine:
                cells.append(f"head - cosine {_shown(self.head_less_cosine[name], sign='+')}")
            lines.append(f"{name} ({_MEANINGS[name]}): {', '.join(cells)}")
        return "\n".join(lines)


def _shown(figure: Figure, sign: str = "") -> str:
    text = f"{figure.value:{sign}.3f}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def fitted_line(score_N: Tensor, label_N: Tensor, steps: int = 50) -> tuple[float, float]:
    """(slope, offset) of the logistic regression of labels in [0, 1] on scores, by Newton's method.

    A ridge of 1e-3 on the slope of the standardised scores keeps it finite where scores separate
    the labels.
    """
    mean = float(score_N.double().mean())
    std = float(score_N.double().std(correction=0)) or 1.0
    design_N2 = torch.stack(
        [(score_N.double() - mean) / std, torch.ones(len(score_N), dtype=torch.float64)], dim=1
    )
    ridge = torch.diag(torch.tensor([1e-3, 1e-6], dtype=torch.float64)) * len(score_N)
    weight_2 = torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        probability_N = (design_N2 @ weight_2).sigmoid()
        gradient_2 = design_N2.T @ (probability_N - label_N.double()) + ridge @ weight_2
        spread_N = probability_N * (1 - probability_N)
        curvature_22 = design_N2.T @ (spread_N[:, None] * design_N2) + ridge
        weight_2 = weight_2 - torch.linalg.solve(curvature_22, gradient_2)
    slope = float(weight_2[0]) / std
    return slope, float(weight_2[1]) - slope * mean


@dataclass(frozen=True)
class WithinPrompts:
    """One number per pair (``hits``) and per prompt (``gains``), and the prompt of each."""

    hits: list[float]
    hit_prompts: list[str]
    gains: list[float]
    gain_prompts: list[str]


def within_prompt(
    values: np.ndarray,
    labels: np.ndarray,
    prompts: Sequence[str],
    compared_in: Sequence[str] | None = None,
) -> WithinPrompts:
    """Of all pairs of a prompt with different labels: was the better one scored higher (tie .5).

    And of each prompt with several clips: the label of the best of all of them (``chance_of_best``:
    a tie is shared) less the mean label of the prompt.

    Args:
        values, labels, prompts: of each clip.
        compared_in: clips of equal names are compared; None: those of equal prompts.
    """
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(prompts if compared_in is None else compared_in):
        rows_of.setdefault(name, []).append(row)
    hits: list[float] = []
    hit_prompts: list[str] = []
    gains: list[float] = []
    gain_prompts: list[str] = []
    for rows in rows_of.values():
        if len(rows) < 2:
            continue
        prompt = prompts[rows[0]]
        own = values[rows]
        truth = labels[rows]
        better = truth[:, None] > truth[None]
        won = (own[:, None] > own[None]) + 0.5 * (own[:, None] == own[None])
        hits += won[better].tolist()
        hit_prompts += [prompt] * int(better.sum())
        gains.append(float(chance_of_best(own, len(rows)) @ truth - truth.mean()))
        gain_prompts.append(prompt)
    return WithinPrompts(hits, hit_prompts, gains, gain_prompts)


def preference_report(
    probabilities: Mapping[str, Tensor], clips: Sequence[RatedClip], draws: int = 500
) -> PreferenceReport:
    """The report of judges on clips.

    Args:
        probabilities: judge -> one probability per clip (N,): "head", "cosine" and "majority".
        clips: with their labels. A label of exactly .5 is neither good nor bad: it does not count
            for accuracy and AUC.
        draws: of the bootstrap behind the interval of the calibration error.

    Raises:
        UserError: for no clips.
    """
    if not clips:
        raise UserError("a report needs at least one rated clip")
    labels = np.array([clip.label for clip in clips])
    prompts = [clip.group for clip in clips]
    compared_in = [clip.compared_in for clip in clips]
    given = {name: p.double().cpu().numpy() for name, p in probabilities.items()}
    columns = {
        name: _columns(values, labels, prompts, compared_in) for name, values in given.items()
    }
    judges = {}
    for name, values in given.items():
        figures = {
            metric: Figure.of(clustered_mean(*column)) for metric, column in columns[name].items()
        }
        figures |= _ranked(values, None, labels, prompts)
        figures |= {metric: figures[metric].as_share() for metric in _SHARES if metric in figures}
        figures["calibration_error"] = _calibration(values, labels, prompts, draws)
        judges[name] = figures
    differences = {}
    for metric, (values, own_prompts) in columns["head"].items():
        paired = np.asarray(values) - np.asarray(columns["cosine"][metric][0])
        differences[metric] = Figure.of(clustered_mean(paired.tolist(), own_prompts))
    differences |= _ranked(given["head"], given["cosine"], labels, prompts)
    count = len(set(prompts))
    return PreferenceReport(
        clips=len(clips),
        prompts=count,
        pairs=len(columns["head"].get("ranking", ([], []))[0]),
        positive_share=float((labels > 0.5).mean()),
        clips_per_prompt=len(clips) / count,
        judges=judges,
        head_less_cosine=differences,
    )


def _columns(
    values: np.ndarray, labels: np.ndarray, prompts: Sequence[str], compared_in: Sequence[str]
) -> dict[str, tuple[list[float], list[str]]]:
    """Metric -> (one number per clip, pair or prompt; the prompt of each), for means."""
    loss = probability_loss_each(torch.from_numpy(values), torch.from_numpy(labels))
    found = {"log_loss": (loss.tolist(), list(prompts))}
    decided = np.flatnonzero(labels != 0.5)
    if len(decided):
        right = ((values >= 0.5) == (labels > 0.5))[decided].astype(float)
        found["accuracy"] = (right.tolist(), [prompts[row] for row in decided])
    within = within_prompt(values, labels, prompts, compared_in)
    if within.hits:
        found["ranking"] = (within.hits, within.hit_prompts)
    if within.gains:
        found["best_of_n_gain"] = (within.gains, within.gain_prompts)
    return found


def _ranked(
    values: np.ndarray, other: np.ndarray | None, labels: np.ndarray, prompts: Sequence[str]
) -> dict[str, Figure]:
    decided = np.flatnonzero(labels != 0.5)
    good = labels[decided] > 0.5
    if not len(decided) or good.all() or not good.any():
        return {}
    own_prompts = [prompts[row] for row in decided]
    against = None if other is None else other[decided].tolist()
    return {
        "auc": Figure.of(
            area_under_curve(values[decided].tolist(), good.tolist(), own_prompts, against)
        )
    }


def _calibration(
    values: np.ndarray, labels: np.ndarray, prompts: Sequence[str], draws: int
) -> Figure:
    value = calibration_error(values.tolist(), labels.tolist())
    if len(set(prompts)) < 2:
        return Figure(value, None, None)

    def of_rows(rows: np.ndarray) -> float:
        return calibration_error(values[rows].tolist(), labels[rows].tolist())

    return Figure(value, *percentile_interval(over_drawn_prompts(of_rows, prompts, draws)))
