"""``zoo.generate`` and ``zoo.score``: prompts to waves, and waves to scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoo.backbones.lengths import check_lengths
from zoo.diffusion import Sampler, noise_generator
from zoo.errors import UserError
from zoo.loading import load, open_model
from zoo.rendering import encode_sides, render
from zoo.signatures import bind_types
from zoo.types import Backbone, Prompt, RewardOutput, Scorer, Waveform, is_scorer, lacking


def generate(
    backbone: str | Path | Backbone,
    prompts: Prompt | str | Sequence[Prompt | str],
    *,
    seeds: int | Sequence[int] = 0,
    steps: int = 20,
    guidance_scale: float = 3.0,
    eta: float | Sequence[float] = 1.0,
    rule: str = "ddim",
    negative: str = "",
    seconds: float | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Waveform]:
    """Makes one wave per prompt and seed: prompts in order, and seeds in order within a prompt.

    The noise of a sample depends on its seed and on the id of its prompt, not on its batch.

    Args:
        backbone: a zoo name, a folder of a model or run, or an object, which stays where it is.
        prompts: a string becomes a ``Prompt`` with ``negative`` and ``seconds`` (default 4.096).
        seeds: one number, or several.
        steps, guidance_scale, eta, rule: see ``zoo.diffusion.Sampler``.
        negative, seconds: of prompts that are strings.
        batch_size: samples made at a time.
        device: of a backbone that is given by name.
        progress: called as ``progress(done, total)``, which count samples.

    Raises:
        UserError: for an argument of the wrong type or range, no prompt, and a model that gives
            NaN.
    """
    given = {
        "seeds": seeds,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "eta": eta,
        "rule": rule,
        "negative": negative,
        "seconds": seconds,
        "batch_size": batch_size,
        "progress": progress,
    }
    bind_types(generate, given)
    sampler = Sampler(steps, guidance_scale, eta, rule)
    several = [prompts] if isinstance(prompts, (str, Prompt)) else prompts
    wanted = [_prompt(prompt, negative, seconds) for prompt in several]
    seeds = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not wanted or not seeds:
        raise UserError(
            f"expected at least one prompt and one seed, got {len(wanted)} and {len(seeds)}"
        )
    if isinstance(backbone, (str, Path)):
        backbone = open_model(str(backbone), device=device)
    if lacking(backbone, Backbone):
        raise UserError(
            f"backbone: a {type(backbone).__name__} generates nothing; give a zoo name, a folder "
            "or a backbone"
        )
    jobs = [(prompt, seed) for prompt in wanted for seed in seeds]
    return generate_each(backbone, jobs, sampler, batch_size, progress)


def generate_each(
    backbone: Backbone,
    jobs: Sequence[tuple[Prompt, int]],
    sampler: Sampler,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Waveform]:
    """Makes one wave per (prompt, seed), in order, as ``generate`` does.

    Args:
        backbone: the model.
        jobs: one (prompt, seed) per wave.
        sampler: steps and guidance.
        batch_size: waves that are made at a time.
        progress: called with (finished, all) waves after each batch.

    Raises ``UserError`` for a length that the model cannot make on this machine, and for a model
    that gives NaN.
    """
    if batch_size < 1:
        raise UserError(f"invalid batch_size {batch_size}: expected a whole number >= 1")
    device = next(backbone.denoiser.parameters()).device
    waves: dict[int, Waveform] = {}
    prompts = [prompt for prompt, _ in jobs]
    rows = min(batch_size, len(jobs))
    check_lengths(backbone, prompts, rows, sampler.steps + 1, "seconds")
    for place in _batches([prompt.seconds for prompt in prompts], batch_size):
        made = _sample(backbone, sampler, [jobs[i] for i in place], device)
        waves |= zip(place, made, strict=True)
        if progress is not None:
            progress(len(waves), len(jobs))
    return [waves[i] for i in range(len(jobs))]


def _prompt(prompt: Prompt | str, negative: str, seconds: float | None) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, str):
        raise UserError(f"expected words or a Prompt, got {prompt!r}")
    if not prompt.strip():
        raise UserError("a prompt must not be empty; say what should be heard")
    length = {} if seconds is None else {"seconds": float(seconds)}
    return Prompt(prompt, prompt, negative, **length)


def _batches(seconds: Sequence[float], batch_size: int) -> list[list[int]]:
    """Batches of indices of equal length, at most ``batch_size`` each."""
    groups: dict[float, list[int]] = {}
    for i, length in enumerate(seconds):
        groups.setdefault(length, []).append(i)
    return [
        group[i : i + batch_size]
        for group in groups.values()
        for i in range(0, len(group), batch_size)
    ]


def _sample(
    backbone: Backbone, sampler: Sampler, jobs: Sequence[tuple[Prompt, int]], device: torch.device
) -> list[Waveform]:
    prompts = [prompt for prompt, _ in jobs]
    generators = [noise_generator(seed, 0, prompt.id, 0) for prompt, seed in jobs]
    with torch.no_grad():
        encoded = encode_sides(backbone, sampler, prompts, len(prompts))
        wave_BCN = render(backbone, sampler, prompts, encoded, generators, device=device)
    if not torch.isfinite(wave_BCN).all():
        raise UserError(
            "the model returned NaN or infinity; load it in float32 or lower the guidance scale"
        )
    rate_hz = backbone.sample_rate_hz
    return [Waveform(wave_CN.clamp(-1, 1), rate_hz) for wave_CN in wave_BCN.cpu()]


def score(
    reward: str | Path | Scorer,
    waves: Waveform | Sequence[Waveform],
    prompts: Prompt | str | Sequence[Prompt | str],
) -> RewardOutput:
    """Scores each wave for its prompt; waves of equal length and rate are scored together.

    Where a wave needs a gradient and the reward is ``differentiable``, the scores carry it.

    Args:
        reward: a zoo name, a folder, or an object: a reward, or a metric of one clip.
        waves: one, or several.
        prompts: one per wave. A string becomes a ``Prompt`` of the wave's length without labels; a
            reward that reads a label (a mood) needs a ``Prompt`` that has it.

    Raises:
        UserError: for different or no counts of waves and prompts, something that is not a wave,
            and the name of a model that scores nothing.
    """
    waves = [waves] if isinstance(waves, Waveform) else list(waves)
    prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
    for wave in waves:
        if not isinstance(wave, Waveform):
            raise UserError(
                f"waves: expected Waveform(samples_CN, sample_rate_hz), got a {type(wave).__name__}"
            )
    if len(waves) != len(prompts) or not waves:
        raise UserError(
            f"expected one prompt per wave, at least one, got {len(waves)} waves and"
            f" {len(prompts)} prompts"
        )
    prompts = [
        _prompt(prompt, "", wave.samples_CN.shape[-1] / wave.sample_rate_hz)
        for prompt, wave in zip(prompts, waves, strict=True)
    ]
    if isinstance(reward, (str, Path)):
        name = reward
        reward = load(reward)
        if not is_scorer(reward):
            raise UserError(
                f"{name} is a {type(reward).__name__}, which scores nothing; name a reward, such "
                "as embedded/clap"
            )
    groups: dict[tuple[torch.Size, int], list[int]] = {}
    for i, wave in enumerate(waves):
        groups.setdefault((wave.samples_CN.shape, wave.sample_rate_hz), []).append(i)
    is_asked = torch.is_grad_enabled() and any(wave.samples_CN.requires_grad for wave in waves)
    outputs = []
    with torch.set_grad_enabled(is_asked and getattr(reward, "differentiable", False)):
        for (_, rate_hz), place in groups.items():
            wave_BCN = torch.stack([waves[i].samples_CN for i in place])
            outputs.append(reward(wave_BCN, rate_hz, [prompts[i] for i in place]))
    order = torch.tensor([i for place in groups.values() for i in place]).argsort()
    return RewardOutput(
        torch.cat([output.score_B for output in outputs])[order],
        _joined([output.parts for output in outputs], order),
        _joined([output.vectors for output in outputs], order),
    )


def _joined(columns: Sequence[Mapping[str, Tensor]], order: Tensor) -> dict[str, Tensor]:
    return {name: torch.cat([own[name] for own in columns])[order] for name in columns[0]}
