"""The rewards of a round, gathered over all processes: what is learned from and what is logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.rl.advantages import PromptTracker, batch_advantages, group_advantages
from lightning_modules.rl.distributed import gather
from lightning_modules.rl.reward_queue import RewardError, check_answer
from lightning_modules.rl.rollouts import ScoredSamples
from lightning_modules.rl.settings import AdvantageKind
from zoo.errors import UserError
from zoo.types import Prompt, Reward, RewardOutput

Combine = Callable[[RewardOutput, Sequence[Prompt]], RewardOutput]


@dataclass(frozen=True)
class SampleScore:
    """What one sample of a round got; it can be sent to other processes.

    ``score`` and ``parts`` (name -> number) are the reward's, ``vectors`` (name -> (D,), CPU) only
    where the reward combines a round. ``latent_norm``: root mean square of the clean latent.
    """

    prompt: Prompt
    index: int
    score: float
    parts: Mapping[str, float]
    vectors: Mapping[str, Tensor]
    latent_norm: float

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt.id, self.index


@dataclass(frozen=True)
class RoundScores:
    """A round of all processes: the samples that count, sorted by (prompt id, sample index).

    Attributes:
        samples: the B samples whose reward is finite.
        learned: the B scores to learn from: those of the samples, or what the reward's ``combine``
            made of them.
        parts: name -> (B,) float64, to be logged.
        is_combined: whether the reward has a ``combine``.
        dropped: samples that are left out because their reward is not finite.
    """

    samples: tuple[SampleScore, ...]
    learned: tuple[float, ...]
    parts: Mapping[str, Tensor]
    is_combined: bool
    dropped: tuple[SampleScore, ...]

    @property
    def prompt_ids(self) -> list[str]:
        return [sample.prompt.id for sample in self.samples]

    def metrics(self, class_label: str) -> dict[str, float]:
        """``reward/...`` is of single calls, ``reward_combined/...`` of scores to learn from."""
        prompts = [sample.prompt for sample in self.samples]
        metrics = reward_summary(prompts, [sample.score for sample in self.samples], class_label)
        if self.is_combined:
            metrics |= reward_summary(prompts, self.learned, class_label, "reward_combined")
        for name, part_B in self.parts.items():
            metrics[f"reward_part/{name}"] = float(part_B.double().mean())
        metrics["latent_norm"] = float(
            _column([sample.latent_norm for sample in self.samples]).mean()
        )
        metrics["dropped_samples"] = float(len(self.dropped))
        return metrics


def round_scores(
    batch: PromptBatch, samples: ScoredSamples, reward: Reward, *, drop_bad: bool
) -> RoundScores:
    """The checked rewards of a round over all processes.

    ``reward.combine``, if there is one, combines them.

    The result does not depend on how the samples are spread over processes.

    Args:
        batch: prompts of this process.
        samples: what became of them, with trajectories.
        reward: what scored them.
        drop_bad: samples whose reward is not finite are left out (unless none is left).

    Raises:
        RewardError: for rewards that are not finite.
        UserError: when two processes hold the same sample.
    """
    combine: Combine | None = getattr(reward, "combine", None)
    everyone = gather_scores(batch, samples, with_vectors=combine is not None)
    good, bad = split_bad(everyone, batch.round_index, drop_bad=drop_bad)
    scores = [sample.score for sample in good]
    parts = {
        name: _column([sample.parts[name] for sample in good]) for name in sorted(good[0].parts)
    }
    if combine is None:
        return RoundScores(tuple(good), tuple(scores), parts, False, tuple(bad))
    vectors = {
        name: torch.stack([sample.vectors[name] for sample in good])
        for name in sorted(good[0].vectors)
    }
    whole = RewardOutput(_column(scores), parts, vectors)
    output = combined(combine, whole, [sample.prompt for sample in good], batch.round_index)
    learned = tuple(output.score_B.double().tolist())
    return RoundScores(tuple(good), learned, dict(output.parts), True, tuple(bad))


def gather_scores(
    batch: PromptBatch, samples: ScoredSamples, *, with_vectors: bool
) -> list[SampleScore]:
    """The samples of all processes, sorted by (prompt id, sample index).

    Raises ``UserError`` when two processes hold the same sample.
    """
    count = len(batch)
    columns = zip(
        batch.prompts,
        batch.sample_index,
        samples.score_B.tolist(),
        _by_sample(samples.parts, count),
        _by_sample(samples.vectors if with_vectors else {}, count),
        samples.trajectory.clean.flatten(1).pow(2).mean(dim=1).sqrt().tolist(),
        strict=True,
    )
    own = [SampleScore(*row) for row in columns]
    everyone = [sample for rank in gather(own) for sample in rank]
    if len({sample.key for sample in everyone}) < len(everyone):
        raise UserError(
            "two processes hold the same (prompt id, sample index); split a round's prompts over"
            " the processes"
        )
    return sorted(everyone, key=lambda sample: sample.key)


def split_bad(
    samples: Sequence[SampleScore], round_index: int, *, drop_bad: bool
) -> tuple[list[SampleScore], list[SampleScore]]:
    """(samples with a finite reward, the others).

    Raises ``RewardError`` that names the prompts of the others, unless they are dropped and at
    least one sample is left.
    """
    bad = [sample for sample in samples if not math.isfinite(sample.score)]
    good = [sample for sample in samples if math.isfinite(sample.score)]
    if bad and not (drop_bad and good):
        named = "; ".join(
            f"{one.prompt.id!r} ({one.prompt.text!r}): {one.score}" for one in bad[:5]
        )
        raise RewardError(
            f"{len(bad)} of {len(samples)} rewards in round {round_index} are not finite: {named}."
            " Repair the reward, or set scoring.on_bad_reward=drop to leave such samples out; the"
            " last checkpoint is kept"
        )
    return good, bad


def combined(
    combine: Combine, whole: RewardOutput, prompts: Sequence[Prompt], round_index: int
) -> RewardOutput:
    """``combine`` of a whole round, checked.

    Raises ``RewardError`` unless it gives one finite score and one number of each part per prompt.
    """
    what = f"combining the rewards of round {round_index}"
    try:
        output = combine(whole, prompts)
    except Exception as error:
        raise RewardError(f"{what} raised {type(error).__name__}: {error}") from error
    check_answer(output, len(prompts), f"{what} must give")
    finite_B = torch.isfinite(output.score_B)
    if not finite_B.all():
        worst = prompts[int((~finite_B).nonzero()[0])]
        raise RewardError(
            f"{what} gave a score that is not finite, of {worst.id!r}; repair the reward; the last"
            " checkpoint is kept"
        )
    return output


def check_groups(prompts: Sequence[Prompt], kind: AdvantageKind) -> None:
    """Raises ``UserError`` where samples of a prompt are compared but every prompt has only one."""
    single = len({prompt.id for prompt in prompts}) == len(prompts)
    if kind in ("group", "group_global") and single:
        raise UserError(
            f"advantages.kind={kind} compares the samples of a prompt, but every prompt of the"
            " round has only one, so nothing could be learned; set data.repeats to at least 2, or"
            " advantages.kind to prompt or batch"
        )


def round_advantages(
    scores: RoundScores, kind: AdvantageKind, tracker: PromptTracker
) -> np.ndarray:
    """One advantage per sample of the round, float64; see ``AdvantageSettings`` for ``kind``.

    With "prompt" the ``tracker`` is updated. Raises ``UserError`` for groups of one sample each.
    """
    check_groups([sample.prompt for sample in (*scores.samples, *scores.dropped)], kind)
    if kind == "prompt":
        return tracker.update(scores.prompt_ids, scores.learned)
    if kind == "batch":
        return batch_advantages(scores.learned)
    deviation = "all" if kind == "group_global" else "group"
    return group_advantages(scores.learned, scores.prompt_ids, deviation)


def of_process(
    batch: PromptBatch, scores: RoundScores, advantage_G: np.ndarray
) -> tuple[Tensor, list[bool]]:
    """(advantages (B,) of this process's samples, whether each sample is kept).

    Advantages are float32 on the CPU, 0 for dropped samples. ``advantage_G`` holds those of all
    samples of the round.
    """
    by_key = {
        sample.key: float(value) for sample, value in zip(scores.samples, advantage_G, strict=True)
    }
    keys = [
        (prompt.id, index) for prompt, index in zip(batch.prompts, batch.sample_index, strict=True)
    ]
    advantage_B = torch.tensor([by_key.get(key, 0.0) for key in keys])
    return advantage_B, [key in by_key for key in keys]


def reward_summary(
    prompts: Sequence[Prompt], scores: Sequence[float], class_label: str, prefix: str = "reward"
) -> dict[str, float]:
    """Mean and population deviation of all scores, and of each class ``labels[class_label]``."""
    groups: dict[str, list[float]] = {"": list(scores)}
    for prompt, value in zip(prompts, scores, strict=True):
        label = prompt.labels.get(class_label)
        if label is not None:
            groups.setdefault(f"/{label}", []).append(value)
    summary = {}
    for name, values in sorted(groups.items()):
        value_B = _column(values)
        summary[f"{prefix}{name}/mean"] = value_B.mean().item()
        summary[f"{prefix}{name}/std"] = value_B.std(correction=0).item()
    return summary


def _by_sample(named: Mapping[str, Tensor], count: int) -> list[dict[str, Any]]:
    """``count`` rows of plain numbers, or of vectors, by name."""
    columns = {name: value.tolist() if value.ndim == 1 else value for name, value in named.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
