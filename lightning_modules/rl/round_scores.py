"""The rewards of a round, gathered over all processes: statistics to log and the advantages to
learn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.rl.advantages import PromptTracker, batch_advantages, group_advantages
from lightning_modules.rl.distributed import gather
from lightning_modules.rl.reward_queue import RewardError, check_answer
from lightning_modules.rl.rollouts import ScoredSamples
from zoo.errors import UserError
from zoo.types import Prompt, Reward, RewardOutput

Combine = Callable[[RewardOutput, Sequence[Prompt]], RewardOutput]


def reward_summary(
    prompts: Sequence[Prompt], scores: Sequence[float], class_label: str, prefix: str = "reward"
) -> dict[str, float]:
    """Mean and population std of all scores, and of each class ``prompt.labels[class_label]``
    (where there is that label).
    """
    groups: dict[str, list[float]] = {"": list(scores)}
    for prompt, value in zip(prompts, scores, strict=True):
        label = prompt.labels.get(class_label)
        if label is not None:
            groups.setdefault(f"/{label}", []).append(value)
    summary = {}
    for name, values in sorted(groups.items()):
        tensor = torch.tensor(values, dtype=torch.float64)
        summary[f"{prefix}{name}/mean"] = tensor.mean().item()
        summary[f"{prefix}{name}/std"] = tensor.std(correction=0).item()
    return summary


@dataclass(frozen=True)
class Judged:
    """``advantage_B`` (B,) float32 CPU of this process's samples, 0 where ``kept_B`` is False;
    ``metrics`` over all processes.
    """

    advantage_B: Tensor
    kept_B: list[bool]
    metrics: dict[str, float]


def combined(
    combine: Combine, whole: RewardOutput, prompts: Sequence[Prompt], round_index: int
) -> RewardOutput:
    """``combine`` of a whole round, checked: one finite score and one number of each part for every
    prompt. ``RewardError``.
    """
    what = f"combining the rewards of round {round_index}"
    try:
        output = combine(whole, prompts)
    except Exception as error:
        raise RewardError(f"{what} raised {type(error).__name__}: {error}") from error
    check_answer(output, len(prompts), f"{what} must give")
    if not torch.isfinite(output.score_B).all():
        worst = prompts[int((~torch.isfinite(output.score_B)).nonzero()[0])]
        raise RewardError(
            f"{what} gave a score that is not finite, of {worst.id!r}; mend the reward; the last"
            " checkpoint is kept"
        )
    return output


def _by_sample(named: Mapping[str, Tensor], count: int) -> list[dict[str, Any]]:
    """``count`` rows of plain numbers, or of vectors, by name."""
    columns = {name: value.tolist() if value.ndim == 1 else value for name, value in named.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def judge(
    batch: PromptBatch,
    samples: ScoredSamples,
    reward: Reward,
    advantage: str,
    tracker: PromptTracker,
    *,
    drop_bad: bool,
    class_label: str,
) -> Judged:
    """Advantages from the rewards of all processes: "prompt" (``tracker``, which is updated),
    "batch", "group", or "group_global" (each prompt's own mean, but the deviation of the whole
    round, so that a prompt that is solved stays quiet).

    ``combine`` of the ``reward``, where there is one (see ``zoo.types.Reward``), turns the round's
    scores, parts and vectors into the scores that are learned from (metrics
    ``reward_combined/...``) and the parts that are logged; ``reward/*`` stays the scores of single
    calls. Rewards that are not finite raise ``RewardError`` naming their prompts, or with
    ``drop_bad`` are left out and counted (unless none is left). The result does not depend on how
    the samples are spread over processes. Raises ``UserError`` when two processes hold the same
    sample, and for groups of one sample each.
    """
    combine: Combine | None = getattr(reward, "combine", None)
    keys = [
        (prompt.id, index) for prompt, index in zip(batch.prompts, batch.sample_index, strict=True)
    ]
    part_rows = _by_sample(samples.parts, len(keys))
    vector_rows = _by_sample(samples.vectors if combine is not None else {}, len(keys))
    norms = samples.trajectory.clean.flatten(1).pow(2).mean(dim=1).sqrt().tolist()
    scores = samples.score_B.tolist()
    own = list(zip(keys, scores, batch.prompts, part_rows, vector_rows, norms, strict=True))
    rows = sorted((row for rank in gather(own) for row in rank), key=lambda row: row[0])
    if len({row[0] for row in rows}) < len(rows):
        raise UserError(
            "two processes hold the same (prompt id, sample index); split a round's prompts over"
            " the processes"
        )
    if advantage in ("group", "group_global") and len({row[2].id for row in rows}) == len(rows):
        raise UserError(
            f"advantage={advantage} compares the samples of a prompt, but every prompt of the round"
            " has only one, so nothing could be learned; set data.repeats to at least 2, or"
            " advantage to prompt or batch"
        )
    bad = [row for row in rows if not math.isfinite(row[1])]
    good = [row for row in rows if math.isfinite(row[1])]
    if bad and not (drop_bad and good):
        named = "; ".join(
            f"{prompt.id!r} ({prompt.text!r}): {value}" for _, value, prompt, *_ in bad[:5]
        )
        raise RewardError(
            f"{len(bad)} of {len(rows)} rewards in round {batch.round_index} are not finite:"
            f" {named}; mend the reward, or set on_bad_reward=drop to leave such samples out; the"
            " last checkpoint is kept"
        )
    ids, scores, prompts = (
        [row[0][0] for row in good],
        [row[1] for row in good],
        [row[2] for row in good],
    )
    parts = {name: _column([row[3][name] for row in good]) for name in sorted(good[0][3])}
    learned = scores
    metrics = reward_summary(prompts, scores, class_label)
    if combine is not None:
        stacked = {name: torch.stack([row[4][name] for row in good]) for name in sorted(good[0][4])}
        whole = RewardOutput(torch.tensor(scores, dtype=torch.float64), parts, stacked)
        output = combined(combine, whole, prompts, batch.round_index)
        parts, learned = dict(output.parts), output.score_B.double().tolist()
        metrics |= reward_summary(prompts, learned, class_label, "reward_combined")
    if advantage == "prompt":
        advantages = tracker.update(ids, learned)
    else:
        std = "batch" if advantage == "group_global" else "group"
        advantages = (
            batch_advantages(learned)
            if advantage == "batch"
            else group_advantages(learned, ids, std)
        )
    by_key = {row[0]: float(value) for row, value in zip(good, advantages, strict=True)}
    metrics |= {
        f"reward_part/{name}": float(part_B.double().mean()) for name, part_B in parts.items()
    }
    metrics |= {
        "latent_norm": float(_column([row[5] for row in good]).mean()),
        "dropped_samples": float(len(bad)),
    }
    return Judged(
        torch.tensor([by_key.get(key, 0.0) for key in keys]),
        [key in by_key for key in keys],
        metrics,
    )
