"""What backbones around the networks of libraries have in common: functions that are methods of
each of them.

Such a backbone has ``denoiser``, the only part that learns; ``codec``, waves <-> latents;
``memory``, a ``PromptMemory`` over its text encoders; and ``parts``, "text" and "decoder" -> names
of its modules that may lie elsewhere or be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones import checkpointing
from zoo.types import Prompt


def train(backbone: nn.Module, mode: bool = True) -> nn.Module:
    """Train mode for the denoiser; all other parts stay in eval mode."""
    nn.Module.train(backbone, mode)
    for name, part in backbone.named_children():
        if name != "denoiser":
            part.eval()
    return backbone


def set_checkpointing(backbone: nn.Module, enabled: bool = True) -> None:
    """Keeps little of the denoiser's activations for the backward pass (AudioLDM 2: a tenth), for
    one more forward.

    Outputs and gradients stay the same.
    """
    checkpointing.set_checkpointing(backbone.denoiser, enabled)


def too_long(backbone: nn.Module, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Prompt id -> what an encoder says of a text that it does not take."""
    return backbone.memory.too_long(prompts)


def remember(backbone: nn.Module, prompts: Sequence[Prompt]) -> None:
    """Encodes ``prompts`` and their negatives, which are kept.

    Raises ``UserError`` for more texts than are kept.
    """
    backbone.memory.remember(prompts)


def forget_texts(backbone: nn.Module, _: Any) -> None:
    """A hook after ``load_state_dict``: what other weights made of texts is no longer theirs."""
    backbone.memory.forget()


def drop_text_encoders(backbone: nn.Module, prompts: Sequence[Prompt]) -> None:
    """Encodes ``prompts`` and their negatives, then frees the encoders: no other text can be
    encoded from then on.

    The model can no longer be saved whole (an adapter can). Raises ``UserError`` for more prompts
    than are kept.
    """
    backbone.memory.remember(prompts)
    backbone.memory.close()
    backbone.arguments = None
    for name in backbone.parts["text"]:
        setattr(backbone, name, None)


def drop_decoder(backbone: nn.Module) -> None:
    """Frees the codec's networks: latents can be sampled and learned from, but not heard.

    It cannot be saved whole.
    """
    backbone.arguments = None
    backbone.codec.drop()


def encode(backbone: nn.Module, wave_BCN: Tensor) -> Tensor:
    """Latents of waves at ``sample_rate_hz``: the codec's ``encode``."""
    return backbone.codec.encode(wave_BCN)


def decode(backbone: nn.Module, latent_BCT: Tensor) -> Tensor:
    """Waves (B, channels, N) of all frames, float32, a few clips at a time; gradients flow to the
    latents.
    """
    return backbone.codec.decode(latent_BCT)


def latent_shape(backbone: nn.Module, seconds: float) -> tuple[int, ...]:
    """The shape, without the batch, of what is denoised for ``seconds``: the codec's
    ``latent_shape``.
    """
    return backbone.codec.latent_shape(seconds)


def scored_mask(backbone: nn.Module, prompts: Sequence[Prompt]) -> Tensor | None:
    """(B, 1, frames): the frames heard within a prompt's ``seconds``; None where all are: the
    codec's ``scored_mask``.
    """
    return backbone.codec.scored_mask(prompts)
