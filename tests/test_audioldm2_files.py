"""AudioLDM 2 and the world: released folders, saved artefacts, peft's adapters on the plain network, checkpointed gradients."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import AudioLDM2UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from toy_audioldm2 import small_model, written_folder

from benchmarks.audioldm2_memory import SIZES, measure, saved_bytes
from zoo import registry
from zoo.backbones.audioldm2 import AudioLDM2
from zoo.backbones.checkpointing import checkpoint_by_name
from zoo.backbones.lora import add_lora, attention_linears, load_adapter, save_adapter
from zoo.checkpoint import identity_of, load_artifact, save_artifact
from zoo.diffusion import Sampler, noise_generator, rollout
from zoo.importers.audioldm2 import pulled_audioldm2
from zoo.types import Conditioning, Prompt

PROMPTS = (Prompt("a", "a dog barks", "rain", 0.2), Prompt("b", "calm piano melody with strings", "", 0.2))


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return written_folder(model, tmp_path_factory.mktemp("released") / "audioldm2")


def latents(predict, model):
    conditioning, negative = (model.encode_prompts(side) for side in (PROMPTS, [p.as_negative() for p in PROMPTS]))
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in PROMPTS]
    sampler = Sampler(2, guidance_scale=2.0)
    return rollout(predict, model.path, sampler, PROMPTS, conditioning, negative, model.latent_shape(0.2), generators).clean


def predicting(unet):
    """``predict`` of a plain diffusers network, as a user of diffusers would call it."""

    def predict(x, time_B, conditioning):
        return unet(
            x, time_B, encoder_hidden_states=conditioning["loa_BLD"], encoder_hidden_states_1=conditioning["t5_BLD"],
            encoder_attention_mask_1=conditioning["t5_mask_BL"], return_dict=False,
        )[0]  # fmt: skip

    return predict


def shaken(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def test_a_released_folder_gives_the_same_model(model, folder):
    again = AudioLDM2.from_pretrained(str(folder))
    assert isinstance(again, AudioLDM2) and not again.training and not any(p.requires_grad for p in again.parameters())
    assert not any(tensor.is_meta for tensor in again.state_dict().values())
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    with torch.no_grad():
        ours, theirs = latents(model.predict, model), latents(again.predict, again)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)  # where weights lie in memory shows in the last bits
        torch.testing.assert_close(again.decode(ours), model.decode(ours), atol=1e-5, rtol=1e-5)
    built = AudioLDM2(**json.loads(json.dumps(again.arguments)))
    assert {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_the_zoo_opens_a_pulled_folder(folder):
    for name in ("audioldm2", "audioldm2-large", "audioldm2-music"):
        assert registry.why_not_loadable(registry.ENTRIES[name]) is None
    assert isinstance(pulled_audioldm2("audioldm2", folder), AudioLDM2)


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
    with pytest.raises(ValueError, match=rf"do not fit AudioLDM2ProjectionModel: 1 {damage} \((eos_embed|stray)\)"):
        AudioLDM2.from_pretrained(str(copied))
    shutil.rmtree(copied / "vae")
    with pytest.raises(FileNotFoundError, match="no AudioLDM 2 in diffusers layout: it has no folder vae"):
        AudioLDM2.from_pretrained(str(copied))


def test_an_artefact_holds_the_whole_model(model, tmp_path):
    kind, architecture, arguments = identity_of(model)
    save_artifact(tmp_path / "saved", kind=kind, architecture=architecture, arguments=arguments, module=model)
    again = load_artifact(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(latents(again.predict, again), latents(model.predict, model), atol=1e-5, rtol=1e-5)


def test_our_adapter_on_the_plain_network(model, tmp_path):
    backbone, plain = copy.deepcopy(model), copy.deepcopy(model.denoiser)
    before = latents(backbone.predict, model)
    add_lora(backbone, rank=2)
    shaken(backbone.denoiser)
    ours = latents(backbone.predict, model)
    save_adapter(backbone, tmp_path / "adapter")
    theirs = latents(predicting(PeftModel.from_pretrained(plain, tmp_path / "adapter")), model)
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-6)


def test_an_adapter_of_the_plain_network_on_ours(model, tmp_path):
    backbone, plain = copy.deepcopy(model), copy.deepcopy(model.denoiser)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=attention_linears(plain))
    made = shaken(get_peft_model(plain, config))
    made.save_pretrained(tmp_path / "adapter")
    load_adapter(backbone, tmp_path / "adapter")
    torch.testing.assert_close(latents(backbone.predict, model), latents(predicting(made), model), atol=1e-6, rtol=1e-6)


def gradients(backbone, x, time_B, conditioning):
    backbone.denoiser.zero_grad()
    output = backbone.predict(x, time_B, conditioning)
    output.square().mean().backward()
    return output.detach(), {name: p.grad.clone() for name, p in backbone.denoiser.named_parameters() if p.grad is not None}


def test_checkpointing_keeps_outputs_and_gradients_and_saves_memory(model):
    backbone = copy.deepcopy(model)
    add_lora(backbone, rank=2)
    shaken(backbone.denoiser)
    x, time_B = torch.randn(2, *model.latent_shape(0.5)), torch.tensor([900, 100])
    conditioning = model.encode_prompts(PROMPTS)
    output, wanted = gradients(backbone, x, time_B, conditioning)
    with saved_bytes(backbone) as plain:
        backbone.predict(x, time_B, conditioning)
    backbone.set_checkpointing()
    again, found = gradients(backbone, x, time_B, conditioning)
    with saved_bytes(backbone) as checkpointed:
        backbone.predict(x, time_B, conditioning)
    assert torch.equal(again, output) and wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert 0 < 2 * checkpointed() < plain()
    backbone.set_checkpointing(False)
    with saved_bytes(backbone) as off:
        backbone.predict(x, time_B, conditioning)
    assert off() == plain()


def library_checkpointing(model, conditioning, x):
    """Output of the library's own checkpointing, which hands a shifted list of arguments to its attention blocks."""
    unet = copy.deepcopy(model.denoiser)
    unet.enable_gradient_checkpointing()
    return predicting(unet)(x, torch.tensor([500] * len(x)), conditioning)


def test_where_the_library_alone_goes_wrong(model):
    """Without a mask it is right; with one it stops, or is wrong without a word. If this fails, the library was repaired."""
    x = torch.randn(2, *model.latent_shape(0.2))
    conditioning = model.encode_prompts(PROMPTS)
    right = model.predict(x, torch.tensor([500, 500]), conditioning).detach()
    with pytest.raises(RuntimeError, match="size|expand"):
        library_checkpointing(model, conditioning, x)
    unet = copy.deepcopy(model.denoiser)
    streams = {"encoder_hidden_states": conditioning["loa_BLD"], "encoder_hidden_states_1": conditioning["t5_BLD"]}
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


def test_another_call_of_the_library_is_refused(model):
    block = model.denoiser.mid_block.attentions[0]
    with pytest.raises(RuntimeError, match="8 arguments, expected 7"):
        checkpoint_by_name(block, *[torch.zeros(1)] * 8)


def test_bytes_are_counted_without_computing():
    real, counted = (measure("small", 0.2, True, computed) for computed in (True, False))
    assert real == counted > 0


@pytest.mark.parametrize(
    ("size", "parameters", "cross", "every"), [("base", 346_943_496, 128, 384), ("large", 718_012_296, 256, 1024)]
)
def test_the_benchmark_measures_the_released_sizes(size, parameters, cross, every):
    """346.94 M is the released file's size in bytes over four; a third of the second attentions is no cross-attention."""
    with torch.device("meta"):
        unet = AudioLDM2UNet2DConditionModel(**SIZES[size])
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters
    assert (len(attention_linears(unet, cross_only=True)), len(attention_linears(unet))) == (cross, every)
