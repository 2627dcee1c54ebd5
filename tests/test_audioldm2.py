"""AudioLDM 2: conditioning and predictions equal diffusers' pipeline."""

import dataclasses

import pytest
import torch
from toy_audioldm2 import arguments, pipeline, small_model

import zoo
from lightning_modules.rl.losses import clipped_policy_loss
from zoo.backbones.audioldm2 import AudioLDM2, path_of
from zoo.backbones.lora import add_lora, attention_linears
from zoo.conditioners.loa import loa_tokens
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.diffusion import Sampler, noise_generator, rollout, step_log_prob
from zoo.types import Conditioning, Prompt

LONG = "calm piano melody with warm strings while rain falls on a strong drum"
PROMPTS = (
    Prompt("a", "a dog barks", "low quality noise and rain on strings", 0.2),
    Prompt("b", LONG, "noise", 0.2),
    Prompt("c", "techno", "", 0.2),
)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline(model)


def sides(model, prompts):
    return model.encode_prompts(prompts), model.encode_prompts(
        [prompt.as_negative() for prompt in prompts]
    )


def sampled(model, sampler, prompts=PROMPTS, predict=None):
    conditioning, negative = sides(model, prompts)
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    shape = model.latent_shape(prompts[0].seconds)
    return rollout(
        predict or model.predict,
        model.path,
        sampler,
        prompts,
        conditioning,
        negative,
        shape,
        generators,
    )


def test_the_loop_with_kept_keys_equals_the_loop_without(model):
    inputs = torch.randn(2, 7, 16)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
    long = inputs
    wide = mask.long()
    for _ in range(8):
        state = model.gpt2(
            inputs_embeds=long, attention_mask=wide, use_cache=False
        ).last_hidden_state[:, -1:]
        long = torch.cat([long, state], dim=1)
        wide = torch.cat([wide, wide.new_ones(2, 1)], dim=1)
    torch.testing.assert_close(
        loa_tokens(model.gpt2, inputs, mask, 8), long[:, -8:], atol=1e-6, rtol=1e-5
    )
    with pytest.raises(ValueError, match="95 .* 8 .* 99"):
        loa_tokens(model.gpt2, torch.randn(1, 95, 16), torch.ones(1, 95), 8)


@pytest.mark.parametrize(
    ("text", "negative"), [(LONG, "noise"), ("a dog barks", ""), ("strong drum", "strong drum")]
)
def test_conditioning_equals_the_pipeline_where_the_negative_is_not_the_longer(
    model, pipe, text, negative
):
    conditioning, unconditional = sides(model, [Prompt("p", text, negative)])
    with torch.no_grad():
        t5, mask, loa = pipe.encode_prompt([text], "cpu", 1, True, negative_prompt=[negative])
    both = Conditioning.cat([unconditional, conditioning])
    torch.testing.assert_close(both["loa_BLD"], loa, atol=1e-5, rtol=1e-5)
    assert torch.equal(both["t5_mask_BL"], mask.bool())
    kept = mask.bool()[..., None]
    torch.testing.assert_close(both["t5_BLD"] * kept, t5 * kept, atol=1e-5, rtol=1e-5)
    x = torch.randn(2, *model.latent_shape(0.2))
    time_B = torch.tensor([500, 500])
    with torch.no_grad():
        theirs = pipe.unet(
            x,
            time_B,
            encoder_hidden_states=loa,
            encoder_hidden_states_1=t5,
            encoder_attention_mask_1=mask,
            return_dict=False,
        )[0]
        torch.testing.assert_close(model.predict(x, time_B, both), theirs, atol=1e-5, rtol=1e-5)


def test_a_longer_negative_is_kept_whole_and_the_prompt_is_padded_to_it(model, pipe):
    conditioning, unconditional = sides(model, [PROMPTS[0]])
    tokens = len(model.t5_tokenizer(PROMPTS[0].negative))
    assert unconditional["t5_BLD"].shape[1] == tokens > conditioning["t5_BLD"].shape[1]
    with (
        torch.no_grad()
    ):  # the pipeline cuts such a negative; with the longer text as the prompt it does not
        _, _, loa = pipe.encode_prompt(
            [PROMPTS[0].negative], "cpu", 1, True, negative_prompt=[PROMPTS[0].text]
        )
    torch.testing.assert_close(
        Conditioning.cat([conditioning, unconditional])["loa_BLD"], loa, atol=1e-5, rtol=1e-5
    )
    alone = model.encode_prompts([Prompt("a", PROMPTS[0].text)])
    assert (
        alone["loa_BLD"] - conditioning["loa_BLD"]
    ).abs().max() > 1e-4  # the length is part of what the language model reads


def test_padding_of_the_batch_changes_nothing(model):
    whole = model.encode_prompts(PROMPTS)
    assert not whole["t5_mask_BL"].all()
    x = torch.randn(3, *model.latent_shape(0.2))
    time_B = torch.tensor([900, 500, 100])
    streams = dict(whole.streams)
    streams["t5_BLD"] = streams["t5_BLD"] + 100.0 * ~streams["t5_mask_BL"][..., None]
    with torch.no_grad():
        plain = model.predict(x, time_B, whole)
        assert torch.equal(model.predict(x, time_B, Conditioning(streams)), plain)
        streams["t5_mask_BL"] = torch.ones_like(streams["t5_mask_BL"])
        assert (model.predict(x, time_B, Conditioning(streams)) - plain).abs().max() > 1e-3


def test_each_text_is_encoded_once_and_not_confused(model, monkeypatch):
    calls = []
    memory = PromptMemory(
        lambda text, length: calls.append((text, length)) or model._encode(text, length),
        model._tokens,
        True,
    )
    monkeypatch.setattr(model, "memory", memory)
    first = model.encode_prompts(PROMPTS)
    again = model.encode_prompts([PROMPTS[2], PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert len(calls) == len(set(calls)) == 3
    for row, source in enumerate((2, 0, 1, 0)):
        assert all(torch.equal(again[name][row], first[name][source]) for name in first.streams)
    model.load_state_dict(model.state_dict())
    model.encode_prompts(PROMPTS)
    assert len(calls) == 6


def test_ratio_is_one_with_guidance_and_moves_with_the_adapter():
    model = small_model()
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
    gradients = [p.grad for p in model.denoiser.parameters() if p.requires_grad]
    assert any(g is not None and g.any() for g in gradients)
    optimizer.step()
    with torch.no_grad():
        moved, _, _ = step_log_prob(
            model.predict, model.path, sampler, trajectory, torch.zeros(3, dtype=torch.long)
        )
        assert ((moved - trajectory.log_prob_SB[0]).exp() - 1).abs().min() > 0
        assert moved[0] > trajectory.log_prob_SB[0, 0] and moved[1] < trajectory.log_prob_SB[0, 1]


@pytest.mark.parametrize("foreign", ["conditioning", "negative", "halves"])
def test_ratio_leaves_one_with_the_conditioning_of_others(model, foreign):
    sampler = Sampler(4, guidance_scale=3.5)
    trajectory = sampled(model, sampler)
    sides = {"conditioning": trajectory.conditioning, "negative": trajectory.negative}
    if foreign == "halves":
        sides = {"conditioning": sides["negative"], "negative": sides["conditioning"]}
    else:
        sides[foreign] = sides[foreign].rows([1, 2, 0])
    with torch.no_grad():
        new, _, _ = step_log_prob(
            model.predict,
            model.path,
            sampler,
            dataclasses.replace(trajectory, **sides),
            torch.zeros(3, dtype=torch.long),
        )
    assert ((new - trajectory.log_prob_SB[0]).exp() - 1).abs().max() > 1e-4


def test_sampling_equals_the_pipeline(model, pipe):
    """DDIM without noise, guidance 3.5: the same start gives the same audio and length."""
    prompt = Prompt("p", LONG, "noise", 0.2)
    trajectory = sampled(model, Sampler(5, guidance_scale=3.5, eta=0.0), [prompt])
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        LONG,
        negative_prompt="noise",
        audio_length_in_s=0.2,
        num_inference_steps=5,
        guidance_scale=3.5,
        eta=0.0,
        latents=trajectory.latents_SB[0],
        output_type="pt",
    ).audios
    wave = model.decode(trajectory.clean)[:, 0, :3200]
    torch.testing.assert_close(wave, theirs, atol=1e-4, rtol=1e-3)


def test_text_to_audio(model):
    waves = zoo.generate(model, PROMPTS[:2], steps=2, guidance_scale=2.0)
    assert [wave.samples_CN.shape for wave in waves] == [(1, 3200)] * 2 and waves[
        0
    ].sample_rate_hz == 16_000
    assert waves[0].samples_CN.std() > 0 and not torch.equal(
        waves[0].samples_CN, waves[1].samples_CN
    )


def test_latents_of_the_papers_lengths():
    """The released sizes: hop 160, a factor of 4, 64 bands; without building such a network."""
    small = arguments()
    vae = {
        **small["vae"],
        "block_out_channels": [8, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "latent_channels": 8,
    }
    model = AudioLDM2(**{**small, "vae": vae, "vocoder": {**small["vocoder"], "model_in_dim": 64}})
    shapes = [model.latent_shape(seconds) for seconds in (5.0, 10.0, 10.24)]
    assert shapes == [(8, 125, 16), (8, 250, 16), (8, 256, 16)]


def test_only_true_cross_attention_is_adapted(model):
    cross, every = (attention_linears(model.denoiser, cross_only=only) for only in (True, False))
    second = {name.rsplit(".attn2.", 1)[0] for name in every if ".attn2." in name}
    chosen = {name.rsplit(".attn2.", 1)[0] for name in cross}
    assert all(".attn2." in name for name in cross) and len(every) > 2 * len(cross)
    assert 3 * len(chosen) == 2 * len(second)  # one attn2 of three is self-attention


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"beta_schedule": "linear"},
            "scheduler: beta_schedule must be 'scaled_linear', got 'linear'",
        ),
        ({"clip_sample": True}, "scheduler: clip_sample must be False, got True"),
        ({"prediction_type": "flow"}, "prediction_type 'flow' is unknown"),
    ],
)
def test_another_schedule_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        path_of({**arguments()["scheduler"], **change})


@pytest.mark.parametrize(
    "part", ["unet", "vae", "vocoder", "projection", "clap_text", "t5", "gpt2"]
)
def test_a_configuration_holds_only_arguments_of_its_network(part):
    given = arguments()
    with pytest.raises(ValueError, match="no setting 'attn_implementation'"):
        AudioLDM2(**{**given, part: {**given[part], "attn_implementation": "someone/kernel"}})


def test_long_prompts_are_refused_or_cut():
    text = "rain falls " * 40
    model = small_model()
    with pytest.raises(ValueError, match="tokens"):
        model.encode_prompts([Prompt("x", text)])
    model.truncate_prompts = True
    assert model.encode_prompts([Prompt("x", text)])["t5_BLD"].shape[1] == 80


@pytest.mark.long
def test_half_precision_keeps_the_adapter_in_float32():
    model = small_model().to(torch.bfloat16)
    add_lora(model, rank=2)
    assert {p.dtype for p in model.denoiser.parameters() if p.requires_grad} == {torch.float32}
    conditioning = model.encode_prompts(PROMPTS)
    assert conditioning["loa_BLD"].dtype == torch.bfloat16
    x = torch.randn(3, *model.latent_shape(0.2))
    output = model.predict(x, torch.tensor([900, 500, 100]), conditioning)
    output.square().mean().backward()
    assert output.dtype == torch.float32 and output.isfinite().all()
    with torch.no_grad():
        full = small_model()
        plain = full.predict(x, torch.tensor([900, 500, 100]), full.encode_prompts(PROMPTS))
        wave = model.decode(x)
    assert wave.dtype == torch.float32 and wave.isfinite().all()
    assert (output - plain).abs().max() < 0.15 * plain.abs().max()
