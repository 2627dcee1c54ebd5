"""Does the music have the requested mood: a short-chunk ResNet as in EMOPIA, as a reward.

Sources: Hung et al., "EMOPIA" (arXiv 2108.01374) and its classifier's code; the network is in
``zoo/rewards/short_chunk.py``. The mood classes are the quadrants of valence and arousal: Q1 happy,
Q2 angry, Q3 sad, Q4 tender.

Shapes: ``K`` classes; ``BN`` is a batch of mono clips, ``BCN`` of clips with channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zoo.errors import UserError, did_you_mean
from zoo.rewards.short_chunk import CHUNK_RULES, ShortChunkResNet, chunk_starts, cut_chunks
from zoo.rewards.waves import StaysInEvalMode, check_waves, finite_rows, mono_at
from zoo.types import Prompt, RewardOutput

MOODS = ("happy", "angry", "sad", "tender")
UNITS = {  # how the numbers of each ``value`` are read
    "value": "probability of the wanted class less that of the most likely one; 0 is best",
    "label": "share of clips that the classifier hears as the wanted class; 1 is best",
    "probability": "probability of the wanted class; 1 is best",
    "log_odds": "log-odds of the wanted class in nats; higher is better",
    "calibrated": "log-odds above the base model's, in its standard deviations; higher is better",
}
VALUES = tuple(UNITS)
ACTIVATIONS = ("softmax", "sigmoid")
_WHO = "the emotion reward"  # in messages
_SILENCE_POWER = 1e-12  # added to the mean square before the level is divided out: -120 dB


def level_normalised(wave_BN: Tensor, rms: float) -> Tensor:
    """Brings every clip to the same root mean square; silence stays (with a finite gradient)."""
    return wave_BN * (rms / (wave_BN.square().mean(dim=-1, keepdim=True) + _SILENCE_POWER).sqrt())


def class_indices(
    prompts: Sequence[Prompt],
    label_key: str,
    class_names: Sequence[str],
    classes_of: Mapping[str, str] | None = None,
) -> Tensor:
    """Index (B,) of every prompt's class: the label, or what ``classes_of`` maps it to.

    Raises ``UserError`` naming the prompt and the classes when the label is missing or unknown.
    """
    known = {name: name for name in class_names} | dict(classes_of or {})
    indices = []
    for prompt in prompts:
        if label_key not in prompt.labels:
            raise UserError(
                f"prompt {prompt.id!r} has no label {label_key!r} (its labels:"
                f" {sorted(prompt.labels) or 'none'}); the emotion reward needs one of"
                f" {', '.join(class_names)}"
            )
        mood = prompt.labels[label_key]
        if not isinstance(mood, str) or mood not in known:
            raise UserError(
                f"prompt {prompt.id!r} asks for {label_key} {mood!r}, which the classifier does not"
                f" know; {did_you_mean(str(mood), known)} Its classes are {', '.join(class_names)}"
            )
        indices.append(list(class_names).index(known[mood]))
    return torch.tensor(indices)


def class_log_odds(logits_BK: Tensor) -> Tensor:
    """z[k] - logsumexp of the other logits (B, K), in nats; with softmax log(p / (1 - p))."""
    own = torch.eye(logits_BK.shape[1], dtype=torch.bool, device=logits_BK.device)
    others_BKK = (
        logits_BK.unsqueeze(1).expand(-1, logits_BK.shape[1], -1).masked_fill(own, float("-inf"))
    )
    return logits_BK - others_BKK.logsumexp(dim=2)


def emotion_score(
    logits_BK: Tensor,
    probability_BK: Tensor,
    target_B: Tensor,
    value: str,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(B,) float32 scores of the wanted classes.

    Args:
        logits_BK, probability_BK: of each class.
        target_B: the wanted class g of each row; k* is the most likely one.
        value: which score. "value": p[g] - p[k*], in [-1, 0], 0 when right. "label": 1 when right.
            "probability": p[g]. "log_odds": z[g] - logsumexp of the other logits, unbounded.
            "calibrated": the log-odds of g less their mean, over their deviation, so 0 is what the
            base does without being asked and 1 is a deviation above; a class that the classifier
            always favours or never names earns as any other.
        statistics: for "calibrated": mean (K,) and deviation (K,) over generations of the base.
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
    log_odds = logits_BK.gather(1, rows).squeeze(1) - others.logsumexp(dim=1)
    if value == "log_odds":
        return log_odds
    if statistics is None:
        raise UserError(
            "the calibrated score needs statistics: mean and deviation of every class's log-odds"
        )
    mean_K, std_K = statistics
    return (log_odds - mean_K[target_B]) / std_K[target_B]


class EmotionReward(StaysInEvalMode):
    """Scores clips by the mood in ``prompt.labels[label_key]`` (see ``emotion_score``).

    Clips are heard in mono, resampled and scaled to one level. Probabilities and logits are means
    over chunks. All arguments are plain JSON values. ``Emotion``
    (lightning_modules/mood_classifier.py) trains ``classifier`` itself.

    Args:
        value: which number is the score, as ``emotion_score`` takes it.
        class_names: the moods, in the order of the classifier's outputs.
        sample_rate_hz: of the classifier.
        chunk_s, hop_s: seconds per chunk, and between the starts of overlapping chunks.
        chunk_rule: see ``chunk_starts``.
        n_fft, hop_samples, n_mels: of the spectrogram.
        channels, dropout: of the network.
        activation: "softmax" for a classifier trained by cross-entropy, "sigmoid" for released
            EMOPIA weights.
        rms: the level of every clip (None: unchanged, as EMOPIA).
        label_key: the label of a prompt that asks for a mood.
        classes_of: words that labels may also hold, with the class of each.
        class_mean, class_std: of each class's log-odds (nats) over the base model's generations, as
            ``zoo.rewards.mood_calibration`` measures them; only ``calibrated`` needs them.
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
        classes_of: Mapping[str, str] | None = None,
        class_mean: Sequence[float] | None = None,
        class_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        for name, given, choices in (
            ("value", value, VALUES),
            ("activation", activation, ACTIVATIONS),
            ("chunk_rule", chunk_rule, CHUNK_RULES),
        ):
            if given not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, got {given!r}")
        if len(set(class_names)) != len(class_names) or len(class_names) < 2:
            raise UserError(
                f"class_names must be at least two different names, got {list(class_names)}"
            )
        if not chunk_s * sample_rate_hz > n_fft / 2:
            raise UserError(
                f"chunk_s {chunk_s} at {sample_rate_hz} Hz must be longer than half of n_fft,"
                f" {n_fft} samples"
            )
        if rms is not None and not 0 < rms < math.inf:
            raise UserError(
                "rms must be above 0 (the level of every clip), or null for unchanged clips, got"
                f" {rms}"
            )
        unknown = sorted(set((classes_of or {}).values()) - set(class_names))
        if unknown:
            raise UserError(
                f"classes_of maps to {', '.join(unknown)}; the classes are {', '.join(class_names)}"
            )
        self.statistics = _checked_statistics(class_mean, class_std, class_names)
        if value == "calibrated" and self.statistics is None:
            raise UserError(
                "value 'calibrated' needs class_mean and class_std, measured on generations of the"
                " base model: zoo.rewards.mood_calibration.class_statistics"
            )
        self.value = value
        self.class_names = tuple(class_names)
        self.label_key = label_key
        self.classes_of = dict(classes_of or {})
        self.sample_rate_hz = sample_rate_hz
        self.activation = activation
        self.rms = rms
        self.chunk_rule = chunk_rule
        self.hop_s = hop_s
        self.chunk_samples = round(chunk_s * sample_rate_hz)
        self.differentiable = value != "label"
        self.unit = UNITS[value]
        if value in ("label", "probability"):
            self.bounds = (0.0, 1.0)
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
            "classes_of": None if classes_of is None else dict(classes_of),
            "class_mean": None if class_mean is None else list(class_mean),
            "class_std": None if class_std is None else list(class_std),
        }
        self.eval()

    def wanted_classes(self, prompts: Sequence[Prompt]) -> Tensor:
        """(B,) index of the class that each prompt asks for.

        Raises ``UserError`` (see ``class_indices``).
        """
        return class_indices(prompts, self.label_key, self.class_names, self.classes_of)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ``UserError`` for a prompt whose class is missing or unknown."""
        self.wanted_classes(prompts)

    def prepare(self, wave_BCN: Tensor, sample_rate_hz: int | None) -> Tensor:
        """(B, N) mono at the classifier's rate and level.

        Raises ``UserError`` for a bad shape, type or rate.
        """
        given_hz = check_waves(wave_BCN, sample_rate_hz, _WHO)
        mono_BN = mono_at(wave_BCN, given_hz, self.sample_rate_hz, _WHO)
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

    def forward(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        """Score (B,), parts ``p_<class>`` (B,) and ``accuracy`` (B,).

        ``accuracy`` is 1 where the likeliest class is the right one.

        With ``class_mean`` and ``class_std`` also ``calibrated_accuracy``: the class that is
        highest above the base model is it. Score and parts of a wave that is not finite are NaN.
        Raises ``UserError`` for a wrong shape, rate or number of prompts, and for a mood that is
        missing or unknown.
        """
        check_waves(wave_BCN, sample_rate_hz, _WHO, len(prompts))
        target_B = self.wanted_classes(prompts).to(wave_BCN.device)
        logits = self.chunk_logits(wave_BCN, sample_rate_hz)
        probability_BK = self.probabilities(logits).mean(dim=1)
        logits_BK = logits.mean(dim=1)
        statistics = (
            None
            if self.statistics is None
            else torch.tensor(self.statistics, device=logits.device).unbind()
        )
        score_B = emotion_score(logits_BK, probability_BK, target_B, self.value, statistics)
        parts = {
            f"p_{name}": probability_BK[:, index].detach()
            for index, name in enumerate(self.class_names)
        }
        parts["accuracy"] = (probability_BK.argmax(dim=1) == target_B).float()
        if statistics is not None:
            above_BK = (class_log_odds(logits_BK.detach()) - statistics[0]) / statistics[1]
            parts["calibrated_accuracy"] = (above_BK.argmax(dim=1) == target_B).float()
        known_B = finite_rows(wave_BCN) & logits_BK.isfinite().all(
            dim=1
        )  # else a label or a share would still be a number
        score_B = score_B.float()
        parts = {name: torch.where(known_B, part, torch.nan) for name, part in parts.items()}
        return RewardOutput(torch.where(known_B, score_B, torch.nan), parts)


def _checked_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, class_names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, deviation) of every class, or None.

    Raises ``UserError`` for one without the other, counts and values.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError("class_mean and class_std belong together: give both or neither")
    for name, values in (("class_mean", mean), ("class_std", std)):
        if len(values) != len(class_names):
            raise UserError(
                f"{name} needs one number for each of {', '.join(class_names)}, got {len(values)}"
            )
        if not all(
            math.isfinite(value) and (name == "class_mean" or value > 0) for value in values
        ):
            raise UserError(
                f"{name} must be finite{'' if name == 'class_mean' else ' and positive'}, got"
                f" {list(values)}"
            )
    return tuple(map(float, mean)), tuple(map(float, std))
