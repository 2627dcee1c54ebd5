"""Does a clip sound like its caption: the cosine of a CLAP's audio and text embeddings.

Source: contrastive language-audio pre-training (Wu et al., arXiv 2211.06687). Which CLAP is a row
of ``CLAP_TOWERS``; what is done to the audio before (rate, mono, windows, padding) is done here,
the same for all and always in the same way: published scores were made at wrong rates and from
random crops. Values of two CLAPs cannot be compared either, so the name of the checkpoint is part
of every number's name.

Shapes: ``W`` windows a clip, ``E`` embedding.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.conditioners.tokenizer import refused
from zoo.errors import UserError, did_you_mean
from zoo.instantiate import locate
from zoo.rewards.clap_text import contents_key, refuse_names
from zoo.rewards.waves import StaysInEvalMode, check_waves, finite_rows, mono_at
from zoo.signatures import bind
from zoo.types import Prompt, RewardOutput

CLAP_TOWERS = {
    "tiny": "zoo.rewards.tiny_clap:TinyClapTowers",
    "transformers": "zoo.rewards.transformers_clap:TransformersClapTowers",
    "laion_clap": "zoo.rewards.laion_package:LaionClapTowers",
}
WINDOWS = ("mean", "first")
PADDINGS = ("repeat", "zero")
# Unrelated captions for the self-test of a text tower. Mean cosine of all pairs, measured: trained
# CLAPs .18 to .30, the small one here .25, an untrained small one .15 to .65. A published music
# CLAP whose text tower was lost has .9993, a random RoBERTa of the same size .9994. At .98 the mean
# pair of captions is sqrt(2 * (1 - .98)) = .2 apart, and no clip's score can differ by more between
# them: no use as a reward.
_UNRELATED = ("a dog barks", "rain falls on leaves", "a piano solo", "wind and thunder")
_COLLAPSED = 0.98
_CACHED_TEXTS = 8192  # embeddings of 512 numbers: 16 MB
_TEXTS_AT_WORK = (
    threading.Lock()
)  # rewards may be asked from several threads; not of the object, which can be copied
# torchaudio's values for "kaiser_best" of resampy; one resampler for everything that is compared
_RESAMPLER = {
    "resampling_method": "sinc_interp_kaiser",
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "beta": 14.769656459379492,
}


class ClapTowers(Protocol):
    """One CLAP, as a module.

    ``differentiable``: whether gradients flow from ``embed_audio`` to its input.

    ``embed_audio`` takes mono windows (B, window_samples) at ``sample_rate_hz``; both return unit
    vectors (B, E), float32. Towers that ``lightning_modules.contrastive.Contrastive`` trains also
    have ``scale``, the factor on cosines in its loss. Towers that read files have ``arguments``,
    which build the same sizes without them. Towers may have ``check_text(text)``, which raises
    ``UserError`` for a text that ``embed_text`` refuses.
    """

    sample_rate_hz: int
    window_samples: int
    differentiable: bool

    def embed_audio(self, window_BN: Tensor) -> Tensor: ...

    def embed_text(self, texts: Sequence[str]) -> Tensor: ...


def window_starts(length: int, window: int, rule: str = "mean") -> list[int]:
    """First samples of the windows that are heard of a clip of ``length`` samples.

    ``first``: one window from the start. ``mean``: as few windows as cover the clip, evenly spaced,
    the first at its
    start and the last ending with it (two overlapping ones for 10.24 s and a window of 10 s).
    Nothing is random.
    """
    if rule == "first" or length <= window:
        return [0]
    count = math.ceil(length / window)
    return [round(index * (length - window) / (count - 1)) for index in range(count)]


def padded(wave_BN: Tensor, window: int, rule: str = "repeat") -> Tensor:
    """Clips shorter than ``window`` samples at that length, others as they are.

    ``repeat``: as many whole copies as fit, then zeros (LAION-CLAP's "repeatpad"). ``zero``: once,
    then zeros.
    """
    length = wave_BN.shape[-1]
    if length >= window:
        return wave_BN
    if rule == "repeat":
        wave_BN = wave_BN.repeat(1, window // length)
    return F.pad(wave_BN, (0, window - wave_BN.shape[-1]))


def int16_round_trip(wave_BN: Tensor) -> Tensor:
    """Clips a wave to [-1, 1] and truncates it to 16 bits, as laion_clap's front end does."""
    return (wave_BN.clamp(-1, 1) * 32767).trunc() / 32767


class ClapReward(StaysInEvalMode):
    """Scores clips by the cosine between clip and ``prompt.text``, in [-1, 1].

    ``zoo.load(name, dtype="bfloat16")`` (``dtype: bfloat16`` in a YAML) casts the towers: the front
    end and the scores stay float32, the embeddings turn by a cosine of about .9999, and on a CPU
    that computes in bfloat16 the audio tower is two to three times as fast.

    Embeddings of texts are kept and made again when weights, device or precision change. All
    arguments are plain JSON values, but for files that were read
    (``zoo.importers.pretrained_clap.with_files``).

    Args:
        checkpoint: the name of the weights; part of the logged number's name
            (``clap/<checkpoint>``).
        towers: a key of ``CLAP_TOWERS``.
        arguments: of the towers' class.
        windows, padding: see ``window_starts`` and ``padded``; embeddings of several windows are
            averaged and scaled to unit length.
        int16: a round trip through 16 bits; no gradient passes it.
        compat: as laion_clap's own front end hears, only for comparison with numbers made that way:
            ``int16`` is on, and the number's name ends with ``/compat``.
        assume_rate_hz: only under ``compat``: waves are heard as if they had this rate, which the
            number's name says too (16 kHz audio heard as 48 kHz is a third as long and 19 semitones
            higher; published rewards were made so).

    Raises: ``UserError`` for unknown names, and as ``self_test`` for weights that were read; random
        weights are not tested.
    """

    def __init__(
        self,
        checkpoint: str,
        towers: str = "transformers",
        arguments: dict[str, Any] | None = None,
        windows: str = "mean",
        padding: str = "repeat",
        int16: bool = False,
        compat: bool = False,
        assume_rate_hz: int | None = None,
    ) -> None:
        super().__init__()
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", checkpoint):
            raise UserError(
                "checkpoint must name the CLAP's weights (letters, digits, . _ - /), got"
                f" {checkpoint!r}"
            )
        choices = {
            "towers": (towers, CLAP_TOWERS),
            "windows": (windows, WINDOWS),
            "padding": (padding, PADDINGS),
        }
        for name, (given, known) in choices.items():
            if given not in known:
                raise UserError(f"unknown {name} {given!r}; {did_you_mean(given, known)}")
        refuse_names((arguments or {}).get("pretrained"), (arguments or {}).get("tokenizer"))
        found = locate(CLAP_TOWERS[towers].replace(":", "."), "CLAP_TOWERS")
        self.towers: ClapTowers = found(**bind(found, arguments or {}, "arguments"))
        self.checkpoint = checkpoint
        self.windows = windows
        self.padding = padding
        self.int16 = int16 or compat
        if assume_rate_hz is not None and not (
            compat and isinstance(assume_rate_hz, int) and assume_rate_hz > 0
        ):
            raise UserError(
                "assume_rate_hz is for comparison with published numbers: set compat and a rate in"
                f" Hz, got compat={compat}, assume_rate_hz={assume_rate_hz}"
            )
        self.assume_rate_hz = assume_rate_hz
        self.name = (
            f"clap/{checkpoint}"
            + ("/compat" if compat else "")
            + (f"/as-{assume_rate_hz}-hz" if assume_rate_hz else "")
        )
        self.unit = "cosine similarity of clip and prompt; 1 is best"
        self.bounds = (-1.0, 1.0)
        self.differentiable = bool(self.towers.differentiable) and not self.int16
        self.arguments = {
            "checkpoint": checkpoint,
            "towers": towers,
            "arguments": dict(getattr(self.towers, "arguments", None) or arguments or {}),
            "windows": windows,
            "padding": padding,
            "int16": int16,
            "compat": compat,
            "assume_rate_hz": assume_rate_hz,
        }
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._texts_of: tuple = ()
        self.eval()
        if (arguments or {}).get("pretrained") is not None:
            self.self_test()

    @staticmethod
    def with_nodes(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in a configuration, with a node that reads the files which they name."""
        found = dict(arguments)
        towers = arguments.get("towers", "transformers")
        own = found.get("arguments")
        if not isinstance(own, Mapping):
            return found
        names = [own.get("pretrained"), own.get("tokenizer")]
        if any(isinstance(name, str) for name in names):
            reader = "zoo.importers.pretrained_clap.with_files"
            found["arguments"] = {"_target_": reader, "arguments": dict(own), "towers": towers}
        return found

    def cut(self, wave_BCN: Tensor, sample_rate_hz: int | None) -> Tensor:
        """(B, W, window_samples) mono windows at the towers' rate, on the wave's device.

        Raises ``UserError`` for a bad shape or type, no samples, or a sample rate that is not
        given.
        """
        given_hz = check_waves(wave_BCN, sample_rate_hz, "CLAP")
        window = self.towers.window_samples
        mono_BN = mono_at(
            wave_BCN,
            self.assume_rate_hz or given_hz,
            self.towers.sample_rate_hz,
            "CLAP",
            **_RESAMPLER,
        )
        if self.int16:
            mono_BN = int16_round_trip(mono_BN)
        mono_BN = padded(mono_BN, window, self.padding)
        starts = window_starts(mono_BN.shape[-1], window, self.windows)
        return torch.stack([mono_BN[:, start : start + window] for start in starts], dim=1)

    def embed_audio(self, wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        """(B, E) unit vectors, NaN in rows whose wave is not finite.

        Raises ``UserError`` as ``cut`` does.
        """
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            windows = self.cut(wave_BCN, sample_rate_hz)
            embedding_BWE = self.towers.embed_audio(windows.flatten(0, 1)).unflatten(
                0, windows.shape[:2]
            )
            embedding_BE = F.normalize(embedding_BWE.mean(dim=1), dim=-1)
            return torch.where(finite_rows(wave_BCN).unsqueeze(1), embedding_BE, torch.nan)

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what the towers say of its text if they refuse it (too many tokens)."""
        read = getattr(self.towers, "check_text", lambda text: None)
        return {
            name: f"the reward: {why}"
            for name, why in refused({p.id: p.text for p in prompts}, read).items()
        }

    def self_test(self) -> None:
        """Raises ``UserError`` when unrelated captions have the same embedding.

        The message gives their mean cosine.

        Asked of weights that were read from files, by the constructor and by
        ``zoo.hub.artifact.load_artifact``. Towers without a tokenizer embed no texts and pass.
        """
        if getattr(self.towers, "tokenizer", self) is None:
            return
        text_BE = self.embed_text(_UNRELATED).float()
        pairs = torch.triu_indices(len(text_BE), len(text_BE), offset=1)
        cosine_P = (text_BE @ text_BE.T)[pairs[0], pairs[1]]
        if not cosine_P.mean() <= _COLLAPSED:  # NaN is refused, too
            raise UserError(
                f"the text tower of the CLAP {self.checkpoint} does not tell captions apart:"
                f" {len(_UNRELATED)} unrelated ones have a mean cosine of {cosine_P.mean():.4f}"
                f" (from {cosine_P.min():.4f} to {cosine_P.max():.4f}; expected at most"
                f" {_COLLAPSED}, usual is .2 to .7), as with random or lost weights. Take another"
                " CLAP; for music, clap-music-audioset instead of laion/larger_clap_music"
            )

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(B, E) unit vectors without gradient; each text is embedded once, alone and unpadded."""
        with _TEXTS_AT_WORK:
            return self._kept_texts(texts)

    def _kept_texts(self, texts: Sequence[str]) -> Tensor:
        tensors = [*self.towers.parameters(), *self.towers.buffers()]
        key = contents_key(tensors)
        if key != self._texts_of:
            self._texts.clear()
            self._texts_of = key
        rows = []
        for text in texts:
            if text not in self._texts:
                with torch.autocast(
                    tensors[0].device.type, enabled=False
                ):  # what is kept serves callers with and without it
                    self._texts[text] = self.towers.embed_text([text])[0]
            self._texts.move_to_end(text)
            rows.append(self._texts[text])
        while len(self._texts) > _CACHED_TEXTS:
            self._texts.popitem(last=False)
        return torch.stack(rows)

    def forward(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        """Score (B,), the cosine, also as the part ``name``; NaN for a wave that is not finite.

        Raises ``UserError`` for a wrong shape, rate or number of prompts, and for a prompt without
        text.
        """
        check_waves(wave_BCN, sample_rate_hz, "CLAP", len(prompts))
        for prompt in prompts:
            if not prompt.text.strip():
                raise UserError(
                    f"prompt {prompt.id!r} has no text; CLAP compares a clip with its caption, so"
                    " give it one"
                )
        audio_BE = self.embed_audio(wave_BCN, sample_rate_hz)
        score_B = (
            (audio_BE * self.embed_text([prompt.text for prompt in prompts]).to(audio_BE))
            .sum(dim=-1)
            .float()
        )
        return RewardOutput(score_B, {self.name: score_B.detach()})
