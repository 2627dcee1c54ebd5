"""Adapters of Tango are peft's: on the plain diffusers network they give the same latents, and that network's fit ours."""

import copy

import pytest
import torch
import toy_tango
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model

from zoo.backbones.lora import add_lora, attention_linears, load_adapter, save_adapter
from zoo.backbones.tango import Tango
from zoo.diffusion import Sampler, noise_generator, rollout
from zoo.types import Prompt

PROMPTS = (Prompt("a", "a dog barks", "rain", 0.2), Prompt("b", "rain falls on a roof and a bird", "", 0.2))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tango = Tango(**toy_tango.SMALL).eval().requires_grad_(False)
    for name, parameter in tango.denoiser.named_parameters():
        if "attn2.to_out.0.weight" in name:  # an untrained network hardly listens to its text
            parameter.mul_(4)
    return tango


def plain_network(tango) -> UNet2DConditionModel:
    """The library's own network with the same weights, built without our classes."""
    unet = UNet2DConditionModel(**toy_tango.SMALL["unet"]).eval().requires_grad_(False)
    unet.load_state_dict(tango.denoiser.state_dict())
    return unet


def latents(predict, tango) -> torch.Tensor:
    sides = [tango.encode_prompts(side) for side in (PROMPTS, [prompt.as_negative() for prompt in PROMPTS])]
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in PROMPTS]
    return rollout(
        predict, tango.path, Sampler(2, guidance_scale=2.0), PROMPTS, *sides, tango.latent_shape(0.2), generators
    ).clean


def predicting(unet):
    """``predict`` of a plain diffusers network, as a user of diffusers would call it."""

    def predict(x, time_B, conditioning):
        text, mask = conditioning["tokens_BLD"], conditioning["mask_BL"]
        return unet(x, time_B, encoder_hidden_states=text, encoder_attention_mask=mask, return_dict=False)[0]

    return predict


def shaken(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


@pytest.mark.parametrize("targets", ["cross", "all"])
def test_our_adapter_on_the_plain_network(model, tmp_path, targets):
    backbone = copy.deepcopy(model)
    before = latents(backbone.predict, model)
    torch.testing.assert_close(latents(predicting(plain_network(model)), model), before, atol=1e-6, rtol=1e-6)
    add_lora(backbone, rank=2, targets=targets)
    shaken(backbone.denoiser)
    ours = latents(backbone.predict, model)
    save_adapter(backbone, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(plain_network(model), tmp_path / "adapter")
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(latents(predicting(theirs), model), ours, atol=1e-6, rtol=1e-6)


def test_an_adapter_of_the_plain_network_on_ours(model, tmp_path):
    backbone, plain = copy.deepcopy(model), plain_network(model)
    before = latents(backbone.predict, model)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=attention_linears(plain))
    made = shaken(get_peft_model(plain, config))
    made.save_pretrained(tmp_path / "adapter")
    load_adapter(backbone, tmp_path / "adapter")
    ours = latents(backbone.predict, model)
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(ours, latents(predicting(made), model), atol=1e-6, rtol=1e-6)
