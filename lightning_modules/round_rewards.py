"""The rewards of a round, gathered over all processes: statistics to log and the advantages to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.advantages import PromptTracker, batch_advantages, group_advantages
from lightning_modules.distributed import gather
from lightning_modules.rollouts import RewardError, ScoredSamples
from zoo.types import Prompt


def reward_summary(
    prompts: Sequence[Prompt], scores: Sequence[float], class_label: str, prefix: str = "reward"
) -> dict[str, float]:
    """Mean and population std of all scores, and of each class ``prompt.labels[class_label]`` (where there is that label)."""
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
    """``advantage_B`` (B,) float32 CPU of this process's samples, 0 where ``kept_B`` is False; ``metrics`` over all processes."""

    advantage_B: Tensor
    kept_B: list[bool]
    metrics: dict[str, float]


def judge(
    batch: PromptBatch,
    samples: ScoredSamples,
    advantage: str,
    tracker: PromptTracker,
    *,
    drop_bad: bool,
    class_label: str,
) -> Judged:
    """Advantages from the rewards of all processes: "prompt" (``tracker``, which is updated), "batch", "group", or
    "group_global" (each prompt's own mean, but the deviation of the whole round, so that a prompt that is solved stays quiet).

    Rewards that are not finite raise ``RewardError`` naming their prompts, or with ``drop_bad`` are left out and counted (unless
    none is left). The result does not depend on how the samples are spread over processes.
    Raises ``ValueError`` when two processes hold the same sample.
    """
    keys = [(prompt.id, index) for prompt, index in zip(batch.prompts, batch.sample_index, strict=True)]
    part_names = sorted(samples.parts)
    clean = samples.trajectory.clean.flatten(1)
    extras = torch.stack([*(samples.parts[name] for name in part_names), clean.pow(2).mean(dim=1).sqrt().cpu()], dim=1).tolist()
    own = list(zip(keys, samples.score_B.tolist(), batch.prompts, extras, strict=True))
    rows = sorted((row for rank in gather(own) for row in rank), key=lambda row: row[0])
    if len({row[0] for row in rows}) < len(rows):
        raise ValueError("two processes hold the same (prompt id, sample index); split a round's prompts over the processes")
    bad = [row for row in rows if not math.isfinite(row[1])]
    good = [row for row in rows if math.isfinite(row[1])]
    if bad and not (drop_bad and good):
        named = "; ".join(f"{prompt.id!r} ({prompt.text!r}): {value}" for _, value, prompt, _ in bad[:5])
        raise RewardError(
            f"{len(bad)} of {len(rows)} rewards in round {batch.round_index} are not finite: {named}; mend the reward, or set "
            "on_bad_reward=drop to leave such samples out; the last checkpoint is kept"
        )
    ids, scores = [row[0][0] for row in good], [row[1] for row in good]
    if advantage == "prompt":
        advantages = tracker.update(ids, scores)
    else:
        std = "batch" if advantage == "group_global" else "group"
        advantages = batch_advantages(scores) if advantage == "batch" else group_advantages(scores, ids, std)
    by_key = {row[0]: float(value) for row, value in zip(good, advantages, strict=True)}
    *part_means, norm = torch.tensor([row[3] for row in good], dtype=torch.float64).mean(dim=0).tolist()
    metrics = reward_summary([row[2] for row in good], scores, class_label)
    metrics |= {f"reward_part/{name}": value for name, value in zip(part_names, part_means, strict=True)}
    metrics |= {"latent_norm": norm, "dropped_samples": float(len(bad))}
    return Judged(torch.tensor([by_key.get(key, 0.0) for key in keys]), [key in by_key for key in keys], metrics)
