"""All backbones around diffusers networks: peft's adapters, and gradients with checkpointing."""

import copy

import pytest
import torch
import toy_audioldm
import toy_audioldm2
import toy_stable_audio
import toy_tango
import toy_tangoflux
from peft import LoraConfig, PeftModel, get_peft_model
from toys import latents, shaken

from benchmarks.audioldm2_memory import saved_bytes
from zoo.backbones.lora import add_lora, attention_linears
from zoo.hub.adapters import load_adapter, save_adapter
from zoo.types import Conditioning, Prompt

PROMPTS = (
    Prompt("a", "a dog barks", "rain on a roof and a bird", 0.2),
    Prompt("b", "sad piano and rain", "", 0.2),
    Prompt("c", "rain", "a dog", 0.2),
)
TOYS = {
    "audioldm": toy_audioldm,
    "audioldm2": toy_audioldm2,
    "stable_audio": toy_stable_audio,
    "tango": toy_tango,
    "tangoflux": toy_tangoflux,
}
WINDOW = {"stable_audio": {"frame_window": "heard"}, "tangoflux": {"frame_window": "heard"}}


@pytest.fixture(params=sorted(TOYS))
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return TOYS[kind].small_model(**WINDOW.get(kind, {}))


def plain_network(model):
    """The library's network with the same weights, built without our classes."""
    network = type(model.denoiser).from_config(model.denoiser.config).eval().requires_grad_(False)
    network.load_state_dict(model.denoiser.state_dict())
    return network


@pytest.mark.long
@pytest.mark.parametrize("targets", ["cross", "all"])
def test_our_adapter_on_the_plain_network(kind, model, tmp_path, targets):
    plain = plain_network(model)
    predicting = TOYS[kind].predicting
    before = latents(model.predict, model, PROMPTS)
    torch.testing.assert_close(
        latents(predicting(plain), model, PROMPTS), before, atol=1e-6, rtol=1e-6
    )
    add_lora(model, rank=2, targets=targets)
    shaken(model.denoiser)
    ours = latents(model.predict, model, PROMPTS)
    save_adapter(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(
        latents(predicting(theirs), model, PROMPTS), ours, atol=1e-6, rtol=1e-6
    )


@pytest.mark.long
def test_an_adapter_of_the_plain_network_on_ours(kind, model, tmp_path):
    plain = plain_network(model)
    before = latents(model.predict, model, PROMPTS)
    made = shaken(
        get_peft_model(
            plain, LoraConfig(r=2, lora_alpha=4, target_modules=attention_linears(plain))
        )
    )
    made.save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    ours = latents(model.predict, model, PROMPTS)
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(
        ours, latents(TOYS[kind].predicting(made), model, PROMPTS), atol=1e-6, rtol=1e-6
    )


@pytest.mark.long
def test_an_adapter_on_a_network_in_bfloat16_is_float32_and_comes_back(kind, model, tmp_path):
    backbone = model.to(torch.bfloat16)
    again = TOYS[kind].small_model(**WINDOW.get(kind, {})).to(torch.bfloat16)
    add_lora(backbone, rank=2, targets="all")
    shaken(backbone.denoiser)
    save_adapter(backbone, tmp_path / "adapter")
    load_adapter(again, tmp_path / "adapter")
    for network in (backbone.denoiser, again.denoiser):
        for name, parameter in network.named_parameters():
            assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    assert torch.equal(
        latents(backbone.predict, again, PROMPTS), latents(again.predict, again, PROMPTS)
    )


@pytest.mark.long
def test_checkpointing_keeps_outputs_and_gradients_and_saves_memory(kind, model):
    """In train mode, with dropout in the adapter, guidance and texts of different lengths."""
    add_lora(model, rank=2, targets="all", dropout=0.2)
    shaken(model.denoiser)
    model.train()
    conditioning = Conditioning.cat(
        [model.encode_prompts([p.as_negative() for p in PROMPTS]), model.encode_prompts(PROMPTS)]
    )
    x = torch.randn(6, *model.latent_shape(0.5))
    time_B = model.path.sample_times(torch.linspace(0.1, 0.9, 6))
    found, kept = [], []
    for enabled in (False, True, False):
        model.set_checkpointing(enabled)
        model.denoiser.zero_grad()
        torch.manual_seed(3)
        with saved_bytes(model) as saved:
            output = model.predict(x, time_B, conditioning)
        output.square().mean().backward()
        kept.append(saved())
        found.append(
            [
                output.detach(),
                *(p.grad.clone() for p in model.denoiser.parameters() if p.grad is not None),
            ]
        )
    assert len(found[0]) > 1 and all(
        torch.equal(one, other) for one, other in zip(*found[:2], strict=True)
    )
    assert 0 < kept[1] < 0.6 * kept[0] and kept[2] == kept[0]


def test_only_the_denoiser_is_ever_in_train_mode(model):
    model.train()
    trained = {
        name.split(".")[0] for name, module in model.named_modules() if name and module.training
    }
    assert trained == {"denoiser"} and model.training
    model.eval()
    assert not any(module.training for module in model.modules())


def test_clips_are_decoded_one_by_one(model):
    latent = torch.randn(5, *model.latent_shape(0.2)).requires_grad_()
    whole = model.decode(latent)
    whole.square().sum().backward()
    last = latent.detach()[4:].clone().requires_grad_()
    wave = model.decode(last)
    wave.square().sum().backward()
    torch.testing.assert_close(whole[4:], wave, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latent.grad[4:], last.grad, atol=1e-3, rtol=1e-3)


def test_dropped_parts_are_named_and_the_rest_continues(model):
    sides = (PROMPTS, [prompt.as_negative() for prompt in PROMPTS])
    before = copy.deepcopy([dict(model.encode_prompts(side).streams) for side in sides])
    model.drop_text_encoders(PROMPTS)
    for side, wanted in zip(sides, before, strict=True):
        found = model.encode_prompts(side)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (
        not any(name.split(".")[0] in model.offloadable["text"] for name in model.state_dict())
        and model.arguments is None
    )
    with pytest.raises(
        ValueError,
        match="text encoders.*'a bird'",
    ):
        model.encode_prompts([Prompt("x", "a bird", "a roof")])
    shape = model.latent_shape(0.2)
    model.drop_decoder()
    assert model.latent_shape(0.2) == shape
    for call, tensor in (
        (model.decode, torch.zeros(1, *shape)),
        (model.encode, torch.zeros(1, model.channels, 800)),
    ):
        with pytest.raises(
            ValueError, match="autoencoder.* of this model w.* dropped; load it again"
        ):
            call(tensor)
