"""AudioLDM 2's denoiser with random weights and texts, for measurements of memory and time."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.backbones.audioldm2 import AudioLDM2
from zoo.backbones.library_networks import set_checkpointing
from zoo.diffusion import VPDiscrete
from zoo.types import Conditioning, Prompt

TOKENS = 20  # vectors of T5 for a prompt of a dozen words
LOA = 8  # vectors of the language model
# constructor arguments of the released networks (config.json); others have the library's default
_BASE = {
    "in_channels": 8,
    "out_channels": 8,
    "sample_size": 256,
    "block_out_channels": [128, 256, 384, 640],
    "cross_attention_dim": [[None, 768, 1024]] * 4,
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "down_block_types": [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
    ],
    "up_block_types": [
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "UpBlock2D",
    ],
}
SIZES = {
    "tiny": {
        **_BASE,
        "block_out_channels": [8, 8, 16, 16],
        "cross_attention_dim": [[None, 8, 12]] * 4,
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "small": {
        **_BASE,
        "block_out_channels": [16, 16, 16, 32],
        "cross_attention_dim": [[None, 24, 32]] * 4,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    },
    "base": _BASE,
    "large": {
        **_BASE,
        "cross_attention_dim": [[None, 768, 1024, None]] * 4,
        "transformer_layers_per_block": 2,
    },
}


def random_unet(size: str) -> nn.Module:
    """A network of one of ``SIZES``, frozen, with random weights on the default device."""
    from diffusers import AudioLDM2UNet2DConditionModel

    return AudioLDM2UNet2DConditionModel(**SIZES[size]).requires_grad_(False).eval()


class RandomAudioLDM2(nn.Module):
    """A backbone for rollouts and updates around the real network class.

    Texts are random vectors, seeded by their words.
    """

    sample_rate_hz = 16_000
    channels = 1
    predict = AudioLDM2.predict

    def __init__(self, size: str = "tiny", checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.path = VPDiscrete.from_betas(0.0015, 0.0195, "eps", 1000, 1)
        self.denoiser = random_unet(size)
        self.widths = SIZES[size]["cross_attention_dim"][0][1:3]
        set_checkpointing(self.denoiser, checkpoint_activations)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        def vectors(text: str, count: int, width: int) -> Tensor:
            return torch.randn(
                count, width, generator=torch.Generator().manual_seed(zlib.crc32(text.encode()))
            )

        loa_width, t5_width = self.widths
        loa = torch.stack([vectors(prompt.text, LOA, loa_width) for prompt in prompts])
        t5 = torch.stack([vectors(prompt.text, TOKENS, t5_width) for prompt in prompts])
        mask = torch.ones(len(prompts), TOKENS, dtype=torch.bool)
        return Conditioning({"loa_BLD": loa, "t5_BLD": t5, "t5_mask_BL": mask})

    def latent_shape(self, seconds: float) -> tuple[int, int, int]:
        return 8, round(seconds * 25), 16
