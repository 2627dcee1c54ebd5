"""Does the music carry the mood that the prompt asked for: a short-chunk ResNet in the EMOPIA architecture, as a reward.

Sources: Won et al., "Evaluation of CNN-based automatic music tagging models" (arXiv 2006.00751, short-chunk CNN with residual
connections); Hung et al., "EMOPIA" (arXiv 2108.01374), whose checkpoint layout the submodule names follow.
The mood classes are the quadrants of valence and arousal: Q1 happy, Q2 angry, Q3 sad, Q4 tender.

Shapes: ``K`` classes, ``M`` mel bins, ``F`` spectrogram frames; ``BN`` is a batch of mono clips.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from zoo.types import Prompt, RewardOutput

MOODS = ("happy", "angry", "sad", "tender")
CHUNK_RULES = ("full", "upstream", "overlap")
VALUES = ("value", "label", "probability", "log_odds")
ACTIVATIONS = ("softmax", "sigmoid")
_DB_FLOOR = 1e-10  # power below this is -100 dB
_SILENCE_POWER = 1e-12  # added to the mean square before the level is divided out: -120 dB


class ResidualStage(nn.Module):
    """conv 3x3 (stride 2) - BN - ReLU - conv 3x3 - BN, plus a strided conv 3x3 - BN shortcut, then ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.bn_1 = nn.BatchNorm2d(channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.bn_2 = nn.BatchNorm2d(channels_out)
        self.conv_3 = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.bn_3 = nn.BatchNorm2d(channels_out)

    def forward(self, map_BCMF: Tensor) -> Tensor:
        main = self.bn_2(self.conv_2(functional.relu(self.bn_1(self.conv_1(map_BCMF)))))
        return functional.relu(main + self.bn_3(self.conv_3(map_BCMF)))


class ShortChunkResNet(nn.Module):
    """One chunk of mono audio to class logits.

    With ``n_fft=1024, hop_samples=512, n_mels=128, channels=(128, 128, 256, 256, 256, 256, 512)`` at 22,050 Hz it is the
    EMOPIA audio classifier (12.08 M parameters), whose sigmoid is left to the caller.
    """

    def __init__(
        self,
        sample_rate_hz: int,
        n_fft: int,
        hop_samples: int,
        n_mels: int,
        channels: Sequence[int],
        n_classes: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(channels) != 7:
            raise ValueError(f"channels needs one width for each of the 7 stages, got {len(channels)}: {list(channels)}")
        if not 1 <= n_mels <= 128:
            raise ValueError(f"n_mels must be 1..128 (seven halvings leave one row), got {n_mels}")
        self.spec = torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate_hz, n_fft=n_fft, hop_length=hop_samples, n_mels=n_mels, f_min=0.0, f_max=sample_rate_hz / 2
        )
        self.spec_bn = nn.BatchNorm2d(1)
        widths = [1, *channels]
        for stage, (width_in, width_out) in enumerate(zip(widths[:-1], widths[1:]), start=1):
            self.add_module(f"layer{stage}", ResidualStage(width_in, width_out))
        self.dense1 = nn.Linear(channels[-1], channels[-1])
        self.bn = nn.BatchNorm1d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.dense2 = nn.Linear(channels[-1], n_classes)

    def log_mel(self, wave_BN: Tensor) -> Tensor:
        """(B, 1, M, F) power in dB (HTK mel, floor -100 dB), in float32 whatever the precision of the network."""
        spectrogram = self.spec.spectrogram
        with torch.autocast(wave_BN.device.type, enabled=False):
            spectrum = torch.stft(
                wave_BN.float(),
                spectrogram.n_fft,
                spectrogram.hop_length,
                window=spectrogram.window.float(),
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            power_BFM = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2) @ self.spec.mel_scale.fb.float()
            return 10 * torch.log10(power_BFM.clamp(min=_DB_FLOOR)).transpose(1, 2).unsqueeze(1)

    def forward(self, wave_BN: Tensor) -> Tensor:
        """(B, K) logits of chunks (B, N)."""
        x = self.spec_bn(self.log_mel(wave_BN).to(self.dense1.weight.dtype))
        for stage in range(1, 8):
            x = getattr(self, f"layer{stage}")(x)
        x = x.amax(dim=(2, 3))
        return self.dense2(self.dropout(functional.relu(self.bn(self.dense1(x)))))


def chunk_starts(length: int, chunk: int, rule: str = "full", hop: int | None = None) -> list[int]:
    """First samples of the chunks that are judged in a clip of ``length`` samples.

    ``full``: every whole chunk (a shorter clip is one padded chunk). ``upstream``: as the released EMOPIA code, which leaves
    out the last one. ``overlap``: one every ``hop`` samples, and one that ends with the clip.
    Raises ``ValueError`` when a rule leaves no chunk (EMOPIA's code returns NaN there).
    """
    if rule == "full":
        return [index * chunk for index in range(max(1, length // chunk))]
    if rule == "upstream":
        count = (length - chunk) // chunk
        if count < 1:
            raise ValueError(
                f"chunk rule 'upstream' leaves out the last chunk, so a clip of {length} samples has none of {chunk} samples; "
                "use chunk_rule='full' or clips of at least two chunks"
            )
        return [index * chunk for index in range(count)]
    if rule == "overlap":
        if hop is None or hop < 1:
            raise ValueError(f"chunk rule 'overlap' needs a positive hop_s, got {hop} samples")
        last = max(0, length - chunk)
        starts = list(range(0, last + 1, hop))
        return starts if starts[-1] == last else [*starts, last]
    raise ValueError(f"unknown chunk rule {rule!r}; choose from {', '.join(CHUNK_RULES)}")


def cut_chunks(wave_BN: Tensor, starts: Sequence[int], chunk: int) -> Tensor:
    """(B, len(starts), chunk); what lies beyond the end is zero."""
    missing = max(0, max(starts) + chunk - wave_BN.shape[-1])
    padded = functional.pad(wave_BN, (0, missing))
    return torch.stack([padded[:, start : start + chunk] for start in starts], dim=1)


def level_normalised(wave_BN: Tensor, rms: float) -> Tensor:
    """Every clip at the same root mean square; digital silence stays silence (and its gradient stays finite)."""
    return wave_BN * (rms / (wave_BN.square().mean(dim=-1, keepdim=True) + _SILENCE_POWER).sqrt())


def class_indices(prompts: Sequence[Prompt], label_key: str, class_names: Sequence[str]) -> Tensor:
    """(B,) index of every prompt's class. Raises ``ValueError`` naming the prompt and the classes."""
    indices = []
    for prompt in prompts:
        if label_key not in prompt.labels:
            raise ValueError(
                f"prompt {prompt.id!r} has no label {label_key!r} (its labels: {sorted(prompt.labels) or 'none'}); "
                f"the emotion reward needs one of {', '.join(class_names)}"
            )
        mood = prompt.labels[label_key]
        if mood not in class_names:
            near = difflib.get_close_matches(str(mood).lower(), class_names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"prompt {prompt.id!r} asks for {label_key} {mood!r}, which the classifier does not know; {hint}"
                f"its classes are {', '.join(class_names)}"
            )
        indices.append(list(class_names).index(mood))
    return torch.tensor(indices)


def emotion_score(logits_BK: Tensor, probability_BK: Tensor, target_B: Tensor, value: str) -> Tensor:
    """(B,) float32 score of the wanted class ``g`` with ``k*`` the most likely one.

    ``value``: p[g] - p[k*], in [-1, 0], 0 when right. ``label``: 1 when right. ``probability``: p[g].
    ``log_odds``: z[g] - logsumexp of the other logits, unbounded.
    """
    rows = target_B.unsqueeze(1)
    wanted = probability_BK.gather(1, rows).squeeze(1)
    if value == "value":
        return wanted - probability_BK.amax(dim=1)
    if value == "label":
        return (probability_BK.argmax(dim=1) == target_B).float()
    if value == "probability":
        return wanted
    others = logits_BK.scatter(1, rows, float("-inf"))
    return logits_BK.gather(1, rows).squeeze(1) - others.logsumexp(dim=1)


class EmotionReward(nn.Module):
    """Scores clips by the mood in ``prompt.labels[label_key]`` (see ``emotion_score``); mono, resampled and level-normalised.

    All arguments are plain JSON values. Units: ``sample_rate_hz`` of the classifier, ``chunk_s`` and ``hop_s`` in seconds,
    ``hop_samples`` of the spectrogram in samples, ``rms`` the level every clip is brought to (None: as it comes, as EMOPIA).
    ``activation``: ``softmax`` for a classifier trained by cross-entropy, ``sigmoid`` for released EMOPIA weights.
    Probabilities and logits are means over chunks.

    The module stays in evaluation mode even inside a module that is switched to training: a reward must be deterministic.
    ``Emotion`` (lightning_modules/emotion.py) trains ``classifier`` itself.
    """

    def __init__(
        self,
        value: str = "value",
        class_names: Sequence[str] = MOODS,
        sample_rate_hz: int = 16_000,
        chunk_s: float = 2.048,
        n_fft: int = 1024,
        hop_samples: int = 256,
        n_mels: int = 96,
        channels: Sequence[int] = (16, 16, 32, 32, 48, 64, 64),
        dropout: float = 0.5,
        activation: str = "softmax",
        rms: float | None = 0.08,
        chunk_rule: str = "full",
        hop_s: float = 0.5,
        label_key: str = "mood",
    ) -> None:
        super().__init__()
        for name, given, choices in (
            ("value", value, VALUES),
            ("activation", activation, ACTIVATIONS),
            ("chunk_rule", chunk_rule, CHUNK_RULES),
        ):
            if given not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {given!r}")
        if len(set(class_names)) != len(class_names) or len(class_names) < 2:
            raise ValueError(f"class_names must be at least two different names, got {list(class_names)}")
        self.value, self.class_names, self.label_key = value, tuple(class_names), label_key
        self.sample_rate_hz, self.activation, self.rms = sample_rate_hz, activation, rms
        self.chunk_rule, self.hop_s, self.chunk_samples = chunk_rule, hop_s, round(chunk_s * sample_rate_hz)
        self.differentiable = value != "label"
        self.classifier = ShortChunkResNet(
            sample_rate_hz, n_fft, hop_samples, n_mels, channels, len(self.class_names), dropout
        )
        self.arguments = {
            "value": value,
            "class_names": list(class_names),
            "sample_rate_hz": sample_rate_hz,
            "chunk_s": chunk_s,
            "n_fft": n_fft,
            "hop_samples": hop_samples,
            "n_mels": n_mels,
            "channels": list(channels),
            "dropout": dropout,
            "activation": activation,
            "rms": rms,
            "chunk_rule": chunk_rule,
            "hop_s": hop_s,
            "label_key": label_key,
        }
        self.eval()

    def train(self, mode: bool = True) -> EmotionReward:
        """Stays in evaluation mode (see the class)."""
        return super().train(False)

    def prepare(self, wave_BCN: Tensor, sample_rate_hz: int | None) -> Tensor:
        """(B, N) mono at the classifier's rate and level. Raises ``ValueError`` for a bad shape or rate."""
        if wave_BCN.ndim != 3 or not wave_BCN.shape[-1]:
            raise ValueError(f"the emotion reward takes waves (batch, channels, samples), got shape {tuple(wave_BCN.shape)}")
        if not sample_rate_hz or sample_rate_hz <= 0:
            raise ValueError(f"the emotion reward needs the sample rate of the waves in Hz, got {sample_rate_hz}")
        mono_BN = wave_BCN.float().mean(dim=1)
        mono_BN = torchaudio.functional.resample(mono_BN, int(sample_rate_hz), self.sample_rate_hz)
        return mono_BN if self.rms is None else level_normalised(mono_BN, self.rms)

    def chunk_logits(self, wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        """(B, chunks, K) logits."""
        mono_BN = self.prepare(wave_BCN, sample_rate_hz)
        hop = round(self.hop_s * self.sample_rate_hz)
        starts = chunk_starts(mono_BN.shape[-1], self.chunk_samples, self.chunk_rule, hop)
        chunks = cut_chunks(mono_BN, starts, self.chunk_samples)
        return self.classifier(chunks.flatten(0, 1)).float().unflatten(0, chunks.shape[:2])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities along the last axis; with ``sigmoid`` they do not add up to 1."""
        return logits.softmax(dim=-1) if self.activation == "softmax" else logits.sigmoid()

    def forward(self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]) -> RewardOutput:
        """Score (B,) and parts ``p_<class>`` (B,) and ``accuracy`` (B,) 0 or 1.

        Raises ``ValueError`` for a wrong shape, rate or number of prompts, and for a mood that is missing or unknown.
        """
        if len(prompts) != len(wave_BCN):
            raise ValueError(f"{len(wave_BCN)} waves came with {len(prompts)} prompts; every wave needs its own")
        target_B = class_indices(prompts, self.label_key, self.class_names).to(wave_BCN.device)
        logits = self.chunk_logits(wave_BCN, sample_rate_hz)
        probability_BK = self.probabilities(logits).mean(dim=1)
        score_B = emotion_score(logits.mean(dim=1), probability_BK, target_B, self.value)
        parts = {f"p_{name}": probability_BK[:, index].detach() for index, name in enumerate(self.class_names)}
        parts["accuracy"] = (probability_BK.argmax(dim=1) == target_B).float()
        return RewardOutput(score_B.float(), parts)
