"""AudioLDM (arXiv 2301.12503) with networks of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.backbones.frozen_parts import FrozenParts
from zoo.backbones.library_networks import checked
from zoo.backbones.mel_codec import MelCodec
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.conditioners.tokenizer import PromptTokenizer
from zoo.diffusion import VPDiscrete
from zoo.errors import UserError
from zoo.types import Conditioning, Prompt

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# what a scheduler must say (key -> (default of diffusers' DDIMScheduler, the only value that
# VPDiscrete computes))
_SCHEDULE = {
    "beta_schedule": ("linear", "scaled_linear"),
    "clip_sample": (True, False),
    "set_alpha_to_one": (True, False),
    "thresholding": (False, False),
    "timestep_spacing": ("leading", "leading"),
    "rescale_betas_zero_snr": (False, False),
    "trained_betas": (None, None),
}


def path_of(scheduler: Mapping[str, Any]) -> VPDiscrete:
    """The path of a diffusers scheduler's configuration.

    Raises ``UserError`` for another schedule than this family's.
    """
    for key, (default, wanted) in _SCHEDULE.items():
        if scheduler.get(key, default) != wanted:
            raise UserError(
                f"scheduler: {key} must be {wanted!r}, got {scheduler.get(key, default)!r}"
            )
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise UserError(
            f"scheduler: prediction_type {kind!r} is unknown, expected one of"
            f" {', '.join(_PREDICTIONS)}"
        )
    return VPDiscrete.from_betas(
        scheduler["beta_start"],
        scheduler["beta_end"],
        _PREDICTIONS[kind],
        scheduler.get("num_train_timesteps", 1000),
        scheduler.get("steps_offset", 0),
    )


class AudioLDM(FrozenParts):
    """Text to mono audio at 16 kHz.

    ``zoo.load`` reads the arguments, plain JSON values, from a released folder.

    The whole text is one vector next to the diffusion time: no attention reads it. The attentions
    that diffusers marks as cross-attention read the latent itself, and "cross" and "all" adapters
    (``zoo.backbones.lora``) both learn there. Latents are (channels, frames, bands): (8, 128, 16)
    for 5.12 s.

    Only ``denoiser`` learns: everything else is frozen and stays in eval mode, whatever
    ``train`` says.

    Args:
        unet, vae, vocoder, clap_text, scheduler: the configurations of ``UNet2DConditionModel``,
            ``AutoencoderKL``, ``SpeechT5HifiGan``, ``ClapTextModelWithProjection`` and
            ``DDIMScheduler`` as their libraries write them.
        clap_tokenizer: by ``pack_tokenizer`` (``zoo.conditioners.tokenizer``).
        max_tokens: the most tokens that the text encoder takes.
        truncate_prompts: longer texts are cut instead of refused.

    Raises: ``UserError`` for settings that a part does not have, and for a U-Net that takes another
        vector than CLAP's.
    """

    offloadable = {"text": ("clap_text",), "decoder": ("codec",)}

    def __init__(
        self,
        unet: dict[str, Any],
        vae: dict[str, Any],
        vocoder: dict[str, Any],
        clap_text: dict[str, Any],
        scheduler: dict[str, Any],
        clap_tokenizer: str,
        max_tokens: int = 512,
        truncate_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        from diffusers import UNet2DConditionModel
        from transformers import ClapTextConfig, ClapTextModelWithProjection

        self.truncate_prompts = truncate_prompts
        with torch.device("cpu"):  # a table, also when the networks are made without memory
            self.path = path_of(scheduler)
        self.denoiser = UNet2DConditionModel(**checked(UNet2DConditionModel, unet, "unet"))
        self.codec = MelCodec(vae, vocoder)
        self.clap_text = ClapTextModelWithProjection(
            ClapTextConfig(**checked(ClapTextConfig, clap_text, "clap_text"))
        )
        self.clap_tokenizer = PromptTokenizer(clap_tokenizer, max_tokens, "CLAP")
        wanted = ("simple_projection", self.clap_text.config.projection_dim)
        found = (
            self.denoiser.config.class_embed_type,
            self.denoiser.config.projection_class_embeddings_input_dim,
        )
        if wanted != found:
            raise UserError(
                f"the U-Net takes a class embedding {found[0]!r} of width {found[1]}, expected"
                f" {wanted[0]!r} of CLAP's width {wanted[1]}"
            )
        self.sample_rate_hz = self.codec.sample_rate_hz
        self.channels = self.codec.channels
        self.memory = PromptMemory(self._encode, self._tokens)
        self.train(self.training)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """``clap_BD``:

        CLAP's embedding of each text, of length 1; each text is encoded once and kept.

        Raises ``UserError`` for a text that is longer than the encoder takes.
        """
        rows = Conditioning.cat([self.memory(prompt) for prompt in prompts])
        return rows.to(self.denoiser.conv_in.weight.device)

    def _tokens(self, text: str) -> list[int]:
        return self.clap_tokenizer(text, self.truncate_prompts)

    @torch.no_grad()
    def _encode(self, text: str, _: None) -> Conditioning:
        ids_BL = torch.tensor([self._tokens(text)], device=self.clap_text.device)
        clap = self.clap_text(ids_BL, attention_mask=torch.ones_like(ids_BL)).text_embeds
        return Conditioning({"clap_BD": F.normalize(clap, dim=-1)}).to("cpu")

    def predict(self, latent_BCTF: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise in ``latent_BCTF`` at the training steps ``time_B``, float32.

        It is computed in the denoiser's own type.
        """
        dtype = self.denoiser.conv_in.weight.dtype
        output = self.denoiser(
            latent_BCTF.to(dtype),
            time_B,
            encoder_hidden_states=None,
            class_labels=conditioning["clap_BD"].to(dtype),
            return_dict=False,
        )
        return output[0].float()
