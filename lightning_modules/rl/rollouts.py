"""From prompts to scored samples: encode, roll out, decode and score, in micro-batches.

Training and evaluation share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.batches import PromptBatch
from lightning_modules.rl.reward_queue import RewardError, RewardQueue, Stopwatch
from zoo.backbones.lengths import one_latent_shape
from zoo.diffusion import RolloutBuffers, Sampler, noise_generator
from zoo.rendering import EncodedPrompts, encode_sides, render, roll_out
from zoo.types import Backbone, Prompt, Reward, Trajectory

__all__ = [
    "RewardError",
    "ScoredSamples",
    "Stopwatch",
    "eval_mode",
    "sample_and_score",
]

Report = Callable[[str, int, int], None]  # (phase, done, total)


@dataclass(frozen=True)
class ScoredSamples:
    """B samples in the order of their prompts.

    - ``score_B``, ``parts`` and ``vectors``: the reward's, float32 on the CPU; may hold NaN.
    - ``trajectory`` and ``wave_BCN`` (on the CPU): None unless requested.
    - ``seconds_sampling``: encoding, rollout and decoding.
    - ``seconds_reward``: in the reward, summed over its threads.
    - ``seconds_reward_waited``: the part of it that held up the round; all of it without threads.
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


def eval_mode(*models: Any) -> None:
    """Switches off dropout and batch statistics, so that rollout and training agree."""
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
    keep: Literal["trajectory", "wave"] = "trajectory",
    report: Report | None = None,
    reward_workers: int = 0,
    drop_failed: bool = False,
) -> ScoredSamples:
    """Rolls out, decodes and scores ``batch`` in micro-batches of ``sample_batch_size``.

    The trajectory of a round exists once: its latents are written into its buffers as they are
    made. Waves are cut to ``prompt.seconds``.

    Args:
        backbone: makes the samples. Where it has a method ``scored_mask(prompts)``, only the latent
            elements in that mask count in log-probabilities.
        reward: scores the waves.
        sampler: how they are sampled.
        batch: the prompts.
        seed: noise is keyed by (seed, round, prompt id, sample index).
        sample_batch_size: samples at a time.
        device: of the latents.
        keep: "trajectory" for training; with guidance and ``sampler.detach_unconditional`` it holds
            the unconditional outputs too, which take as much memory as the latents. "wave" for
            listening; only the last latents are made then.
        report: ``report(phase, done, total)`` shows progress.
        reward_workers: threads that score while sampling goes on (0: in line); the numbers are the
            same.
        drop_failed: samples of a reward call that raised get NaN scores instead of an error.

    Raises:
        RewardError: for a reward that raised or gave something else than scores.
        UserError: for prompts of different lengths.
    """
    report = report or (lambda phase, done, total: None)
    shape = one_latent_shape(backbone, batch.prompts)  # refused before anything is encoded
    sampling = Stopwatch(device)
    with sampling():
        encoded = encode_sides(backbone, sampler, batch.prompts, sample_batch_size).to(device)
        buffers = None
        if keep == "trajectory":
            buffers = RolloutBuffers.empty(sampler, len(batch), shape, device, True)
    part: Trajectory | None = None
    total = len(batch) * sampler.steps
    scored = partial(report, "reward", total=len(batch))
    waves: list[Tensor] = []
    with RewardQueue(
        reward, backbone.sample_rate_hz, device, reward_workers, scored, drop_failed
    ) as queue:
        for start in range(0, len(batch), sample_batch_size):
            rows = slice(start, min(start + sample_batch_size, len(batch)))
            prompts = batch.prompts[rows]
            count = rows.stop - start
            generators = [
                noise_generator(seed, batch.round_index, prompt.id, index)
                for prompt, index in zip(prompts, batch.sample_index[rows], strict=True)
            ]

            def progress(done: int, steps: int, start: int = start, count: int = count) -> None:
                report("rollout", start * steps + done * count, total)

            with sampling():
                arguments = (backbone, sampler, prompts, encoded.rows(rows), generators)
                if buffers is None:
                    wave_BCN = render(*arguments, device=device, progress=progress)
                else:
                    part, wave_BCN = roll_out(
                        *arguments, buffers.rows(rows), device=device, progress=progress
                    )
            if keep == "wave":
                waves.append(wave_BCN.to("cpu", copy=True))
            queue.put(wave_BCN, prompts)
        outputs = queue.collect()
    parts, vectors = (
        [getattr(output, kind) for output in outputs] for kind in ("parts", "vectors")
    )
    return ScoredSamples(
        prompts=batch.prompts,
        score_B=torch.cat([output.score_B for output in outputs]),
        parts=_joined(parts),
        trajectory=None if part is None else _whole(part, backbone, batch, encoded, buffers),
        wave_BCN=torch.cat(waves) if keep == "wave" else None,
        seconds_sampling=sampling.seconds,
        seconds_reward=queue.seconds,
        seconds_reward_waited=queue.seconds_waited,
        vectors=_joined(vectors),
    )


def _whole(
    part: Trajectory,
    backbone: Backbone,
    batch: PromptBatch,
    encoded: EncodedPrompts,
    buffers: RolloutBuffers,
) -> Trajectory:
    """The trajectory of the round in ``buffers``; ``part`` is one of its micro-batches."""
    mask = backbone.scored_mask(batch.prompts) if hasattr(backbone, "scored_mask") else None
    return replace(
        part,
        prompts=batch.prompts,
        conditioning=encoded.conditioning,
        negative=encoded.negative,
        latents_SB=buffers.latents_SB,
        log_prob_SB=buffers.log_prob_SB,
        scored_mask=None if mask is None else mask.to(buffers.latents_SB.device),
        unconditional_SB=buffers.unconditional_SB,
    )


def _joined(named: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The columns that every micro-batch has, joined."""
    names = sorted(set(named[0]).intersection(*named))
    return {name: torch.cat([wave[name] for wave in named]) for name in names}
