"""Evaluation of a CLAP: retrieval both ways, matched against random, and order, with intervals.

Shapes: ``N`` clips, each with its caption; captions are the rows of a similarity and clips its
columns.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.statistics.intervals import wilson_interval
from zoo.statistics.retrieval import chance_recall_at_k, matched_over_random, recall_at_k
from zoo.types import Prompt

KS = (1, 5, 10)


def caption_truth(prompt: Prompt) -> tuple[Hashable, ...]:
    """The meaning of a caption: prompts with the same one describe each other's clips.

    It comes from ``labels["events"]`` (classes) and ``labels["relation"]``. Order counts for "then"
    only, because captions do not tell sounds that are together from sounds that overlap. Without
    these labels it is the text itself, case-folded.
    """
    events, relation = prompt.labels.get("events"), prompt.labels.get("relation")
    if not events or relation is None:
        return ("text", prompt.text.casefold().strip())
    return ("then", *events) if relation == "then" else ("at once", *sorted(events))


def same_meaning(prompts: Sequence[Prompt]) -> Tensor:
    """(N, N) bool: captions of the same truth, or with the same words; the diagonal is True."""
    truths = [caption_truth(prompt) for prompt in prompts]
    texts = [prompt.text.casefold().strip() for prompt in prompts]
    return _equal(truths) | _equal(texts)


def _equal(values: Sequence[Hashable]) -> Tensor:
    number = {value: index for index, value in enumerate(dict.fromkeys(values))}
    rows = torch.tensor([number[value] for value in values])
    return rows[:, None] == rows[None]


@dataclass(frozen=True)
class Share:
    """A share of ``count`` cases, its 95 % Wilson interval, and the share by chance."""

    value: float
    low: float
    high: float
    chance: float
    count: int

    @staticmethod
    def of(hits: Tensor, chance: float) -> Share:
        count = len(hits)
        total = float(hits.double().sum())
        return Share(total / count, *wilson_interval(min(total, count), count), chance, count)


@dataclass(frozen=True)
class RetrievalReport:
    """Recall at k ("r1", "r5", "r10") of ``clips`` clips among each other, both ways.

    ``unseen``: the same, text to audio, for captions whose recordings are all unknown from
    training (label ``recording_split``); empty without such prompts. ``matched_over_random``: share
    of wrong clips that score below the caption's own clip, None when there is no wrong one.
    ``order``: share of "A then B" captions above "B then A" for the same clip, None without such
    pairs. ``cosine`` and ``cosine_random``: mean of matched pairs and of others (None: no others).
    """

    clips: int
    text_to_audio: dict[str, Share]
    audio_to_text: dict[str, Share]
    unseen: dict[str, Share]
    matched_over_random: float | None
    order: Share | None
    cosine: float
    cosine_random: float | None

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a logger:

        ``text_to_audio_r1`` with ``_low`` and ``_high``, ``chance_r1``, ``order_accuracy`` ...
        """
        ways = {
            "text_to_audio": self.text_to_audio,
            "audio_to_text": self.audio_to_text,
            "unseen": self.unseen,
        }
        shares = {
            f"{way}_{k}": share for way, recalls in ways.items() for k, share in recalls.items()
        }
        if self.order is not None:
            shares["order_accuracy"] = self.order
        numbers = {}
        for name, share in shares.items():
            numbers |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
        numbers |= {f"chance_{k}": share.chance for k, share in self.text_to_audio.items()}
        others = {
            "matched_over_random": self.matched_over_random,
            "cosine": self.cosine,
            "cosine_random": self.cosine_random,
        }
        return numbers | {name: value for name, value in others.items() if value is not None}


def retrieval_report(
    similarity_NN: Tensor, swapped_N: Tensor, prompts: Sequence[Prompt]
) -> RetrievalReport:
    """The report of cosines: captions (rows) with clips (columns), and clips with wrong order.

    The latter are NaN for clips without a caption in the wrong order.

    Raises ``UserError`` for cosines that are not finite.
    """
    same = same_meaning(prompts)
    ks = [k for k in KS if k <= len(prompts)]
    chance = {k: chance_recall_at_k(same, k) for k in ks}
    ways = {}
    for name, similarity in (("text_to_audio", similarity_NN), ("audio_to_text", similarity_NN.T)):
        ways[name] = {k: recall_at_k(similarity, same, k) for k in ks}
    unseen = torch.tensor([_unseen(prompt) for prompt in prompts])
    won = matched_over_random(similarity_NN, same)
    won = won[won.isfinite()]
    own = similarity_NN.diagonal()
    ordered = swapped_N.isfinite()
    above = (own > swapped_N).double() + 0.5 * (own == swapped_N).double()
    return RetrievalReport(
        clips=len(prompts),
        text_to_audio={
            f"r{k}": Share.of(hits, chance[k]) for k, hits in ways["text_to_audio"].items()
        },
        audio_to_text={
            f"r{k}": Share.of(hits, chance[k]) for k, hits in ways["audio_to_text"].items()
        },
        unseen={
            f"r{k}": Share.of(
                hits[unseen],
                float(recall_at_k(torch.zeros(same[unseen].shape), same[unseen], k).mean()),
            )
            for k, hits in ways["text_to_audio"].items()
            if unseen.any()
        },
        matched_over_random=float(won.mean()) if len(won) else None,
        order=Share.of(above[ordered], 0.5) if ordered.any() else None,
        cosine=float(own.mean()),
        cosine_random=None if same.all() else float(similarity_NN[~same].mean()),
    )


def _unseen(prompt: Prompt) -> bool:
    split = prompt.labels.get("recording_split")
    return bool(split) and all(split)
