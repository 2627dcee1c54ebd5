"""A text-to-audio model of a few hundred weights with all parts that DDPO uses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.batches import PromptBatch
from lightning_modules.resume_settings import translated
from zoo.diffusion import Sampler, VPCosine, noise_generator, rollout
from zoo.types import Conditioning, Prompt, RewardOutput

# constructor arguments of the smallest TinyAudio that is still worth saving and loading
SMALL = {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "codec_width": 32,
    "codec_encoder_depth": 1,
    "codec_decoder_depth": 1,
    "text_width": 16,
    "text_depth": 1,
}


def small_audio():
    """``SMALL`` with the same weights in every call: a base for adapters."""
    from zoo.backbones.tiny import TinyAudio

    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = TinyAudio(**SMALL)
        for parameter in backbone.denoiser.parameters():
            if not parameter.any():  # gates that start at zero would silence an adapter
                torch.nn.init.normal_(parameter, std=0.3)
    return backbone


LEVELS = {"happy": 0.8, "sad": -0.8}


class ToyAttention(nn.Module):
    def __init__(self, width: int, context: int, cross: bool) -> None:
        super().__init__()
        self.is_cross_attention = cross
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(context, width)
        self.to_v = nn.Linear(context, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        weights = self.to_q(x) @ self.to_k(context).transpose(1, 2) / x.shape[-1] ** 0.5
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None], -torch.inf)
        return self.to_out(weights.softmax(dim=-1) @ self.to_v(context))


class ToyDenoiser(nn.Module):
    def __init__(self, channels: int, width: int, context: int) -> None:
        super().__init__()
        self.into = nn.Linear(channels + 1, width)
        self.out = nn.Linear(width, channels)
        self.attn = ToyAttention(width, width, False)
        self.cross = ToyAttention(width, context, True)

    def forward(self, x: Tensor, time_B: Tensor, tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        x = x.transpose(1, 2).to(self.into.weight.dtype)
        time = time_B.to(x).reshape(-1, 1, 1).expand(*x.shape[:2], 1)
        h = self.into(torch.cat([x, time], dim=-1)).tanh()
        h = h + self.attn(h, h)
        h = h + self.cross(h, tokens_BLD.to(h), mask_BL)
        return self.out(h).transpose(1, 2)


class ToyBackbone(nn.Module):
    """Latents (2, 8) at 8 frames per second; the wave is the first channel of the latent."""

    sample_rate_hz = 8
    channels = 1

    def __init__(
        self, width: int = 16, context: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.path = VPCosine("v")
        self.context = context
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.denoiser = ToyDenoiser(2, width, context).to(dtype)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        length = max(len(prompt.text.split()) for prompt in prompts) + 1
        tokens = torch.zeros(len(prompts), length, self.context)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            for j, word in enumerate(["", *prompt.text.split()]):
                generator = torch.Generator().manual_seed(
                    sum(ord(c) * 31**k for k, c in enumerate(word)) % 2**31
                )
                tokens[i, j] = torch.randn(self.context, generator=generator)
                mask[i, j] = True
        return Conditioning({"tokens_BLD": tokens, "mask_BL": mask})

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(
            latent_BCT, time_B, conditioning["tokens_BLD"], conditioning["mask_BL"]
        )

    def encode(self, wave_BCN: Tensor) -> Tensor:
        return torch.cat([wave_BCN, torch.zeros_like(wave_BCN)], dim=1)

    def decode(self, latent_BCT: Tensor) -> Tensor:
        return latent_BCT[:, :1]

    def latent_shape(self, seconds: float) -> tuple[int, ...]:
        return (2, round(seconds * 8))


class ToyReward:
    """Minus the squared distance between the wave's mean and the level of the prompt's mood."""

    differentiable = True

    def __call__(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        level = torch.tensor([LEVELS[prompt.labels["mood"]] for prompt in prompts])
        mean = wave_BCN.mean(dim=(1, 2))
        return RewardOutput(-((mean - level) ** 2), {"level": mean})


def prompts(count: int, seconds: float = 1.0) -> tuple[Prompt, ...]:
    """Different prompts of different lengths in words, with moods in turn and a negative."""
    moods = list(LEVELS)
    return tuple(
        Prompt(
            f"p{i}",
            f"a {moods[i % 2]} take {'very ' * (i % 3)}number {i}",
            "noise",
            seconds,
            labels={"mood": moods[i % 2]},
        )
        for i in range(count)
    )


def prompt_round(count: int, round_index: int = 0, repeats: int = 2) -> PromptBatch:
    """``count`` samples: ``count // repeats`` prompts, each ``repeats`` times."""
    each = prompts(count // repeats)
    return PromptBatch(each * repeats, tuple(i // len(each) for i in range(count)), round_index)


class Rounds:
    """A data loader of ``count`` rounds from ``start``."""

    def __init__(self, size: int, count: int = 1, start: int = 0, repeats: int = 2) -> None:
        self.size = size
        self.count = count
        self.start = start
        self.repeats = repeats

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for _ in range(self.count):
            self.start += 1
            yield prompt_round(self.size, self.start - 1, self.repeats)


class Given:
    """A data loader of these batches, as Lightning reads a list as several loaders."""

    def __init__(self, *batches: PromptBatch) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def shaken(network: nn.Module) -> nn.Module:
    """Moves the weights of its adapters away from zero, always in the same way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


def latents(predict, model: nn.Module, prompts: Sequence[Prompt]) -> Tensor:
    """Clean latents (B, ...) of two guided steps by ``predict``, on the path of ``model``."""
    sides = [
        model.encode_prompts(side)
        for side in (prompts, [prompt.as_negative() for prompt in prompts])
    ]
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    sampler = Sampler(2, guidance_scale=2.0, rule="cps")
    return rollout(
        predict,
        model.path,
        sampler,
        prompts,
        *sides,
        model.latent_shape(prompts[0].seconds),
        generators,
    ).clean


def supervised(kind: type, model: nn.Module, **settings: Any) -> Any:
    """``kind(model)`` with settings, such as ``total_steps``, in their groups."""
    grouped = translated(settings, kind.MOVED_SETTINGS)
    for name, parameter in inspect.signature(kind).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            grouped[name] = dataclasses.replace(parameter.default, **grouped.get(name, {}))
    return kind(model, **grouped)
