"""Paths, the Gaussian step, guidance, rollout and its log-probability."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from zoo.diffusion import (
    Sampler,
    Straight,
    VPCosine,
    VPDiscrete,
    denoising_error,
    gaussian_step,
    guided_output,
    log_prob,
    noise_generator,
    rollout,
    scored_mean,
    split,
    step_log_prob,
    step_std,
    step_stds,
    target,
)
from zoo.types import Conditioning, Path, Prompt, Trajectory

AUDIOLDM2 = (0.0015, 0.0195)
TANGO = (0.00085, 0.012)
PATHS = {
    "discrete-eps": VPDiscrete.from_betas(*AUDIOLDM2, "eps"),
    "discrete-v": VPDiscrete.from_betas(*TANGO, "v"),
    "cosine-v": VPCosine("v"),
    "cosine-exponential": VPCosine("v", spacing="exponential"),
    "straight": Straight(),
}
SHAPE = (3, 5)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predict(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
    """A toy network that listens to its conditioning and its time."""
    tokens = conditioning["tokens"].mean(dim=(1, 2))
    if "mask" in conditioning.streams:
        tokens = tokens + conditioning["mask"].float().mean(dim=1)
    shift = (tokens + 0.1 * torch.cos(time_B.float())).reshape(-1, *[1] * (x.ndim - 1))
    return 0.8 * x + torch.tanh(x + shift)


def conditioning_of(count: int, seed: int = 1) -> Conditioning:
    return Conditioning({"tokens": randn(count, 4, 2, seed=seed)})


def sample(path: Path, sampler: Sampler, count: int = 4, shape: tuple[int, ...] = SHAPE, first: int = 0, **options) -> Trajectory:
    conditioning, negative = conditioning_of(6).rows(slice(first, first + count)), conditioning_of(6, seed=2)
    names = range(first, first + count)
    return rollout(
        predict,
        path,
        sampler,
        [Prompt(f"p{i}", "text") for i in names],
        conditioning,
        negative.rows(slice(first, first + count)) if sampler.guidance_scale != 1 else None,
        shape,
        [noise_generator(7, 0, f"p{i}", 0) for i in names],
        **options,
    )


# ---- paths


def test_discrete_times_are_leading_and_never_use_a_final_alpha_of_one() -> None:
    path = PATHS["discrete-eps"]
    assert path.times(10).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert path.times(19)[0] == 18 * 52 + 1
    assert path.times(10).dtype == torch.long
    assert path.coefficients(torch.tensor([0]))[0].item() == pytest.approx(math.sqrt(1 - 0.0015), rel=1e-6)
    assert VPDiscrete.from_betas(*AUDIOLDM2, steps_offset=0).times(10).tolist()[-2:] == [0, 0]
    assert "prediction='eps'" in repr(path)


def test_cosine_and_straight_times() -> None:
    assert VPCosine().times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert Straight().times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    times = VPCosine(spacing="exponential").times(3)
    sigmas = torch.tan(times[:-1] * math.pi / 2)
    assert sigmas.tolist() == pytest.approx([500.0, math.sqrt(500 * 0.3), 0.3], rel=1e-6)
    assert times[-1] == 0
    assert "exponential" in repr(VPCosine(spacing="exponential")) and "velocity" in repr(Straight())


@pytest.mark.parametrize("name", PATHS)
def test_coefficients_are_float32_and_shaped_like_time(name: str) -> None:
    path = PATHS[name]
    times = path.times(6)[:6].reshape(2, 3)
    alpha, sigma = path.coefficients(times)
    assert alpha.shape == sigma.shape == (2, 3) and alpha.dtype == sigma.dtype == torch.float32
    total = alpha + sigma if isinstance(path, Straight) else alpha**2 + sigma**2
    assert torch.allclose(total, torch.ones(2, 3), atol=1e-6)
    assert bool((sigma.flatten().diff() < 0).all())


def test_ends_of_the_continuous_paths_are_exact() -> None:
    for path in (VPCosine(), Straight()):
        alpha, sigma = path.coefficients(torch.tensor([1.0, 0.0]))
        assert alpha.tolist() == [0.0, 1.0] and sigma.tolist() == [1.0, 0.0]


def test_training_times_cover_the_path() -> None:
    uniform = torch.tensor([0.0, 0.4996, 0.9999999])
    assert PATHS["discrete-eps"].sample_times(uniform).tolist() == [0, 499, 999]
    for path in (VPCosine(), Straight()):
        assert torch.equal(path.sample_times(uniform), uniform)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPCosine("epsilon"), "did you mean 'eps'"),
        (lambda: VPCosine(spacing="exponent"), "did you mean 'exponential'"),
        (lambda: VPCosine(sigma_min=3.0, sigma_max=2.0), "sigma_min < sigma_max"),
        (lambda: VPDiscrete([0.9, 1.0]), "between 0 and 1"),
        (lambda: VPDiscrete([0.9, 0.8, 0.7]).times(5), "do not fit into 3 training steps"),
        (lambda: PATHS["discrete-eps"].times(1000), "use fewer"),
        (lambda: PATHS["discrete-eps"].coefficients(torch.tensor([1000])), r"whole number in \[0, 999\]"),
        (lambda: PATHS["discrete-eps"].coefficients(torch.tensor([0.5])), "whole number"),
        (lambda: VPCosine().coefficients(torch.tensor([1.5])), r"lies in \[0, 1\]"),
        (lambda: Straight().times(0), "at least 1, got 0"),
    ],
)
def test_paths_refuse_what_cannot_be_meant(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- split and target


@pytest.mark.parametrize("prediction", ["eps", "v", "velocity", "x0"])
@pytest.mark.parametrize("path", [VPCosine(), Straight()], ids=["cosine", "straight"])
def test_split_inverts_target(path: Path, prediction: str) -> None:
    clean, noise = randn(4, *SHAPE), randn(4, *SHAPE, seed=1)
    alpha, sigma = path.coefficients(torch.tensor([0.1, 0.4, 0.7, 0.95]))
    x = alpha[:, None, None] * clean + sigma[:, None, None] * noise
    got_clean, got_noise = split(target(clean, noise, alpha, sigma, prediction), x, alpha, sigma, prediction)
    assert torch.allclose(got_clean, clean, atol=2e-5) and torch.allclose(got_noise, noise, atol=2e-5)


def test_targets_by_hand() -> None:
    clean, noise, alpha, sigma = torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([0.8]), torch.tensor([0.6])
    values = {name: target(clean, noise, alpha, sigma, name).item() for name in ("eps", "v", "velocity", "x0")}
    assert values == pytest.approx({"eps": 10.0, "v": 0.8 * 10 - 0.6 * 2, "velocity": 8.0, "x0": 2.0})


def test_undetermined_predictions_are_refused() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    with pytest.raises(ValueError, match="pure noise"):
        split(randn(1, 2), randn(1, 2), zero, one, "eps")
    with pytest.raises(ValueError, match="sigma 0"):
        split(randn(1, 2), randn(1, 2), one, zero, "x0")
    with pytest.raises(ValueError, match="did you mean 'velocity'"):
        target(randn(1, 2), randn(1, 2), one, zero, "velocty")


# ---- the Gaussian step against diffusers


@pytest.mark.parametrize("steps", [10, 19, 50])
@pytest.mark.parametrize(("betas", "prediction", "name"), [(AUDIOLDM2, "eps", "epsilon"), (TANGO, "v", "v_prediction")])
def test_step_equals_diffusers_ddim(steps: int, betas: tuple[float, float], prediction: str, name: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=betas[0], beta_end=betas[1], beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=name,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    path = VPDiscrete.from_betas(*betas, prediction)
    times = path.times(steps)
    assert torch.equal(times[:-1], scheduler.timesteps)
    x, output, noise = randn(steps, *SHAPE), randn(steps, *SHAPE, seed=1), randn(steps, *SHAPE, seed=2)
    mean, std = gaussian_step(
        x, output, *path.coefficients(times[:-1]), *path.coefficients(times[1:]), prediction=prediction, eta=1.0
    )
    ours = mean + std[:, None, None] * noise  # all steps in one batch, each row at another time
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(output[i], t, x[i], eta=1.0, variance_noise=noise[i]).prev_sample
        assert (ours[i] - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("steps", [10, 50, 100])
def test_step_equals_diffusers_first_order_cosine_sde(steps: int) -> None:
    from diffusers import CosineDPMSolverMultistepScheduler

    scheduler = CosineDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, solver_order=1, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    )
    scheduler.set_timesteps(steps)
    path = VPCosine("v", spacing="exponential", sigma_min=0.3, sigma_max=500)
    times = path.times(steps)
    assert torch.allclose(times[:-1].float(), scheduler.timesteps, rtol=1e-6)
    sigmas = scheduler.sigmas.double()
    # float32 exp() in the scheduler's grid is off by up to 1e-6, so its own sigmas are used for the step
    assert torch.allclose(torch.tan(times[:-1] * math.pi / 2), sigmas[:-1], rtol=2e-6)
    times = torch.atan(sigmas) * 2 / math.pi
    for i in range(steps):
        noise, output, x = randn(1, *SHAPE, seed=3 * i), randn(1, *SHAPE, seed=3 * i + 1), randn(1, *SHAPE, seed=3 * i + 2)
        scheduler.noise_sampler = lambda sigma, sigma_next, noise=noise: noise
        scale, scale_next = (1 + sigmas[i] ** 2).sqrt(), (1 + sigmas[i + 1] ** 2).sqrt()
        theirs = scheduler.step(output, scheduler.timesteps[i], (x.double() * scale).float()).prev_sample.double() / scale_next
        mean, std = gaussian_step(
            x, output, *path.coefficients(times[i : i + 1]), *path.coefficients(times[i + 1 : i + 2]), prediction="v", eta=1.0
        )
        ours = mean + std.reshape(-1, 1, 1) * noise
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max(), i
    assert std.item() == 0  # the last sigma is 0


def test_tango_ddpm_step_equals_ours_but_for_the_last() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=TANGO[0], beta_end=TANGO[1], beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        timestep_spacing="leading", prediction_type="v_prediction", variance_type="fixed_small",
    )  # fmt: skip
    scheduler.set_timesteps(10)
    path, x, output = PATHS["discrete-v"], randn(1, *SHAPE), randn(1, *SHAPE, seed=1)
    times = path.times(10)
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(5)).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        mean, std = gaussian_step(
            x, output, *path.coefficients(times[i : i + 1]), *path.coefficients(times[i + 1 : i + 2]), prediction="v", eta=1.0
        )
        ours = mean + std.reshape(-1, 1, 1) * noise
        assert torch.allclose(ours, theirs, atol=2e-5) == (i < 9)


# ---- the Gaussian step by its own laws


def test_eta_zero_is_the_ode_and_cps_one_is_ping_pong() -> None:
    path = Straight()
    clean, noise = randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    now, after = path.coefficients(torch.tensor([0.8, 0.8])), path.coefficients(torch.tensor([0.6, 0.6]))
    x = 0.2 * clean + 0.8 * noise
    mean, std = gaussian_step(x, noise - clean, *now, *after, prediction="velocity", eta=0.0)
    assert std.tolist() == [0, 0] and torch.allclose(mean, 0.4 * clean + 0.6 * noise, atol=1e-6)
    assert torch.allclose(mean, x + (noise - clean) * (0.6 - 0.8), atol=1e-6)  # Euler
    mean, std = gaussian_step(x, noise - clean, *now, *after, prediction="velocity", eta=1.0, rule="cps")
    assert std.tolist() == pytest.approx([0.6, 0.6]) and torch.allclose(mean, 0.4 * clean, atol=1e-6)
    mean, std = gaussian_step(x, noise - clean, *now, *after, prediction="velocity", eta=torch.tensor([0.5, 0.0]), rule="cps")
    assert std.tolist() == pytest.approx([0.6 * math.sin(math.pi / 4), 0.0])
    expected = 0.4 * clean[0] + math.sqrt(0.36 - 0.18) * noise[0]
    assert torch.allclose(mean[0], expected, atol=1e-6)


def test_known_stds_of_the_released_schedules() -> None:
    stds = step_stds(PATHS["discrete-eps"], Sampler(50))
    assert [stds[0].item(), stds[-2].item(), stds[-1].item()] == pytest.approx([0.561, 0.052, 0.027], abs=1e-3)
    assert step_stds(VPDiscrete.from_betas(*AUDIOLDM2, steps_offset=0), Sampler(10))[-1] == 0


def test_degenerate_steps_are_finite() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    for rule in ("ddim", "cps"):
        assert step_std(one, zero, one, zero, eta=1.0, rule=rule).tolist() == [0.0]  # clean to clean
        assert math.isfinite(step_std(zero, one, zero, one, eta=1.0, rule=rule).item())  # noise to noise
    mean, std = gaussian_step(randn(1, 2), randn(1, 2), zero, one, one, zero, prediction="v", eta=1.0)
    assert bool(mean.isfinite().all()) and std.item() == 0


def test_step_is_float32_whatever_comes_in() -> None:
    path = PATHS["discrete-v"]
    now, after = path.coefficients(torch.tensor([501])), path.coefficients(torch.tensor([401]))
    x, output = randn(1, *SHAPE).bfloat16(), randn(1, *SHAPE, seed=1).bfloat16()
    low = gaussian_step(x, output, *now, *after, prediction="v", eta=1.0)
    high = gaussian_step(x.float(), output.float(), *now, *after, prediction="v", eta=1.0)
    assert low[0].dtype == torch.float32 and torch.equal(low[0], high[0]) and torch.equal(low[1], high[1])


def test_batched_times_equal_a_loop() -> None:
    path, times = PATHS["discrete-eps"], PATHS["discrete-eps"].times(10)
    x, output, order = randn(10, *SHAPE), randn(10, *SHAPE, seed=1), torch.randperm(10)
    now, after = path.coefficients(times[order]), path.coefficients(times[order + 1])
    mean, std = gaussian_step(x, output, *now, *after, prediction="eps", eta=0.7)
    for row in range(10):
        one = slice(row, row + 1)
        mean_one, std_one = gaussian_step(
            x[one], output[one], now[0][one], now[1][one], after[0][one], after[1][one], prediction="eps", eta=0.7
        )
        assert torch.equal(mean[one], mean_one) and torch.equal(std[one], std_one)


@pytest.mark.parametrize("path", [VPCosine("v"), VPDiscrete.from_betas(*AUDIOLDM2, "v")], ids=["cosine", "discrete"])
def test_marginals_are_preserved_on_gaussian_data(path: Path) -> None:
    """Unit Gaussian data: E[clean | x] = alpha x, E[noise | x] = sigma x, so the exact v is 0. The final std nears 1."""

    def exact_v(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        return torch.zeros_like(x)

    deficit = []
    for steps in (10, 40, 160):
        one, generators = Conditioning({"none": torch.zeros(1)}), [noise_generator(0, 0, "p", 0)]
        result = rollout(exact_v, path, Sampler(steps, eta=1.0), [Prompt("p", "")], one, None, (50000,), generators)
        deficit.append(1 - result.clean.std().item())
    assert deficit[0] > 2.5 * deficit[1] > 6 * deficit[2] and abs(deficit[2]) < 0.04  # first order in the step size


# ---- log-probability


def test_log_prob_equals_torch_normal() -> None:
    x_next, mean, std = randn(3, *SHAPE), randn(3, *SHAPE, seed=1), torch.tensor([0.03, 0.4, 1.2])
    expected = torch.distributions.Normal(mean.double(), std.double()[:, None, None]).log_prob(x_next.double()).mean((1, 2))
    assert torch.allclose(log_prob(x_next, mean, std).double(), expected, rtol=1e-6)


def test_log_prob_counts_scored_elements_only() -> None:
    x_next, mean, std = randn(2, 3, 4), randn(2, 3, 4, seed=1), torch.tensor([0.5, 0.7])
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])[:, None, :]
    got = log_prob(x_next, mean, std, mask)
    assert got[0].item() == pytest.approx(log_prob(x_next[:1, :, :2], mean[:1, :, :2], std[:1]).item(), rel=1e-6)
    assert got[1].item() == pytest.approx(log_prob(x_next[1:, :, :3], mean[1:, :, :3], std[1:]).item(), rel=1e-6)
    x_next[:, :, 3] = float("nan")
    assert torch.equal(log_prob(x_next, mean, std, mask), got)


def test_log_prob_takes_the_action_as_given() -> None:
    mean, x_next = randn(2, *SHAPE).requires_grad_(), randn(2, *SHAPE, seed=1).requires_grad_()
    log_prob(x_next, mean, torch.tensor([0.5, 2.0])).sum().backward()
    assert x_next.grad is None
    expected = (x_next - mean).detach() / torch.tensor([0.25, 4.0])[:, None, None] / 15
    assert torch.allclose(mean.grad, expected, rtol=1e-5)


def test_log_prob_refuses_zero_std_and_bad_masks() -> None:
    with pytest.raises(ValueError, match=r"rows \[1\] have std 0"):
        log_prob(randn(2, 3), randn(2, 3), torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match=r"rows \[0\] have no scored element"):
        scored_mean(randn(2, 3), torch.tensor([[False] * 3, [True] * 3]))
    with pytest.raises(ValueError, match="does not fit"):
        scored_mean(randn(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="did you mean 'cps'"):
        step_std(*[torch.ones(1)] * 4, eta=1.0, rule="cp")


# ---- guidance


def test_guidance_is_one_forward_unconditional_first() -> None:
    seen = []

    def spy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(conditioning["tokens"][:, 0, 0].tolist())
        return predict(x, time_B, conditioning)

    x, time = randn(2, *SHAPE), torch.tensor([0.3, 0.6])
    conditioning = Conditioning({"tokens": torch.full((2, 3, 1), 5.0)})
    negative = Conditioning({"tokens": torch.full((2, 2, 1), -5.0)})
    got = guided_output(spy, x, time, conditioning, negative, 3.0)
    assert seen == [[-5.0, -5.0, 5.0, 5.0]]
    padded = Conditioning({"tokens": torch.tensor([-5.0, -5.0, 0.0]).reshape(1, 3, 1).expand(2, 3, 1)})
    low, high = predict(x, time, padded), predict(x, time, conditioning)
    assert torch.allclose(got, low + 3 * (high - low), atol=1e-5)
    seen.clear()
    assert torch.equal(guided_output(spy, x, time, conditioning, negative, 1.0), high)
    assert torch.equal(guided_output(spy, x, time, conditioning, None, 1.0), high) and len(seen) == 2
    seen.clear()
    guided_output(spy, x, time, conditioning, negative, 3.0, detach_unconditional=True)
    assert seen == [[-5.0, -5.0], [5.0, 5.0]]


@pytest.mark.parametrize(("detach", "expected"), [(False, 1.0), (True, 3.0)])
def test_detached_guidance_takes_no_gradient_from_the_unconditional_branch(detach: bool, expected: float) -> None:
    weight = torch.ones((), requires_grad=True)
    both = Conditioning({"tokens": torch.zeros(1, 1, 1)})
    output = guided_output(lambda x, t, c: weight * x, torch.ones(1, 2), torch.zeros(1), both, both, 3.0, detach)
    output.mean().backward()
    assert weight.grad.item() == pytest.approx(expected)


def test_guidance_refuses_wrong_rows_and_shapes() -> None:
    x, time, two, three = randn(2, 3), torch.zeros(2), conditioning_of(2), conditioning_of(3)
    with pytest.raises(ValueError, match="conditioning has 3 rows for 2 latents"):
        guided_output(predict, x, time, three, None, 1.0)
    with pytest.raises(ValueError, match="negative has 3 rows"):
        guided_output(predict, x, time, two, three, 2.0)
    with pytest.raises(ValueError, match=r"put out shape \(2, 2\)"):
        guided_output(lambda x, t, c: x[:, :2], x, time, two, None, 1.0)


# ---- sampler and noise


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": 3, "eta": (1.0, 0.0)}, "expected 3, got 2"),
        ({"steps": 2, "eta": 1.5}, r"eta lies in \[0, 1\]"),
        ({"steps": 2, "eta": (0.5, -0.1)}, r"\[-0.1\]"),
        ({"steps": 2, "eta": float("nan")}, "eta lies in"),
        ({"steps": 2, "rule": "ddmi"}, "did you mean 'ddim'"),
        ({"steps": 2, "guidance_scale": -1.0}, "guidance_scale"),
    ],
)
def test_sampler_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**values)


def test_sampler_etas() -> None:
    assert Sampler(3, eta=0.5).etas == (0.5, 0.5, 0.5)
    sampler = Sampler(2, eta=[1, 0])  # a list, as YAML gives it
    assert sampler.etas == sampler.eta == (1.0, 0.0) and hash(sampler) == hash(Sampler(2, eta=(1.0, 0.0)))


def test_noise_is_keyed_by_all_four_values() -> None:
    keys = [(1, 0, "a", 0), (2, 0, "a", 0), (1, 1, "a", 0), (1, 0, "b", 0), (1, 0, "a", 1), (11, 0, "a", 0), (1, 10, "a", 0)]
    draws = {torch.randn(1, generator=noise_generator(*key)).item() for key in keys}
    assert len(draws) == len(keys)
    assert torch.equal(torch.randn(3, generator=noise_generator(*keys[0])), torch.randn(3, generator=noise_generator(*keys[0])))


# ---- rollout


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", PATHS)
def test_rollout_of_any_rank_is_float32_and_consistent(name: str, shape: tuple[int, ...]) -> None:
    calls = []
    path, sampler = PATHS[name], Sampler(5, guidance_scale=2.0)
    result = sample(path, sampler, shape=shape, progress=lambda step, steps: calls.append((step, steps)))
    assert calls == [(i, 5) for i in range(1, 6)]
    assert result.latents_SB.shape == (6, 4, *shape) and result.latents_SB.dtype == torch.float32
    assert result.log_prob_SB.shape == (5, 4) and result.std_S.shape == (5,) and result.times_S.shape == (6,)
    assert torch.equal(result.std_S, step_stds(path, sampler)) and bool(result.latents_SB.isfinite().all())
    deterministic = result.std_S == 0
    assert deterministic.tolist() == [False] * 4 + [not isinstance(path, VPDiscrete)]
    assert bool((result.log_prob_SB[deterministic] == 0).all()) and bool((result.log_prob_SB[~deterministic] != 0).all())


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    sampler = Sampler(4, guidance_scale=2.0)
    together, alone = sample(VPCosine(), sampler, 4), sample(VPCosine(), sampler, 1, first=2)
    assert torch.equal(together.latents_SB[0, 2], alone.latents_SB[0, 0])
    assert torch.allclose(together.latents_SB[:, 2], alone.latents_SB[:, 0], atol=1e-6)
    ode = sample(VPCosine(), replace(sampler, eta=(1.0, 0.0, 1.0, 1.0)), 1, first=2)
    assert torch.equal(ode.latents_SB[:2], alone.latents_SB[:2]) and ode.std_S[1] == 0


def test_a_half_precision_network_leaves_the_trajectory_in_float32() -> None:
    half = rollout(
        lambda x, t, c: (x * 0.5).bfloat16(), VPCosine(), Sampler(3), [Prompt("p", "")], conditioning_of(1), None, (4,),
        [noise_generator(0, 0, "p", 0)],
    )  # fmt: skip
    assert half.latents_SB.dtype == half.log_prob_SB.dtype == torch.float32


def test_networks_get_whole_steps_or_float32_times() -> None:
    seen = {}

    def spy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        seen[key] = (time_B.dtype, tuple(time_B.shape))
        return x * 0.1

    for key in PATHS:
        rollout(spy, PATHS[key], Sampler(2), [Prompt("p", "")], conditioning_of(1), None, (4,), [noise_generator(0, 0, "p", 0)])
        assert seen[key] == (torch.long if isinstance(PATHS[key], VPDiscrete) else torch.float32, (1,))


def test_rollout_refuses_before_the_first_forward() -> None:
    def never(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        raise AssertionError("a forward was made")

    two, generators, prompts = conditioning_of(2), [noise_generator(0, 0, "p", i) for i in range(2)], [Prompt("p", "")] * 2
    with pytest.raises(ValueError, match="'generators': 1"):
        rollout(never, VPCosine(), Sampler(2), prompts, two, None, (4,), generators[:1])
    with pytest.raises(ValueError, match="'negative': 3"):
        rollout(never, VPCosine(), Sampler(2, 2.0), prompts, two, conditioning_of(3), (4,), generators)
    with pytest.raises(ValueError, match="needs a negative side"):
        rollout(never, VPCosine(), Sampler(2, 2.0), prompts, two, None, (4,), generators)
    with pytest.raises(ValueError, match="scored_mask"):
        rollout(never, VPCosine(), Sampler(2), prompts, two, None, (4,), generators, scored_mask=torch.ones(1, 3) > 0)


# ---- the importance ratio before the first update


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("detach", [False, True], ids=["one-forward", "detached"])
@pytest.mark.parametrize("name", PATHS)
def test_ratio_is_exactly_one_before_the_first_update(name: str, detach: bool, masked: bool) -> None:
    path, sampler = PATHS[name], Sampler(6, guidance_scale=3.0, detach_unconditional=detach)
    mask = (torch.arange(SHAPE[1]) < 3).reshape(1, 1, -1) if masked else None
    result = sample(path, sampler, scored_mask=mask)
    for step in range(6 if isinstance(path, VPDiscrete) else 5):
        new, mean, std = step_log_prob(predict, path, sampler, result, torch.full((4,), step))
        assert torch.equal((new - result.log_prob_SB[step]).exp(), torch.ones(4))
        assert mean.shape == (4, *SHAPE) and torch.equal(std, result.std_S[step].expand(4))
    mixed = torch.tensor([3, 0, 4, 1])  # every row at another step
    new = step_log_prob(predict, path, sampler, result, mixed)[0]
    assert torch.equal((new - result.log_prob_SB[mixed, torch.arange(4)]).exp(), torch.ones(4))


def log_ratio(result: Trajectory, sampler: Sampler, step: int = 2) -> Tensor:
    new = step_log_prob(predict, VPCosine(), sampler, result, torch.full((4,), step))[0]
    return (new - result.log_prob_SB[step]).abs()


def test_ratio_shows_another_prompts_conditioning_and_swapped_guidance_halves() -> None:
    sampler = Sampler(6, guidance_scale=3.0)
    result = sample(VPCosine(), sampler)
    assert log_ratio(result, sampler).max() == 0
    rolled = [1, 2, 3, 0]
    assert log_ratio(replace(result, conditioning=result.conditioning.rows(rolled)), sampler).min() > 1e-3
    assert log_ratio(replace(result, negative=result.negative.rows(rolled)), sampler).min() > 1e-3
    swapped = replace(result, conditioning=result.negative, negative=result.conditioning)
    assert log_ratio(swapped, sampler).min() > 1e-3
    stored_low = replace(result, latents_SB=result.latents_SB.bfloat16().float())
    assert log_ratio(stored_low, sampler, step=4).max() > 1e-5  # why trajectories are float32


def test_a_padded_conditioning_keeps_the_ratio() -> None:
    """Negatives that are shorter than the prompts are padded alike in rollout and training."""
    sampler, prompts = Sampler(4, guidance_scale=3.0), [Prompt(f"p{i}", "") for i in range(3)]
    conditioning = Conditioning({"tokens": randn(3, 6, 2), "mask": torch.ones(3, 6, dtype=torch.bool)})
    negative = Conditioning({"tokens": randn(3, 2, 2, seed=9), "mask": torch.ones(3, 2, dtype=torch.bool)})
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    result = rollout(predict, VPCosine(), sampler, prompts, conditioning, negative, (5,), generators)
    new = step_log_prob(predict, VPCosine(), sampler, result, torch.tensor([0, 1, 2]))[0]
    assert torch.equal(new, result.log_prob_SB[torch.arange(3), torch.arange(3)])


def test_steps_without_noise_are_refused_by_name() -> None:
    sampler = Sampler(4, eta=(1.0, 0.0, 1.0, 1.0))
    result = sample(VPCosine(), sampler)
    with pytest.raises(ValueError, match=r"step 3 \(time 0.25 -> 0, eta 1\).*leave it out of training"):
        step_log_prob(predict, VPCosine(), sampler, result, torch.tensor([0, 0, 3, 0]))
    with pytest.raises(ValueError, match=r"step 1 \(time 0.75 -> 0.5, eta 0\).*raise its eta"):
        step_log_prob(predict, VPCosine(), sampler, result, torch.ones(4, dtype=torch.long))


def test_scoring_with_another_sampler_is_refused() -> None:
    sampler = Sampler(4, guidance_scale=2.0)
    result, steps = sample(VPCosine(), sampler), torch.zeros(4, dtype=torch.long)
    for other in (replace(sampler, steps=5), replace(sampler, eta=0.5), replace(sampler, rule="cps")):
        with pytest.raises(ValueError, match="other steps, eta, rule or path"):
            step_log_prob(predict, VPCosine(), other, result, steps)
    with pytest.raises(ValueError, match="guidance must be on in rollout and training"):
        step_log_prob(predict, VPCosine(), replace(sampler, guidance_scale=1.0), result, steps)
    with pytest.raises(ValueError, match="one step a sample"):
        step_log_prob(predict, VPCosine(), sampler, result, steps[:2])
    with pytest.raises(ValueError, match=r"steps lie in \[0, 3\]"):
        step_log_prob(predict, VPCosine(), sampler, result, steps + 4)


# ---- denoising error


@pytest.mark.parametrize(("prediction", "expected"), [("eps", 100.0), ("v", 6.8**2), ("velocity", 64.0), ("x0", 4.0)])
def test_denoising_error_by_hand(prediction: str, expected: float) -> None:
    """clean 2, noise 10, alpha .8, sigma .6 and a network that says 0: the error is the target squared."""
    path = VPDiscrete([0.64], prediction)
    clean, noise, time = torch.full((1, 3), 2.0), torch.full((1, 3), 10.0), torch.tensor([0])
    got = denoising_error(lambda x, t, c: torch.zeros_like(x), path, clean, time, noise, conditioning_of(1))
    assert got.tolist() == pytest.approx([expected], rel=1e-6)


def test_denoising_error_noises_along_the_path_and_averages_over_scored_elements() -> None:
    clean, noise, time = randn(2, 3, 4), randn(2, 3, 4, seed=1), torch.tensor([0.25, 0.5])
    seen = []

    def spy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    mask = (torch.arange(4) < 2).reshape(1, 1, 4)
    got = denoising_error(spy, Straight(), clean, time.double(), noise, conditioning_of(2), mask)
    expected_x = (1 - time[:, None, None]) * clean + time[:, None, None] * noise
    assert torch.allclose(seen[0], expected_x, atol=1e-6)
    assert torch.allclose(got, ((noise - clean) ** 2)[:, :, :2].mean((1, 2)), rtol=1e-6)
