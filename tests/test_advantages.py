"""Advantages: tracker, batch and groups; order of samples and ranks, saving, bad rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_modules.rl.advantages import PromptTracker, batch_advantages, group_advantages
from zoo.statistics.z_scores import moments


def test_batch_advantages_by_hand() -> None:
    assert batch_advantages([1.0, 3.0]).tolist() == pytest.approx([-1.0, 1.0], rel=1e-7)
    got = batch_advantages(torch.tensor([0.1, 0.1, 0.1]))
    assert got.dtype == np.float64 and got.tolist() == [0.0, 0.0, 0.0]


def test_group_advantages_by_hand() -> None:
    names = ["a", "b", "a", "b", "c"]
    rewards = [1.0, 0.1, 3.0, 0.1, 7.0]
    assert group_advantages(rewards, names).tolist() == pytest.approx([-1, 0, 1, 0, 0], abs=1e-5)
    assert group_advantages(rewards, names)[[1, 3, 4]].tolist() == [
        0.0,
        0.0,
        0.0,
    ]  # exactly: equal groups teach nothing
    std = np.std(rewards)
    assert group_advantages(rewards, names, deviation="all").tolist() == pytest.approx(
        [-1 / std, 0, 1 / std, 0, 0], abs=1e-5
    )
    with pytest.raises(ValueError, match="invalid deviation 'bach'"):
        group_advantages(rewards, names, deviation="bach")


def test_tracker_falls_back_to_the_call_then_uses_its_buffer() -> None:
    tracker = PromptTracker(buffer_size=3, min_count=2)
    first = tracker.update(["a", "b", "c"], [1.0, 2.0, 6.0])  # one reward each: mean 3 of the call
    assert first.tolist() == pytest.approx((np.array([1, 2, 6]) - 3) / np.std([1, 2, 6]), rel=1e-5)
    second = tracker.update(
        ["a", "c"], [3.0, 10.0]
    )  # the new rewards count: a has 1, 3 and c has 6, 10
    assert second.tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
    tracker.update(["a", "a"], [5.0, 7.0])  # three are kept: 3, 5, 7
    stats = tracker.stats()
    assert (stats["a"].mean, stats["a"].count, stats["b"].count) == (5.0, 3, 1)
    assert stats["a"].std == pytest.approx(np.std([3, 5, 7]))


def test_equal_rewards_have_exactly_zero_advantage() -> None:
    tracker = PromptTracker(4, 2)
    assert tracker.update(["a"] * 3, [0.1, 0.1, 0.1]).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_samples_and_ranks_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = list("abc")
    straight = PromptTracker(5, 3)
    permuted = PromptTracker(5, 3)
    for _ in range(4):
        prompts = rng.choice(names, 16).tolist()
        rewards = rng.normal(size=16) * 10.0 ** rng.integers(-3, 3, 16)
        order = rng.permutation(16)  # what another gathering of the ranks does
        shuffled = [prompts[i] for i in order]
        expected = straight.update(prompts, rewards)
        assert (
            permuted.update(shuffled, rewards[order], order=order).tolist()
            == expected[order].tolist()
        )
        assert (
            batch_advantages(rewards[order]).tolist() == batch_advantages(rewards)[order].tolist()
        )
        assert (
            group_advantages(rewards[order], shuffled).tolist()
            == group_advantages(rewards, prompts)[order].tolist()
        )
    assert straight.stats() == permuted.stats()


def test_state_survives_a_safe_checkpoint(tmp_path) -> None:
    tracker = PromptTracker(4, 2)
    rng = np.random.default_rng(0)
    tracker.update(list("aabbc"), rng.normal(size=5))
    torch.save(tracker.state_dict(), tmp_path / "tracker.pt")
    resumed = PromptTracker(4, 2)
    resumed.load_state_dict(torch.load(tmp_path / "tracker.pt", weights_only=True))
    assert resumed.stats() == tracker.stats()
    for _ in range(3):
        rewards = rng.normal(size=6)
        assert (
            resumed.update(list("aabbcc"), rewards).tolist()
            == tracker.update(list("aabbcc"), rewards).tolist()
        )
    smaller = PromptTracker(2, 2)
    smaller.load_state_dict(tracker.state_dict())
    assert smaller.state_dict()["buffers"]["a"] == tracker.state_dict()["buffers"]["a"][-2:]
    with pytest.raises(ValueError, match="not the state of a PromptTracker"):
        smaller.load_state_dict({"mean": 3.0})


@pytest.mark.parametrize(
    ("prompts", "rewards", "order", "message"),
    [
        (["a", "b"], [1.0, float("nan")], None, r"samples \[1\] are not finite"),
        (["a", "b"], [1.0], None, "2 values, one per prompt id"),
        (["a"], [[1.0]], None, r"shape \(1, 1\)"),
        ([], [], None, "got none"),
        (["a", "b"], [1.0, 2.0], [0, 0], "names a place twice"),
        (["a", "b"], [1.0, 2.0], [0], "expected 2, got 1"),
    ],
)
def test_bad_updates_are_refused_and_change_nothing(prompts, rewards, order, message: str) -> None:
    tracker = PromptTracker(4, 2)
    tracker.update(["a"], [5.0])
    with pytest.raises(ValueError, match=message):
        tracker.update(prompts, rewards, order)
    assert tracker.state_dict() == {"buffers": {"a": [5.0]}}


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="flat list"):
        batch_advantages(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="min_count 16 with buffer_size 8"):
        PromptTracker(buffer_size=8, min_count=16)
    assert moments([2.0]).std == 0.0
