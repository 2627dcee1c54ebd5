"""Retrieval between two sets of embeddings: recall at k with ties, matched against random pairs.

Shapes: ``Q`` queries, ``N`` candidates. ``relevant_QN`` (bool) marks every right candidate:
captions that say the same are all right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.errors import UserError


def _checked(similarity_QN: Tensor, relevant_QN: Tensor) -> tuple[Tensor, Tensor]:
    if (
        similarity_QN.ndim != 2
        or similarity_QN.shape != relevant_QN.shape
        or not similarity_QN.numel()
    ):
        shapes = f"{tuple(similarity_QN.shape)} and {tuple(relevant_QN.shape)}"
        raise UserError(
            f"similarity and relevance must be equal matrices (queries, candidates), got {shapes}"
        )
    if not torch.isfinite(similarity_QN).all():
        raise UserError("similarities must be finite; an embedding holds NaN or infinity")
    if not relevant_QN.any(dim=1).all():
        raise UserError(
            f"query {int((~relevant_QN.any(dim=1)).nonzero()[0])} has no right answer among the"
            " candidates"
        )
    return similarity_QN.double().cpu(), relevant_QN.cpu()


def recall_at_k(similarity_QN: Tensor, relevant_QN: Tensor, k: int) -> Tensor:
    """(Q,) float64: the probability that a right answer is among the first ``k``.

    Ties are broken at random; without ties it is 0 or 1. With g wrong candidates above the best
    right one, and u wrong and m right ones tied with it, it is 1 - C(u, k - g) / C(u + m, k - g). A
    scorer with the same answer for everything scores exactly at chance. Raises ``UserError`` for
    shapes that differ, values that are not finite, k < 1, or a query without a right answer.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    similarity, relevant = _checked(similarity_QN, relevant_QN)
    best_Q1 = similarity.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    above_Q = ((similarity > best_Q1) & ~relevant).sum(dim=1)
    wrong_Q = ((similarity == best_Q1) & ~relevant).sum(dim=1)
    right_Q = ((similarity == best_Q1) & relevant).sum(dim=1)
    hits = []
    for above, wrong, right in zip(
        above_Q.tolist(), wrong_Q.tolist(), right_Q.tolist(), strict=True
    ):
        places = min(k - above, wrong + right)
        miss = 1.0
        if places > 0:
            miss = math.comb(wrong, places) / math.comb(wrong + right, places)
        hits.append(1 - miss)
    return torch.tensor(hits, dtype=torch.float64)


def chance_recall_at_k(relevant_QN: Tensor, k: int) -> float:
    """Mean recall at k of a random ranking: 1 - C(N - m, k) / C(N, k) with m right answers."""
    return float(recall_at_k(torch.zeros(relevant_QN.shape), relevant_QN, k).mean())


def matched_over_random(similarity_NN: Tensor, relevant_NN: Tensor) -> Tensor:
    """(N,) float64: the share of wrong candidates that score below a query's own partner.

    Partners are on the diagonal, a tie counts half, and chance is 0.5. A query for which every
    candidate is right gives NaN. Raises ``UserError`` as ``recall_at_k``, and for a matrix that is
    not square or whose diagonal is not relevant.
    """
    similarity, relevant = _checked(similarity_NN, relevant_NN)
    if similarity.shape[0] != similarity.shape[1] or not relevant.diagonal().all():
        raise UserError(
            "matched_over_random needs a square matrix whose diagonal holds the matched pairs"
        )
    own_N1 = similarity.diagonal().unsqueeze(1)
    won = (own_N1 > similarity).double() + 0.5 * (own_N1 == similarity).double()
    wrong = ~relevant
    return (won * wrong).sum(dim=1) / wrong.sum(dim=1)
