"""From prompts to samples: the one walk that generation, training and evaluation share.

Prompts are encoded, noise is rolled out to latents, latents are decoded to waves, and waves are cut
to the length of their prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.backbones.lengths import one_latent_shape
from zoo.diffusion import RolloutBuffers, Sampler, rollout, sample_latents
from zoo.types import Backbone, Conditioning, Prompt, Trajectory


@dataclass(frozen=True)
class EncodedPrompts:
    """What a backbone makes of prompts, one row per prompt.

    ``negative``: the unconditional side of guidance, None without guidance.
    """

    conditioning: Conditioning
    negative: Conditioning | None

    def to(self, device: torch.device | str) -> EncodedPrompts:
        negative = None if self.negative is None else self.negative.to(device)
        return EncodedPrompts(self.conditioning.to(device), negative)

    def rows(self, index: Sequence[int] | slice) -> EncodedPrompts:
        negative = None if self.negative is None else self.negative.rows(index)
        return EncodedPrompts(self.conditioning.rows(index), negative)


def encode_all(backbone: Backbone, prompts: Sequence[Prompt], batch_size: int) -> Conditioning:
    """One row per prompt; equal prompts are encoded once, ``batch_size`` at a time.

    All rows are padded to the same length, so that every micro-batch has the same shape.
    """
    unique = list(dict.fromkeys(prompts))
    starts = range(0, len(unique), batch_size)
    parts = [backbone.encode_prompts(unique[start : start + batch_size]) for start in starts]
    place = {prompt: i for i, prompt in enumerate(unique)}
    return Conditioning.cat(parts).rows([place[prompt] for prompt in prompts])


def encode_sides(
    backbone: Backbone, sampler: Sampler, prompts: Sequence[Prompt], batch_size: int
) -> EncodedPrompts:
    """``prompts`` as ``sampler`` needs them: with their negatives when it is guided."""
    wanted, unwanted = sampler.sides(prompts)
    return EncodedPrompts(
        encode_all(backbone, wanted, batch_size),
        None if unwanted is None else encode_all(backbone, unwanted, batch_size),
    )


def render(
    backbone: Backbone,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    encoded: EncodedPrompts,
    generators: Sequence[torch.Generator],
    *,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Samples one wave per prompt.

    Where gradients are enabled they flow from the waves through decoder and sampler to the weights;
    so enter ``torch.no_grad()`` for waves to listen to.

    Args:
        backbone: makes the samples.
        sampler: how they are sampled.
        prompts: B prompts of one length.
        encoded: B rows, from ``encode_sides``.
        generators: B generators of noise, on the CPU.
        device: of the latents.
        progress: called as ``progress(done, steps)`` after each step.

    Returns:
        ``wave_BCN``: float32, cut to the prompts' length, not clipped.

    Raises:
        UserError: for prompts of different lengths.
    """
    clean = sample_latents(
        backbone.predict,
        backbone.path,
        sampler,
        encoded.conditioning,
        encoded.negative,
        one_latent_shape(backbone, prompts),
        generators,
        device=device,
        progress=progress,
    )
    return decoded(backbone, clean, prompts)


def roll_out(
    backbone: Backbone,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    encoded: EncodedPrompts,
    generators: Sequence[torch.Generator],
    buffers: RolloutBuffers,
    *,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Trajectory, Tensor]:
    """The same waves as ``render``, and the trajectory that training needs, in ``buffers``.

    ``buffers`` are filled in place; the other arguments are those of ``render``.
    """
    trajectory = rollout(
        backbone.predict,
        backbone.path,
        sampler,
        prompts,
        encoded.conditioning,
        encoded.negative,
        one_latent_shape(backbone, prompts),
        generators,
        scored_mask=backbone.scored_mask(prompts) if hasattr(backbone, "scored_mask") else None,
        device=device,
        progress=progress,
        buffers=buffers,
    )
    return trajectory, decoded(backbone, trajectory.clean, prompts)


def decoded(backbone: Backbone, latent_BCT: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """``wave_BCN``, float32, cut to the length of the prompts."""
    samples = prompts[0].samples(backbone.sample_rate_hz)
    return backbone.decode(latent_BCT).float()[..., :samples]
