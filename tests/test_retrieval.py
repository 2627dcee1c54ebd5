"""Recall at k with ties and duplicates, chance, and matched over random, by hand."""

import math

import pytest
import torch

from zoo.statistics.retrieval import chance_recall_at_k, matched_over_random, recall_at_k


def test_recall_counts_the_candidates_above_the_right_one():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.7, 0.6, 0.5]])
    own = torch.eye(3, dtype=torch.bool)  # ranks 1, 2, 3
    assert [recall_at_k(similarity, own, k).tolist() for k in (1, 2, 3)] == [
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 1],
    ]
    assert recall_at_k(similarity, own, 10).tolist() == [1, 1, 1]


def test_a_duplicate_of_the_caption_is_right_too():
    similarity = torch.tensor([[0.5, 0.9, 0.7]])
    assert recall_at_k(similarity, torch.tensor([[True, False, False]]), 2).tolist() == [0]
    assert recall_at_k(similarity, torch.tensor([[True, True, False]]), 1).tolist() == [1]


def test_ties_are_broken_at_random_in_expectation():
    tied = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1]])
    relevant = torch.tensor(
        [[False, True, False, False, False]]
    )  # one above it, tied with two wrong ones
    assert [float(recall_at_k(tied, relevant, k)) for k in (1, 2, 3, 4)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )
    two = torch.tensor(
        [[False, True, True, False, False]]
    )  # two right among three tied: 1 - C(1, 1) / C(3, 1)
    assert float(recall_at_k(tied, two, 2)) == pytest.approx(2 / 3)


def test_a_constant_scorer_gets_chance():
    relevant = torch.eye(20, dtype=torch.bool)
    relevant[0, 1] = relevant[1, 0] = True
    for k in (1, 5, 10):
        one = k / 20
        two = 1 - math.comb(18, k) / math.comb(20, k)
        assert chance_recall_at_k(relevant, k) == pytest.approx((18 * one + 2 * two) / 20)
        assert float(recall_at_k(torch.full((20, 20), 0.3), relevant, k).mean()) == pytest.approx(
            chance_recall_at_k(relevant, k)
        )


def test_matched_over_random():
    similarity = torch.tensor(
        [[0.5, 0.1, 0.5, 0.9], [0.0, 0.4, 0.3, 0.2], [0.9, 0.9, 0.1, 0.9], [0.0, 0.0, 0.0, 0.0]]
    )
    relevant = torch.eye(4, dtype=torch.bool)
    assert matched_over_random(similarity, relevant).tolist() == pytest.approx([0.5, 1.0, 0.0, 0.5])
    relevant[0, 3] = True  # no longer a wrong one
    assert matched_over_random(similarity, relevant).tolist() == pytest.approx(
        [0.75, 1.0, 0.0, 0.5]
    )
    assert matched_over_random(similarity, torch.ones(4, 4, dtype=torch.bool)).isnan().all()


def test_what_it_refuses():
    own = torch.eye(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least 1"):
        recall_at_k(torch.zeros(3, 3), own, 0)
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 3\)"):
        recall_at_k(torch.zeros(3, 2), own, 1)
    with pytest.raises(ValueError, match="finite"):
        recall_at_k(torch.full((3, 3), torch.nan), own, 1)
    with pytest.raises(ValueError, match="query 1"):
        recall_at_k(torch.zeros(3, 3), own & (torch.arange(3) != 1)[:, None], 1)
    with pytest.raises(ValueError, match="square"):
        matched_over_random(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="diagonal"):
        matched_over_random(torch.zeros(3, 3), own.roll(1, 0))
