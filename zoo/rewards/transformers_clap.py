"""LAION's CLAP in transformers' ``ClapModel``, with a batched, differentiable front end on the
model's device: the default CLAP.

Source: Wu et al., arXiv 2211.06687 (HTSAT audio tower, RoBERTa text tower; feature fusion off). The
front end is that of the trained models whatever a library's defaults are: 48 kHz, 10 s, n_fft 1024,
hop 480, 64 Slaney mels from 50 to 14000 Hz, in dB.

Shapes: ``N`` samples, ``K`` frequencies, ``M`` mel bins, ``F`` frames (N // hop + 1), ``L`` tokens,
``E`` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError
from zoo.hub.construction import build_within
from zoo.importers.pretrained_clap import known_config, load_clap_state, open_clap, tokenizer_json
from zoo.rewards.clap_text import ClapTokenizer

NO_TOKENIZER = "none"
_FLOOR = 1e-10  # power of a mel bin that counts as silent: -100 dB
# key of transformers' preprocessor_config.json -> our name of it
_FEATURES = {
    "sampling_rate": "sample_rate_hz",
    "fft_window_size": "n_fft",
    "hop_length": "hop_samples",
    "feature_size": "n_mels",
    "frequency_min": "fmin_hz",
    "frequency_max": "fmax_hz",
    "max_length_s": "window_s",
}


class ClapMel(nn.Module):
    """Mono windows (B, N) to (B, 1, F, M) in dB: 10 log10 of the mel-weighted power, floored at
    -100 dB. Float32.

    Equal to transformers' ``ClapFeatureExtractor`` (truncation "rand_trunc") on windows that it
    need not cut. The gradient is finite, 0 where a bin is at the floor. The tables are no buffers:
    a cast of the model to half precision leaves them.
    """

    def __init__(
        self,
        sample_rate_hz: int,
        n_fft: int,
        hop_samples: int,
        n_mels: int,
        fmin_hz: float,
        fmax_hz: float,
    ) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.n_fft, self.hop_samples = n_fft, hop_samples
        bank_KM = mel_filter_bank(
            n_fft // 2 + 1,
            n_mels,
            fmin_hz,
            fmax_hz,
            sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
        self._tables = (torch.hann_window(n_fft), torch.as_tensor(bank_KM, dtype=torch.float32))

    def forward(self, window_BN: Tensor) -> Tensor:
        if self._tables[0].device != window_BN.device:
            self._tables = tuple(table.to(window_BN.device) for table in self._tables)
        window, bank_KM = self._tables
        with torch.autocast(window_BN.device.type, enabled=False):
            spectrum_BKF = torch.stft(
                window_BN.float(), self.n_fft, self.hop_samples, window=window, return_complex=True
            )
            power_BFK = (spectrum_BKF.real.square() + spectrum_BKF.imag.square()).transpose(1, 2)
            return 10 * (power_BFK @ bank_KM).clamp(min=_FLOOR).log10()[:, None]


class TransformersClapTowers(nn.Module):
    """Both towers as ``zoo.rewards.clap.ClapReward`` asks for them (``ClapTowers``), in evaluation
    mode.

    Exactly one is given: ``pretrained`` (a folder in transformers' layout, a LAION .pt file, a zoo
    name or ``owner/name``), or ``config`` (of ``transformers.ClapConfig``: ``text_config``,
    ``audio_config``, ``projection_dim``) for random weights. ``tokenizer``: a folder or file with a
    tokenizer.json, or a repository on the Hub; by default the pretrained model's own
    ("roberta-base" for LAION's files); "none" for audio alone. ``tokenizer_bytes``: room for one
    that comes with the weights. ``max_tokens``, ``long_texts``: see ``ClapTokenizer``. The rest is
    the front end, in Hz, seconds and samples.

    ``arguments`` builds towers of the same sizes without the files, for an artefact. Raises
    ``UserError`` and
    ``FileNotFoundError``: unknown or missing files, another model, feature fusion, or a front end
    that is not the model's.
    """

    differentiable = True

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        tokenizer_bytes: int = 0,
        max_tokens: int = 77,
        long_texts: str = "refuse",
        sample_rate_hz: int = 48_000,
        window_s: float = 10.0,
        n_fft: int = 1024,
        hop_samples: int = 480,
        n_mels: int = 64,
        fmin_hz: float = 50.0,
        fmax_hz: float = 14_000.0,
    ) -> None:
        super().__init__()
        from transformers import ClapConfig, ClapModel

        if (pretrained is None) == (config is None):
            raise UserError(
                "give the CLAP's weights (pretrained) or its sizes for random weights (config), one"
                " of the two"
            )
        front_end = {
            "sample_rate_hz": sample_rate_hz,
            "n_fft": n_fft,
            "hop_samples": hop_samples,
            "n_mels": n_mels,
            "fmin_hz": fmin_hz,
            "fmax_hz": fmax_hz,
        }
        found = None if pretrained is None else open_clap(pretrained)
        config = known_config(config) if found is None else found.config
        if found is not None:
            _check_features(found.features, {**front_end, "window_s": window_s}, str(pretrained))
            tokenizer = found.tokenizer if tokenizer is None else tokenizer
        try:
            sizes = ClapConfig(**config)
        except (TypeError, AttributeError) as error:
            raise UserError(f"config is none of a CLAP: {str(error).splitlines()[0]}") from error
        self.sample_rate_hz, self.window_samples = sample_rate_hz, round(window_s * sample_rate_hz)
        _check_sizes(sizes.audio_config, n_mels, self.window_samples // hop_samples + 1)
        self.mel = ClapMel(**front_end)
        if found is None:
            self.clap = ClapModel(sizes)
        else:
            self.clap = build_within(ClapModel, {"config": sizes}, found.state, str(pretrained))
            load_clap_state(self.clap, found.state, str(pretrained))
        has_file = tokenizer is not None and tokenizer != NO_TOKENIZER
        content: bytes | int = tokenizer_json(str(tokenizer)) if has_file else tokenizer_bytes
        text = sizes.text_config
        self.tokenizer = (
            ClapTokenizer(content, text.vocab_size, text.pad_token_id, max_tokens, long_texts)
            if content
            else None
        )
        self.arguments = {
            "config": config,
            "tokenizer_bytes": len(content) if isinstance(content, bytes) else content,
            "max_tokens": max_tokens,
            "long_texts": long_texts,
            "window_s": window_s,
            **front_end,
        }
        self.eval()

    def embed_audio(self, window_BN: Tensor) -> Tensor:
        """(B, E) float32 unit vectors of mono windows (B, window_samples) at ``sample_rate_hz``."""
        mel_B1FM = self.mel(window_BN).to(self.clap.logit_scale_a.dtype)
        return F.normalize(
            self.clap.get_audio_features(input_features=mel_B1FM).pooler_output.float(), dim=-1
        )

    def check_text(self, text: str) -> None:
        """Raises ``UserError`` for a text that is too long."""
        if self.tokenizer is not None:
            self.tokenizer([text])

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(B, E) float32 unit vectors.

        Raises ``UserError`` for a text that is too long, and without a tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(
                "this CLAP has no tokenizer, so it embeds no texts; name one (tokenizer: a folder"
                " with tokenizer.json, or roberta-base)"
            )
        return self.embed_tokens(*self.tokenizer(texts))

    def embed_tokens(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """(B, E) float32 unit vectors of token ids, start and end tokens included; ``mask_BL`` is 0
        on padding.
        """
        output = self.clap.get_text_features(input_ids=ids_BL, attention_mask=mask_BL)
        return F.normalize(output.pooler_output.float(), dim=-1)


def _check_features(published: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """The front end that a publisher names must be the one that is built.

    Raises ``UserError`` naming each difference.
    """
    wrong = [
        f"{name}={ours[name]} here, {published[key]} there"
        for key, name in _FEATURES.items()
        if key in published and published[key] != ours[name]
    ]
    if published.get("truncation") == "fusion":
        wrong.append("feature fusion there, which is not supported")
    if wrong:
        raise UserError(
            f"the front end of {where} is another (preprocessor_config.json): {'; '.join(wrong)}"
        )


def _check_sizes(audio: Any, n_mels: int, frames: int) -> None:
    if audio.enable_fusion:
        raise UserError(
            "this CLAP has feature fusion (enable_fusion), which is not supported; take one"
            " without, such as laion/clap-htsat-unfused"
        )
    if audio.num_mel_bins != n_mels or audio.spec_size % n_mels:
        raise UserError(
            f"n_mels={n_mels}, but the audio tower has num_mel_bins={audio.num_mel_bins} and"
            f" spec_size={audio.spec_size}; they must be equal, and divide it"
        )
    longest = audio.spec_size * (audio.spec_size // n_mels)
    if frames > longest:
        raise UserError(
            f"a window of {frames} frames is longer than the {longest} that the audio tower takes;"
            " shorten window_s"
        )
