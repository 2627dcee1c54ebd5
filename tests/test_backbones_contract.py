"""The contract of every backbone of the table (``zoo/types.py``, ``Backbone``)."""

import json
from dataclasses import replace

import pytest
import torch
from toy_backbones import ARGUMENTS, build

from datamodules.batches import PromptBatch
from lightning_modules.latent_errors import latent_errors
from lightning_modules.rl.rollouts import sample_and_score
from zoo.backbones import BACKBONES
from zoo.backbones.lora import add_lora, attention_linears, reference
from zoo.backbones.tiny import TinyAudio
from zoo.diffusion import Sampler, noise_generator, rollout
from zoo.generation import generate
from zoo.types import Backbone, Conditioning, Path, Prompt, RewardOutput

PROMPTS = (
    Prompt("a", "sad piano", "noise", 0.5),
    Prompt(
        "b", "a long and happy recording of an acoustic guitar with a bird in front", "noise", 0.5
    ),
    Prompt("c", "", "noise", 0.5),
)


def test_arguments_are_of_backbones_of_the_table():
    assert set(ARGUMENTS) <= set(BACKBONES)


@pytest.fixture(params=sorted(BACKBONES))
def key(request):
    return request.param


@pytest.fixture
def backbone(key):
    """A backbone in eval mode; its zero-initialised tensors are moved: no layer is an identity."""
    model = build(key).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


class Level:
    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(wave_BCN.square().mean(dim=(1, 2)))


def noisy(backbone, rows, seconds=0.5):
    shape = (rows, *backbone.latent_shape(seconds))
    time_B = backbone.path.sample_times((torch.arange(rows) + 0.5) / rows)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)), time_B


def wave(backbone, rows, samples):
    return 0.1 * torch.randn(
        rows, backbone.channels, samples, generator=torch.Generator().manual_seed(3)
    )


def test_it_plays_the_role(backbone):
    assert (
        isinstance(backbone, Backbone)
        and isinstance(backbone, torch.nn.Module)
        and isinstance(backbone.path, Path)
    )
    assert (
        isinstance(backbone.sample_rate_hz, int)
        and backbone.sample_rate_hz > 0
        and backbone.channels in (1, 2)
    )
    assert "denoiser" in dict(backbone.named_children())


@pytest.mark.long
def test_arguments_are_plain_and_make_the_same_model(key, backbone):
    kept = json.loads(json.dumps(backbone.arguments, allow_nan=False))
    assert kept == backbone.arguments and kept.items() >= ARGUMENTS.get(key, {}).items()
    again = type(backbone)(**kept)
    assert again.arguments == backbone.arguments
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in backbone.state_dict().items()
    }


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.777])
def test_latents_have_the_promised_shape_and_cover_the_length(backbone, seconds):
    samples = round(seconds * backbone.sample_rate_hz)
    latents = backbone.encode(wave(backbone, 2, samples))
    assert latents.shape == (2, *backbone.latent_shape(seconds))
    made = backbone.decode(latents)
    assert (
        made.shape[:2] == (2, backbone.channels)
        and samples <= made.shape[-1] < samples + 0.2 * backbone.sample_rate_hz
    )
    assert made.dtype == torch.float32 and made.isfinite().all()


def test_encoding_is_deterministic_and_row_by_row(backbone):
    waves = wave(backbone, 3, 8000)
    together = backbone.encode(waves)
    assert torch.equal(together, backbone.encode(waves))
    torch.testing.assert_close(backbone.encode(waves[1:2]), together[1:2], atol=1e-5, rtol=1e-4)


def test_decoding_lets_gradients_through(backbone):
    latent = noisy(backbone, 2)[0].requires_grad_()
    backbone.decode(latent)[0].square().sum().backward()
    assert latent.grad.isfinite().all() and latent.grad[0].any()
    assert not latent.grad[1].any()  # the other sample has no part in it


def test_predictions_look_like_latents(backbone):
    latent, time_B = noisy(backbone, 3)
    conditioning = backbone.encode_prompts(PROMPTS)
    assert isinstance(conditioning, Conditioning) and len(conditioning) == len(PROMPTS)
    output = backbone.predict(latent, time_B, conditioning)
    assert (
        output.shape == latent.shape and output.dtype == torch.float32 and output.isfinite().all()
    )


def test_a_prompt_means_the_same_alone_and_among_others(backbone):
    latent, time_B = noisy(backbone, 3)
    conditioning = backbone.encode_prompts(PROMPTS)
    with torch.no_grad():
        together = backbone.predict(latent, time_B, conditioning)
        joined = Conditioning.cat([backbone.encode_prompts([prompt]) for prompt in PROMPTS])
        torch.testing.assert_close(
            backbone.predict(latent, time_B, joined), together, atol=1e-5, rtol=1e-5
        )
        for row, prompt in enumerate(PROMPTS):
            for alone in (backbone.encode_prompts([prompt]), conditioning.rows([row])):
                output = backbone.predict(latent[row : row + 1], time_B[row : row + 1], alone)
                torch.testing.assert_close(output, together[row : row + 1], atol=1e-5, rtol=1e-5)


def test_prompts_and_times_matter(backbone):
    latent, time_B = noisy(backbone, 3)
    latent, time_B = latent[:1].expand_as(latent), time_B[:1].expand_as(time_B)
    with torch.no_grad():
        outputs = backbone.predict(latent, time_B, backbone.encode_prompts(PROMPTS))
        later = backbone.predict(
            latent, noisy(backbone, 3)[1], backbone.encode_prompts(PROMPTS[:1] * 3)
        )
    for many in (outputs, later):
        assert min((many[i] - many[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_only_the_adapter_learns_and_off_it_is_the_base(backbone):
    latent, time_B = noisy(backbone, 3)
    backbone.requires_grad_(False)
    conditioning = backbone.encode_prompts(PROMPTS)
    base = backbone.predict(latent, time_B, conditioning)
    assert attention_linears(backbone.denoiser, cross_only=True)
    add_lora(backbone, rank=2)
    adapter = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert adapter and all(name.startswith("denoiser.") and "lora_" in name for name in adapter)
    with torch.no_grad():
        for parameter in adapter.values():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.1
            )
    output = backbone.predict(latent, time_B, conditioning)
    assert (output - base).abs().max() > 1e-4
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.values())
    assert all(p.grad is None for name, p in backbone.named_parameters() if name not in adapter)
    with reference(backbone), torch.no_grad():
        assert torch.equal(backbone.predict(latent, time_B, conditioning), base)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_sample_does_not_depend_on_its_batch(backbone, guidance_scale):
    """In float64 where possible, because float32 rounding depends on the batch size."""
    # TinyAudio's embeddings of time and length are float32
    dtype = torch.float32 if isinstance(backbone, TinyAudio) else torch.float64
    sampler = Sampler(steps=3, guidance_scale=guidance_scale)
    backbone = backbone.to(dtype)

    def predict(latent, time_B, conditioning):
        return backbone.predict(latent.to(dtype), time_B.to(dtype), conditioning)

    def sample(prompts):
        conditioning, negative = (
            backbone.encode_prompts(side) for side in (prompts, [p.as_negative() for p in prompts])
        )
        generators = [noise_generator(7, 0, prompt.id, 0) for prompt in prompts]
        shape = backbone.latent_shape(prompts[0].seconds)
        return rollout(
            predict, backbone.path, sampler, prompts, conditioning, negative, shape, generators
        )

    with torch.no_grad():
        three = sample(PROMPTS)
        one = sample(PROMPTS[1:2])
    assert three.clean.shape == (3, *backbone.latent_shape(0.5)) and three.clean.isfinite().all()
    torch.testing.assert_close(one.clean[0], three.clean[1], atol=1e-5, rtol=1e-5)
    assert (three.clean[0] - three.clean[1]).abs().max() > 0.1


LONG_NEGATIVE = "noise and rain on a roof while a dog barks and a bird sings with strings"


@pytest.mark.long
def test_without_guidance_a_negative_has_no_effect(backbone):
    """In generation, evaluation, rollout and training on clean latents."""
    with_negative = [replace(prompt, negative=LONG_NEGATIVE) for prompt in PROMPTS]
    without = [replace(prompt, negative="") for prompt in PROMPTS]

    def made(prompts, scale):
        waves = generate(backbone, prompts, steps=2, guidance_scale=scale)
        return torch.stack([wave.samples_CN for wave in waves])

    def rolled_out(prompts, scale):
        reward = Level()
        batch = PromptBatch(tuple(prompts), (0, 0, 0), 0)
        return sample_and_score(
            backbone,
            reward,
            Sampler(2, scale),
            batch,
            seed=0,
            sample_batch_size=2,
            device=torch.device("cpu"),
        ).trajectory.latents_SB

    for path in (made, rolled_out):
        assert torch.equal(path(with_negative, 1.0), path(without, 1.0))
        assert not torch.equal(path(with_negative, 2.0), path(without, 2.0))
    clean, time_B = noisy(backbone, 3)
    with torch.no_grad():
        errors = [
            latent_errors(backbone, clean, side, time_B, clean) for side in (with_negative, without)
        ]
    assert torch.equal(*errors)


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.1, 1 / 3, 0.25001, 0.5])
def test_generation_and_rollout_cut_a_clip_alike(backbone, seconds):
    prompt = replace(PROMPTS[0], seconds=seconds)
    lengths = {generate(backbone, [prompt], steps=1, guidance_scale=1.0)[0].samples_CN.shape[-1]}
    settings = {"seed": 0, "sample_batch_size": 1, "device": torch.device("cpu"), "keep": "wave"}
    batch = PromptBatch((prompt,), (0,), 0)
    for scale in (1.0, 2.0):
        wave_BCN = sample_and_score(
            backbone, Level(), Sampler(1, scale), batch, **settings
        ).wave_BCN
        lengths.add(wave_BCN.shape[-1])
    assert lengths == {prompt.samples(backbone.sample_rate_hz)}


def test_weights_go_out_and_in_again(key, backbone):
    other = build(key).eval()
    other.load_state_dict(
        {name: tensor.clone() for name, tensor in backbone.state_dict().items()}, strict=True
    )
    latent, time_B = noisy(backbone, 3)
    waves = wave(backbone, 1, 8000)
    with torch.no_grad():
        first, second = (
            m.predict(latent, time_B, m.encode_prompts(PROMPTS)) for m in (backbone, other)
        )
        assert torch.equal(first, second) and torch.equal(
            backbone.encode(waves), other.encode(waves)
        )
        assert torch.equal(backbone.decode(latent), other.decode(latent))
