"""One idea for every generator: ``x = alpha * clean + sigma * noise`` along a path.

``paths`` says what alpha and sigma are, ``steps`` holds the one Gaussian step and the one denoising
error, ``sampling`` says how a path is walked (sampler, guidance, schedule), ``rollout`` walks it
and scores what was walked (log-probability). Arithmetic is float32 whatever the network's dtype.
"""

from zoo.diffusion.paths import PREDICTIONS, Straight, VPCosine, VPDiscrete
from zoo.diffusion.rollout import (
    RolloutBuffers,
    check_scorable,
    replay_schedule,
    replay_step,
    rollout,
    sample_latents,
    step_log_prob,
)
from zoo.diffusion.sampling import (
    Sampler,
    Schedule,
    guided_output,
    network_time,
    noise_generator,
    step_stds,
)
from zoo.diffusion.steps import (
    MIN_SNR_FORMS,
    RULES,
    SOLVERS,
    denoising_error,
    gaussian_step,
    log_prob,
    min_snr_weights,
    scored_mean,
    second_order_factor,
    split,
    step_std,
    target,
)

__all__ = [
    "MIN_SNR_FORMS",
    "PREDICTIONS",
    "RULES",
    "SOLVERS",
    "RolloutBuffers",
    "Sampler",
    "Schedule",
    "Straight",
    "VPCosine",
    "VPDiscrete",
    "check_scorable",
    "denoising_error",
    "gaussian_step",
    "guided_output",
    "log_prob",
    "min_snr_weights",
    "network_time",
    "noise_generator",
    "replay_schedule",
    "replay_step",
    "rollout",
    "sample_latents",
    "scored_mean",
    "second_order_factor",
    "split",
    "step_log_prob",
    "step_std",
    "step_stds",
    "target",
]
