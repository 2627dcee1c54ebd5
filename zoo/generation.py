"""From prompts to waves, and from waves to scores, with models by name or as objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.backbones.lengths import check_lengths
from zoo.diffusion import Sampler, noise_generator
from zoo.errors import UserError
from zoo.instantiate import bind_types
from zoo.loading import load, open_model
from zoo.rendering import encode_sides, render
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
    """One wave for every prompt and seed: prompts in order, within a prompt the seeds in order.

    A sample's noise depends on its seed and its prompt's id only, not on the batch.

    Args:
        backbone: a zoo name, a folder of a model or run, or an object, which stays where it is.
        prompts: a string becomes a ``Prompt`` with ``negative`` and ``seconds`` (default 4.096).
        seeds: one number, or several.
        steps, guidance_scale, eta, rule: see ``zoo.diffusion.Sampler``.
        negative, seconds: of prompts that are strings.
        batch_size: samples at a time.
        device: of a backbone that is given by name.
        progress: ``progress(done, total)`` counts samples.

    Raises: ``UserError`` for an argument of the wrong type or range, no prompt, and when the model
    gives NaN.
    """
    numbers = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "eta": eta,
        "batch_size": batch_size,
        "seconds": seconds,
    }
    bind_types(
        generate,
        {"seeds": seeds, "rule": rule, "negative": negative, "progress": progress, **numbers},
    )
    sampler = Sampler(steps, guidance_scale, eta, rule)
    wanted = [
        _prompt(prompt, negative, seconds)
        for prompt in ([prompts] if isinstance(prompts, (str, Prompt)) else prompts)
    ]
    seeds = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not wanted or not seeds or batch_size < 1:
        counts = f"{len(wanted)} prompts, {len(seeds)} seeds, batch_size {batch_size}"
        raise UserError(f"expected at least one prompt, one seed and a batch of one, got {counts}")
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
    """One wave for every (prompt, seed), in order, as ``generate`` makes them.

    Raises ``UserError`` for a length that the model cannot make here, and when it gives NaN.
    """
    device = next(backbone.denoiser.parameters()).device
    waves: dict[int, Waveform] = {}
    prompts = [prompt for prompt, _ in jobs]
    rows = min(batch_size, len(jobs))
    check_lengths(backbone, prompts, rows, sampler.steps + 1, "seconds")
    for place in _batches([prompt.seconds for prompt in prompts], batch_size):
        for i, wave in zip(
            place, _sample(backbone, sampler, [jobs[i] for i in place], device), strict=True
        ):
            waves[i] = wave
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
    """Indices of equal length together, at most ``batch_size`` each."""
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
    with torch.no_grad():
        encoded = encode_sides(backbone, sampler, prompts, len(prompts))
    generators = [noise_generator(seed, 0, prompt.id, 0) for prompt, seed in jobs]
    _, wave_BCN = render(backbone, sampler, prompts, encoded, generators, device=device)
    if not torch.isfinite(wave_BCN).all():
        raise UserError(
            "the model gave NaN or infinity; load it in float32 or lower the guidance scale"
        )
    rate_hz = backbone.sample_rate_hz
    return [Waveform(wave_CN.clamp(-1, 1), rate_hz) for wave_CN in wave_BCN.cpu()]


@torch.no_grad()
def score(
    scorer: str | Path | Scorer,
    waves: Waveform | Sequence[Waveform],
    prompts: Prompt | str | Sequence[Prompt | str],
) -> RewardOutput:
    """The reward of each wave for its prompt; waves of equal length and rate are scored together.

    ``reward``: a zoo name, a folder, or an object. A string becomes a ``Prompt`` of the wave's
    length without labels: a reward that judges by a label (a mood) needs a ``Prompt`` that has it.
    Raises ``UserError`` when counts differ or are zero, for what is no wave, and for a name of a
    model that scores nothing.
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
            f"expected one prompt a wave, at least one, got {len(waves)} waves and {len(prompts)}"
            " prompts"
        )
    prompts = [
        _prompt(prompt, "", wave.samples_CN.shape[-1] / wave.sample_rate_hz)
        for prompt, wave in zip(prompts, waves)
    ]
    if isinstance(scorer, (str, Path)):
        name, scorer = scorer, load(scorer)
        if not is_scorer(scorer):
            raise UserError(
                f"{name} is a {type(scorer).__name__}, which scores nothing; name a reward, such "
                "as embedded/clap"
            )
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, wave in enumerate(waves):
        groups.setdefault((wave.samples_CN.shape, wave.sample_rate_hz), []).append(i)
    outputs = []
    for (_, rate_hz), place in groups.items():
        outputs.append(
            scorer(
                torch.stack([waves[i].samples_CN for i in place]),
                rate_hz,
                [prompts[i] for i in place],
            )
        )
    order = torch.tensor([i for place in groups.values() for i in place]).argsort()
    parts = {
        name: torch.cat([output.parts[name] for output in outputs])[order]
        for name in outputs[0].parts
    }
    vectors = {
        name: torch.cat([output.vectors[name] for output in outputs])[order]
        for name in outputs[0].vectors
    }
    return RewardOutput(torch.cat([output.score_B for output in outputs])[order], parts, vectors)
