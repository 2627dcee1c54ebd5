"""Policy loss, KL, clip range and SNR weights by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.rl.losses import (
    clipped_policy_loss,
    kl_to_reference,
    rescaled_clip_range,
)
from zoo.diffusion import (
    Sampler,
    VPDiscrete,
    min_snr_weights,
    noise_generator,
    rollout,
    split,
    step_log_prob,
    target,
)
from zoo.types import Conditioning, Prompt


def loss_and_gradient(
    ratio: float, advantage: float, clip_range: float = 0.2
) -> tuple[float, float]:
    log_prob = torch.tensor([math.log(ratio)], requires_grad=True)
    result = clipped_policy_loss(log_prob, torch.zeros(1), torch.tensor([advantage]), clip_range)
    result.loss.backward()
    return result.loss.item(), log_prob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, -1.0, 1.0, 1.0),
        (1.0, 1.0, -1.0, -1.0),
        (1.5, 1.0, -1.2, 0.0),  # A > 0 and r > 1 + e: clipped
        (0.5, -1.0, 0.8, 0.0),  # A < 0 and r < 1 - e: clipped
        (1.5, -1.0, 1.5, 1.5),  # A < 0 and r > 1 + e: pushed back
        (0.5, 1.0, -0.5, -0.5),  # A > 0 and r < 1 - e: pushed back
        (1.0, 9.0, -5.0, -5.0),  # A is clamped to 5
        (1.0, -9.0, 5.0, 5.0),
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_clip_signs(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert loss_and_gradient(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-6)


def test_reported_numbers() -> None:
    log_prob = torch.tensor([0.0, 0.3, -0.3, 0.1], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, 0.0], dtype=torch.float64)
    result = clipped_policy_loss(log_prob, torch.zeros(4), advantage, clip_range=0.2)
    assert result.clip_fraction.item() == 0.5 and not result.ratio.requires_grad
    assert result.approx_kl.item() == pytest.approx(0.5 * (0.09 + 0.09 + 0.01) / 4)
    assert result.ratio.tolist() == pytest.approx([1, math.exp(0.3), math.exp(-0.3), math.exp(0.1)])
    assert result.loss.item() == pytest.approx((-1 + math.exp(0.3) - math.exp(-0.3)) / 4)


def test_policy_loss_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(2,\), \(2,\), \(3,\)"):
        clipped_policy_loss(torch.zeros(2), torch.zeros(2), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="must be positive"):
        clipped_policy_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), 0.0)


def linear_policy() -> tuple:
    """A network with one weight, a path and a rollout of it."""
    path = VPDiscrete.from_betas(0.0015, 0.0195, "eps")
    sampler = Sampler(8)
    weight = torch.tensor(0.9, requires_grad=True)
    predict = lambda x, t, c: weight * x + c["shift"][:, None]
    conditioning = Conditioning({"shift": torch.linspace(-1, 1, 6)})
    prompts = [Prompt(f"p{i}", "") for i in range(6)]
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    return (
        path,
        sampler,
        weight,
        predict,
        rollout(predict, path, sampler, prompts, conditioning, None, (10,), generators),
    )


def test_gradient_at_ratio_one_is_reinforce() -> None:
    path, sampler, weight, predict, trajectory = linear_policy()
    steps = torch.tensor([0, 3, 6, 1, 2, 5])
    advantage = torch.tensor([1.0, -2.0, 0.5, 1.5, -0.3, 0.8])
    log_prob = step_log_prob(predict, path, sampler, trajectory, steps)[0]
    old = trajectory.log_prob_SB[steps, torch.arange(6)]
    clipped_policy_loss(log_prob, old, advantage, 1e-4).loss.backward()

    def objective(value: float) -> float:
        shifted = lambda x, t, c: value * x + c["shift"][:, None]
        return (
            -(advantage * step_log_prob(shifted, path, sampler, trajectory, steps)[0])
            .double()
            .mean()
            .item()
        )

    finite_difference = (
        objective(0.9 + 1e-2) - objective(0.9 - 1e-2)
    ) / 2e-2  # log_prob is quadratic in the weight: exact
    assert weight.grad.item() == pytest.approx(finite_difference, rel=1e-3)


def test_old_log_probabilities_take_no_gradient() -> None:
    new, old = (torch.zeros(2, requires_grad=True) for _ in range(2))
    clipped_policy_loss(new, old, torch.tensor([1.0, -2.0]), 0.2).loss.backward()
    assert new.grad.tolist() == [-0.5, 1.0] and old.grad is None


def test_shuffled_time_gives_the_same_loss_and_micro_steps_the_same_gradient() -> None:
    path, sampler, weight, predict, trajectory = linear_policy()
    advantage = torch.tensor([1.0, -2.0, 0.5, 1.5, -0.3, 0.8])

    def one_pass(steps_SB: torch.Tensor, size: int) -> tuple[float, float]:
        weight.grad = None
        total = 0.0
        for start in range(0, 6, size):
            part = trajectory.rows(range(start, start + size))
            for step_B in steps_SB[:, start : start + size]:
                log_prob = step_log_prob(predict, path, sampler, part, step_B)[0]
                old = part.log_prob_SB[step_B, torch.arange(size)]
                loss = (
                    clipped_policy_loss(log_prob, old, advantage[start : start + size], 1e-4).loss
                    * size
                    / (6 * 7)
                )
                loss.backward()
                total += loss.item()
        return total, weight.grad.item()

    straight = torch.arange(7)[:, None].expand(7, 6)
    shuffled = torch.stack([torch.randperm(7) for _ in range(6)], dim=1)
    assert one_pass(straight, 6) == pytest.approx(one_pass(shuffled, 6), rel=1e-5)
    assert one_pass(straight, 6) == pytest.approx(one_pass(straight, 1), rel=1e-5)


def test_kl_by_hand() -> None:
    mean = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    reference = torch.zeros(2, 2, requires_grad=True)
    std = torch.tensor([0.5, 2.0])
    kl = kl_to_reference(mean, reference, std)
    assert kl.tolist() == pytest.approx([(1 + 4) / 2 / 0.5, 0.0])
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(
        normal(mean, std[:, None]), normal(reference, std[:, None])
    ).mean(1)
    assert torch.allclose(kl, exact)
    assert kl_to_reference(
        mean, reference, std, torch.tensor([[True, False]])
    ).tolist() == pytest.approx([2.0, 0.0])
    kl.sum().backward()
    assert reference.grad is None and mean.grad[0].tolist() == pytest.approx([2.0, 4.0])
    with pytest.raises(ValueError, match=r"rows \[1\] have std 0"):
        kl_to_reference(mean, reference, torch.tensor([1.0, 0.0]))


def test_clip_range_keeps_the_true_log_ratio() -> None:
    assert rescaled_clip_range(1e-4, 16384, 4096) == pytest.approx(4e-4)
    assert rescaled_clip_range(1e-4, 16384, 16384) == 1e-4
    with pytest.raises(ValueError, match="must be positive"):
        rescaled_clip_range(1e-4, 16384, 0)


@pytest.mark.parametrize("prediction", ["eps", "v", "velocity", "x0"])
def test_snr_weights_weigh_the_clean_error(prediction: str) -> None:
    """weight * (output error)^2 = min(SNR, gamma) * (clean error)^2 for every prediction."""
    alpha, sigma = torch.tensor([0.2, 0.6, 0.95]), torch.tensor([0.9, 0.8, 0.2])
    if prediction == "v":
        norm = (alpha**2 + sigma**2).sqrt()
        alpha, sigma = alpha / norm, sigma / norm
    clean = torch.randn(3, 4)
    noise = torch.randn(3, 4)
    shift = 0.1
    x = alpha[:, None] * clean + sigma[:, None] * noise
    output = target(clean, noise, alpha, sigma, prediction) + shift
    clean_error = ((split(output, x, alpha, sigma, prediction)[0] - clean) ** 2).mean(1)
    weighted = min_snr_weights(alpha, sigma, prediction) * shift**2
    assert torch.allclose(weighted, (alpha**2 / sigma**2).clamp(max=5.0) * clean_error, rtol=1e-3)


def test_snr_weights_by_hand_and_at_the_ends() -> None:
    alpha = torch.tensor([0.0, 0.6, 0.8, 1.0])
    sigma = torch.tensor([1.0, 0.8, 0.6, 0.0])
    snr = [0.0, 0.5625, 16 / 9]
    assert min_snr_weights(alpha, sigma, "x0", 1.0).tolist() == pytest.approx([0, snr[1], 1.0, 1.0])
    assert min_snr_weights(alpha, sigma, "eps", 1.0).tolist() == pytest.approx(
        [1, 1, 1 / snr[2], 0.0]
    )
    assert min_snr_weights(alpha, sigma, "v", 1.0).tolist() == pytest.approx(
        [0, snr[1] / 1.5625, 1 / (snr[2] + 1), 0.0]
    )
    with pytest.raises(ValueError, match="gamma"):
        min_snr_weights(alpha, sigma, "v", 0.0)
    with pytest.raises(ValueError, match="prediction 'vv' is unknown"):
        min_snr_weights(alpha, sigma, "vv")


@pytest.mark.long
def test_ddpo_moves_a_toy_mixture_to_the_rewarded_mode() -> None:
    """Four modes in 2-D, the exact denoiser plus a small network; the reward prefers one mode."""
    path = VPDiscrete.from_betas(0.00085, 0.012, "x0")
    sampler = Sampler(10)
    sigma_data = 0.2
    modes = torch.tensor([[1.5, 1.5], [1.5, -1.5], [-1.5, 1.5], [-1.5, -1.5]])
    network = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    torch.nn.init.zeros_(network[-1].weight)
    torch.nn.init.zeros_(network[-1].bias)

    def predict(x: torch.Tensor, time_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        alpha, sigma = (value[:, None] for value in path.coefficients(time_B))
        variance = alpha**2 * sigma_data**2 + sigma**2
        weights = torch.softmax(
            -((x[:, None] - alpha[:, None] * modes) ** 2).sum(-1) / (2 * variance), dim=1
        )
        posterior = modes + (alpha * sigma_data**2 / variance)[:, None] * (
            x[:, None] - alpha[:, None] * modes
        )
        exact = (weights[:, :, None] * posterior).sum(1)
        return exact + network(torch.cat([x, time_B[:, None] / 1000], dim=1))

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    count = 256
    prompts = [Prompt("p", "")] * count
    empty = Conditioning({"none": torch.zeros(count)})
    means = []
    for iteration in range(60):
        generators = [noise_generator(0, iteration, "p", i) for i in range(count)]
        trajectory = rollout(predict, path, sampler, prompts, empty, None, (2,), generators)
        reward = -((trajectory.clean - modes[0]) ** 2).sum(1)
        means.append(reward.mean().item())
        advantage = (reward - reward.mean()) / (reward.std(correction=0) + 1e-8)
        optimizer.zero_grad()
        for step in range(9):  # never the last
            step_B = torch.full((count,), step)
            log_prob = step_log_prob(predict, path, sampler, trajectory, step_B)[0]
            (
                clipped_policy_loss(log_prob, trajectory.log_prob_SB[step], advantage, 0.2).loss / 9
            ).backward()
        optimizer.step()
    assert means[0] < -5 and sum(means[-3:]) / 3 > -0.5, means[::10]
