"""Generation and training render samples the same way."""

from __future__ import annotations

import pytest
import torch
from toys import SMALL, ToyReward

import zoo
from datamodules.batches import PromptBatch
from lightning_modules.rl.reward_queue import score
from lightning_modules.rl.rollouts import sample_and_score
from zoo.backbones.tiny import TinyAudio
from zoo.diffusion import Sampler, VPCosine, noise_generator, sample_latents, step_stds
from zoo.rendering import encode_all, encode_sides, render
from zoo.types import Conditioning, Prompt, RewardOutput, Waveform

PROMPTS = [
    Prompt(name, f"A {name} harp", "hiss", seconds=0.3, labels={"mood": name})
    for name in ("sad", "happy")
]


@pytest.fixture(scope="module")
def backbone() -> TinyAudio:
    torch.manual_seed(3)
    model = TinyAudio(**SMALL).eval()
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_round_and_generate_make_the_same_waves(backbone, scale):
    sampler = Sampler(2, scale)
    batch = PromptBatch(tuple(PROMPTS), (0, 0), 0)
    made = sample_and_score(
        backbone,
        ToyReward(),
        sampler,
        batch,
        seed=7,
        sample_batch_size=2,
        device=torch.device("cpu"),
        keep="wave",
    ).wave_BCN
    waves = zoo.generate(backbone, PROMPTS, seeds=7, steps=2, guidance_scale=scale)
    assert len(waves) == 2 and not torch.equal(made[0], made[1])
    for own, wave in zip(made, waves, strict=True):
        assert torch.equal(own.clamp(-1, 1), wave.samples_CN)
        assert wave.samples_CN.shape == (backbone.channels, PROMPTS[0].samples(wave.sample_rate_hz))


def test_equal_prompts_are_encoded_once_and_keep_their_places(backbone):
    asked = []

    class Counting:
        def encode_prompts(self, prompts):
            asked.append([prompt.id for prompt in prompts])
            return backbone.encode_prompts(prompts)

    order = [PROMPTS[i] for i in (0, 1, 0, 0)]
    found = encode_all(Counting(), order, batch_size=1)
    assert asked == [["sad"], ["happy"]] and len(found) == 4
    alone = backbone.encode_prompts(PROMPTS[1:])
    for name, stream in alone.streams.items():
        assert torch.equal(
            found[name][1][: stream.shape[1] if stream.ndim > 1 else None], stream[0]
        )
        assert torch.equal(found[name][2], found[name][0])


def test_one_batch_has_one_length(backbone):
    prompts = [PROMPTS[0], Prompt("long", "A long harp", seconds=0.5)]
    encoded = encode_sides(backbone, Sampler(2), prompts, 2)
    noise = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    with pytest.raises(ValueError, match=r"0\.3, 0\.5.*seconds"):
        render(backbone, Sampler(2), prompts, encoded, noise, device="cpu")


@pytest.mark.parametrize("last_only", [True, False])
def test_the_gradient_of_a_sample_by_hand(last_only):
    """Two steps of a network that puts out w x for v, the second of which ends at the clean
    latents: x2 = (a1 - s1 w) x1, and x1 is linear in w too.
    """
    weight = torch.tensor(0.3, requires_grad=True)
    path = VPCosine("v")
    sampler = Sampler(2, eta=0.5)

    def predict(x, time_B, conditioning):
        with torch.set_grad_enabled(not last_only or bool((time_B < 1).all())):
            return weight * x

    one = Conditioning({"none": torch.zeros(1)})
    arguments = (predict, path, sampler, one, None, (3,))
    clean = sample_latents(*arguments, [noise_generator(0, 0, "p", 0)])
    [got] = torch.autograd.grad(clean.sum(), weight)
    noise = noise_generator(0, 0, "p", 0)
    x0, drawn = torch.randn(3, generator=noise), torch.randn(3, generator=noise)
    (_, a1, _), (s0, s1, _) = path.coefficients(path.times(2))  # a0 is 0: pure noise
    std = step_stds(path, sampler)[0]
    direction = (s1**2 - std**2).sqrt()
    w = weight.item()
    x1 = a1 * -s0 * w * x0 + direction * s0 * x0 + std * drawn
    wanted = (-s1 * x1).sum()
    if not last_only:
        wanted = wanted + ((a1 - s1 * w) * a1 * -s0 * x0).sum()
    assert torch.allclose(clean[0], (a1 - s1 * w) * x1, atol=1e-6)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)


class Loudness:
    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        loudness_B = wave_BCN.square().mean(dim=(1, 2))
        return RewardOutput(loudness_B, {"loudness": loudness_B}, {"wave": wave_BCN[:, 0]})


class Opaque(Loudness):
    differentiable = False


def test_a_reward_teaches_the_weights_through_the_sampler(backbone):
    """From prompts to a score: the gradient is the slope of the score along it."""
    sampler = Sampler(2, 2.0)
    weights = list(backbone.denoiser.parameters())

    def mean_score():
        with torch.no_grad():
            encoded = encode_sides(backbone, sampler, PROMPTS, 2)
        noise = [noise_generator(0, 0, prompt.id, 0) for prompt in PROMPTS]
        wave_BCN = render(backbone, sampler, PROMPTS, encoded, noise, device="cpu")
        return score(Loudness(), wave_BCN, backbone.sample_rate_hz, PROMPTS).score_B.mean()

    gradients = torch.autograd.grad(mean_score(), weights, allow_unused=True)
    pairs = [(p, g) for p, g in zip(weights, gradients, strict=True) if g is not None]
    length = torch.stack([gradient.norm() for _, gradient in pairs]).norm().item()
    scores = []
    size = 1e-3
    with torch.no_grad():
        for sign in (1, -2, 1):  # there, to the other side, and back
            for weight, gradient in pairs:
                weight += sign * size / length * gradient
            scores.append(mean_score().item())
    assert length > 0
    assert (scores[0] - scores[1]) / (2 * size) == pytest.approx(length, rel=0.05)


@pytest.mark.parametrize(("reward", "has_gradient"), [(Loudness(), True), (Opaque(), False)])
def test_scores_carry_a_gradient_only_of_a_differentiable_reward(reward, has_gradient):
    samples_CN = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    given = samples_CN.clone().requires_grad_()
    answers = [
        zoo.score(reward, Waveform(given, 16), "a harp"),
        score(reward, given[None], 16, PROMPTS[:1]),
    ]
    for output in answers:
        tensors = (output.score_B, output.parts["loudness"], output.vectors["wave"])
        assert [tensor.requires_grad for tensor in tensors] == [has_gradient] * 3
        if has_gradient:
            [slope] = torch.autograd.grad(output.score_B.sum(), given)
            assert torch.allclose(slope, 2 * samples_CN / samples_CN.numel())
    with torch.no_grad():
        assert not score(reward, given[None], 16, PROMPTS[:1]).score_B.requires_grad
        assert not zoo.score(reward, Waveform(given, 16), "a harp").score_B.requires_grad
    plain = zoo.score(reward, Waveform(samples_CN, 16), "a harp")
    assert not plain.score_B.requires_grad
