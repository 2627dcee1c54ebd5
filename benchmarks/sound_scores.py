"""Scores of clips from a judge's logits: are the asked sounds there, and in which order.

Shape suffixes: ``B`` clips, ``P`` patches (moments of a clip, in order), ``K`` classes of sounds
(``CLASSES``). Prompts say what was asked: ``labels["events"]``, the classes in order, and
``labels["relation"]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.errors import UserError, did_you_mean
from zoo.types import Prompt

# the classes of sounds that embedded/sounds knows, in the order of every probe
CLASSES = (
    *("bass", "beep", "bird_other", "bubble", "burp", "bus", "car_horn", "cash_register"),
    *("choir", "circular_saw", "cow", "cowbell", "crow", "drum", "drum_loop", "electric_guitar"),
    *("electric_spark", "explosion", "glass", "hammer", "horse", "jackhammer", "jet", "lion"),
    *("primate", "propeller_plane", "sheep", "ship_horn", "train_horn", "tree_fall", "truck"),
    "whistle",
)


def class_index(name: str) -> int:
    """The place of a class. Raises ``UserError`` for an unknown one."""
    if name not in CLASSES:
        raise UserError(f"the judges know no sound {name!r}; {did_you_mean(name, CLASSES)}")
    return CLASSES.index(name)


def asked(prompts: Sequence[Prompt]) -> Tensor:
    """(B, K) booleans: the classes that each prompt asks for.

    Raises ``UserError`` for a prompt without events, and for an unknown class.
    """
    asked_BK = torch.zeros(len(prompts), len(CLASSES), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        events = prompt.labels.get("events")
        if not events:
            raise UserError(f"the prompt {prompt.text!r} has no labels['events']; nothing to judge")
        for name in events:
            asked_BK[row, class_index(name)] = True
    return asked_BK


def class_scores(logit_BPK: Tensor) -> Tensor:
    """(B, K): the best patch of each class."""
    return logit_BPK.amax(dim=1)


def among_best(score_BK: Tensor, asked_BK: Tensor, count: int) -> Tensor:
    """(B,) 1 where all asked classes are among the ``count`` best, else 0; ties count against."""
    others_BK = (score_BK.unsqueeze(1) >= score_BK.unsqueeze(2)).sum(dim=2) - 1
    return ((others_BK < count) | ~asked_BK).all(dim=1).float()


def both_in_top3(score_BK: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """(B,) 1 where all asked sounds (mostly two) are among the three best classes, else 0."""
    return among_best(score_BK, asked(prompts), 3)


def above_absent(score_BK: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """(B,) the share of classes not asked for that score below an asked one; chance is 0.5.

    The mean over the asked sounds; ties count half.
    """
    asked_BK = asked(prompts)
    own_BK1 = score_BK.unsqueeze(2)
    other_B1K = score_BK.unsqueeze(1)
    below_BKK = (own_BK1 > other_B1K).float() + 0.5 * (own_BK1 == other_B1K).float()
    pairs_BKK = (asked_BK.unsqueeze(2) & ~asked_BK.unsqueeze(1)).float()
    return (below_BKK * pairs_BKK).sum(dim=(1, 2)) / pairs_BKK.sum(dim=(1, 2))


def in_order(logit_BPK: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """(B,) 1 where the asked sounds come in the asked order, else 0.

    Compared are the centroids of the probabilities over patches. NaN where no order was asked
    (``relation`` is not "then"), and for a judge with a single patch, which cannot tell.
    """
    order_B = torch.full((len(prompts),), torch.nan)
    patches = logit_BPK.shape[1]
    if patches == 1:
        return order_B
    probability_BPK = logit_BPK.sigmoid()
    place_P1 = torch.arange(patches, dtype=logit_BPK.dtype).unsqueeze(1)
    total_BK = probability_BPK.sum(dim=1).clamp(min=1e-12)
    centroid_BK = (probability_BPK * place_P1).sum(dim=1) / total_BK
    for row, prompt in enumerate(prompts):
        if prompt.labels["relation"] == "then":
            places = [centroid_BK[row, class_index(name)] for name in prompt.labels["events"]]
            order_B[row] = float(all(early < late for early, late in zip(places, places[1:])))
    return order_B


def shuffled_share(score_BK: Tensor, prompts: Sequence[Prompt]) -> float:
    """How often ``both_in_top3`` holds under another clip's prompt: what is right by chance.

    The mean over every clip and every prompt but its own.
    """
    asked_BK = asked(prompts)
    shifts = range(1, len(prompts))
    found = [among_best(score_BK, asked_BK.roll(shift, dims=0), 3).mean() for shift in shifts]
    return float(torch.stack(found).mean())


def macro_auc(score_BK: Tensor, asked_BK: Tensor) -> float:
    """The area under the ROC curve, averaged over the classes that some clips have and some lack.

    Raises ``UserError`` when there is no such class.
    """
    areas = []
    for score_B, asked_B in zip(score_BK.T, asked_BK.T, strict=True):
        present = score_B[asked_B].unsqueeze(1)
        absent = score_B[~asked_B].unsqueeze(0)
        if present.numel() and absent.numel():
            areas.append(((present > absent).float() + 0.5 * (present == absent).float()).mean())
    if not areas:
        raise UserError("an AUC needs clips with and without a class; there is no such class")
    return float(torch.stack(areas).mean())
