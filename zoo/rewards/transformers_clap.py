"""The default CLAP: LAION's in transformers' ``ClapModel``, with a differentiable front end.

Source: Wu et al., arXiv 2211.06687 (HTSAT audio tower, RoBERTa text tower; feature fusion off). The
front end is that of the trained models whatever a library's defaults are: 48 kHz, 10 s, n_fft 1024,
hop 480, 64 Slaney mels from 50 to 14000 Hz, in dB.

Shapes: ``N`` samples, ``K`` frequencies, ``M`` mel bins, ``F`` frames (N // hop + 1), ``L`` tokens,
``E`` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError, did_you_mean
from zoo.rewards.clap_text import ClapTokenizer, refuse_names

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
    """Mono windows (B, N) to (B, 1, F, M) in dB: mel-weighted power, floor -100 dB, float32.

    Equal to transformers' ``ClapFeatureExtractor`` (truncation "rand_trunc") on windows that it
    need not cut. The gradient is finite, 0 where a bin is at the floor. The tables are not buffers:
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

        self.n_fft = n_fft
        self.hop_samples = hop_samples
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


@dataclass(frozen=True)
class PretrainedClap:
    """A CLAP read from files (``zoo.importers.pretrained_clap.open_clap``).

    Args:
        name: of the files, for messages.
        model: a ``transformers.ClapModel`` with its weights.
        config: of ``transformers.ClapConfig``, shape-giving keys only.
        features: what the publisher says of the front end (preprocessor_config.json); ``{}`` where
            it says nothing.
    """

    name: str
    model: nn.Module
    config: dict[str, Any] = field(hash=False)
    features: Mapping[str, Any] = field(hash=False)


class TransformersClapTowers(nn.Module):
    """Both towers of a CLAP (``zoo.rewards.clap.ClapTowers``), in evaluation mode.

    ``arguments`` builds towers of the same sizes without the files, for an artefact.

    Args:
        pretrained: a CLAP that was read from files; in a configuration also its name, which
            ``zoo.importers.pretrained_clap.with_files`` reads. Give this or ``config``.
        config: of ``transformers.ClapConfig`` (``text_config``, ``audio_config``,
            ``projection_dim``), for random weights.
        tokenizer: the content of a tokenizer.json; None or "none" for audio alone.
        tokenizer_bytes: room for a tokenizer that comes with the weights.
        max_tokens, long_texts: see ``ClapTokenizer``.
        sample_rate_hz, window_s, n_fft, hop_samples, n_mels, fmin_hz, fmax_hz: the front end.

    Raises: ``UserError`` for another model, feature fusion, and a front end that is not the
        model's.
    """

    differentiable = True

    def __init__(
        self,
        pretrained: PretrainedClap | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: bytes | str | None = None,
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
        from transformers import ClapModel

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
        refuse_names(pretrained, tokenizer)
        if pretrained is None:
            config = known_config(config)
        else:
            config = pretrained.config
            _check_features(
                pretrained.features, {**front_end, "window_s": window_s}, pretrained.name
            )
        sizes = clap_config(config)
        self.sample_rate_hz = sample_rate_hz
        self.window_samples = round(window_s * sample_rate_hz)
        _check_sizes(sizes.audio_config, n_mels, self.window_samples // hop_samples + 1)
        self.mel = ClapMel(**front_end)
        self.clap = ClapModel(sizes) if pretrained is None else pretrained.model
        content = tokenizer if isinstance(tokenizer, bytes) else tokenizer_bytes
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
        """Unit vectors (B, E), float32, of token ids with start and end.

        ``mask_BL`` is 0 on padding.
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
            f"the front end of {where} differs (preprocessor_config.json): {'; '.join(wrong)}"
        )


def known_config(config: Mapping[str, Any], refuse_others: bool = True) -> dict[str, Any]:
    """The keys of ``config`` that shape a ``ClapModel``, as plain values.

    ``refuse_others``: other keys raise ``UserError`` with the nearest right one; else they are
    left out (published files hold
    many that belong to the library's saving and generation).
    """
    from transformers.models.clap.configuration_clap import (
        ClapAudioConfig,
        ClapConfig,
        ClapTextConfig,
    )

    kept: dict[str, Any] = {}
    for part, kind in (
        ("", ClapConfig),
        ("text_config", ClapTextConfig),
        ("audio_config", ClapAudioConfig),
    ):
        given = config.get(part) or {} if part else config
        if not isinstance(given, Mapping):
            raise UserError(f"config.{part} of a CLAP must be an object, got {given!r}")
        known = {
            key
            for base in kind.__mro__
            if base.__name__.startswith("Clap")
            for key in getattr(base, "__annotations__", {})
        }
        for key in given:
            if refuse_others and key not in known:
                where = f"config.{part}.{key}" if part else f"config.{key}"
                raise UserError(
                    f"{where}: transformers' CLAP has no such setting; {did_you_mean(key, known)}"
                )
        values = {
            key: value
            for key, value in given.items()
            if key in known and key not in ("text_config", "audio_config")
        }
        kept |= {part: values} if part else values
    return kept


def clap_config(config: Mapping[str, Any]) -> Any:
    """``transformers.ClapConfig`` of plain values.

    Raises ``UserError`` for values of another kind, and for feature fusion.
    """
    from transformers import ClapConfig

    try:
        sizes = ClapConfig(**config)
    except (TypeError, AttributeError) as error:
        raise UserError(f"not the config of a CLAP: {str(error).splitlines()[0]}") from error
    if sizes.audio_config.enable_fusion:
        raise UserError(
            "this CLAP has feature fusion (enable_fusion), which is not supported; take one"
            " without, such as laion/clap-htsat-unfused"
        )
    return sizes


def _check_sizes(audio: Any, n_mels: int, frames: int) -> None:
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
