"""Prompts in, scored samples out: encode, roll out, decode, reward, in micro-batches. Used by training and evaluation alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from datamodules.batches import PromptBatch
from zoo.diffusion import Sampler, noise_generator, rollout
from zoo.types import Backbone, Conditioning, Prompt, Reward, RewardOutput, Trajectory

Report = Callable[[str, int, int], None]  # (phase, done, total)


class RewardError(ValueError):
    """A reward raised, or returned something that is not one score a sample."""


@dataclass(frozen=True)
class ScoredSamples:
    """B samples in the order of their prompts. ``score_B``, ``parts`` and ``vectors`` (the reward's) are float32 on the CPU and
    may hold NaN.

    ``trajectory`` or ``wave_BCN`` (CPU) are None unless asked for. Times in seconds.
    """

    prompts: tuple[Prompt, ...]
    score_B: Tensor
    parts: dict[str, Tensor]
    trajectory: Trajectory | None
    wave_BCN: Tensor | None
    seconds_sampling: float
    seconds_reward: float
    vectors: dict[str, Tensor] = field(default_factory=dict)


class Stopwatch:
    """Sums wall-clock seconds of ``with`` blocks; waits for the accelerator at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def encode_all(backbone: Backbone, prompts: Sequence[Prompt], size: int) -> Conditioning:
    """One row a prompt; equal prompts are encoded once. All rows are padded alike, so any micro-batch has the same shape."""
    unique = list(dict.fromkeys(prompts))
    parts = [backbone.encode_prompts(unique[i : i + size]) for i in range(0, len(unique), size)]
    place = {prompt: i for i, prompt in enumerate(unique)}
    return Conditioning.cat(parts).rows([place[prompt] for prompt in prompts])


def one_latent_shape(backbone: Backbone, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The shape (without the batch axis) that all prompts share. Raises ``ValueError`` when their lengths differ."""
    shapes = {tuple(backbone.latent_shape(prompt.seconds)) for prompt in prompts}
    if len(shapes) > 1:
        lengths = sorted({prompt.seconds for prompt in prompts})
        raise ValueError(f"the prompts of a round must have one length, got {lengths} seconds; give all the same `seconds`")
    return shapes.pop()


def score(reward: Reward, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]) -> RewardOutput:
    """The reward's answer, checked. Raises ``RewardError`` naming the reward and what was wrong."""
    name, texts = type(reward).__name__, ", ".join(repr(prompt.text) for prompt in prompts[:3])
    try:
        output = reward(wave_BCN, sample_rate_hz, prompts)
    except RewardError:  # of a reward that asks another one, which is named
        raise
    except Exception as error:
        raise RewardError(
            f"the reward {name} raised {type(error).__name__}: {error} (on {len(prompts)} samples of {texts}, ...); "
            "nothing since the last checkpoint is kept; mend the reward, then go on with resume=true"
        ) from error
    if not isinstance(output, RewardOutput):
        raise RewardError(f"the reward {name} must return a RewardOutput, got {type(output).__name__}")
    for what, value in {"score_B": output.score_B, **{f"parts[{key!r}]": part for key, part in output.parts.items()}}.items():
        if not isinstance(value, Tensor) or tuple(value.shape) != (len(prompts),):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise RewardError(f"the reward {name} must return one number a sample: {what} needs ({len(prompts)},), got {got}")
    for key, value in output.vectors.items():
        if value.ndim != 2 or len(value) != len(prompts):
            raise RewardError(f"the reward {name}: vectors[{key!r}] needs ({len(prompts)}, D), got shape {tuple(value.shape)}")
    return output


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
) -> ScoredSamples:
    """Roll out, decode and score ``batch`` in micro-batches of ``sample_batch_size``.

    ``keep`` is "trajectory" (for training) or "wave" (for listening). Noise is keyed by (seed, round, prompt id, sample index).
    A backbone may have a method ``scored_mask(prompts)`` that returns what of the latents reaches the listener (bool, broadcast
    against (B, *latent)) or None. Waves are cut to ``prompt.seconds``.
    Raises ``RewardError`` (bad reward) and ``ValueError`` (prompts of different lengths).
    """
    report = report or (lambda phase, done, total: None)
    shape = one_latent_shape(backbone, batch.prompts)
    samples = round(batch.prompts[0].seconds * backbone.sample_rate_hz)
    sampling, rewarding = Stopwatch(device), Stopwatch(device)
    with sampling():
        conditioning = encode_all(backbone, batch.prompts, sample_batch_size)
        guided = sampler.guidance_scale != 1
        negatives = [prompt.as_negative() for prompt in batch.prompts]
        negative = encode_all(backbone, negatives, sample_batch_size) if guided else None
    trajectories, waves, outputs = [], [], []
    total = len(batch) * sampler.steps
    for start in range(0, len(batch), sample_batch_size):
        rows = range(start, min(start + sample_batch_size, len(batch)))
        prompts = [batch.prompts[i] for i in rows]

        def progress(done: int, steps: int, start: int = start, count: int = len(rows)) -> None:
            report("rollout", start * steps + done * count, total)

        with sampling():
            trajectory = rollout(
                backbone.predict,
                backbone.path,
                sampler,
                prompts,
                conditioning.rows(rows),
                None if negative is None else negative.rows(rows),
                shape,
                [noise_generator(seed, batch.round_index, batch.prompts[i].id, batch.sample_index[i]) for i in rows],
                scored_mask=backbone.scored_mask(prompts) if hasattr(backbone, "scored_mask") else None,
                device=device,
                progress=progress,
            )
            wave_BCN = backbone.decode(trajectory.clean).float()[..., :samples]
        with rewarding():
            outputs.append(score(reward, wave_BCN, backbone.sample_rate_hz, prompts))
        report("reward", rows.stop, len(batch))
        trajectories.append(trajectory if keep == "trajectory" else None)
        waves.append(wave_BCN.cpu() if keep == "wave" else None)
    names = sorted(set(outputs[0].parts).intersection(*(output.parts for output in outputs)))
    vectors = sorted(set(outputs[0].vectors).intersection(*(output.vectors for output in outputs)))
    return ScoredSamples(
        prompts=batch.prompts,
        score_B=_joined([output.score_B for output in outputs]),
        parts={name: _joined([output.parts[name] for output in outputs]) for name in names},
        trajectory=Trajectory.cat(trajectories) if keep == "trajectory" else None,
        wave_BCN=torch.cat(waves) if keep == "wave" else None,
        seconds_sampling=sampling.seconds,
        seconds_reward=rewarding.seconds,
        vectors={name: _joined([output.vectors[name] for output in outputs]) for name in vectors},
    )


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.detach().float().cpu() for value in values])
