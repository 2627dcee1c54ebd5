"""A backbone outside the project: it uses the project's records and paths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.diffusion import VPCosine
from zoo.types import Conditioning, Prompt


class Network(nn.Module):
    """From noise level and text to v, by one convolution over time."""

    def __init__(self, channels: int, width: int, words: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(words, width, mode="sum")
        self.into = nn.Conv1d(channels + 1, width, 3, padding=1)
        self.out = nn.Conv1d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, time_B: Tensor, word_BL: Tensor) -> Tensor:
        time = time_B.reshape(-1, 1, 1).expand(-1, 1, x.shape[-1]).to(x)
        hidden = self.into(torch.cat([x, time], dim=1)) + self.words(word_BL)[..., None]
        return self.out(hidden.tanh())


class Whistles(nn.Module):
    """Mono at 8 kHz; a latent frame is 64 samples, so "encoding" is a reshape.

    Meets ``zoo.types.Backbone``.
    """

    sample_rate_hz, channels, frame = 8000, 1, 64

    def __init__(self, width: int = 16, words: int = 100) -> None:
        super().__init__()
        self.path = VPCosine("v")
        self.word_count = words
        self.denoiser = Network(self.frame, width, words)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        texts = [prompt.text.lower().split() for prompt in prompts]
        word_BL = torch.zeros(len(texts), max(1, *map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            for place, word in enumerate(text):
                word_BL[row, place] = 1 + sum(word.encode()) % (self.word_count - 1)
        return Conditioning({"word_BL": word_BL.to(next(self.parameters()).device)})

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(latent_BCT, time_B, conditioning["word_BL"])

    def encode(self, wave_BCN: Tensor) -> Tensor:
        return wave_BCN.unflatten(-1, (-1, self.frame)).squeeze(1).transpose(1, 2)

    def decode(self, latent_BCT: Tensor) -> Tensor:
        return latent_BCT.transpose(1, 2).flatten(1)[:, None]

    def latent_shape(self, seconds: float) -> tuple[int, ...]:
        return (self.frame, round(seconds * self.sample_rate_hz / self.frame))
