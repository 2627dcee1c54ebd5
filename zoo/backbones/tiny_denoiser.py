"""The latent diffusion transformer of the embedded models.

Peebles and Xie 2023; shared modulation as in PixArt-alpha.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError


class Attention(nn.Module):
    """Multi-head attention through torch SDPA; adapters select by ``is_cross_attention``."""

    def __init__(self, width: int, context_width: int | None, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.is_cross_attention = context_width is not None
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width or width, width, bias=False)
        self.to_v = nn.Linear(context_width or width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, hidden_BLD: Tensor, context_BLD: Tensor | None = None, mask_BL: Tensor | None = None
    ) -> Tensor:
        context = hidden_BLD if context_BLD is None else context_BLD
        query, key, value = (
            linear(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, source in (
                (self.to_q, hidden_BLD),
                (self.to_k, context),
                (self.to_v, context),
            )
        )
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention and perceptron, modulated by the time (``modulation``)."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, None, heads)
        self.cross = Attention(width, context_width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)
        nn.init.zeros_(self.cross.to_out.weight)
        nn.init.zeros_(self.cross.to_out.bias)

    def forward(self, hidden: Tensor, time_B6D: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (time_B6D + self.modulation)[
            :, :, None
        ].unbind(1)
        width = hidden.shape[-1:]
        hidden = hidden + gate_a * self.attn(F.layer_norm(hidden, width) * (1 + scale_a) + shift_a)
        hidden = hidden + self.cross(self.cross_norm(hidden), context, mask)
        return hidden + gate_m * self.mlp(F.layer_norm(hidden, width) * (1 + scale_m) + shift_m)


class DiffusionTransformer(nn.Module):
    """Predicts v from latents (B, C, T), time (B,) in [0, 1], tokens (B, L, D) and mask (B, L).

    ``patch`` latent frames make one token; T is padded to a multiple of it inside.
    """

    def __init__(
        self, channels: int, width: int, depth: int, heads: int, context_width: int, patch: int
    ) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise UserError(f"width {width} must be even and divisible by heads {heads}")
        self.patch = patch
        self.width = width
        self.patch_in = nn.Linear(channels * patch, width)
        self.time_mlp = nn.Sequential(
            nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.time_modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, context_width, heads) for _ in range(depth))
        self.out_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, channels * patch)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(
        self, latent_BCT: Tensor, time_B: Tensor, tokens_BLD: Tensor, mask_BL: Tensor
    ) -> Tensor:
        frames = latent_BCT.shape[-1]
        padded = F.pad(latent_BCT, (0, -frames % self.patch))
        hidden = self.patch_in(
            padded.unflatten(-1, (-1, self.patch)).permute(0, 2, 1, 3).flatten(2)
        )
        hidden = hidden + sinusoid(torch.arange(hidden.shape[1], device=hidden.device), self.width)
        time = self.time_mlp(sinusoid(1000 * time_B, 128))
        modulation_B6D = self.time_modulation(time).unflatten(-1, (6, self.width))
        for block in self.blocks:
            hidden = block(hidden, modulation_B6D, tokens_BLD, mask_BL)
        shift, scale = self.out_modulation(time)[:, None].chunk(2, dim=-1)
        patches = self.patch_out(F.layer_norm(hidden, (self.width,)) * (1 + scale) + shift)
        return patches.unflatten(-1, (-1, self.patch)).permute(0, 2, 1, 3).flatten(2)[..., :frames]


def sinusoid(position: Tensor, width: int) -> Tensor:
    """(...) positions to (..., width) sines and cosines, wavelengths 2 pi to 20000 pi."""
    frequency = torch.exp(
        torch.arange(width // 2, device=position.device) * (-math.log(10_000) / (width // 2))
    )
    angle = position[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
