"""Stable Audio Open (arXiv 2407.14358) around the networks of diffusers and transformers: text to stereo audio at 44.1 kHz."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.backbones.audioldm2 import settings_of
from zoo.backbones.checkpointing import set_checkpointing
from zoo.backbones.mel_codec import only_known
from zoo.backbones.oobleck_codec import FRAME_WINDOWS, OobleckCodec
from zoo.conditioners.frozen_t5 import FrozenT5
from zoo.diffusion import VPCosine
from zoo.diffusion.paths import require_known
from zoo.types import Conditioning, Prompt

# what a scheduler must say: all that VPCosine computes. The order of the solver is the sampler's choice here.
_SCHEDULE = {"sigma_schedule": "exponential", "prediction_type": "v_prediction", "sigma_data": 1.0, "final_sigmas_type": "zero"}


def path_of(scheduler: Mapping[str, Any]) -> VPCosine:
    """The path of a ``CosineDPMSolverMultistepScheduler``'s configuration. Raises ``ValueError`` for another schedule."""
    for key, wanted in _SCHEDULE.items():
        if scheduler.get(key, wanted) != wanted:
            raise ValueError(f"scheduler: {key} must be {wanted!r}, got {scheduler[key]!r}")
    return VPCosine("v", "exponential", scheduler.get("sigma_min", 0.3), scheduler.get("sigma_max", 500.0))


@functools.lru_cache(maxsize=8)
def rotary_table(width: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, width) of the rotary positions of self-attention."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    table = get_1d_rotary_pos_embed(width, length, use_real=True, repeat_interleave_real=False)
    return table[0].to(device), table[1].to(device)


class StableAudio(nn.Module):
    """Text and timing to stereo audio. Plain JSON values; ``from_pretrained`` reads them from a released folder.

    ``transformer``, ``vae``, ``text_encoder``, ``projection``, ``scheduler``: the configurations of ``StableAudioDiTModel``,
    ``AutoencoderOobleck``, ``T5EncoderModel``, ``StableAudioProjectionModel`` and ``CosineDPMSolverMultistepScheduler`` as their
    libraries write them. ``tokenizer``: by ``pack_tokenizer``. ``max_tokens``: every prompt is padded to so many;
    ``truncate_prompts`` cuts longer ones instead of refusing them.

    ``frame_window``: which latent frames (21.5 a second) are denoised. None: always all of the model's, 1024 for 47.6 s, as it
    was trained and as diffusers samples it; what is not heard is not scored (``scored_mask``). "heard": those that cover the
    clip, 216 for 10 s, a fifth of the work but another length than in training. "bewo": one less where the last is not whole,
    215 for 10 s (the wave then ends up to 46 ms before the clip).

    ``seconds_start``: where in a longer piece the clip is said to begin. ``seconds_total``: how long the piece is said to be
    (None: it ends with the clip). An empty text is the unconditional side of the model's training: no text, no timing tokens.
    The training sampler is the first-order SDE step, eta 1; ``rule="dpmpp_2m_sde"`` is the library's solver, for listening.

    Latents are (channels, frames): (64, 216) for 10 s. Only ``denoiser`` learns: everything else is frozen by use and stays in
    eval mode whatever ``train`` says. Raises ``ValueError`` for settings that cannot be meant and parts that do not fit.
    """

    parts = {"text": ("text",), "decoder": ("codec",)}

    def __init__(
        self,
        transformer: dict[str, Any],
        vae: dict[str, Any],
        text_encoder: dict[str, Any],
        projection: dict[str, Any],
        scheduler: dict[str, Any],
        tokenizer: str,
        max_tokens: int = 128,
        frame_window: Literal["heard", "bewo"] | None = None,
        seconds_start: float = 0.0,
        seconds_total: float | None = None,
        truncate_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] | None = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        from diffusers import StableAudioDiTModel, StableAudioProjectionModel
        from transformers import T5Config

        if frame_window is not None:
            require_known("frame_window", frame_window, FRAME_WINDOWS)
        self.frame_window, self.seconds_start, self.seconds_total = frame_window, float(seconds_start), seconds_total
        self.path = path_of(scheduler)
        self.denoiser = StableAudioDiTModel(**only_known(transformer, settings_of(StableAudioDiTModel), "transformer"))
        self.codec = OobleckCodec(vae)
        text_encoder = only_known(text_encoder, settings_of(T5Config), "text_encoder")
        self.text = FrozenT5(text_encoder, tokenizer, max_tokens, truncate_prompts)
        known = inspect.signature(StableAudioProjectionModel.__init__).parameters
        self.projection = StableAudioProjectionModel(**only_known(projection, known, "projection"))
        self.sample_rate_hz, self.channels = self.codec.sample_rate_hz, self.codec.channels
        self._check_parts()
        self.register_load_state_dict_post_hook(lambda module, _: module.text.forget())
        self.train(self.training)

    def _check_parts(self) -> None:
        network, projection = self.denoiser.config, self.projection.config
        self._frames, self._rotary_width = int(network.sample_size), network.attention_head_dim // 2
        width = projection.conditioning_dim
        found = (network.in_channels, network.cross_attention_input_dim, network.global_states_input_dim)
        if found != (self.codec.latent_channels, width, 2 * width) or projection.text_encoder_dim != self.text.width:
            raise ValueError(
                f"the parts do not fit: the transformer takes {found[0]} latent channels, tokens of width {found[1]} and timing "
                f"of {found[2]}; the autoencoder gives {self.codec.latent_channels} channels, the projection tokens of {width} "
                f"from texts of {projection.text_encoder_dim}, the text encoder {self.text.width}"
            )
        low, high = projection.min_value, projection.max_value
        for name, value in (("seconds_start", self.seconds_start), ("seconds_total", self.seconds_total)):
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {value}")

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        dtype: str | None = None,
        checkpoint_activations: bool = False,
        frame_window: Literal["heard", "bewo"] | None = None,
        seconds_start: float = 0.0,
        seconds_total: float | None = None,
        truncate_prompts: bool = False,
    ) -> StableAudio:
        """The released model of a zoo name ("stable-audio-open-1.0"), an ``owner/name`` on the Hub or a folder in diffusers
        layout.

        ``dtype`` such as "bfloat16" (default float32). ``checkpoint_activations``: ``set_checkpointing``. Frozen, in eval mode.
        Raises ``ValueError`` when a tensor is missing, left over or of another shape, and what ``zoo.pull`` raises.
        """
        from zoo.generation import as_dtype
        from zoo.importers.diffusers_folders import folder_of
        from zoo.importers.stable_audio import read_folder

        settings = {"frame_window": frame_window, "seconds_start": seconds_start, "seconds_total": seconds_total}
        folder = folder_of(source, "stable_audio")
        model = read_folder(folder, truncate_prompts=truncate_prompts, **settings).to(dtype=as_dtype(dtype))
        model.set_checkpointing(checkpoint_activations)
        return model

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Keeps little of the denoiser's activations for the backward pass, for one more forward. Outputs stay the same."""
        set_checkpointing(self.denoiser, enabled)

    def train(self, mode: bool = True) -> StableAudio:
        super().train(mode)
        for name, part in self.named_children():
            if name != "denoiser":
                part.eval()
        return self

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """``tokens_BLD`` (B, max_tokens + 2, D): text (0 beyond its end), start and total length; ``timing_BD`` (B, 2 D): these.

        Each text is encoded once and kept. Raises ``ValueError`` for a prompt of too many tokens.
        """
        weight = next(self.projection.parameters())
        states_BLD, mask_BL = self.text([prompt.text for prompt in prompts], self.text.max_tokens)
        states_BLD, mask_BL = states_BLD.to(weight), mask_BL.to(weight)
        start_B = torch.full((len(prompts),), self.seconds_start, device=weight.device)
        totals = [self.seconds_start + prompt.seconds if self.seconds_total is None else self.seconds_total for prompt in prompts]
        total_B = torch.tensor(totals, dtype=torch.float32, device=weight.device)
        made = self.projection(text_hidden_states=states_BLD, start_seconds=start_B, end_seconds=total_B)
        start_B1D, total_B1D = made.seconds_start_hidden_states, made.seconds_end_hidden_states
        tokens_BLD = torch.cat([made.text_hidden_states * mask_BL[..., None], start_B1D, total_B1D], dim=1)
        told_B = weight.new_tensor([float(bool(prompt.text.strip())) for prompt in prompts])
        timing_BD = torch.cat([start_B1D, total_B1D], dim=2)[:, 0]
        return Conditioning({"tokens_BLD": tokens_BLD * told_B[:, None, None], "timing_BD": timing_BD})

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what the tokenizer says of its text if that has too many tokens."""
        return self.text.too_long(prompts)

    def remember(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, which are kept. Raises ``ValueError`` for more texts than are kept."""
        self.text.remember((text, None) for prompt in prompts for text in (prompt.text, prompt.negative))

    def drop_text_encoders(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, then frees the text encoder: no other text can be encoded from then on.

        The model can no longer be saved whole (an adapter can). Raises ``ValueError`` for more prompts than are kept.
        """
        self.remember(prompts)
        self.arguments = None
        self.text.drop()

    def drop_decoder(self) -> None:
        """Frees the autoencoder: latents can be sampled and learned from, but not heard. It cannot be saved whole."""
        self.arguments = None
        self.codec.drop()

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity alpha * noise - sigma * clean, float32; computed in the denoiser's own type."""
        dtype = self.denoiser.proj_in.weight.dtype
        output = self.denoiser(
            latent_BCT.to(dtype),
            time_B,
            encoder_hidden_states=conditioning["tokens_BLD"].to(dtype),
            global_hidden_states=conditioning["timing_BD"].to(dtype)[:, None],
            rotary_embedding=rotary_table(self._rotary_width, latent_BCT.shape[-1] + 1, latent_BCT.device),
            return_dict=False,
        )
        return output[0].float()

    def encode(self, wave_BCN: Tensor) -> Tensor:
        """Latents of waves at ``sample_rate_hz``, with silence after them up to ``latent_shape``.

        Raises ``ValueError`` for another number of channels, NaN, and waves that are longer than the model's clips.
        """
        return self.codec.encode(wave_BCN, self.latent_shape(max(1, wave_BCN.shape[-1]) / self.sample_rate_hz)[1])

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """Waves (B, 2, N) of all frames, float32, a clip at a time; gradients flow to the latents."""
        return self.codec.decode(latent_BCT)

    def latent_shape(self, seconds: float) -> tuple[int, int]:
        """(channels, frames) of what is denoised for ``seconds``. Raises ``ValueError`` for more than the model's length."""
        return self.codec.latent_shape(seconds, self._frames, self.frame_window)

    def scored_mask(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """(B, 1, frames): the frames that are heard within a prompt's ``seconds``; None with a ``frame_window``: all are."""
        return self.codec.heard(prompts, self._frames, self.frame_window)
