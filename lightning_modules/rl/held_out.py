"""A reward that is only logged, and a callback that acts when it contradicts the training reward.

A reward that is optimised too far is exploited (Gao et al., arXiv 2210.10760). A scorer with
another network and other training data shows it: its score of the same clips falls while the reward
rises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.rl.reward_queue import score
from lightning_modules.rl.rollouts import ScoredSamples
from lightning_modules.rl.round_scores import reward_summary
from zoo.errors import UserError, did_you_mean
from zoo.statistics.clustered import clustered_mean
from zoo.statistics.intervals import mean_and_error
from zoo.types import Prompt, Reward, RewardOutput

SCORER = "held_out_scorer"  # the part that holds its score, and the prefix of its metrics
# action -> (the module's setting that is multiplied, usual factor)
ACTIONS: dict[str, tuple[str | None, float | None]] = {
    "stop": (None, None),
    "lower_rate": ("optimizer.learning_rate", 0.5),
    "raise_kl": ("update.kl_coef", 2.0),
}


@dataclass(frozen=True)
class WithHeldOut:
    """A reward together with ``held_out``, whose score is the part ``held_out_scorer``.

    The parts of ``held_out`` are named after that.
    """

    reward: Reward
    held_out: Reward
    differentiable: bool = False

    def __call__(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        output, second = (
            score(one, wave_BCN, sample_rate_hz, prompts) for one in (self.reward, self.held_out)
        )
        named = {f"{SCORER}/{name}": part for name, part in second.parts.items()}
        return replace(output, parts={**output.parts, SCORER: second.score_B, **named})


def with_held_out(reward: Reward, held_out: Reward | None) -> Reward:
    """``reward`` together with ``held_out``, or ``reward`` itself without one."""
    return reward if held_out is None else WithHeldOut(reward, held_out)


@dataclass(frozen=True)
class HeldOutSample:
    """One clip of an evaluation: ``score`` and ``parts`` of the reward.

    ``parts`` includes ``held_out_scorer`` where there is one.
    """

    prompt: Prompt
    index: int
    score: float
    parts: Mapping[str, float]


def held_out_samples(batch: PromptBatch, samples: ScoredSamples) -> list[HeldOutSample]:
    """The rows of an evaluation batch, as plain numbers."""
    columns = {name: part.tolist() for name, part in samples.parts.items()}
    rows = zip(batch.prompts, batch.sample_index, samples.score_B.tolist(), strict=True)
    return [
        HeldOutSample(*row, {name: column[i] for name, column in columns.items()})
        for i, row in enumerate(rows)
    ]


def held_out_summary(samples: Sequence[HeldOutSample], class_label: str) -> dict[str, float]:
    """Metrics of an evaluation.

    ``held_out/...`` is the reward on held-out prompts, ``held_out_scorer/...`` the second opinion,
    each with mean, std and classes; ``held_out_part/...`` is the mean of each part. Numbers that
    are not finite are left out and counted (``held_out/not_finite``,
    ``held_out_scorer/not_finite``).
    """
    summary = _summary(
        [(sample.prompt, sample.score) for sample in samples], class_label, "held_out"
    )
    if samples:
        summary["held_out/not_finite"] = float(len(not_finite(samples)))
    asked = [(sample.prompt, sample.parts[SCORER]) for sample in samples if SCORER in sample.parts]
    if asked:
        summary |= _summary(asked, class_label, SCORER)
        summary[f"{SCORER}/not_finite"] = float(sum(not math.isfinite(value) for _, value in asked))
    for name in sorted({name for sample in samples for name in sample.parts} - {SCORER}):
        values = [
            sample.parts[name]
            for sample in samples
            if math.isfinite(sample.parts.get(name, math.nan))
        ]
        if values:
            summary[f"held_out_part/{name}"] = math.fsum(values) / len(values)
    return summary


def not_finite(samples: Sequence[HeldOutSample]) -> list[HeldOutSample]:
    """The samples whose reward is NaN or infinite."""
    return [sample for sample in samples if not math.isfinite(sample.score)]


def not_finite_warning(samples: Sequence[HeldOutSample]) -> str | None:
    """The number of clips without a score, and their prompts; None if all have one."""
    bad = not_finite(samples)
    if not bad:
        return None
    names = list(dict.fromkeys(sample.prompt.id for sample in bad))
    shown = ", ".join(map(repr, names[:3])) + (
        f" and {len(names) - 3} more prompts" if len(names) > 3 else ""
    )
    return (
        f"the reward is NaN or infinite for {len(bad)} of {len(samples)} held-out clips ({shown});"
        " held_out/mean is over the others. Repair the reward, or compare only evaluations with the"
        " same clips"
    )


def _summary(
    pairs: Sequence[tuple[Prompt, float]], class_label: str, prefix: str
) -> dict[str, float]:
    finite = [pair for pair in pairs if math.isfinite(pair[1])]
    return reward_summary(*zip(*finite, strict=True), class_label, prefix) if finite else {}


@dataclass(frozen=True)
class Evaluation:
    """The scores after ``round`` rounds.

    ``scores`` maps (prompt id, sample index) to (reward, held-out score) of each clip where both
    are finite.
    """

    round: float
    scores: Mapping[tuple[str, int], tuple[float, float]]

    @staticmethod
    def of(samples: Sequence[HeldOutSample], round_number: float) -> Evaluation:
        rows = {(s.prompt.id, s.index): (s.score, s.parts.get(SCORER, math.nan)) for s in samples}
        return Evaluation(
            round_number, {key: pair for key, pair in rows.items() if all(map(math.isfinite, pair))}
        )

    def state(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "rows": [[*key, *pair] for key, pair in sorted(self.scores.items())],
        }

    @staticmethod
    def restored(state: Mapping[str, Any]) -> Evaluation:
        return Evaluation(
            state["round"], {(name, index): (r, s) for name, index, r, s in state["rows"]}
        )


@dataclass(frozen=True)
class Change:
    """The mean rise of reward and held-out score between two evaluations, over common clips.

    The held-out rise is also given in standard errors, paired over prompts (over clips if there is
    one prompt, and then it holds for that prompt only).

    ``reward`` and ``scorer`` are the mean rises of the reward and of the held-out score.
    ``scorer_errors`` is the latter in its standard errors: paired, over prompts, or over clips
    where there is only one prompt.
    """

    reward: float
    scorer: float
    scorer_errors: float


def change(before: Evaluation, now: Evaluation) -> Change:
    """Compares two evaluations clip by clip, for the same prompts and noise.

    This is much sharper than comparing two means with their own errors.

    Raises ``UserError`` where they have fewer than two clips in common.
    """
    keys = sorted(before.scores.keys() & now.scores.keys())
    if len(keys) < 2:
        raise UserError(
            f"the held-out scores of round {before.round:.0f} and round {now.round:.0f} have"
            f" {len(keys)} clips in common where both are finite; at least two are needed (more"
            " held-out prompts, or data.val_repeats)"
        )
    rises = [now.scores[key][1] - before.scores[key][1] for key in keys]
    found = clustered_mean(rises, [prompt for prompt, _ in keys])
    rise, error = (found.value, found.error) if found.error is not None else mean_and_error(rises)
    if error > 0:
        errors = rise / error
    else:
        errors = math.copysign(math.inf, rise) if rise else 0.0
    reward = math.fsum(now.scores[key][0] - before.scores[key][0] for key in keys) / len(keys)
    return Change(reward, rise, errors)


class HeldOutWatch(Callback):
    """Acts when the held-out score falls while the reward rises, on the same held-out clips.

    After each evaluation the held-out score is compared, clip by clip (a prompt counts once), with
    an earlier one. It has fallen when it is lower by more than ``standard_errors`` of the paired
    difference while the trained reward is higher. At 1 standard error and patience 1 noise alone
    fires at one evaluation in six or more (more, because the best of many is lucky): cautious by
    choice; 2 errors or patience 2 are calmer.

    Logged with ``held_out_scorer/mean``: ``held_out_scorer/rise_errors`` (0 at the first
    evaluation) and ``held_out_scorer/interventions``. The comparison, its counts and what was
    annealed are kept in the checkpoint. A stopped run continues with resume=true until the
    next evaluation that calls for it.

    Args:
        action: "stop" ends the run, which then exports what it has (ModelCheckpoint with
            monitor=held_out_scorer/mean keeps the best); "lower_rate" multiplies
            ``optimizer.learning_rate`` by ``factor``, "raise_kl" ``update.kl_coef``, which must be
            above 0 to begin with.
        standard_errors: how far the held-out score must have fallen.
        compare_with: "best": the best evaluation so far; "start": the first one.
        patience: evaluations in a row at which it must have fallen.
        factor: None: 0.5 for "lower_rate", 2 for "raise_kl".

    Raises:
        UserError: for settings that do not fit together, and for a run without a held-out scorer or
            without evaluations.
    """

    def __init__(
        self,
        action: Literal["stop", "lower_rate", "raise_kl"] = "stop",
        standard_errors: float = 1.0,
        compare_with: Literal["best", "start"] = "best",
        patience: int = 1,
        factor: float | None = None,
    ) -> None:
        for name, given, known in (
            ("action", action, ACTIONS),
            ("compare_with", compare_with, ("best", "start")),
        ):
            if given not in known:
                raise UserError(f"{name} {given!r} is unknown; {did_you_mean(str(given), known)}")
        if not standard_errors >= 0 or patience < 1:
            raise UserError(
                f"standard_errors must be at least 0 and patience 1, got {standard_errors} and"
                f" {patience}"
            )
        self.setting, usual = ACTIONS[action]
        self.factor = usual if factor is None else factor
        fits = {
            "stop": factor is None,
            "lower_rate": 0 < (self.factor or 0) < 1,
            "raise_kl": (self.factor or 0) > 1,
        }
        if not fits[action]:
            wanted = {
                "stop": "no factor",
                "lower_rate": "a factor between 0 and 1",
                "raise_kl": "a factor above 1",
            }[action]
            raise UserError(f"action {action!r} takes {wanted}, got {factor}")
        self.action = action
        self.standard_errors = standard_errors
        self.compare_with = compare_with
        self.patience = patience
        self.reference: Evaluation | None = None
        self.fallen_for = 0
        self.interventions = 0
        self._given: float | None = None  # the setting as the configuration has it

    def state_dict(self) -> dict[str, Any]:
        reference = None if self.reference is None else self.reference.state()
        return {
            "reference": reference,
            "fallen_for": self.fallen_for,
            "interventions": self.interventions,
            "action": self.action,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict["reference"]
        self.reference = None if saved is None else Evaluation.restored(saved)
        self.fallen_for = state_dict["fallen_for"]
        if state_dict["action"] == self.action:  # another action has annealed nothing yet
            self.interventions = state_dict["interventions"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "held_out_reward", None) is None:
            raise UserError(
                "HeldOutWatch watches a held-out scorer, and the run has none; give"
                " module.held_out_reward"
            )
        if not trainer.enable_validation:
            raise UserError(
                "HeldOutWatch needs evaluations: give held-out prompts (data.held_out,"
                " data.val_file)"
            )
        if self.setting is None:
            return
        if self._given is None:
            self._given = _setting(pl_module, self.setting)
        if not self._given > 0:
            raise UserError(
                f"action {self.action!r} multiplies {self.setting}, which is {self._given}; begin"
                " with a small one"
            )
        self._anneal(pl_module)

    def _anneal(self, pl_module: LightningModule) -> None:
        value = self._given * self.factor**self.interventions
        node, name = self.setting.split(".")
        setattr(pl_module, node, replace(getattr(pl_module, node), **{name: value}))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = Evaluation.of(
            pl_module.held_out_samples, float(trainer.callback_metrics.get("round", 0.0))
        )
        if trainer.sanity_checking and self.reference is not None:
            return  # a resumed run has its evaluations
        found = Change(0.0, 0.0, 0.0) if self.reference is None else change(self.reference, now)
        has_fallen = found.scorer_errors < -self.standard_errors and found.reward > 0
        self.fallen_for = self.fallen_for + 1 if has_fallen else 0
        if self.fallen_for >= self.patience:
            self._act(trainer, pl_module, found, now)
        if self.reference is None or (self.compare_with == "best" and found.scorer > 0):
            self.reference = now
        metrics = {
            f"{SCORER}/rise_errors": found.scorer_errors,
            f"{SCORER}/interventions": float(self.interventions),
        }
        pl_module.held_out |= metrics  # written with the evaluation's numbers

    def _act(
        self, trainer: Trainer, pl_module: LightningModule, found: Change, now: Evaluation
    ) -> None:
        self.fallen_for = 0
        self.interventions += 1
        if self.setting is None:
            trainer.should_stop = True
            done = "the run stops"
        else:
            self._anneal(pl_module)
            done = f"{self.setting} becomes {_setting(pl_module, self.setting):.3g}"
        rank_zero_info(
            f"round {now.round:.0f}: the held-out score has fallen by {-found.scorer:.3g}"
            f" ({-found.scorer_errors:.1f} standard errors) since round {self.reference.round:.0f}"
            f" while the reward rose by {found.reward:.3g}; {done}"
        )


def _setting(pl_module: LightningModule, dotted: str) -> float:
    node, name = dotted.split(".")
    return float(getattr(getattr(pl_module, node), name))
