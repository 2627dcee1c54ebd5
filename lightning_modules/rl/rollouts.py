"""Prompts in, scored samples out: encode, roll out, decode, reward, in micro-batches.

Used by training and evaluation alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.batches import PromptBatch
from lightning_modules.rl.reward_queue import RewardError, RewardQueue, Stopwatch
from zoo.backbones.lengths import one_latent_shape
from zoo.diffusion import Sampler, noise_generator
from zoo.rendering import encode_sides, render
from zoo.types import Backbone, Prompt, Reward, Trajectory

__all__ = [
    "RewardError",
    "ScoredSamples",
    "Stopwatch",
    "sample_and_score",
    "settle",
]

Report = Callable[[str, int, int], None]  # (phase, done, total)


@dataclass(frozen=True)
class ScoredSamples:
    """B samples in the order of their prompts.

    ``score_B``, ``parts`` and ``vectors`` (the reward's) are float32 on the CPU and may hold NaN.

    ``trajectory`` or ``wave_BCN`` (CPU) are None unless asked for. Times in seconds:
    ``seconds_reward`` is spent in the reward, summed over its threads; ``seconds_reward_waited`` of
    it (all, without threads) held up the round.
    """

    prompts: tuple[Prompt, ...]
    score_B: Tensor
    parts: dict[str, Tensor]
    trajectory: Trajectory | None
    wave_BCN: Tensor | None
    seconds_sampling: float
    seconds_reward: float
    seconds_reward_waited: float = 0.0
    vectors: dict[str, Tensor] = field(default_factory=dict)


def settle(*models: Any) -> None:
    """Rollout and training run the same networks: no dropout, no batch statistics."""
    for model in models:
        if isinstance(model, nn.Module):
            model.eval()


@torch.no_grad()
def sample_and_score(
    backbone: Backbone,
    reward: Reward,
    sampler: Sampler,
    batch: PromptBatch,
    *,
    seed: int,
    sample_batch_size: int,
    device: torch.device,
    keep: str = "trajectory",
    report: Report | None = None,
    reward_workers: int = 0,
    drop_failed: bool = False,
) -> ScoredSamples:
    """Roll out, decode and score ``batch`` in micro-batches of ``sample_batch_size``.

    ``keep`` is "trajectory" (for training) or "wave" (for listening). Noise is keyed by (seed,
    round, prompt id, sample index). ``reward_workers``: threads that score while sampling goes on
    (0: in line); the numbers are the same. ``drop_failed``: samples of a reward call that raised
    get NaN scores instead of an error. A backbone may have a method ``scored_mask(prompts)`` that
    returns what of the latents reaches the listener (bool, broadcast against (B, *latent)) or None.
    Waves are cut to ``prompt.seconds``. Raises ``RewardError`` (bad reward) and ``UserError``
    (prompts of different lengths).
    """
    report = report or (lambda phase, done, total: None)
    one_latent_shape(backbone, batch.prompts)  # refused before anything is encoded
    sampling = Stopwatch(device)
    with sampling():
        encoded = encode_sides(backbone, sampler, batch.prompts, sample_batch_size)
    trajectories, waves = [], []
    total = len(batch) * sampler.steps
    scored = partial(report, "reward", total=len(batch))
    with RewardQueue(
        reward, backbone.sample_rate_hz, device, reward_workers, scored, drop_failed
    ) as queue:
        for start in range(0, len(batch), sample_batch_size):
            rows = range(start, min(start + sample_batch_size, len(batch)))
            prompts = [batch.prompts[i] for i in rows]

            def progress(done: int, steps: int, start: int = start, count: int = len(rows)) -> None:
                report("rollout", start * steps + done * count, total)

            with sampling():
                trajectory, wave_BCN = render(
                    backbone,
                    sampler,
                    prompts,
                    encoded.rows(rows),
                    [
                        noise_generator(
                            seed, batch.round_index, batch.prompts[i].id, batch.sample_index[i]
                        )
                        for i in rows
                    ],
                    device=device,
                    progress=progress,
                )
            trajectories.append(trajectory if keep == "trajectory" else None)
            waves.append(wave_BCN.to("cpu", copy=True) if keep == "wave" else None)
            queue.put(wave_BCN, prompts)
        outputs = queue.collect()
    parts, vectors = (
        [getattr(output, kind) for output in outputs] for kind in ("parts", "vectors")
    )
    return ScoredSamples(
        prompts=batch.prompts,
        score_B=torch.cat([output.score_B for output in outputs]),
        parts=_joined(parts),
        trajectory=Trajectory.cat(trajectories) if keep == "trajectory" else None,
        wave_BCN=torch.cat(waves) if keep == "wave" else None,
        seconds_sampling=sampling.seconds,
        seconds_reward=queue.seconds,
        seconds_reward_waited=queue.seconds_waited,
        vectors=_joined(vectors),
    )


def _joined(named: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What all waves have, one after the other."""
    names = sorted(set(named[0]).intersection(*named))
    return {name: torch.cat([wave[name] for wave in named]) for name in names}
