"""The log-probability of a step, and the denoising error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_paths import SHAPE, conditioning_of, randn

from zoo.diffusion import Straight, VPDiscrete, denoising_error, log_prob, scored_mean, step_std
from zoo.types import Conditioning

# ---- log-probability


def test_log_prob_equals_torch_normal() -> None:
    x_next = randn(3, *SHAPE)
    mean = randn(3, *SHAPE, seed=1)
    std = torch.tensor([0.03, 0.4, 1.2])
    expected = (
        torch.distributions.Normal(mean.double(), std.double()[:, None, None])
        .log_prob(x_next.double())
        .mean((1, 2))
    )
    assert torch.allclose(log_prob(x_next, mean, std).double(), expected, rtol=1e-6)


def test_half_precision_is_widened_before_it_is_compared() -> None:
    """Squares of small differences and their means would be lost in half precision."""
    x_next, mean = (randn(3, *SHAPE, seed=seed).to(torch.bfloat16) for seed in (0, 1))
    std = torch.full((3,), 0.3)
    found = log_prob(x_next, mean, std)
    assert found.dtype == torch.float32 and torch.equal(
        found, log_prob(x_next.float(), mean.float(), std)
    )


@pytest.mark.parametrize(
    ("time_B", "dtype"), [([3, 700], torch.long), ([0.25, 0.5], torch.float32)]
)
def test_the_error_gives_a_network_its_times_as_rollouts_do(time_B, dtype) -> None:
    path = VPDiscrete.from_betas(0.0015, 0.0195) if dtype == torch.long else Straight()
    given = torch.tensor(time_B, dtype=torch.float64 if dtype == torch.float32 else dtype)
    seen = []

    def spy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(time_B)
        return x

    denoising_error(
        spy, path, randn(2, *SHAPE), given, randn(2, *SHAPE, seed=1), conditioning_of(2)
    )
    assert seen[0].dtype == dtype and seen[0].tolist() == time_B


def test_log_prob_counts_scored_elements_only() -> None:
    x_next = randn(2, 3, 4)
    mean = randn(2, 3, 4, seed=1)
    std = torch.tensor([0.5, 0.7])
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])[:, None, :]
    got = log_prob(x_next, mean, std, mask)
    assert got[0].item() == pytest.approx(
        log_prob(x_next[:1, :, :2], mean[:1, :, :2], std[:1]).item(), rel=1e-6
    )
    assert got[1].item() == pytest.approx(
        log_prob(x_next[1:, :, :3], mean[1:, :, :3], std[1:]).item(), rel=1e-6
    )
    x_next[:, :, 3] = float("nan")
    assert torch.equal(log_prob(x_next, mean, std, mask), got)


def test_log_prob_takes_the_action_as_given() -> None:
    mean = randn(2, *SHAPE).requires_grad_()
    x_next = randn(2, *SHAPE, seed=1).requires_grad_()
    log_prob(x_next, mean, torch.tensor([0.5, 2.0])).sum().backward()
    assert x_next.grad is None
    expected = (x_next - mean).detach() / torch.tensor([0.25, 4.0])[:, None, None] / 15
    assert torch.allclose(mean.grad, expected, rtol=1e-5)


def test_log_prob_refuses_zero_std_and_bad_masks() -> None:
    with pytest.raises(ValueError, match=r"rows \[1\] have std 0"):
        log_prob(randn(2, 3), randn(2, 3), torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match=r"\[0\]"):
        scored_mean(randn(2, 3), torch.tensor([[False] * 3, [True] * 3]))
    with pytest.raises(ValueError, match="does not fit"):
        scored_mean(randn(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="did you mean 'cps'"):
        step_std(*[torch.ones(1)] * 4, eta=1.0, rule="cp")


# ---- denoising error


@pytest.mark.parametrize(
    ("prediction", "expected"), [("eps", 100.0), ("v", 6.8**2), ("velocity", 64.0), ("x0", 4.0)]
)
def test_denoising_error_by_hand(prediction: str, expected: float) -> None:
    """Clean 2, noise 10, alpha .8, sigma .6 and an output of 0: the error is the squared target."""
    path = VPDiscrete([0.64], prediction)
    clean = torch.full((1, 3), 2.0)
    noise = torch.full((1, 3), 10.0)
    time = torch.tensor([0])
    got = denoising_error(
        lambda x, t, c: torch.zeros_like(x), path, clean, time, noise, conditioning_of(1)
    )
    assert got.tolist() == pytest.approx([expected], rel=1e-6)


def test_denoising_error_noises_along_the_path_and_averages_over_scored_elements() -> None:
    clean = randn(2, 3, 4)
    noise = randn(2, 3, 4, seed=1)
    time = torch.tensor([0.25, 0.5])
    seen = []

    def spy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    mask = (torch.arange(4) < 2).reshape(1, 1, 4)
    got = denoising_error(spy, Straight(), clean, time.double(), noise, conditioning_of(2), mask)
    expected_x = (1 - time[:, None, None]) * clean + time[:, None, None] * noise
    assert torch.allclose(seen[0], expected_x, atol=1e-6)
    assert torch.allclose(got, ((noise - clean) ** 2)[:, :, :2].mean((1, 2)), rtol=1e-6)
