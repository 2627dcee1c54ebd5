"""Denoising errors of latents, one per sample, with weights and in pairs.

The shared step of everything that learns from clean or ranked audio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.diffusion import denoising_error, min_snr_weights
from zoo.types import Backbone, Path, Prompt


def latent_errors(
    backbone: Backbone,
    clean: Tensor,
    prompts: Sequence[Prompt],
    time_B: Tensor,
    noise: Tensor,
    rows: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The denoising error of each sample under its prompt.

    Args:
        backbone: whose network is measured.
        clean: latents (B, ...).
        prompts: what the samples are.
        time_B: times on the backbone's path.
        noise: (B, ...), as ``clean``.
        rows: which sample (with its time and noise) and which prompt each error is of, as indices
            (R,); None: sample i under prompt i. So a sample is measured under several prompts, or
            several samples under one, in one forward pass.

    Returns:
        (B,) or (R,) float32, over the elements that are heard.
    """
    wanted = list(prompts)
    encoded = backbone.encode_prompts([prompt.without_negative() for prompt in wanted])
    if rows is not None:
        sample_R, prompt_R = (index.to(clean.device) for index in rows)
        clean = clean[sample_R]
        noise = noise[sample_R]
        time_B = time_B[sample_R]
        encoded = encoded.rows(prompt_R)
        wanted = [wanted[i] for i in prompt_R.tolist()]
    mask = backbone.scored_mask(wanted) if hasattr(backbone, "scored_mask") else None
    return denoising_error(backbone.predict, backbone.path, clean, time_B, noise, encoded, mask)


def error_weights(
    path: Path,
    time_B: Tensor,
    weight_B: Tensor | None,
    min_snr_gamma: float | None,
    min_snr_form: str = "prediction",
) -> Tensor:
    """(B,) weights of denoising errors: those of the samples times those of their times.

    Args:
        path: of the backbone.
        time_B: times on it.
        weight_B: of the samples; None: 1.
        min_snr_gamma: see ``zoo.diffusion.min_snr_weights``; None: all times weigh 1.
        min_snr_form: likewise.
    """
    weights = torch.ones(len(time_B), device=time_B.device) if weight_B is None else weight_B
    if min_snr_gamma is None:
        return weights
    alpha_B, sigma_B = path.coefficients(time_B)
    by_time_B = min_snr_weights(alpha_B, sigma_B, path.prediction, min_snr_gamma, min_snr_form)
    return weights * by_time_B


def weighted_mean(error_B: Tensor, weight_B: Tensor, count: int | None = None) -> Tensor:
    """() mean of the weighted errors.

    Weights are not normalised: a batch of low weights counts less. ``count``: how many samples the
    mean is of, where the errors of those with the weight 0 were not computed.
    """
    weighted_B = weight_B * error_B
    return weighted_B.mean() if count is None else weighted_B.sum() / count


def pair_margins(error_R: Tensor, better_P: Tensor, worse_P: Tensor) -> Tensor:
    """(P,) error at ``worse_P[i]`` minus error at ``better_P[i]``: indices into ``error_R``."""
    return error_R[worse_P] - error_R[better_P]
