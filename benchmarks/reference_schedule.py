"""The schedule of the published DDPO loop, with switches that turn its steps into ours one by one.

It follows kvablack/ddpo-pytorch as the music RLHF experiments use it (arXiv 2305.13301, section 4;
one prompt per rollout, one sample per optimiser step). A rollout has one sample: prompt and
negative are encoded each time, guidance is one forward of two rows, and the decoded wave goes to a
pool of two threads that score it. Then latents and next latents are concatenated to two tensors and
copied again in the order of training (samples shuffled, steps shuffled for each sample). Each
sample is trained at all steps that add noise, with gradients through both branches of guidance and
one optimiser step per sample.

Only the schedule is theirs. The arithmetic (transition, log-probability, loss) is this project's,
so both sides learn the same from the same samples. The faults of the public code (mixed-up
conditioning, graphs kept alive) are not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor, nn

from datamodules.batches import PromptBatch
from lightning_modules.rl.advantages import batch_advantages
from lightning_modules.rl.losses import clipped_policy_loss
from zoo.diffusion import (
    Sampler,
    gaussian_step,
    guided_output,
    log_prob,
    network_time,
    noise_generator,
    rollout,
    step_stds,
)
from zoo.types import Backbone, Conditioning, Reward


@dataclass(frozen=True)
class Schedule:
    """Switches of the schedule.

    - ``rows``: samples per forward, in rollout and update.
    - ``per_update``: samples per optimiser step.
    - ``encode_once``: texts are encoded once per round, not for each sample.
    - ``one_copy``: latents are kept once and looked up.
    - ``detach``: no gradient through the unconditional branch of guidance.
    """

    rows: int = 1
    per_update: int = 1
    encode_once: bool = False
    one_copy: bool = False
    detach: bool = False


@dataclass
class Phases:
    """The seconds of each phase of a round, by ``clock``."""

    clock: Callable[[], float] = perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - start


@dataclass(frozen=True)
class Samples:
    """A round of B samples: latents (S + 1, B, ...), log-probabilities (S, B), scores and texts."""

    latents_SB: Tensor
    log_prob_SB: Tensor
    score_B: Tensor
    conditioning: Conditioning
    negative: Conditioning


def sampled(
    backbone: Backbone,
    reward: Reward,
    sampler: Sampler,
    batch: PromptBatch,
    schedule: Schedule,
    seed: int,
    phases: Phases,
) -> Samples:
    """Rolls out ``schedule.rows`` samples at a time; two threads score during the next rollout."""
    encoded: dict[str, tuple[Conditioning, Conditioning]] = {}

    def texts(row: int) -> tuple[Conditioning, Conditioning]:
        prompt = batch.prompts[row]
        if prompt.id not in encoded or not schedule.encode_once:
            encoded[prompt.id] = (
                backbone.encode_prompts([prompt]),
                backbone.encode_prompts([prompt.as_negative()]),
            )
        return encoded[prompt.id]

    rollouts, sides, scores = [], [], []
    with ThreadPoolExecutor(2) as pool, torch.no_grad():
        for start in range(0, len(batch), schedule.rows):
            rows = range(start, min(start + schedule.rows, len(batch)))
            prompts = [batch.prompts[row] for row in rows]
            with phases("texts"):
                pairs = [texts(row) for row in rows]
                conditioning, negative = (
                    Conditioning.cat(list(side)) for side in zip(*pairs, strict=True)
                )
            with phases("rollout"):
                generators = [
                    noise_generator(
                        seed, batch.round_index, batch.prompts[row].id, batch.sample_index[row]
                    )
                    for row in rows
                ]
                made = rollout(
                    backbone.predict,
                    backbone.path,
                    sampler,
                    prompts,
                    conditioning,
                    negative,
                    backbone.latent_shape(prompts[0].seconds),
                    generators,
                )
            with phases("decoding"):
                samples = prompts[0].samples(backbone.sample_rate_hz)
                wave_BCN = backbone.decode(made.clean).float()[..., :samples]
            rollouts.append(made)
            sides.append((conditioning, negative))
            scores.append(pool.submit(_scored, reward, wave_BCN, backbone.sample_rate_hz, prompts))
        with phases("waiting for the reward"):
            score_B = torch.cat([score.result() for score in scores])
    conditioning, negative = (Conditioning.cat(list(side)) for side in zip(*sides, strict=True))
    latents_SB = torch.cat([made.latents_SB for made in rollouts], dim=1)
    return Samples(
        latents_SB,
        torch.cat([made.log_prob_SB for made in rollouts], dim=1),
        score_B,
        conditioning,
        negative,
    )


@torch.no_grad()
def _scored(reward: Reward, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence) -> Tensor:
    return reward(wave_BCN, sample_rate_hz, prompts).score_B.detach().float()


def _latents(
    samples: Samples, steps_KB: Tensor, one_copy: bool
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """A function that returns (latents, next latents) of place k in each row's order of steps."""
    latents_SB = samples.latents_SB
    if one_copy:
        return lambda k, rows: (
            latents_SB[steps_KB[k, rows], rows],
            latents_SB[steps_KB[k, rows] + 1, rows],
        )
    every = torch.arange(latents_SB.shape[1])
    now = latents_SB[:-1].clone()  # two copies ...
    after = latents_SB[1:].clone()
    now = now[steps_KB, every]  # ... and two more in the order of training
    after = after[steps_KB, every]
    return lambda k, rows: (now[k, rows], after[k, rows])


def updated(
    backbone: Backbone,
    sampler: Sampler,
    samples: Samples,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    clip_range: float,
    generator: torch.Generator,
    phases: Phases,
    step: Callable[[], None] | None = None,
) -> None:
    """Trains one pass over the samples in random order.

    ``step`` ends an optimiser step and defaults to clipping the gradient's norm to 1 and
    ``optimizer.step()``; gradients are cleared after it.
    """
    count = samples.latents_SB.shape[1]
    path = backbone.path
    noisy = torch.nonzero(step_stds(path, sampler) > 0).flatten()
    advantage_B = torch.from_numpy(batch_advantages(samples.score_B)).float()
    with phases("update"):
        order = torch.randperm(count, generator=generator)
        steps_KB = torch.stack(
            [noisy[torch.randperm(len(noisy), generator=generator)] for _ in range(count)], dim=1
        )
        look_up = _latents(samples, steps_KB, schedule.one_copy)
        times = path.times(sampler.steps)
        for start in range(0, count, schedule.per_update):
            part = order[start : start + schedule.per_update]
            optimizer.zero_grad(set_to_none=True)
            for rows in part.split(schedule.rows):
                conditioning = samples.conditioning.rows(rows.tolist())
                negative = samples.negative.rows(rows.tolist())
                for k in range(len(noisy)):
                    x, x_next = look_up(k, rows)
                    step_N = steps_KB[k, rows]
                    output = guided_output(
                        backbone.predict,
                        x,
                        network_time(times[step_N]),
                        conditioning,
                        negative,
                        sampler.guidance_scale,
                        schedule.detach,
                    )
                    coefficients = (
                        *path.coefficients(times[step_N]),
                        *path.coefficients(times[step_N + 1]),
                    )
                    eta = torch.tensor(sampler.etas, dtype=torch.float64)[step_N]
                    mean, std = gaussian_step(
                        x,
                        output,
                        *coefficients,
                        prediction=path.prediction,
                        eta=eta,
                        rule=sampler.rule,
                    )
                    new = log_prob(x_next, mean, std)
                    old = samples.log_prob_SB[step_N, rows]
                    loss = clipped_policy_loss(new, old, advantage_B[rows], clip_range).loss
                    (loss * len(rows) / (len(part) * len(noisy))).backward()
            if step is None:
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            else:
                step()
    optimizer.zero_grad(set_to_none=True)
