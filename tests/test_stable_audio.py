"""Stable Audio: conditions, sampling and timing equal diffusers' pipeline; window and mask."""

import dataclasses

import pytest
import torch
from toy_stable_audio import FRAMES, HOP, RATE_HZ, TOKENS, arguments, pipeline, small_model

import zoo
from lightning_modules.rl.losses import clipped_policy_loss, kl_to_reference
from zoo.backbones.lora import add_lora
from zoo.backbones.oobleck_codec import OobleckCodec
from zoo.backbones.stable_audio import StableAudio, path_of
from zoo.diffusion import Sampler, denoising_error, noise_generator, rollout, step_log_prob
from zoo.types import Conditioning, Prompt

pytestmark = pytest.mark.long

LONG = "calm piano melody, warm strings"
PROMPTS = (
    Prompt("a", "a dog barks", "rain on strings", 0.2),
    Prompt("b", LONG, "", 0.2),
    Prompt("c", "techno", "calm", 0.2),
)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def heard():
    return small_model(frame_window="heard")


def sampled(model, sampler, prompts=PROMPTS, predict=None):
    conditioning, negative = (
        model.encode_prompts(side) for side in (prompts, [p.as_negative() for p in prompts])
    )
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    shape = model.latent_shape(prompts[0].seconds)
    mask = model.scored_mask(prompts)
    return rollout(
        predict or model.predict,
        model.path,
        sampler,
        prompts,
        conditioning,
        negative,
        shape,
        generators,
        scored_mask=mask,
    )


@pytest.mark.parametrize("negative", ["rain", LONG, None])
@pytest.mark.parametrize("start", [0.0, 3.5])
def test_conditions_equal_the_pipelines(model, negative, start):
    """A given negative is encoded; otherwise the unconditional side has only the timing."""
    backbone = small_model(seconds_start=start)
    pipe = pipeline(model)
    prompts = [Prompt("p", "a dog barks", negative or "", 0.5)]
    both = Conditioning.cat(
        [backbone.encode_prompts([prompts[0].as_negative()]), backbone.encode_prompts(prompts)]
    )
    with torch.no_grad():
        tokens = pipe.encode_prompt(
            ["a dog barks"], "cpu", True, None if negative is None else [negative]
        )
        lengths = pipe.encode_duration(start, start + 0.5, "cpu", negative is not None, 1)
    context = torch.cat([tokens, *lengths], dim=1)
    if negative is None:
        context = torch.cat([torch.zeros_like(context), context])
    torch.testing.assert_close(both["tokens_BLD"], context, atol=1e-6, rtol=1e-5)
    timing = torch.cat(lengths, dim=2)[:, 0]
    torch.testing.assert_close(both["timing_BD"], timing.expand(2, -1), atol=1e-6, rtol=1e-5)
    assert both["tokens_BLD"].shape == (2, TOKENS + 2, 16)


def test_padding_has_no_effect_where_texts_are_projected():
    """Texts of another width pass a linear layer, whose bias would fill the padding."""
    plain = arguments()
    model = small_model(
        text_encoder={**plain["text_encoder"], "d_model": 24},
        projection={**plain["projection"], "text_encoder_dim": 24},
    )
    tokens_BLD = model.encode_prompts(PROMPTS)["tokens_BLD"]
    for row_LD, prompt in zip(tokens_BLD, PROMPTS, strict=True):
        length = len(model.memory.tokens(prompt.text))
        assert row_LD[:length].any(dim=-1).all() and not row_LD[length:TOKENS].any()
        assert row_LD[TOKENS:].any(dim=-1).all()
    with torch.no_grad():
        theirs = pipeline(model).encode_prompt(
            [prompt.text for prompt in PROMPTS], "cpu", True, ["rain"] * 3
        )[3:]
    torch.testing.assert_close(tokens_BLD[:, :TOKENS], theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "order", "negative", "guidance_scale"),
    [
        ("dpmpp_2m_sde", 2, "rain", 3.0),
        ("dpmpp_2m_sde", 2, "", 7.0),
        ("ddim", 1, "rain", 3.0),
        ("ddim", 1, "", 1.0),
    ],
)
def test_sampling_equals_the_pipeline(model, monkeypatch, rule, order, negative, guidance_scale):
    """From the same start and noise: the library's solver, and at first order the trained step."""
    from diffusers.schedulers import scheduling_cosine_dpmsolver_multistep as library

    prompt = Prompt("p", LONG, negative, 0.5)
    steps = 5
    trajectory = sampled(model, Sampler(steps, guidance_scale, rule=rule), [prompt])
    generator = noise_generator(0, 0, "p", 0)
    draws = iter([torch.randn(1, 4, FRAMES, generator=generator) for _ in range(steps + 1)][1:])
    monkeypatch.setattr(
        library, "BrownianTreeNoiseSampler", lambda *_, **__: lambda sigma, sigma_next: next(draws)
    )
    theirs = pipeline(model, order)(
        LONG,
        negative_prompt=negative or None,
        audio_end_in_s=0.5,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        latents=trajectory.latents_SB[0],
        output_type="pt",
    ).audios
    assert theirs.shape == (1, 2, RATE_HZ // 2)
    torch.testing.assert_close(
        model.decode(trajectory.clean)[..., : RATE_HZ // 2], theirs, atol=1e-4, rtol=1e-3
    )
    assert trajectory.log_prob_SB.any() == (rule == "ddim")


def test_the_network_depends_on_the_given_lengths(model):
    x = torch.randn(1, 4, FRAMES)
    time_B = torch.tensor([0.7])
    conditionings = [
        model.encode_prompts([Prompt("p", "techno", "", seconds)]) for seconds in (0.2, 1.0)
    ]
    conditionings.append(
        small_model(seconds_total=47.0).encode_prompts([Prompt("p", "techno", "", 0.2)])
    )
    conditionings.append(
        small_model(seconds_start=2.0, seconds_total=47.0).encode_prompts(
            [Prompt("p", "techno", "", 0.2)]
        )
    )
    with torch.no_grad():
        outputs = [model.predict(x, time_B, conditioning) for conditioning in conditionings]
    assert (
        min((one - other).abs().max() for i, one in enumerate(outputs) for other in outputs[:i])
        > 1e-5
    )
    again = small_model(seconds_total=47.0).encode_prompts([Prompt("p", "techno", "", 1.0)])
    assert torch.equal(
        again["timing_BD"], conditionings[2]["timing_BD"]
    )  # the total goes before the prompt's own length


def test_frames_of_the_papers_lengths():
    """The released sizes, without building such a network."""
    codec = OobleckCodec(
        {
            "encoder_hidden_size": 8,
            "decoder_input_channels": 4,
            "decoder_channels": 2,
            "channel_multiples": [1, 1, 1, 1, 1],
        }
    )
    assert (
        codec.samples_per_latent == 2048 and codec.sample_rate_hz == 44_100 and codec.channels == 2
    )
    assert (codec.frames(10.0), codec.frames(10.0, whole=False)) == (216, 215)
    assert (codec.frames(5.0), codec.frames(5.0, whole=False)) == (108, 107)
    assert (
        codec.frames(1024 * 2048 / 44_100)
        == codec.frames(1024 * 2048 / 44_100, whole=False)
        == 1024
    )


@pytest.mark.parametrize(("window", "frames"), [(None, FRAMES), ("heard", 26), ("bewo", 25)])
def test_only_the_window_is_denoised(window, frames):
    backbone = small_model(frame_window=window)
    assert backbone.latent_shape(0.203) == (4, frames)  # 25.4 frames
    wave = 0.1 * torch.randn(2, 2, round(0.203 * RATE_HZ))
    latents = backbone.encode(wave)
    assert latents.shape == (2, 4, frames) and backbone.decode(latents).shape == (
        2,
        2,
        frames * HOP,
    )
    mask = backbone.scored_mask([Prompt("p", "", "", 0.203), Prompt("q", "", "", 0.1)])
    assert (
        mask is None
        if window
        else (mask.sum(dim=2).flatten().tolist() == [26, 13] and mask.shape == (2, 1, FRAMES))
    )
    (made,) = zoo.generate(backbone, [Prompt("p", "techno", "", 0.203)], steps=2)
    assert made.samples_CN.shape == (2, min(3248, frames * HOP)) and made.sample_rate_hz == RATE_HZ


def test_inaudible_frames_do_not_count(model):
    """At the full length: neither in log-probability and KL, nor in the denoising error."""
    sampler = Sampler(3, guidance_scale=2.0)
    trajectory = sampled(model, sampler)
    heard = trajectory.scored_mask
    assert heard.shape == (3, 1, FRAMES) and heard.sum() == 3 * 25
    step_B = torch.zeros(3, dtype=torch.long)
    latents = trajectory.latents_SB.clone()
    latents[1] += 5.0 * ~heard  # another action where nobody hears it
    with torch.no_grad():
        first, mean, std = step_log_prob(model.predict, model.path, sampler, trajectory, step_B)
        moved, _, _ = step_log_prob(
            model.predict,
            model.path,
            sampler,
            dataclasses.replace(trajectory, latents_SB=latents),
            step_B,
        )
        unmasked = dataclasses.replace(trajectory, latents_SB=latents, scored_mask=None)
        all_frames, _, _ = step_log_prob(model.predict, model.path, sampler, unmasked, step_B)
    assert torch.equal(first, moved) and torch.equal(first, trajectory.log_prob_SB[0])
    assert (all_frames - moved).abs().min() > 0.1
    assert not kl_to_reference(mean, mean + 5.0 * ~heard, std, heard).any()

    clean = torch.randn(3, 4, FRAMES)
    noise = torch.randn(3, 4, FRAMES)
    time_B = torch.full((3,), 0.5)

    def wrong_where_unheard(x, t, conditioning):
        alpha, sigma = model.path.coefficients(t)
        return alpha[:, None, None] * noise - sigma[:, None, None] * clean + 5.0 * ~heard

    def error(mask):
        return denoising_error(
            wrong_where_unheard, model.path, clean, time_B, noise, trajectory.conditioning, mask
        )

    assert error(heard).max() < 1e-9 and error(None).min() > 1


def test_ratio_is_one_with_guidance_and_moves_with_the_adapter():
    model = small_model(frame_window="heard")
    add_lora(model, rank=2)
    sampler = Sampler(4, guidance_scale=3.5)
    trajectory = sampled(model, sampler)
    advantage = torch.tensor([1.0, -1.0, 0.5])
    optimizer = torch.optim.SGD([p for p in model.denoiser.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        new, _, _ = step_log_prob(
            model.predict, model.path, sampler, trajectory, torch.full((3,), step)
        )
        loss = clipped_policy_loss(new, trajectory.log_prob_SB[step], advantage, 1e-2)
        assert (loss.ratio - 1).abs().max() <= 1e-6 and loss.clip_fraction == 0
        loss.loss.backward()
    optimizer.step()
    with torch.no_grad():
        moved, _, _ = step_log_prob(
            model.predict, model.path, sampler, trajectory, torch.full((3,), 2)
        )
    assert moved[0] > trajectory.log_prob_SB[2, 0] and moved[1] < trajectory.log_prob_SB[2, 1]
    with pytest.raises(ValueError, match="no noise, so it has no log-probability"):
        step_log_prob(model.predict, model.path, sampler, trajectory, torch.full((3,), 3))


@pytest.mark.parametrize("foreign", ["conditioning", "negative", "halves"])
def test_ratio_leaves_one_with_the_conditioning_of_others(heard, foreign):
    sampler = Sampler(4, guidance_scale=3.5)
    trajectory = sampled(heard, sampler)
    sides = {"conditioning": trajectory.conditioning, "negative": trajectory.negative}
    if foreign == "halves":
        sides = {"conditioning": sides["negative"], "negative": sides["conditioning"]}
    else:
        sides[foreign] = sides[foreign].rows([1, 2, 0])
    with torch.no_grad():
        new, _, _ = step_log_prob(
            heard.predict,
            heard.path,
            sampler,
            dataclasses.replace(trajectory, **sides),
            torch.zeros(3, dtype=torch.long),
        )
    assert ((new - trajectory.log_prob_SB[0]).exp() - 1).abs().max() > 1e-4


def test_half_precision_with_an_adapter_of_full_precision():
    model = small_model(frame_window="heard").to(torch.bfloat16)
    add_lora(model, rank=2)
    kinds = {"lora": torch.float32, "base": torch.bfloat16}
    for name, parameter in model.denoiser.named_parameters():
        assert parameter.dtype == kinds["lora" if "lora_" in name else "base"], name
    trajectory = sampled(model, Sampler(2, guidance_scale=2.0))
    assert trajectory.latents_SB.dtype == torch.float32 and trajectory.clean.isfinite().all()
    new, _, _ = step_log_prob(
        model.predict, model.path, Sampler(2, guidance_scale=2.0), trajectory, torch.zeros(3).long()
    )
    new.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.denoiser.parameters() if p.requires_grad)
    assert model.decode(trajectory.clean).dtype == torch.float32


def test_too_long_prompts():
    model = small_model()
    text = "strong techno drum " * 20
    assert list(model.too_long([Prompt("x", text), *PROMPTS])) == ["x"]
    with pytest.raises(ValueError, match=f"T5 takes {TOKENS}; shorten it"):
        model.encode_prompts([Prompt("x", text)])
    cut = small_model(truncate_prompts=True)
    assert cut.encode_prompts([Prompt("x", text)])["tokens_BLD"].shape[
        1
    ] == TOKENS + 2 and not cut.too_long([Prompt("x", text)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_window": "herd"}, "frame_window 'herd' is unknown.*did you mean 'heard'"),
        ({"seconds_total": 600.0}, r"seconds_total.*\[0, 512\], got 600"),
        (
            {"scheduler": {"sigma_schedule": "karras"}},
            "sigma_schedule must be 'exponential', got 'karras'",
        ),
        (
            {"transformer": {**arguments()["transformer"], "in_channels": 6}},
            "the transformer takes 6 latent channels",
        ),
        (
            {"vae": {**arguments()["vae"], "encoder_hidden_size": 4}},
            "encoder_hidden_size must be twice",
        ),
        (
            {"text_encoder": {**arguments()["text_encoder"], "vocab_size": 20}},
            "tokenizer does not belong to the text encoder",
        ),
        (
            {"transformer": {**arguments()["transformer"], "attn": "x"}},
            "transformer has no setting 'attn'",
        ),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StableAudio(**{**arguments(), **changes})
    assert path_of({}).spacing == "exponential"


def test_silence_comes_after_a_clip(model):
    wave = 0.1 * torch.randn(1, 2, 10 * HOP, generator=torch.Generator().manual_seed(0))
    filled = torch.nn.functional.pad(wave, (0, (FRAMES - 10) * HOP))
    torch.testing.assert_close(model.encode(wave), model.encode(filled), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        model.encode(wave), model.encode(filled.roll((FRAMES - 10) * HOP, -1)), atol=1e-3
    )


def test_invalid_waves_are_refused(model):
    for wave, message in (
        (torch.zeros(1, 1, 800), r"takes waves \(batch, 2, samples\).*expand"),
        (torch.full((1, 2, 800), torch.nan), "NaN or infinity"),
        (
            torch.ones(1, 2, 800, dtype=torch.int16),
            r"floating-point numbers in \[-1, 1\], got torch.int16",
        ),
        (torch.zeros(1, 2, 0), r"got shape \(1, 2, 0\)"),
        (torch.zeros(1, 2, 20_000), "1.25 s are more than the 1.024 s of this model's clips"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(wave)
    with pytest.raises(ValueError, match="2 s are more than the 1.024 s"):
        zoo.generate(model, [Prompt("p", "techno", "", 2.0)], steps=1)
