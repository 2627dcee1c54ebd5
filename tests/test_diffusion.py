"""Paths, split and target, and the Gaussian step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toy_paths import AUDIOLDM2, PATHS, SHAPE, TANGO, randn

from zoo.diffusion import (
    Sampler,
    Straight,
    VPCosine,
    VPDiscrete,
    gaussian_step,
    min_snr_weights,
    noise_generator,
    rollout,
    split,
    step_std,
    step_stds,
    target,
)
from zoo.types import Conditioning, Path, Prompt

# ---- paths


def test_discrete_times_are_leading_and_never_use_a_final_alpha_of_one() -> None:
    path = PATHS["discrete-eps"]
    assert path.times(10).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert path.times(19)[0] == 18 * 52 + 1
    assert path.times(10).dtype == torch.long
    assert path.coefficients(torch.tensor([0]))[0].item() == pytest.approx(
        math.sqrt(1 - 0.0015), rel=1e-6
    )
    assert VPDiscrete.from_betas(*AUDIOLDM2, steps_offset=0).times(10).tolist()[-2:] == [0, 0]
    assert "prediction='eps'" in repr(path)


def test_discrete_times_may_end_clean() -> None:
    path = VPDiscrete.from_betas(*AUDIOLDM2, ends_clean=True)
    assert path.times(10).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, -1]
    assert [part.item() for part in path.coefficients(torch.tensor(-1))] == [1, 0]
    assert step_stds(path, Sampler(10))[-1] == 0 and (step_stds(path, Sampler(10))[:-1] > 0).all()
    for wrong in (PATHS["discrete-eps"], path):
        with pytest.raises(ValueError, match=r"a whole number in \[(0|-1), 999\]"):
            wrong.coefficients(torch.tensor([-2 if wrong is path else -1]))


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
    drawn = Straight(training="logit_normal").sample_times(torch.arange(0.5, 1000) / 1000)
    assert (drawn[1:] > drawn[:-1]).all() and drawn[0] > 0 and drawn[-1] < 1
    logit = torch.logit(drawn.double())
    assert logit.mean().abs() < 1e-4 and logit.std() == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPCosine("epsilon"), "did you mean 'eps'"),
        (lambda: VPCosine(spacing="exponent"), "did you mean 'exponential'"),
        (lambda: VPCosine(sigma_min=3.0, sigma_max=2.0), "sigma_min < sigma_max"),
        (lambda: VPDiscrete([0.9, 1.0]), "between 0 and 1"),
        (lambda: VPDiscrete([0.9, 0.8, 0.7]).times(5), "do not fit into 3 training steps"),
        (lambda: PATHS["discrete-eps"].times(1000), "use fewer"),
        (
            lambda: PATHS["discrete-eps"].coefficients(torch.tensor([1000])),
            r"whole number in \[0, 999\]",
        ),
        (lambda: PATHS["discrete-eps"].coefficients(torch.tensor([0.5])), "whole number"),
        (lambda: VPCosine().coefficients(torch.tensor([1.5])), r"\[0, 1\].*1\.5"),
        (lambda: Straight().times(0), "at least 1, got 0"),
    ],
)
def test_paths_refuse_invalid_values(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- split and target


@pytest.mark.parametrize("prediction", ["eps", "v", "velocity", "x0"])
@pytest.mark.parametrize("path", [VPCosine(), Straight()], ids=["cosine", "straight"])
def test_split_inverts_target(path: Path, prediction: str) -> None:
    clean = randn(4, *SHAPE)
    noise = randn(4, *SHAPE, seed=1)
    alpha, sigma = path.coefficients(torch.tensor([0.1, 0.4, 0.7, 0.95]))
    x = alpha[:, None, None] * clean + sigma[:, None, None] * noise
    got_clean, got_noise = split(
        target(clean, noise, alpha, sigma, prediction), x, alpha, sigma, prediction
    )
    assert torch.allclose(got_clean, clean, atol=2e-5) and torch.allclose(
        got_noise, noise, atol=2e-5
    )


def test_targets_by_hand() -> None:
    clean = torch.tensor([[2.0]])
    noise = torch.tensor([[10.0]])
    alpha = torch.tensor([0.8])
    sigma = torch.tensor([0.6])
    values = {
        name: target(clean, noise, alpha, sigma, name).item()
        for name in ("eps", "v", "velocity", "x0")
    }
    assert values == pytest.approx(
        {"eps": 10.0, "v": 0.8 * 10 - 0.6 * 2, "velocity": 8.0, "x0": 2.0}
    )


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
@pytest.mark.parametrize(
    ("betas", "prediction", "name"), [(AUDIOLDM2, "eps", "epsilon"), (TANGO, "v", "v_prediction")]
)
def test_step_equals_diffusers_ddim(
    steps: int, betas: tuple[float, float], prediction: str, name: str
) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=betas[0],
        beta_end=betas[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=name,
    )
    scheduler.set_timesteps(steps)
    path = VPDiscrete.from_betas(*betas, prediction)
    times = path.times(steps)
    assert torch.equal(times[:-1], scheduler.timesteps)
    x = randn(steps, *SHAPE)
    output = randn(steps, *SHAPE, seed=1)
    noise = randn(steps, *SHAPE, seed=2)
    mean, std = gaussian_step(
        x,
        output,
        *path.coefficients(times[:-1]),
        *path.coefficients(times[1:]),
        prediction=prediction,
        eta=1.0,
    )
    ours = mean + std[:, None, None] * noise  # all steps in one batch, each row at another time
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(output[i], t, x[i], eta=1.0, variance_noise=noise[i]).prev_sample
        assert (ours[i] - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("steps", [10, 50, 100])
def test_step_equals_diffusers_first_order_cosine_sde(steps: int) -> None:
    from diffusers import CosineDPMSolverMultistepScheduler

    scheduler = CosineDPMSolverMultistepScheduler(
        sigma_min=0.3,
        sigma_max=500,
        solver_order=1,
        prediction_type="v_prediction",
        sigma_data=1.0,
        sigma_schedule="exponential",
    )
    scheduler.set_timesteps(steps)
    path = VPCosine("v", spacing="exponential", sigma_min=0.3, sigma_max=500)
    times = path.times(steps)
    assert torch.allclose(times[:-1].float(), scheduler.timesteps, rtol=1e-6)
    sigmas = scheduler.sigmas.double()
    # float32 exp() in the scheduler's grid is off by up to 1e-6, so its own sigmas are used for the
    # step
    assert torch.allclose(torch.tan(times[:-1] * math.pi / 2), sigmas[:-1], rtol=2e-6)
    times = torch.atan(sigmas) * 2 / math.pi
    for i in range(steps):
        noise = randn(1, *SHAPE, seed=3 * i)
        output = randn(1, *SHAPE, seed=3 * i + 1)
        x = randn(1, *SHAPE, seed=3 * i + 2)
        scheduler.noise_sampler = lambda sigma, sigma_next, noise=noise: noise
        scale = (1 + sigmas[i] ** 2).sqrt()
        scale_next = (1 + sigmas[i + 1] ** 2).sqrt()
        theirs = (
            scheduler.step(
                output, scheduler.timesteps[i], (x.double() * scale).float()
            ).prev_sample.double()
            / scale_next
        )
        mean, std = gaussian_step(
            x,
            output,
            *path.coefficients(times[i : i + 1]),
            *path.coefficients(times[i + 1 : i + 2]),
            prediction="v",
            eta=1.0,
        )
        ours = mean + std.reshape(-1, 1, 1) * noise
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max(), i
    assert std.item() == 0  # the last sigma is 0


def test_tango_ddpm_step_equals_ours_except_the_last() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=TANGO[0],
        beta_end=TANGO[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
        variance_type="fixed_small",
    )
    scheduler.set_timesteps(10)
    path = PATHS["discrete-v"]
    x = randn(1, *SHAPE)
    output = randn(1, *SHAPE, seed=1)
    times = path.times(10)
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(
            output, t, x, generator=torch.Generator().manual_seed(5)
        ).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        mean, std = gaussian_step(
            x,
            output,
            *path.coefficients(times[i : i + 1]),
            *path.coefficients(times[i + 1 : i + 2]),
            prediction="v",
            eta=1.0,
        )
        ours = mean + std.reshape(-1, 1, 1) * noise
        assert torch.allclose(ours, theirs, atol=2e-5) == (i < 9)


# ---- the Gaussian step by its own laws


def test_eta_zero_is_the_ode_and_cps_one_is_ping_pong() -> None:
    path = Straight()
    clean = randn(2, *SHAPE)
    noise = randn(2, *SHAPE, seed=1)
    now = path.coefficients(torch.tensor([0.8, 0.8]))
    after = path.coefficients(torch.tensor([0.6, 0.6]))
    x = 0.2 * clean + 0.8 * noise
    mean, std = gaussian_step(x, noise - clean, *now, *after, prediction="velocity", eta=0.0)
    assert std.tolist() == [0, 0] and torch.allclose(mean, 0.4 * clean + 0.6 * noise, atol=1e-6)
    assert torch.allclose(mean, x + (noise - clean) * (0.6 - 0.8), atol=1e-6)  # Euler
    mean, std = gaussian_step(
        x, noise - clean, *now, *after, prediction="velocity", eta=1.0, rule="cps"
    )
    assert std.tolist() == pytest.approx([0.6, 0.6]) and torch.allclose(
        mean, 0.4 * clean, atol=1e-6
    )
    mean, std = gaussian_step(
        x,
        noise - clean,
        *now,
        *after,
        prediction="velocity",
        eta=torch.tensor([0.5, 0.0]),
        rule="cps",
    )
    assert std.tolist() == pytest.approx([0.6 * math.sin(math.pi / 4), 0.0])
    expected = 0.4 * clean[0] + math.sqrt(0.36 - 0.18) * noise[0]
    assert torch.allclose(mean[0], expected, atol=1e-6)


def test_known_stds_of_the_released_schedules() -> None:
    stds = step_stds(PATHS["discrete-eps"], Sampler(50))
    assert [stds[0].item(), stds[-2].item(), stds[-1].item()] == pytest.approx(
        [0.561, 0.052, 0.027], abs=1e-3
    )
    assert step_stds(VPDiscrete.from_betas(*AUDIOLDM2, steps_offset=0), Sampler(10))[-1] == 0


def test_degenerate_steps_are_finite() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    for rule in ("ddim", "cps"):
        assert step_std(one, zero, one, zero, eta=1.0, rule=rule).tolist() == [
            0.0
        ]  # clean to clean
        assert math.isfinite(
            step_std(zero, one, zero, one, eta=1.0, rule=rule).item()
        )  # noise to noise
    mean, std = gaussian_step(
        randn(1, 2), randn(1, 2), zero, one, one, zero, prediction="v", eta=1.0
    )
    assert bool(mean.isfinite().all()) and std.item() == 0


def test_rounding_never_takes_the_root_of_a_negative_number() -> None:
    """Levels that differ only in the last bit, and full noise at the end of float64."""
    alpha, sigma = torch.full((1,), 0.6), torch.full((1,), 0.8)
    assert step_std(alpha, sigma, alpha, sigma * (1 + 1e-6), eta=1.0).tolist() == [0.0]
    sigmas = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) + 0.01
    sigma, sigma_next = sigmas.sort(dim=1, descending=True).values.unbind(dim=1)
    x = randn(500, 2)
    zero = torch.zeros(500)
    mean, std_B = gaussian_step(
        x, randn(500, 2), zero, sigma, sigma, sigma_next, prediction="v", eta=1.0
    )
    assert bool(mean.isfinite().all())
    torch.testing.assert_close(std_B, sigma_next)  # nothing of pure noise is kept


def test_step_is_float32_for_any_input() -> None:
    path = PATHS["discrete-v"]
    now = path.coefficients(torch.tensor([501]))
    after = path.coefficients(torch.tensor([401]))
    x = randn(1, *SHAPE).bfloat16()
    output = randn(1, *SHAPE, seed=1).bfloat16()
    low = gaussian_step(x, output, *now, *after, prediction="v", eta=1.0)
    high = gaussian_step(x.float(), output.float(), *now, *after, prediction="v", eta=1.0)
    assert (
        low[0].dtype == torch.float32
        and torch.equal(low[0], high[0])
        and torch.equal(low[1], high[1])
    )


def test_batched_times_equal_a_loop() -> None:
    path = PATHS["discrete-eps"]
    times = PATHS["discrete-eps"].times(10)
    x = randn(10, *SHAPE)
    output = randn(10, *SHAPE, seed=1)
    order = torch.randperm(10)
    now = path.coefficients(times[order])
    after = path.coefficients(times[order + 1])
    mean, std = gaussian_step(x, output, *now, *after, prediction="eps", eta=0.7)
    for row in range(10):
        one = slice(row, row + 1)
        mean_one, std_one = gaussian_step(
            x[one],
            output[one],
            now[0][one],
            now[1][one],
            after[0][one],
            after[1][one],
            prediction="eps",
            eta=0.7,
        )
        assert torch.equal(mean[one], mean_one) and torch.equal(std[one], std_one)


@pytest.mark.parametrize(
    "path", [VPCosine("v"), VPDiscrete.from_betas(*AUDIOLDM2, "v")], ids=["cosine", "discrete"]
)
def test_marginals_are_preserved_on_gaussian_data(path: Path) -> None:
    """Unit Gaussian data:

    E[clean | x] = alpha x, E[noise | x] = sigma x, so the exact v is 0. The final std nears 1.
    """

    def exact_v(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        return torch.zeros_like(x)

    deficit = []
    for steps in (10, 40, 160):
        one = Conditioning({"none": torch.zeros(1)})
        generators = [noise_generator(0, 0, "p", 0)]
        result = rollout(
            exact_v,
            path,
            Sampler(steps, eta=1.0),
            [Prompt("p", "")],
            one,
            None,
            (50000,),
            generators,
        )
        deficit.append(1 - result.clean.std().item())
    assert (
        deficit[0] > 2.5 * deficit[1] > 6 * deficit[2] and abs(deficit[2]) < 0.04
    )  # first order in the step size


@pytest.mark.parametrize(("form", "mean"), [("snr", 0.917), ("prediction", 0.294)])
def test_the_mean_min_snr_weight_of_tango_is_as_documented(form, mean):
    """docs/reward_weighted.md"""
    path = VPDiscrete.from_betas(0.00085, 0.012, "v", steps_offset=1, ends_clean=True)
    alpha_T, sigma_T = path.coefficients(torch.arange(1000))
    weight_T = min_snr_weights(alpha_T, sigma_T, "v", 5.0, form)
    assert weight_T.mean().item() == pytest.approx(mean, abs=1e-3)
