"""AudioLDM 2's denoiser with random weights and texts, for measurements of memory and time that
contents do not change.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.backbones.audioldm2 import AudioLDM2
from zoo.backbones.checkpointing import set_checkpointing
from zoo.diffusion import VPDiscrete
from zoo.types import Conditioning, Prompt

TOKENS, LOA = 20, 8  # vectors that T5 and the language model write for a prompt of a dozen words
# constructor arguments of the released networks (their config.json); what is not said is the
# library's default
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
    """The library's network of one of ``SIZES``, frozen, with random weights on the current default
    device.
    """
    from diffusers import AudioLDM2UNet2DConditionModel

    return AudioLDM2UNet2DConditionModel(**SIZES[size]).requires_grad_(False).eval()


class RandomAudioLDM2(nn.Module):
    """What rollout and update ask of a backbone, around the real network class; texts are random
    vectors of their own words.
    """

    sample_rate_hz, channels = 16_000, 1
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

        loa, t5 = (
            torch.stack([vectors(prompt.text, count, width) for prompt in prompts])
            for count, width in zip((LOA, TOKENS), self.widths, strict=True)
        )
        mask = torch.ones(len(prompts), TOKENS, dtype=torch.bool)
        return Conditioning({"loa_BLD": loa, "t5_BLD": t5, "t5_mask_BL": mask})

    def latent_shape(self, seconds: float) -> tuple[int, int, int]:
        return 8, round(seconds * 25), 16
