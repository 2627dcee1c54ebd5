"""One idea for every generator here:

``x = alpha * clean + sigma * noise`` along a path from pure noise to clean latents.

``paths`` says what alpha and sigma are, ``steps`` holds the one Gaussian step and the one denoising
error, ``sampling`` walks a path (rollout) and scores what was walked (log-probability). Arithmetic
is float32 whatever the network's dtype.
"""

from zoo.diffusion.paths import PREDICTIONS, Straight, VPCosine, VPDiscrete
from zoo.diffusion.sampling import (
    Sampler,
    guided_output,
    network_time,
    noise_generator,
    rollout,
    step_log_prob,
    step_stds,
)
from zoo.diffusion.steps import (
    RULES,
    SOLVERS,
    denoising_error,
    gaussian_step,
    log_prob,
    scored_mean,
    second_order_term,
    split,
    step_std,
    target,
)

__all__ = [
    "PREDICTIONS",
    "RULES",
    "SOLVERS",
    "Sampler",
    "Straight",
    "VPCosine",
    "VPDiscrete",
    "denoising_error",
    "gaussian_step",
    "guided_output",
    "log_prob",
    "network_time",
    "noise_generator",
    "rollout",
    "scored_mean",
    "second_order_term",
    "split",
    "step_log_prob",
    "step_std",
    "step_stds",
    "target",
]
