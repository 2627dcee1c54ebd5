"""AudioLDM 2 (arXiv 2308.05734) with networks of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.backbones.audioldm import path_of
from zoo.backbones.frozen_parts import FrozenParts
from zoo.backbones.library_networks import checked
from zoo.backbones.mel_codec import MelCodec
from zoo.conditioners.loa import loa_tokens
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.conditioners.t5 import fitting_tokenizer, t5_states
from zoo.conditioners.tokenizer import PromptTokenizer
from zoo.errors import UserError
from zoo.types import Conditioning, Prompt


class AudioLDM2(FrozenParts):
    """Text to mono audio at 16 kHz.

    ``zoo.load`` reads the arguments, plain JSON values, from a released folder.

    Latents are (channels, frames, bands): (8, 250, 16) for 10 s. ``clap_text``, ``t5`` and ``gpt2``
    run on the device that holds them: ``t5.to("cpu")`` keeps it off the accelerator.

    Only ``denoiser`` learns: everything else is frozen and stays in eval mode, whatever
    ``train`` says.

    Args:
        unet, vae, vocoder, projection, clap_text, t5, gpt2, scheduler: the configurations of
            ``AudioLDM2UNet2DConditionModel``, ``AutoencoderKL``, ``SpeechT5HifiGan``,
            ``AudioLDM2ProjectionModel``, ``ClapTextModel``, ``T5EncoderModel``, ``GPT2Model`` and
            ``DDIMScheduler`` as their libraries write them.
        clap_tokenizer, t5_tokenizer: by ``pack_tokenizer`` (``zoo.conditioners.tokenizer``).
        clap_max_tokens, t5_max_tokens: the most tokens that the encoders take.
        loa_count: how many vectors the language model writes.
        truncate_prompts: longer texts are cut instead of refused.

    Raises: ``UserError`` for settings that a part does not have.
    """

    offloadable = {"text": ("clap_text", "t5", "gpt2", "projection"), "decoder": ("codec",)}

    def __init__(
        self,
        unet: dict[str, Any],
        vae: dict[str, Any],
        vocoder: dict[str, Any],
        projection: dict[str, Any],
        clap_text: dict[str, Any],
        t5: dict[str, Any],
        gpt2: dict[str, Any],
        scheduler: dict[str, Any],
        clap_tokenizer: str,
        t5_tokenizer: str,
        clap_max_tokens: int = 512,
        t5_max_tokens: int = 512,
        loa_count: int = 8,
        truncate_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        import transformers as tf
        from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel

        if loa_count < 1:
            raise UserError(f"loa_count must be at least 1, got {loa_count}")
        self.loa_count = loa_count
        self.truncate_prompts = truncate_prompts
        with torch.device("cpu"):  # a table, also when the networks are made without memory
            self.path = path_of(scheduler)

        self.denoiser = AudioLDM2UNet2DConditionModel(
            **checked(AudioLDM2UNet2DConditionModel, unet, "unet")
        )
        self.codec = MelCodec(vae, vocoder)
        self.projection = AudioLDM2ProjectionModel(
            **checked(AudioLDM2ProjectionModel, projection, "projection")
        )
        self.clap_text = tf.ClapTextModelWithProjection(
            tf.ClapTextConfig(**checked(tf.ClapTextConfig, clap_text, "clap_text"))
        )
        self.t5 = tf.T5EncoderModel(tf.T5Config(**checked(tf.T5Config, t5, "t5")))
        self.gpt2 = tf.GPT2Model(tf.GPT2Config(**checked(tf.GPT2Config, gpt2, "gpt2")))
        self.clap_tokenizer = PromptTokenizer(clap_tokenizer, clap_max_tokens, "CLAP")
        self.t5_tokenizer = fitting_tokenizer(t5_tokenizer, t5_max_tokens, self.t5.config)
        self.sample_rate_hz = self.codec.sample_rate_hz
        self.channels = self.codec.channels
        self.memory = PromptMemory(self._encode, self._tokens, in_pairs=True)
        self.train(self.training)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """The streams ``loa_BLD`` (B, loa_count, D), ``t5_BLD`` and ``t5_mask_BL``.

        Each text is encoded once and kept.

        A prompt and its negative are padded to the longer of the two before the language model
        reads them (its positions count padding), each pair for itself: what a prompt means does not
        depend on the others of its batch. Raises ``UserError`` for a text that is longer than an
        encoder takes.
        """
        rows = Conditioning.cat([self.memory(prompt) for prompt in prompts])
        return rows.to(next(self.denoiser.parameters()).device)

    def _tokens(self, text: str) -> list[int]:
        ids = self.t5_tokenizer(text, self.truncate_prompts)
        self.clap_tokenizer(text, self.truncate_prompts)
        return ids

    @torch.no_grad()
    def _encode(self, text: str, length: int) -> Conditioning:
        """One row in main memory; the language model's input is padded to ``length`` T5 tokens."""
        like = self.projection.sos_embed
        clap_ids = torch.tensor(
            [self.clap_tokenizer(text, self.truncate_prompts)], device=self.clap_text.device
        )
        t5_ids = torch.tensor([self.t5_tokenizer(text, self.truncate_prompts)])
        clap = self.clap_text(clap_ids, attention_mask=torch.ones_like(clap_ids)).text_embeds
        t5 = t5_states(self.t5, t5_ids)
        padding = length - t5.shape[1]
        joined = self.projection(
            hidden_states=F.normalize(clap, dim=-1)[:, None].to(like),
            hidden_states_1=F.pad(t5, (0, 0, 0, padding)).to(like),
            attention_mask=torch.ones(1, 1, dtype=torch.long, device=like.device),
            attention_mask_1=F.pad(torch.ones_like(t5_ids), (0, padding)).to(like.device),
        )
        inputs = joined.hidden_states.to(self.gpt2.wte.weight)
        mask = joined.attention_mask.to(self.gpt2.device)
        loa = loa_tokens(self.gpt2, inputs, mask, self.loa_count)
        streams = {
            "loa_BLD": loa,
            "t5_BLD": t5,
            "t5_mask_BL": torch.ones(t5.shape[:2], dtype=torch.bool),
        }
        return Conditioning(streams).to("cpu")

    def predict(self, latent_BCTF: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise in ``latent_BCTF`` at the training steps ``time_B``, float32.

        It is computed in the denoiser's own type.
        """
        dtype = self.denoiser.conv_in.weight.dtype
        output = self.denoiser(
            sample=latent_BCTF.to(dtype),
            timestep=time_B,
            encoder_hidden_states=conditioning["loa_BLD"].to(dtype),
            encoder_hidden_states_1=conditioning["t5_BLD"].to(dtype),
            encoder_attention_mask_1=conditioning["t5_mask_BL"],
            return_dict=False,
        )
        return output[0].float()
