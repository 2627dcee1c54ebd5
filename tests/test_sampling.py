"""Guidance, noise, rollout, and the importance ratio before the first update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_paths import PATHS, SHAPE, conditioning_of, randn

from zoo.diffusion import (
    Sampler,
    VPCosine,
    VPDiscrete,
    guided_output,
    noise_generator,
    rollout,
    step_log_prob,
    step_stds,
)
from zoo.types import Conditioning, Path, Prompt, Trajectory


def predict(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
    """A toy network that depends on its conditioning and time."""
    tokens = conditioning["tokens"].mean(dim=(1, 2))
    if "mask" in conditioning.streams:
        tokens = tokens + conditioning["mask"].float().mean(dim=1)
    shift = (tokens + 0.1 * torch.cos(time_B.float())).reshape(-1, *[1] * (x.ndim - 1))
    return 0.8 * x + torch.tanh(x + shift)


def sample(
    path: Path,
    sampler: Sampler,
    count: int = 4,
    shape: tuple[int, ...] = SHAPE,
    first: int = 0,
    **options,
) -> Trajectory:
    conditioning = conditioning_of(6).rows(slice(first, first + count))
    negative = conditioning_of(6, seed=2)
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


# ---- guidance


def test_guidance_is_one_forward_unconditional_first() -> None:
    seen = []

    def spy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(conditioning["tokens"][:, 0, 0].tolist())
        return predict(x, time_B, conditioning)

    x = randn(2, *SHAPE)
    time = torch.tensor([0.3, 0.6])
    conditioning = Conditioning({"tokens": torch.full((2, 3, 1), 5.0)})
    negative = Conditioning({"tokens": torch.full((2, 2, 1), -5.0)})
    got = guided_output(spy, x, time, conditioning, negative, 3.0)
    assert seen == [[-5.0, -5.0, 5.0, 5.0]]
    padded = Conditioning(
        {"tokens": torch.tensor([-5.0, -5.0, 0.0]).reshape(1, 3, 1).expand(2, 3, 1)}
    )
    low, high = predict(x, time, padded), predict(x, time, conditioning)
    assert torch.allclose(got, low + 3 * (high - low), atol=1e-5)
    seen.clear()
    assert torch.equal(guided_output(spy, x, time, conditioning, negative, 1.0), high)
    assert (
        torch.equal(guided_output(spy, x, time, conditioning, None, 1.0), high) and len(seen) == 2
    )
    seen.clear()
    guided_output(spy, x, time, conditioning, negative, 3.0, detach_unconditional=True)
    assert seen == [[-5.0, -5.0], [5.0, 5.0]]


@pytest.mark.parametrize(("detach", "expected"), [(False, 1.0), (True, 3.0)])
def test_detached_guidance_takes_no_gradient_from_the_unconditional_branch(
    detach: bool, expected: float
) -> None:
    weight = torch.ones((), requires_grad=True)
    both = Conditioning({"tokens": torch.zeros(1, 1, 1)})
    output = guided_output(
        lambda x, t, c: weight * x, torch.ones(1, 2), torch.zeros(1), both, both, 3.0, detach
    )
    output.mean().backward()
    assert weight.grad.item() == pytest.approx(expected)


def test_guidance_refuses_wrong_rows_and_shapes() -> None:
    x = randn(2, 3)
    time = torch.zeros(2)
    two = conditioning_of(2)
    three = conditioning_of(3)
    with pytest.raises(ValueError, match="3 rows.* 2 latents"):
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
        ({"steps": 2, "eta": 1.5}, r"eta.*\[0, 1\]"),
        ({"steps": 2, "eta": (0.5, -0.1)}, r"\[-0.1\]"),
        ({"steps": 2, "eta": float("nan")}, "eta.*nan"),
        ({"steps": 2, "rule": "ddmi"}, "did you mean 'ddim'"),
        ({"steps": 2, "guidance_scale": -1.0}, "guidance_scale"),
    ],
)
def test_sampler_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**values)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_negative_is_encoded_only_with_guidance(scale) -> None:
    asked = [Prompt("a", "piano", "noise"), Prompt("b", "bird")]
    positives, negatives = Sampler(2, scale).sides(asked)
    if scale == 1:
        assert positives == [Prompt("a", "piano"), asked[1]] and negatives is None
    else:
        assert positives == asked and negatives == [
            Prompt("a", "noise", "piano"),
            Prompt("b", "", "bird"),
        ]


def test_sampler_etas() -> None:
    assert Sampler(3, eta=0.5).etas == (0.5, 0.5, 0.5)
    sampler = Sampler(2, eta=[1, 0])  # a list, as YAML gives it
    assert sampler.etas == sampler.eta == (1.0, 0.0) and hash(sampler) == hash(
        Sampler(2, eta=(1.0, 0.0))
    )


def test_noise_is_keyed_by_all_four_values() -> None:
    keys = [
        (1, 0, "a", 0),
        (2, 0, "a", 0),
        (1, 1, "a", 0),
        (1, 0, "b", 0),
        (1, 0, "a", 1),
        (11, 0, "a", 0),
        (1, 10, "a", 0),
    ]
    draws = {torch.randn(1, generator=noise_generator(*key)).item() for key in keys}
    assert len(draws) == len(keys)
    assert torch.equal(
        torch.randn(3, generator=noise_generator(*keys[0])),
        torch.randn(3, generator=noise_generator(*keys[0])),
    )


# ---- rollout


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", PATHS)
def test_rollout_of_any_rank_is_float32_and_consistent(name: str, shape: tuple[int, ...]) -> None:
    calls = []
    path = PATHS[name]
    sampler = Sampler(5, guidance_scale=2.0)
    result = sample(
        path, sampler, shape=shape, progress=lambda step, steps: calls.append((step, steps))
    )
    assert calls == [(i, 5) for i in range(1, 6)]
    assert result.latents_SB.shape == (6, 4, *shape) and result.latents_SB.dtype == torch.float32
    assert (
        result.log_prob_SB.shape == (5, 4)
        and result.std_S.shape == (5,)
        and result.times_S.shape == (6,)
    )
    assert torch.equal(result.std_S, step_stds(path, sampler)) and bool(
        result.latents_SB.isfinite().all()
    )
    deterministic = result.std_S == 0
    assert deterministic.tolist() == [False] * 4 + [not isinstance(path, VPDiscrete)]
    assert bool((result.log_prob_SB[deterministic] == 0).all()) and bool(
        (result.log_prob_SB[~deterministic] != 0).all()
    )


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    sampler = Sampler(4, guidance_scale=2.0)
    together = sample(VPCosine(), sampler, 4)
    alone = sample(VPCosine(), sampler, 1, first=2)
    assert torch.equal(together.latents_SB[0, 2], alone.latents_SB[0, 0])
    assert torch.allclose(together.latents_SB[:, 2], alone.latents_SB[:, 0], atol=1e-6)
    ode = sample(VPCosine(), replace(sampler, eta=(1.0, 0.0, 1.0, 1.0)), 1, first=2)
    assert torch.equal(ode.latents_SB[:2], alone.latents_SB[:2]) and ode.std_S[1] == 0


@pytest.mark.parametrize("eta", [1.0, 0.0, (1.0, 0.0, 0.0, 1.0)])
def test_every_step_draws_once_also_where_it_adds_no_noise(eta) -> None:
    conditioning = conditioning_of(1)
    generator = torch.Generator().manual_seed(5)
    other = torch.Generator().manual_seed(5)
    rollout(
        predict,
        VPCosine(),
        Sampler(4, eta=eta),
        [Prompt("p", "text")],
        conditioning,
        None,
        SHAPE,
        [generator],
    )
    for _ in range(5):
        torch.randn(SHAPE, generator=other)
    assert torch.equal(torch.randn(3, generator=generator), torch.randn(3, generator=other))


def test_a_half_precision_network_leaves_the_trajectory_in_float32() -> None:
    half = rollout(
        lambda x, t, c: (x * 0.5).bfloat16(),
        VPCosine(),
        Sampler(3),
        [Prompt("p", "")],
        conditioning_of(1),
        None,
        (4,),
        [noise_generator(0, 0, "p", 0)],
    )
    assert half.latents_SB.dtype == half.log_prob_SB.dtype == torch.float32


def test_networks_get_whole_steps_or_float32_times() -> None:
    seen = {}

    def spy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        seen[key] = (time_B.dtype, tuple(time_B.shape))
        return x * 0.1

    for key in PATHS:
        rollout(
            spy,
            PATHS[key],
            Sampler(2),
            [Prompt("p", "")],
            conditioning_of(1),
            None,
            (4,),
            [noise_generator(0, 0, "p", 0)],
        )
        assert seen[key] == (
            torch.long if isinstance(PATHS[key], VPDiscrete) else torch.float32,
            (1,),
        )


def test_rollout_refuses_before_the_first_forward() -> None:
    def never(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        raise AssertionError("a forward was made")

    two = conditioning_of(2)
    generators = [noise_generator(0, 0, "p", i) for i in range(2)]
    prompts = [Prompt("p", "")] * 2
    with pytest.raises(ValueError, match="'generators': 1"):
        rollout(never, VPCosine(), Sampler(2), prompts, two, None, (4,), generators[:1])
    with pytest.raises(ValueError, match="'negative': 3"):
        rollout(
            never, VPCosine(), Sampler(2, 2.0), prompts, two, conditioning_of(3), (4,), generators
        )
    with pytest.raises(ValueError, match="needs a negative side"):
        rollout(never, VPCosine(), Sampler(2, 2.0), prompts, two, None, (4,), generators)
    with pytest.raises(ValueError, match="scored_mask"):
        rollout(
            never,
            VPCosine(),
            Sampler(2),
            prompts,
            two,
            None,
            (4,),
            generators,
            scored_mask=torch.ones(1, 3) > 0,
        )


# ---- the importance ratio before the first update


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("detach", [False, True], ids=["one-forward", "detached"])
@pytest.mark.parametrize("name", PATHS)
def test_ratio_is_exactly_one_before_the_first_update(
    name: str, detach: bool, masked: bool
) -> None:
    path = PATHS[name]
    sampler = Sampler(6, guidance_scale=3.0, detach_unconditional=detach)
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
    assert (
        log_ratio(replace(result, conditioning=result.conditioning.rows(rolled)), sampler).min()
        > 1e-3
    )
    assert log_ratio(replace(result, negative=result.negative.rows(rolled)), sampler).min() > 1e-3
    swapped = replace(result, conditioning=result.negative, negative=result.conditioning)
    assert log_ratio(swapped, sampler).min() > 1e-3
    stored_low = replace(result, latents_SB=result.latents_SB.bfloat16().float())
    assert log_ratio(stored_low, sampler, step=4).max() > 1e-5  # why trajectories are float32


def test_a_padded_conditioning_keeps_the_ratio() -> None:
    """Negatives shorter than the prompts are padded alike in rollout and training."""
    sampler = Sampler(4, guidance_scale=3.0)
    prompts = [Prompt(f"p{i}", "") for i in range(3)]
    conditioning = Conditioning(
        {"tokens": randn(3, 6, 2), "mask": torch.ones(3, 6, dtype=torch.bool)}
    )
    negative = Conditioning(
        {"tokens": randn(3, 2, 2, seed=9), "mask": torch.ones(3, 2, dtype=torch.bool)}
    )
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    result = rollout(
        predict, VPCosine(), sampler, prompts, conditioning, negative, (5,), generators
    )
    new = step_log_prob(predict, VPCosine(), sampler, result, torch.tensor([0, 1, 2]))[0]
    assert torch.equal(new, result.log_prob_SB[torch.arange(3), torch.arange(3)])


def test_steps_without_noise_are_refused_by_name() -> None:
    sampler = Sampler(4, eta=(1.0, 0.0, 1.0, 1.0))
    result = sample(VPCosine(), sampler)
    with pytest.raises(ValueError, match=r"step 3.*0\.25 -> 0.*eta 1"):
        step_log_prob(predict, VPCosine(), sampler, result, torch.tensor([0, 0, 3, 0]))
    with pytest.raises(ValueError, match=r"step 1 \(time 0.75 -> 0.5, eta 0\).*raise its eta"):
        step_log_prob(predict, VPCosine(), sampler, result, torch.ones(4, dtype=torch.long))


def test_scoring_with_another_sampler_is_refused() -> None:
    sampler = Sampler(4, guidance_scale=2.0)
    result = sample(VPCosine(), sampler)
    steps = torch.zeros(4, dtype=torch.long)
    for other in (
        replace(sampler, steps=5),
        replace(sampler, eta=0.5),
        replace(sampler, rule="cps"),
    ):
        with pytest.raises(ValueError, match="other steps, eta, rule or path"):
            step_log_prob(predict, VPCosine(), other, result, steps)
    with pytest.raises(ValueError, match="guidance must be on both in rollout and training"):
        step_log_prob(predict, VPCosine(), replace(sampler, guidance_scale=1.0), result, steps)
    with pytest.raises(ValueError, match="one step per sample"):
        step_log_prob(predict, VPCosine(), sampler, result, steps[:2])
    with pytest.raises(ValueError, match=r"steps.*\[0, 3\]"):
        step_log_prob(predict, VPCosine(), sampler, result, steps + 4)
