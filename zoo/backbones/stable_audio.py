"""Stable Audio Open (arXiv 2407.14358) with networks of diffusers and transformers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.frozen_parts import FrozenParts
from zoo.backbones.library_networks import checked
from zoo.backbones.oobleck_codec import OobleckCodec
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.conditioners.t5 import fitting_tokenizer, t5_states
from zoo.diffusion import VPCosine
from zoo.errors import UserError
from zoo.types import Conditioning, Prompt

# what a scheduler must say: all that VPCosine computes. The order of the solver is the sampler's
# choice here.
_SCHEDULE = {
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "final_sigmas_type": "zero",
}


def path_of(scheduler: Mapping[str, Any]) -> VPCosine:
    """The path of a ``CosineDPMSolverMultistepScheduler``'s configuration.

    Raises ``UserError`` for another schedule.
    """
    for key, wanted in _SCHEDULE.items():
        if scheduler.get(key, wanted) != wanted:
            raise UserError(f"scheduler: {key} must be {wanted!r}, got {scheduler[key]!r}")
    return VPCosine(
        "v", "exponential", scheduler.get("sigma_min", 0.3), scheduler.get("sigma_max", 500.0)
    )


@functools.lru_cache(maxsize=8)
def rotary_table(width: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, width) of the rotary positions of self-attention."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    table = get_1d_rotary_pos_embed(width, length, use_real=True, repeat_interleave_real=False)
    return table[0].to(device), table[1].to(device)


class StableAudio(FrozenParts):
    """Text and timing to stereo audio at 44.1 kHz.

    ``zoo.load`` reads the arguments, plain JSON values, from a released folder.

    An empty text is the unconditional side of the model's training: no text, no timing tokens. The
    training sampler is the first-order SDE step, eta 1; ``rule="dpmpp_2m_sde"`` is the library's
    solver, for listening. Latents are (channels, frames): (64, 216) for 10 s.

    Only ``denoiser`` learns: everything else is frozen and stays in eval mode, whatever
    ``train`` says.

    Args:
        transformer, vae, text_encoder, projection, scheduler: the configurations of
            ``StableAudioDiTModel``, ``AutoencoderOobleck``, ``T5EncoderModel``,
            ``StableAudioProjectionModel`` and ``CosineDPMSolverMultistepScheduler`` as their
            libraries write them.
        tokenizer: by ``pack_tokenizer`` (``zoo.conditioners.tokenizer``).
        max_tokens: every prompt is padded to this many tokens.
        frame_window: which latent frames (21.5 per second) are denoised. None: always all of the
            model's, 1024 for 47.6 s, as it was trained and as diffusers samples it; what is not
            heard is not scored (``scored_mask``). "heard": those that cover the clip, 216 for 10 s,
            a fifth of the work but another length than in training. "bewo": one less where the last
            is not whole, 215 for 10 s (the wave then ends up to 46 ms before the clip).
        seconds_start: where in a longer piece the clip begins, as the model reads it.
        seconds_total: the length of that piece (None: it ends with the clip).
        truncate_prompts: longer texts are cut instead of refused.

    Raises: ``UserError`` for invalid settings and for parts that do not fit each other.
    """

    offloadable = {"text": ("text",), "decoder": ("codec",)}

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
        self.arguments: dict[str, Any] | None = {
            k: v for k, v in locals().items() if k not in ("self", "__class__")
        }
        from diffusers import StableAudioDiTModel, StableAudioProjectionModel
        from transformers import T5Config, T5EncoderModel

        self.seconds_start = float(seconds_start)
        self.seconds_total = seconds_total
        self._max_tokens = int(max_tokens)
        self.path = path_of(scheduler)
        self.denoiser = StableAudioDiTModel(
            **checked(StableAudioDiTModel, transformer, "transformer")
        )
        self.codec = OobleckCodec(vae, self.denoiser.config.sample_size, frame_window)
        encoder = T5EncoderModel(T5Config(**checked(T5Config, text_encoder, "text_encoder")))
        self.text = nn.ModuleDict({"encoder": encoder})
        self.projection = StableAudioProjectionModel(
            **checked(StableAudioProjectionModel, projection, "projection")
        )
        self.sample_rate_hz = self.codec.sample_rate_hz
        self.channels = self.codec.channels
        self._check_parts()
        words = partial(
            fitting_tokenizer(tokenizer, max_tokens, encoder.config), truncate=truncate_prompts
        )
        self.memory = PromptMemory(self._encode, words)
        self.train(self.training)

    def _check_parts(self) -> None:
        network = self.denoiser.config
        projection = self.projection.config
        self._rotary_width = network.attention_head_dim // 2
        width = projection.conditioning_dim
        text_width = self.text.encoder.config.d_model
        found = (
            network.in_channels,
            network.cross_attention_input_dim,
            network.global_states_input_dim,
        )
        if (
            found != (self.codec.latent_channels, width, 2 * width)
            or projection.text_encoder_dim != text_width
        ):
            raise UserError(
                f"the parts do not fit: the transformer takes {found[0]} latent channels, tokens of"
                f" width {found[1]} and timing of {found[2]}; the autoencoder gives"
                f" {self.codec.latent_channels} channels, the projection tokens of {width} from"
                f" texts of {projection.text_encoder_dim}, the text encoder {text_width}"
            )
        low, high = projection.min_value, projection.max_value
        for name, value in (
            ("seconds_start", self.seconds_start),
            ("seconds_total", self.seconds_total),
        ):
            if value is not None and not low <= value <= high:
                raise UserError(f"{name} must be in [{low}, {high}], got {value}")

    def scored_mask(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """(B, 1, frames): the frames within a prompt's ``seconds``; None where all are heard."""
        return self.codec.scored_mask(prompts)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """``tokens_BLD`` (B, max_tokens + 2, D) and ``timing_BD`` (B, 2 D).

        Tokens are text (0 beyond its end), start and total length; timing is the last two.

        Each text is encoded once and kept. Raises ``UserError`` for a prompt of too many tokens.
        """
        weight = next(self.projection.parameters())
        rows = [self.memory(prompt).to(weight) for prompt in prompts]
        states_BLD = torch.stack(
            [F.pad(row_LD, (0, 0, 0, self._max_tokens - len(row_LD))) for row_LD in rows]
        )
        mask_BL = weight.new_tensor(
            [[1.0] * len(row_LD) + [0.0] * (self._max_tokens - len(row_LD)) for row_LD in rows]
        )
        start_B = torch.full((len(prompts),), self.seconds_start, device=weight.device)
        totals = [
            (
                self.seconds_start + prompt.seconds
                if self.seconds_total is None
                else self.seconds_total
            )
            for prompt in prompts
        ]
        total_B = torch.tensor(totals, dtype=torch.float32, device=weight.device)
        made = self.projection(
            text_hidden_states=states_BLD, start_seconds=start_B, end_seconds=total_B
        )
        start_B1D = made.seconds_start_hidden_states
        total_B1D = made.seconds_end_hidden_states
        tokens_BLD = torch.cat(
            [made.text_hidden_states * mask_BL[..., None], start_B1D, total_B1D], dim=1
        )
        has_text_B = weight.new_tensor([float(bool(prompt.text.strip())) for prompt in prompts])
        timing_BD = torch.cat([start_B1D, total_B1D], dim=2)[:, 0]
        return Conditioning(
            {"tokens_BLD": tokens_BLD * has_text_B[:, None, None], "timing_BD": timing_BD}
        )

    def _encode(self, text: str, _: None) -> Tensor:
        """States (L, D) of a text's own tokens, in main memory."""
        return t5_states(self.text.encoder, torch.tensor([self.memory.tokens(text)]))[0].cpu()

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """alpha * noise - sigma * clean, float32; computed in the denoiser's own type."""
        dtype = self.denoiser.proj_in.weight.dtype
        output = self.denoiser(
            latent_BCT.to(dtype),
            time_B,
            encoder_hidden_states=conditioning["tokens_BLD"].to(dtype),
            global_hidden_states=conditioning["timing_BD"].to(dtype)[:, None],
            rotary_embedding=rotary_table(
                self._rotary_width, latent_BCT.shape[-1] + 1, latent_BCT.device
            ),
            return_dict=False,
        )
        return output[0].float()
