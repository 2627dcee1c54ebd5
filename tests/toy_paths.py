"""The diffusion paths under test, with the betas of released models."""

import torch
from torch import Tensor

from zoo.diffusion import Straight, VPCosine, VPDiscrete
from zoo.types import Conditioning

AUDIOLDM2 = (0.0015, 0.0195)
TANGO = (0.00085, 0.012)
PATHS = {
    "discrete-eps": VPDiscrete.from_betas(*AUDIOLDM2, "eps"),
    "discrete-v": VPDiscrete.from_betas(*TANGO, "v"),
    "cosine-v": VPCosine("v"),
    "cosine-exponential": VPCosine("v", spacing="exponential"),
    "straight": Straight(),
}
SHAPE = (3, 5)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning_of(count: int, seed: int = 1) -> Conditioning:
    return Conditioning({"tokens": randn(count, 4, 2, seed=seed)})
