"""TangoFlux: parity with the original on golden numbers, and its own properties."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_ddpo import module, trainer
from toy_tangoflux import ARGUMENTS, released_folder, small_model
from toys import Given, latents

import zoo
from datamodules.batches import PromptBatch
from zoo.backbones.lora import attention_linears
from zoo.backbones.tangoflux import TangoFlux
from zoo.diffusion import Sampler, Straight, denoising_error, rollout
from zoo.hub.adapters import load_adapter, save_adapter
from zoo.importers.tangoflux import load_tangoflux, main_state
from zoo.types import Conditioning, Prompt, RewardOutput

PROMPTS = (
    Prompt("a", "a dog barks", "rain", 0.2),
    Prompt("b", "sad piano and rain on roof", "", 0.2),
)
PARTS = {name: ARGUMENTS[name] for name in ("text_encoder", "vae", "transformer")}


def golden(golden_dir, topic):
    folder = golden_dir / "dpo"
    facts = json.loads((folder / f"{topic}.json").read_text())
    arrays = np.load(folder / f"{topic}.npz")
    spec = importlib.util.spec_from_file_location(
        "seeded_weights", golden_dir / "seeded_weights.py"
    )
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    manifest = json.loads((folder / facts["weights"]["manifest"]).read_text())
    state = main_state(
        seeded.seeded_state_dict(manifest["tensors"], facts["weights"]["seed"]), topic
    )
    sizes = manifest["config"]["model"]
    network = {
        key: sizes[key]
        for key in (
            "num_layers",
            "num_single_layers",
            "in_channels",
            "attention_head_dim",
            "joint_attention_dim",
            "num_attention_heads",
        )
    }
    width = manifest["config"]["text_encoder"]["d_model"]
    vae = {**ARGUMENTS["vae"], "encoder_hidden_size": 128, "decoder_input_channels": 64}
    model = TangoFlux(
        {**network, "pooled_projection_dim": width},
        manifest["config"]["text_encoder"],
        vae,
        None,
        frames=sizes["audio_seq_len"],
        max_seconds=sizes["max_duration"],
    )
    lost = model.load_state_dict(state, strict=False)
    assert not lost.unexpected_keys and all(name.startswith("codec.") for name in lost.missing_keys)
    return (
        facts,
        {key: torch.from_numpy(arrays[key]) for key in arrays.files},
        model.eval().requires_grad_(False),
    )


def given_conditioning(model, ids_BL, mask_BL, seconds):
    """The conditioning of given token ids, with the padding of their batch, as in the original."""
    states = model.text.encoder(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    duration = model.duration(seconds)
    pooled = model.fc((states * mask_BL[..., None]).sum(dim=1) / mask_BL.sum(dim=1, keepdim=True))
    tokens = torch.cat([duration, states], dim=1)
    return Conditioning(
        {"tokens_BLD": tokens, "mask_BL": torch.ones(tokens.shape[:2]).bool(), "pooled_BD": pooled}
    )


@pytest.mark.parity
def test_network_and_errors_equal_the_originals(golden_dir):
    facts, arrays, model = golden(golden_dir, "tangoflux_tiny")
    pairs = len(arrays["input_ids"])
    conditioning = given_conditioning(
        model,
        arrays["input_ids"],
        arrays["text_mask"].bool(),
        arrays["duration"].float().reshape(-1),
    )
    torch.testing.assert_close(conditioning["pooled_BD"], arrays["pooled"], atol=1e-5, rtol=1e-5)
    rows = Conditioning.cat([conditioning] * (len(arrays["latents"]) // pairs))
    time_B = arrays["timesteps"] / 1000
    noise = torch.cat([arrays["noise"]] * 2)
    with torch.no_grad():
        output = model.predict(arrays["network_input"].transpose(1, 2), time_B, rows).transpose(
            1, 2
        )
        errors = denoising_error(
            model.predict,
            Straight(),
            arrays["latents"].transpose(1, 2),
            time_B,
            noise.transpose(1, 2),
            rows,
        )
    torch.testing.assert_close(output, arrays["model_pred"], atol=1e-4, rtol=0)
    torch.testing.assert_close(errors, arrays["err_model"], atol=0, rtol=1e-5)


@pytest.mark.parity
def test_inference_equals_the_originals(golden_dir):
    facts, arrays, model = golden(golden_dir, "tangoflux_inference_tiny")
    words = json.loads((golden_dir / "dpo" / "tangoflux_tiny.json").read_text())["prompt_token_ids"]
    words |= {"": [1], **facts.get("prompt_token_ids", {})}
    model.memory.tokens = words.__getitem__
    prompt = Prompt("p", facts["prompt"], "", facts["duration"])
    start = arrays["init_latent"].transpose(1, 2)
    conditioning = model.encode_prompts([prompt])
    negative = model.encode_prompts([prompt.as_negative()])
    generator = torch.Generator()
    draw = torch.randn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch,
            "randn",
            lambda *shape, **kwargs: (
                start[0] if kwargs.get("generator") is generator else draw(*shape)
            ),
        )
        sampler = Sampler(facts["num_steps"], facts["guidance"], eta=0.0)
        shape = tuple(start.shape[1:])
        result = rollout(
            model.predict, model.path, sampler, [prompt], conditioning, negative, shape, [generator]
        )
    torch.testing.assert_close(result.times_S, arrays["sigmas"].float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.clean.transpose(1, 2), arrays["latents"], atol=1e-4, rtol=0)


@pytest.mark.parity
def test_the_released_names_are_ours(golden_dir):
    """Names and shapes of the released file, at full size, without allocating it."""
    manifest = json.loads((golden_dir / "dpo" / "manifest_tangoflux.json").read_text())
    with torch.device("meta"):
        model = TangoFlux()
        theirs = {
            name: torch.empty(entry["shape"])
            for name, entry in manifest["tensors"].items()
            if "alias_of" not in entry
        }
    ours = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.startswith("codec.")
    }
    assert {
        name: tuple(tensor.shape) for name, tensor in main_state(theirs, "manifest").items()
    } == ours
    assert (
        sum(p.numel() for p in model.denoiser.parameters()) == manifest["n_params"]["transformer."]
    )
    assert len(attention_linears(model.denoiser, cross_only=True)) == 6 * 4
    assert len(attention_linears(model.denoiser)) == 6 * 4 + 18 * 3
    assert (
        model.latent_shape(10.0) == (64, 645)
        and model.scored_mask([Prompt("p", "", "", 10.0)]).sum() == 216
    )


def test_a_released_folder_gives_the_same_model(tmp_path):
    model = small_model()
    folder = released_folder(model, tmp_path / "released")
    again = load_tangoflux(folder, **PARTS)
    assert (
        not any(p.requires_grad for p in again.parameters())
        and again.arguments["max_seconds"] == 30
    )
    with torch.no_grad():
        found, wanted = (latents(one.predict, one, PROMPTS) for one in (again, model))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    state = load_file(folder / "tangoflux.safetensors")
    save_file({**state, "stray.weight": torch.zeros(1)}, folder / "tangoflux.safetensors")
    with pytest.raises(ValueError, match=r"'stray\.weight'.*transformer, text_encoder"):
        load_tangoflux(folder, **PARTS)
    del state["fc.0.bias"]
    save_file(state, folder / "tangoflux.safetensors")
    with pytest.raises(ValueError, match="do not fit this TangoFlux"):
        load_tangoflux(folder, **PARTS)
    (folder / "config.json").write_text(json.dumps({"text_encoder_name": "t5-small"}))
    with pytest.raises(ValueError, match="text_encoder_name.*'t5-small'"):
        load_tangoflux(folder, **PARTS)


def test_long_prompts_are_named():
    assert list(small_model(max_tokens=8).too_long([Prompt("x", "rain " * 9), *PROMPTS])) == ["x"]


class Loudness:
    """The level of the left channel."""

    differentiable = False

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(wave_BCN[:, 0].square().mean(dim=1).log())


@pytest.mark.long
@pytest.mark.parametrize("window", [None, "heard"])
def test_from_text_to_a_trained_adapter_and_back(tmp_path, window):
    backbone = small_model(frame_window=window)
    ddpo = module(
        {"sampler.steps": 3, "sampler.rule": "cps", "sampler.eta": 0.7},
        backbone=backbone,
        reward=Loudness(),
    )
    trainer().fit(ddpo, Given(PromptBatch(PROMPTS * 2, (0, 0, 1, 1), 0)))
    save_adapter(backbone, tmp_path / "adapter")
    again = small_model(frame_window=window)
    load_adapter(again, tmp_path / "adapter")
    base, trained, reloaded = (
        zoo.generate(each, [PROMPTS[0]], steps=2, rule="cps", eta=0.7)[0].samples_CN
        for each in (small_model(frame_window=window), backbone.eval(), again)
    )
    assert trained.shape == (2, 3200)
    assert torch.equal(trained, reloaded) and not torch.allclose(base, reloaded, atol=1e-6)
