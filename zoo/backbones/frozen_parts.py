"""What backbones around the networks of libraries have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones import library_networks
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.types import Prompt


class FrozenParts(nn.Module):
    """A backbone whose ``denoiser`` alone learns; its other parts stay in eval mode.

    A backbone sets ``denoiser``, ``codec`` (waves <-> latents), ``memory`` over its text encoders,
    and ``offloadable``: "text" and "decoder" -> names of its modules that may be on another device
    or be dropped.
    """

    offloadable: Mapping[str, tuple[str, ...]]
    arguments: dict[str, Any] | None
    denoiser: nn.Module
    codec: Any
    memory: PromptMemory

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(FrozenParts.forget_texts)

    def train(self, mode: bool = True) -> FrozenParts:
        """Train mode for the denoiser; all other parts stay in eval mode."""
        super().train(mode)
        for name, part in self.named_children():
            if name != "denoiser":
                part.eval()
        return self

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Switches gradient checkpointing, which saves activation memory for one more forward.

        AudioLDM 2 keeps a tenth of its activations.

        Outputs and gradients stay the same.
        """
        library_networks.set_checkpointing(self.denoiser, enabled)

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> why an encoder does not take its text; empty if they take all."""
        return self.memory.too_long(prompts)

    def remember(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, and keeps the result.

        Raises ``UserError`` for more texts than are kept.
        """
        self.memory.remember(prompts)

    def forget_texts(self, _: Any) -> None:
        """A hook after ``load_state_dict``: other weights encode texts differently."""
        self.memory.forget()

    def drop_text_encoders(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, then frees the encoders; refuses other texts.

        The model can no longer be saved whole (an adapter can). Raises ``UserError`` for more
        prompts than are kept.
        """
        self.memory.remember(prompts)
        self.memory.close()
        self.arguments = None
        for name in self.offloadable["text"]:
            setattr(self, name, None)

    def drop_decoder(self) -> None:
        """Frees the codec's networks: latents can be sampled and trained on, but not decoded.

        The model can no longer be saved whole.
        """
        self.arguments = None
        self.codec.drop()

    def encode(self, wave_BCN: Tensor) -> Tensor:
        """Latents of waves at ``sample_rate_hz``: the codec's ``encode``."""
        return self.codec.encode(wave_BCN)

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """Waves (B, channels, N) of all frames, float32, a few clips at a time.

        Gradients flow to the latents.
        """
        return self.codec.decode(latent_BCT)

    def latent_shape(self, seconds: float) -> tuple[int, ...]:
        """The shape, without the batch, of the latents for ``seconds``: the codec's."""
        return self.codec.latent_shape(seconds)
