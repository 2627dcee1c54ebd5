"""Stable Audio's files: released folders, artefacts, peft adapters, checkpointing, a DDPO run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_ddpo import module, trainer
from toy_stable_audio import RATE_HZ, small_model, written_folder
from toys import Given, latents

import zoo
from datamodules.batches import PromptBatch
from lightning_modules.latent_errors import latent_errors
from zoo.backbones.lora import attention_linears
from zoo.backbones.stable_audio import StableAudio
from zoo.diffusion import denoising_error
from zoo.hub import registry
from zoo.hub.adapters import load_adapter, save_adapter
from zoo.hub.artifact import identity_of, load_artifact, save_artifact
from zoo.types import Prompt, RewardOutput

PROMPTS = (Prompt("a", "a dog barks", "rain", 0.2), Prompt("b", "calm piano melody", "", 0.2))
HEARD = {"frame_window": "heard"}


@pytest.fixture(scope="module")
def model():
    return small_model(**HEARD)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return written_folder(model, tmp_path_factory.mktemp("released") / "stable-audio")


def test_a_released_folder_gives_the_same_model(model, folder):
    again = zoo.load(str(folder), **HEARD)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert not any(tensor.is_meta for tensor in again.state_dict().values())
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    with torch.no_grad():
        ours = latents(model.predict, model, PROMPTS)
        theirs = latents(again.predict, again, PROMPTS)
        torch.testing.assert_close(
            theirs, ours, atol=1e-5, rtol=1e-5
        )  # where weights lie in memory shows in the last bits
        torch.testing.assert_close(again.decode(ours), model.decode(ours), atol=1e-5, rtol=1e-5)
    built = StableAudio(**json.loads(json.dumps(again.arguments)))
    assert {n: t.shape for n, t in built.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


def test_the_zoo_opens_a_pulled_folder(folder):
    assert registry.why_not_loadable(registry.ENTRIES["stable-audio-open-1.0"]) is None
    opened = zoo.load(folder)
    assert isinstance(opened, StableAudio) and opened.codec.frame_window is None


@pytest.mark.long
@pytest.mark.parametrize("damage", ["missing", "left over", "scheduler", "no vae"])
def test_what_is_not_as_released_is_refused(folder, tmp_path, damage):
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    file = copied / "projection_model" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = "start_number_conditioner.time_positional_embedding.1.bias"
    kind = ValueError
    message = rf"do not fit StableAudioProjectionModel: 1 {damage} \(({name}|stray)\)"
    if damage == "missing":
        del state[name]
    elif damage == "left over":
        state["stray"] = torch.zeros(1)
    elif damage == "scheduler":
        config = json.loads((copied / "scheduler" / "scheduler_config.json").read_text())
        (copied / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({**config, "_class_name": "DDIMScheduler"})
        )
        message = "is a DDIMScheduler, expected CosineDPMSolverMultistepScheduler"
    else:
        shutil.rmtree(copied / "vae")
        kind, message = (
            FileNotFoundError,
            "has no folder vae",
        )
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(kind, match=message):
        zoo.load(str(copied))


def test_an_artefact_holds_the_whole_model(model, tmp_path):
    kind, architecture, arguments = identity_of(model)
    save_artifact(
        tmp_path / "saved", kind=kind, architecture=architecture, arguments=arguments, module=model
    )
    again = load_artifact(tmp_path / "saved")
    assert again.codec.frame_window == "heard"
    with torch.no_grad():
        found, wanted = (latents(one.predict, one, PROMPTS) for one in (again, model))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_cross_attention_is_chosen_by_the_modules_own_attribute(model):
    cross = attention_linears(model.denoiser, cross_only=True)
    every = attention_linears(model.denoiser)
    assert {name.split(".")[2] for name in cross} == {"attn2"} and len(cross) == 2 * 4
    assert {name.split(".")[2] for name in every} == {"attn1", "attn2"} and len(every) == 2 * 8


def test_the_released_size():
    """1,056.9 million weights; torch's own attention in every layer."""
    from diffusers import StableAudioDiTModel
    from diffusers.models.attention_processor import StableAudioAttnProcessor2_0

    with torch.device("meta"):
        network = StableAudioDiTModel()
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e5) == 10_569
    assert (len(attention_linears(network, cross_only=True)), len(attention_linears(network))) == (
        96,
        192,
    )
    assert {type(processor) for processor in network.attn_processors.values()} == {
        StableAudioAttnProcessor2_0
    }


def test_a_round_has_one_length_also_where_all_latents_have_one_shape():
    """At the full length all latents have one shape; waves are still cut to one length."""
    batch = PromptBatch((PROMPTS[0], Prompt("long", "rain", "", 0.4)), (0, 0), 0)
    with pytest.raises(ValueError, match=r"\[0\.2, 0\.4\]"):
        trainer().fit(
            module(
                {"sampler.batch_size": 2, "update.batch_size": 2},
                backbone=small_model(),
                reward=Loudness(),
            ),
            Given(batch),
        )


class Loudness:
    """A stereo reward: the level of the left channel."""

    differentiable = False

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        assert wave_BCN.shape[1:] == (2, round(0.2 * RATE_HZ)) and sample_rate_hz == RATE_HZ
        return RewardOutput(wave_BCN[:, 0].square().mean(dim=1).log())


@pytest.mark.long
@pytest.mark.parametrize("window", [None, "heard"])
def test_from_text_to_a_trained_adapter_and_back(tmp_path, window):
    """From text to audio, reward, update, export and reload; with the full length and a window."""
    backbone = small_model(frame_window=window)
    ddpo = module({"sampler.steps": 3}, backbone=backbone, reward=Loudness())
    batch = PromptBatch(PROMPTS * 2, (0, 0, 1, 1), 0)
    trainer().fit(ddpo, Given(batch))
    save_adapter(backbone, tmp_path / "adapter")
    again = small_model(frame_window=window)
    load_adapter(again, tmp_path / "adapter")
    base, trained, reloaded = (
        zoo.generate(each, [PROMPTS[0]], steps=2)[0].samples_CN
        for each in (small_model(frame_window=window), backbone.eval(), again)
    )
    assert torch.equal(trained, reloaded) and not torch.allclose(base, reloaded, atol=1e-6)


def test_learning_from_clean_audio_counts_audible_frames():
    backbone = small_model()
    backbone.requires_grad_(False)
    clean = backbone.encode(0.1 * torch.randn(2, 2, round(0.2 * RATE_HZ)))
    time_B, noise, conditioning = (
        torch.tensor([0.3, 0.7]),
        torch.randn(clean.shape),
        backbone.encode_prompts(PROMPTS),
    )
    found = latent_errors(backbone, clean, PROMPTS, time_B, noise)
    heard, every = (
        denoising_error(backbone.predict, backbone.path, clean, time_B, noise, conditioning, mask)
        for mask in (backbone.scored_mask(PROMPTS), None)
    )
    assert torch.equal(found, heard) and (found - every).abs().min() > 1e-3
