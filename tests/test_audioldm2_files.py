"""AudioLDM 2's files: released folders, artefacts, peft adapters, checkpointed gradients."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import AudioLDM2UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file, save_file
from toy_audioldm2 import pipeline, predicting, small_model, written_folder
from toys import latents

import zoo
from benchmarks.audioldm2_memory import SIZES, measure
from zoo.backbones.audioldm2 import AudioLDM2
from zoo.backbones.library_networks import checkpoint_by_name, set_checkpointing
from zoo.backbones.lora import attention_linears
from zoo.hub import registry
from zoo.hub.artifact import identity_of, load_artifact, save_artifact
from zoo.types import Conditioning, Prompt

PROMPTS = (
    Prompt("a", "a dog barks", "rain", 0.2),
    Prompt("b", "calm piano melody with strings", "", 0.2),
)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return written_folder(model, tmp_path_factory.mktemp("released") / "audioldm2")


def test_a_released_folder_gives_the_same_model(model, folder):
    again = zoo.load(str(folder))
    assert (
        isinstance(again, AudioLDM2)
        and not again.training
        and not any(p.requires_grad for p in again.parameters())
    )
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
    built = AudioLDM2(**json.loads(json.dumps(again.arguments)))
    assert {n: t.shape for n, t in built.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


@pytest.mark.long
def test_the_zoo_opens_a_pulled_folder(folder):
    for name in ("audioldm2", "audioldm2-large", "audioldm2-music"):
        assert registry.why_not_loadable(registry.ENTRIES[name]) is None
    assert isinstance(zoo.load(folder), AudioLDM2)


@pytest.mark.parametrize("damage", ["missing", "left over"])
def test_every_tensor_is_accounted_for(folder, tmp_path, damage):
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    file = copied / "projection_model" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    if damage == "missing":
        del state["eos_embed"]
    else:
        state["stray"] = torch.zeros(1)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"do not fit AudioLDM2ProjectionModel: 1 {damage} \((eos_embed|stray)\)"
    ):
        zoo.load(str(copied))
    shutil.rmtree(copied / "vae")
    with pytest.raises(FileNotFoundError, match="AudioLDM 2.* vae"):
        zoo.load(str(copied))


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "text_encoder_2/config.json",
            "model_type",
            "vits",
            "text_encoder_2 is a vits, expected t5",
        ),
        ("vocoder/config.json", "normalize_before", True, "normalises its mels first"),
        (
            "scheduler/scheduler_config.json",
            "beta_schedule",
            "linear",
            "beta_schedule must be 'scaled_linear'",
        ),
        (
            "unet/config.json",
            "quantization_config",
            {"quant_method": "bitsandbytes"},
            "unet holds quantised weights",
        ),
        (
            "language_model/config.json",
            "quantization_config",
            {"quant_method": "gptq"},
            "language_model holds quantised weights",
        ),
    ],
)
def test_another_kind_of_model_is_refused(folder, tmp_path, file, key, value, message):
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    (copied / file).write_text(json.dumps({**json.loads((copied / file).read_text()), key: value}))
    with pytest.raises(ValueError, match=message):
        zoo.load(str(copied))


@pytest.mark.long
def test_a_language_model_with_its_head_is_read_too(model, tmp_path):
    """What the library itself saves of a pipeline that it can run:

    ``GPT2LMHeadModel``, not the released ``GPT2Model``.
    """
    pipeline(model).save_pretrained(str(tmp_path / "saved"))
    again = zoo.load(str(tmp_path / "saved"))
    with torch.no_grad():
        found, wanted = (latents(one.predict, one, PROMPTS) for one in (again, model))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_an_artefact_holds_the_whole_model(model, tmp_path):
    kind, architecture, arguments = identity_of(model)
    save_artifact(
        tmp_path / "saved", kind=kind, architecture=architecture, arguments=arguments, module=model
    )
    again = load_artifact(tmp_path / "saved")
    with torch.no_grad():
        found, wanted = (latents(one.predict, one, PROMPTS) for one in (again, model))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def library_checkpointing(model, conditioning, x):
    """Output with the library's own checkpointing, which passes a shifted list of arguments."""
    unet = copy.deepcopy(model.denoiser)
    unet.enable_gradient_checkpointing()
    return predicting(unet)(x, torch.tensor([500] * len(x)), conditioning)


def test_where_the_library_alone_goes_wrong(model):
    """Without a mask it is right; with one it stops or is silently wrong.

    If this fails, the library was repaired.
    """
    x = torch.randn(2, *model.latent_shape(0.2))
    conditioning = model.encode_prompts(PROMPTS)
    right = model.predict(x, torch.tensor([500, 500]), conditioning).detach()
    with pytest.raises(RuntimeError, match="size|expand"):
        library_checkpointing(model, conditioning, x)
    unet = copy.deepcopy(model.denoiser)
    streams = {
        "encoder_hidden_states": conditioning["loa_BLD"],
        "encoder_hidden_states_1": conditioning["t5_BLD"],
    }
    plain = unet(x, torch.tensor([500, 500]), **streams, return_dict=False)[0]
    unet.enable_gradient_checkpointing()
    assert torch.equal(unet(x, torch.tensor([500, 500]), **streams, return_dict=False)[0], plain)
    assert (plain - right).abs().max() > 1e-4  # so the mask is needed
    short = model.encode_prompts([Prompt("c", "a dog barks", "calm piano melody with strings")] * 2)
    streams = {name: tensor[:, :10] for name, tensor in short.streams.items()}
    streams["t5_mask_BL"] = torch.arange(10)[None] < torch.tensor([[4], [7]])
    short = Conditioning(streams)  # as many tokens as latent positions, 5 x 2
    right = predicting(model.denoiser)(x, torch.tensor([500, 500]), short)
    assert (library_checkpointing(model, short, x) - right).abs().max() > 1e-4


def test_with_checkpointing_each_block_is_computed_twice_and_not_a_third_time(model):
    """Once for the output and once for the gradient."""
    unet = copy.deepcopy(model.denoiser)
    counts = []
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.register_forward_pre_hook(lambda *_: counts.append(1))
    set_checkpointing(unet, True)
    x = torch.randn(2, *model.latent_shape(0.2), requires_grad=True)
    conditioning = model.encode_prompts(PROMPTS)
    output = predicting(unet)(x, torch.tensor([500, 500]), conditioning)
    once = len(counts)
    output.sum().backward()
    assert len(counts) == 2 * once > 0


def test_another_call_of_the_library_is_refused(model):
    block = model.denoiser.mid_block.attentions[0]
    with pytest.raises(RuntimeError, match="8 arguments, expected 7"):
        checkpoint_by_name(block, *[torch.zeros(1)] * 8)


@pytest.mark.long
def test_bytes_are_counted_without_computing():
    real, counted = (measure("small", 0.2, True, computed) for computed in (True, False))
    assert real == counted > 0


@pytest.mark.parametrize(
    ("size", "parameters", "cross", "every"),
    [("base", 346_943_496, 128, 384), ("large", 718_012_296, 256, 1024)],
)
def test_the_benchmark_measures_the_released_sizes(size, parameters, cross, every):
    """346.94 M is the released file's bytes over four; not all second attentions are cross."""
    with torch.device("meta"):
        unet = AudioLDM2UNet2DConditionModel(**SIZES[size])
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters
    assert (len(attention_linears(unet, cross_only=True)), len(attention_linears(unet))) == (
        cross,
        every,
    )
