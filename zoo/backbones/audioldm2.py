"""AudioLDM 2 (arXiv 2308.05734) around the networks of diffusers and transformers: text to mono audio at 16 kHz."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.checkpointing import set_checkpointing
from zoo.backbones.mel_codec import MelCodec, only_known
from zoo.conditioners.loa import loa_tokens
from zoo.conditioners.tokenizer import PromptTokenizer, refused
from zoo.diffusion import VPDiscrete
from zoo.types import Conditioning, Prompt

CACHED_PROMPTS = 16_384  # encoded texts kept, in main memory: 100 kB each at full size
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# what a scheduler must say (key -> (default of diffusers' DDIMScheduler, the only value that VPDiscrete computes))
_SCHEDULE = {
    "beta_schedule": ("linear", "scaled_linear"),
    "clip_sample": (True, False),
    "set_alpha_to_one": (True, False),
    "thresholding": (False, False),
    "timestep_spacing": ("leading", "leading"),
    "rescale_betas_zero_snr": (False, False),
    "trained_betas": (None, None),
}
# keys of every configuration of transformers; no network depends on them
_COMMON = {"dtype", "architectures", "id2label", "label2id", "transformers_version", "model_type", "problem_type"}


def settings_of(kind: type) -> tuple[str, ...]:
    """What the configuration of a part may say: a diffusers network's arguments, or the keys of a transformers configuration."""
    if hasattr(kind, "to_dict"):
        return tuple(key for key in kind().to_dict() if not key.startswith("_") and key not in _COMMON)
    return tuple(key for key in inspect.signature(kind.__init__).parameters if key != "self")


def path_of(scheduler: Mapping[str, Any]) -> VPDiscrete:
    """The path of a diffusers scheduler's configuration. Raises ``ValueError`` for another schedule than this family's."""
    for key, (default, wanted) in _SCHEDULE.items():
        if scheduler.get(key, default) != wanted:
            raise ValueError(f"scheduler: {key} must be {wanted!r}, got {scheduler.get(key, default)!r}")
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise ValueError(f"scheduler: prediction_type {kind!r} is unknown, expected one of {', '.join(_PREDICTIONS)}")
    return VPDiscrete.from_betas(
        scheduler["beta_start"], scheduler["beta_end"], _PREDICTIONS[kind], scheduler.get("num_train_timesteps", 1000),
        scheduler.get("steps_offset", 0),
    )  # fmt: skip


class AudioLDM2(nn.Module):
    """Text to mono audio. All arguments are plain JSON values; ``from_pretrained`` reads them from a released folder.

    ``unet``, ``vae``, ``vocoder``, ``projection``, ``clap_text``, ``t5``, ``gpt2``, ``scheduler``: the configurations of
    ``AudioLDM2UNet2DConditionModel``, ``AutoencoderKL``, ``SpeechT5HifiGan``, ``AudioLDM2ProjectionModel``, ``ClapTextModel``,
    ``T5EncoderModel``, ``GPT2Model`` and ``DDIMScheduler`` as their libraries write them. ``clap_tokenizer``, ``t5_tokenizer``:
    by ``pack_tokenizer`` (``zoo.conditioners.tokenizer``). ``loa_count``: vectors that the language model writes.
    ``*_max_tokens``: what the encoders take; ``truncate_prompts`` cuts longer texts instead of refusing them.

    Latents are (channels, frames, bands): (8, 250, 16) for 10 s. Only ``denoiser`` learns: everything else is frozen by use, and
    stays in eval mode whatever ``train`` says. ``clap_text``, ``t5`` and ``gpt2`` run on the device they lie on: ``t5.to("cpu")``
    keeps it off the accelerator.
    """

    channels = 1
    parts = {"text": ("clap_text", "t5", "gpt2", "projection"), "decoder": ("codec",)}

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
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        import transformers as tf
        from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel

        if loa_count < 1:
            raise ValueError(f"loa_count must be at least 1, got {loa_count}")
        self.clap_tokenizer = PromptTokenizer(clap_tokenizer, clap_max_tokens, "CLAP")
        self.t5_tokenizer = PromptTokenizer(t5_tokenizer, t5_max_tokens, "T5")
        self.loa_count, self.truncate_prompts = loa_count, truncate_prompts
        with torch.device("cpu"):  # a table, also when the networks are made without memory
            self.path = path_of(scheduler)

        def checked(kind: type, given: Mapping[str, Any], what: str) -> dict[str, Any]:
            return only_known(given, settings_of(kind), what)

        unet = checked(AudioLDM2UNet2DConditionModel, unet, "unet")
        projection = checked(AudioLDM2ProjectionModel, projection, "projection")
        self.denoiser = AudioLDM2UNet2DConditionModel(**unet)
        self.codec = MelCodec(vae, vocoder)
        self.projection = AudioLDM2ProjectionModel(**projection)
        self.clap_text = tf.ClapTextModelWithProjection(tf.ClapTextConfig(**checked(tf.ClapTextConfig, clap_text, "clap_text")))
        self.t5 = tf.T5EncoderModel(tf.T5Config(**checked(tf.T5Config, t5, "t5")))
        self.gpt2 = tf.GPT2Model(tf.GPT2Config(**checked(tf.GPT2Config, gpt2, "gpt2")))
        self.sample_rate_hz = self.codec.sample_rate_hz
        self._cache: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._asks_encoders = True
        self.register_load_state_dict_post_hook(lambda module, _: module._cache.clear())
        self.train(self.training)

    @classmethod
    def from_pretrained(
        cls, source: str, dtype: str | None = None, checkpoint_activations: bool = False, truncate_prompts: bool = False
    ) -> AudioLDM2:
        """The released model of a zoo name ("audioldm2-music"), an ``owner/name`` on the Hub or a folder in diffusers layout.

        ``dtype`` such as "bfloat16" (default float32). ``checkpoint_activations``: ``set_checkpointing``. Frozen, in eval mode.
        Raises ``ValueError`` when a tensor is missing, left over or of another shape, and what ``zoo.pull`` raises.
        """
        from zoo.generation import as_dtype
        from zoo.importers.audioldm2 import read_folder
        from zoo.importers.diffusers_folders import folder_of

        model = read_folder(folder_of(source, "audioldm2"), truncate_prompts=truncate_prompts).to(dtype=as_dtype(dtype))
        model.set_checkpointing(checkpoint_activations)
        return model

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Keeps a tenth of the denoiser's activations for the backward pass, for one more forward. Outputs stay the same."""
        set_checkpointing(self.denoiser, enabled)

    def train(self, mode: bool = True) -> AudioLDM2:
        super().train(mode)
        for name, part in self.named_children():
            if name != "denoiser":
                part.eval()
        return self

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Streams ``loa_BLD`` (B, loa_count, D), ``t5_BLD`` and its ``t5_mask_BL``; each text is encoded once and kept.

        A prompt and its negative are padded to the longer of the two before the language model reads them (its positions count
        padding), each pair for itself: what a prompt means does not depend on the others of its batch.
        Raises ``ValueError`` for a text that is longer than an encoder takes.
        """
        rows = [Conditioning(self._encoded(prompt.text, prompt.negative)) for prompt in prompts]
        return Conditioning.cat(rows).to(next(self.denoiser.parameters()).device)

    def _encoded(self, text: str, other: str) -> dict[str, Tensor]:
        length = max(len(self.t5_tokenizer(side, self.truncate_prompts)) for side in (text, other))
        key = (text, length)
        if key not in self._cache:
            if not self._asks_encoders:
                raise ValueError(f"the text encoders were dropped and {text[:60]!r} (of {length} tokens) was not encoded before; "
                                 "give all prompts to drop_text_encoders")
            if len(self._cache) >= CACHED_PROMPTS:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._encode(text, length)
        return self._cache[key]

    @torch.no_grad()
    def _encode(self, text: str, length: int) -> dict[str, Tensor]:
        """One row of each stream, in main memory; the sequence for the language model is padded to ``length`` T5 tokens."""
        device = self.projection.sos_embed.device
        clap_ids = torch.tensor([self.clap_tokenizer(text, self.truncate_prompts)], device=self.clap_text.device)
        t5_ids = torch.tensor([self.t5_tokenizer(text, self.truncate_prompts)], device=self.t5.device)
        clap = self.clap_text(clap_ids, attention_mask=torch.ones_like(clap_ids)).text_embeds
        clap = F.normalize(clap, dim=-1)[:, None].to(device)
        t5 = self.t5(t5_ids, attention_mask=torch.ones_like(t5_ids)).last_hidden_state
        padding = length - t5.shape[1]
        joined = self.projection(
            hidden_states=clap,
            hidden_states_1=F.pad(t5, (0, 0, 0, padding)).to(device),
            attention_mask=torch.ones(1, 1, dtype=torch.long, device=device),
            attention_mask_1=F.pad(torch.ones_like(t5_ids), (0, padding)).to(device),
        )
        inputs, mask = joined.hidden_states.to(self.gpt2.device), joined.attention_mask.to(self.gpt2.device)
        loa = loa_tokens(self.gpt2, inputs, mask, self.loa_count)
        mask = torch.ones(t5.shape[:2], dtype=torch.bool)
        return {"loa_BLD": loa.cpu(), "t5_BLD": t5.cpu(), "t5_mask_BL": mask}

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what an encoder says of its text or negative that it does not take (none with ``truncate_prompts``)."""

        def read(text: str) -> None:
            for tokenizer in (self.t5_tokenizer, self.clap_tokenizer):
                tokenizer(text, self.truncate_prompts)

        negatives = refused({prompt.id: prompt.negative for prompt in prompts}, read)
        return negatives | refused({prompt.id: prompt.text for prompt in prompts}, read)

    def remember(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, which are kept. Raises ``ValueError`` for more texts than are kept."""
        for prompt in prompts:
            for text, other in ((prompt.text, prompt.negative), (prompt.negative, prompt.text)):
                if len(self._cache) >= CACHED_PROMPTS:
                    raise ValueError(f"fewer than {CACHED_PROMPTS} texts are kept; keep the text encoders for more prompts")
                self._encoded(text, other)

    def drop_text_encoders(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, then frees the encoders: no other text can be encoded from then on.

        The model can no longer be saved whole (an adapter can). Raises ``ValueError`` for more prompts than are kept.
        """
        self.remember(prompts)
        self.arguments, self._asks_encoders = None, False
        self.clap_text = self.t5 = self.gpt2 = self.projection = None

    def drop_decoder(self) -> None:
        """Frees autoencoder and vocoder: latents can be sampled and learned from, but not heard. It cannot be saved whole."""
        self.arguments = None
        self.codec.drop()

    def predict(self, latent_BCTF: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise in ``latent_BCTF`` at the training steps ``time_B``, float32; computed in the denoiser's own type."""
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

    def encode(self, wave_BCN: Tensor) -> Tensor:
        """Latents of mono waves at ``sample_rate_hz``, brought to the level of the autoencoder's training (peak 0.5) first.

        Raises ``ValueError`` for waves that are not mono, hold NaN or no samples.
        """
        return self.codec.encode(wave_BCN)

    def decode(self, latent_BCTF: Tensor) -> Tensor:
        """Waves (B, 1, N), float32, a few clips at a time; gradients flow to the latents."""
        return self.codec.decode(latent_BCTF)

    def latent_shape(self, seconds: float) -> tuple[int, int, int]:
        """(channels, frames, bands) that cover ``seconds``."""
        return self.codec.latent_shape(seconds)
