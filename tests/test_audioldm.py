"""AudioLDM: conditioning, predictions and audio equal diffusers' pipeline; folders; DDPO."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_audioldm import arguments, pipeline, small_model, written_folder
from toy_audioldm2 import CLAP_WIDTH

import zoo
from lightning_modules.rl.losses import clipped_policy_loss
from zoo.backbones.audioldm import AudioLDM
from zoo.backbones.lora import add_lora
from zoo.diffusion import Sampler, noise_generator, rollout, step_log_prob
from zoo.hub.artifact import identity_of, load_artifact, save_artifact
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
def folder(model, tmp_path_factory):
    return written_folder(model, tmp_path_factory.mktemp("released") / "audioldm")


def sampled(model, sampler, prompts=PROMPTS):
    sides = [
        model.encode_prompts(side)
        for side in (prompts, [prompt.as_negative() for prompt in prompts])
    ]
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    shape = model.latent_shape(prompts[0].seconds)
    return rollout(model.predict, model.path, sampler, prompts, *sides, shape, generators)


def test_conditioning_equals_the_pipeline(model):
    """The pipeline's padding to 100 tokens, which we omit, changes nothing."""
    texts = [prompt.text for prompt in PROMPTS]
    negatives = [prompt.negative for prompt in PROMPTS]
    with torch.no_grad():
        pipe = pipeline(model)
        pipe.tokenizer.model_max_length = 60
        theirs = pipe._encode_prompt(texts, "cpu", 1, True, negatives)
    ours = [
        model.encode_prompts(side)["clap_BD"]
        for side in ([p.as_negative() for p in PROMPTS], PROMPTS)
    ]
    assert ours[1].shape == (3, CLAP_WIDTH)
    torch.testing.assert_close(ours[1].norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(ours[1], theirs[3:], atol=1e-5, rtol=1e-5)
    short = [
        len(model.clap_tokenizer(text)) <= theirs.shape[1] for text in negatives
    ]  # it cuts negatives to CLAP's width
    assert sum(short) >= 2
    torch.testing.assert_close(ours[0][short], theirs[:3][short], atol=1e-5, rtol=1e-5)


def test_sampling_equals_the_pipeline(model):
    """DDIM without noise, guidance 2.5: the same start gives the same audio and length."""
    prompt = Prompt("p", LONG, "noise", 0.2)
    trajectory = sampled(model, Sampler(5, guidance_scale=2.5, eta=0.0), [prompt])
    pipe = pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        LONG,
        negative_prompt="noise",
        audio_length_in_s=0.2,
        num_inference_steps=5,
        guidance_scale=2.5,
        eta=0.0,
        latents=trajectory.latents_SB[0],
        output_type="pt",
    ).audios
    with torch.no_grad():
        ours = model.decode(trajectory.clean)[..., : theirs.shape[-1]]
    assert theirs.shape == (1, 3200) and theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours[:, 0], theirs, atol=1e-4, rtol=1e-4)


def test_the_text_is_heard_and_belongs_to_its_sample(model):
    trajectory = sampled(model, Sampler(3, guidance_scale=2.5))
    steps = torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        same = step_log_prob(
            model.predict, model.path, Sampler(3, guidance_scale=2.5), trajectory, steps
        )[0]
        x = trajectory.latents_SB[0]
        time_B = torch.tensor([500, 500, 500])
        right = model.predict(x, time_B, trajectory.conditioning)
        foreign = model.predict(x, time_B, trajectory.conditioning.rows([1, 2, 0]))
    assert ((same - trajectory.log_prob_SB[0]).exp() - 1).abs().max() <= 1e-6
    assert (right - foreign).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("targets", ["cross", "all"])
def test_ddpo_moves_every_adapter(targets):
    model = small_model()
    model.set_checkpointing()
    add_lora(model, rank=2, targets=targets)
    model.train()
    sampler = Sampler(3, guidance_scale=2.5)
    trajectory = sampled(model, sampler)
    new = step_log_prob(
        model.predict, model.path, sampler, trajectory, torch.zeros(3, dtype=torch.long)
    )[0]
    loss = clipped_policy_loss(new, trajectory.log_prob_SB[0], torch.tensor([1.0, -1.0, 0.5]), 1e-2)
    assert (loss.ratio - 1).abs().max() <= 1e-6
    loss.loss.backward()
    learning = {name: p.grad for name, p in model.denoiser.named_parameters() if "lora_B" in name}
    assert learning and all(
        gradient is not None and gradient.any() for gradient in learning.values()
    )
    assert any("attn1" in name for name in learning) == (targets == "all")


@pytest.mark.long
def test_a_released_folder_gives_the_same_model(model, folder):
    again = zoo.load(str(folder), checkpoint_activations=True)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    with torch.no_grad():
        ours, theirs = (
            sampled(one, Sampler(2, guidance_scale=2.0)).clean for one in (model, again)
        )
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again.decode(ours), model.decode(ours), atol=1e-5, rtol=1e-5)
    assert isinstance(again, AudioLDM) and again.denoiser.is_gradient_checkpointing
    half = zoo.load(str(folder), dtype="bfloat16")
    assert half.denoiser.dtype == torch.bfloat16
    assert torch.isfinite(sampled(half, Sampler(2, guidance_scale=2.0)).clean).all()


def test_an_artefact_holds_the_whole_model(model, tmp_path):
    kind, architecture, arguments = identity_of(model)
    save_artifact(
        tmp_path / "saved", kind=kind, architecture=architecture, arguments=arguments, module=model
    )
    again = load_artifact(tmp_path / "saved")
    with torch.no_grad():
        ours, theirs = (sampled(one, Sampler(2)).clean for one in (model, again))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "left over"])
def test_every_tensor_is_accounted_for(folder, tmp_path, damage):
    copied = shutil.copytree(folder, tmp_path / "copy")
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    if damage == "missing":
        del state["class_embedding.bias"]
    else:
        state["stray"] = torch.zeros(1)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError,
        match=rf"do not fit UNet2DConditionModel: 1 {damage} \((class_embedding\.bias|stray)\)",
    ):
        zoo.load(str(copied))
    shutil.rmtree(copied / "vae")
    with pytest.raises(FileNotFoundError, match="AudioLDM.* vae"):
        zoo.load(str(copied))


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "unet/config.json",
            "projection_class_embeddings_input_dim",
            7,
            "of width 7, expected 'simple_projection' of CLAP's",
        ),
        ("vocoder/config.json", "normalize_before", True, "normalises its mels first"),
        (
            "scheduler/scheduler_config.json",
            "beta_schedule",
            "linear",
            "beta_schedule must be 'scaled_linear'",
        ),
    ],
)
def test_another_kind_of_model_is_refused(folder, tmp_path, file, key, value, message):
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / file).write_text(json.dumps({**json.loads((copied / file).read_text()), key: value}))
    with pytest.raises(ValueError, match=message):
        zoo.load(str(copied))


def test_dropped_encoders_keep_encoded_prompts():
    model = small_model()
    before = model.encode_prompts(PROMPTS)["clap_BD"]
    model.drop_text_encoders(PROMPTS)
    assert model.clap_text is None
    assert torch.equal(model.encode_prompts(PROMPTS)["clap_BD"], before)
    with pytest.raises(ValueError, match="the text encoders were dropped"):
        model.encode_prompts([Prompt("new", "a bird sings")])


def test_no_attention_reads_the_text(model):
    """So diffusers' marks on its attentions mean nothing here, as the docstring warns."""
    x = torch.randn(1, *model.latent_shape(0.2))
    time_B = torch.tensor([500])
    conditioning = model.encode_prompts(PROMPTS[:1])
    assert set(conditioning.streams) == {"clap_BD"}
    with torch.no_grad():
        plain = model.predict(x, time_B, conditioning)
        other = model.predict(x, time_B, Conditioning({"clap_BD": -conditioning["clap_BD"]}))
    assert (plain - other).abs().max() > 1e-3
    assert any(getattr(block, "is_cross_attention", False) for block in model.denoiser.modules())


def test_arguments_are_plain_json():
    again = AudioLDM(**json.loads(json.dumps(arguments())))
    assert again.latent_shape(5.12) == (4, 256, 4)
