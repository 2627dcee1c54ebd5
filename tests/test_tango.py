"""Tango at toy size, from text to sound, and to and from files."""

import functools
import json
import re

import pytest
import torch
from toy_tango import SMALL, released_folder

import zoo
import zoo.hub.resolve
import zoo.importers.tango as importer
from zoo.backbones.lora import add_lora, attention_linears
from zoo.backbones.mel_codec import normalised, prepared, slaney_mel_bank
from zoo.backbones.tango import UNET, Tango
from zoo.diffusion import Sampler, noise_generator, rollout, step_log_prob
from zoo.hub.adapters import load_adapter, save_adapter
from zoo.hub.artifact import load_artifact, save_artifact
from zoo.types import Prompt

pytestmark = pytest.mark.long

PROMPTS = (
    Prompt("a", "a dog barks", "", 0.2),
    Prompt("b", "rain falls on a roof and a bird", "", 0.2),
)


@pytest.fixture
def tango():
    return Tango(**SMALL).eval().requires_grad_(False)


def sampled(backbone, prompts=PROMPTS, steps=3, eta=1.0):
    sides = [
        backbone.encode_prompts(side) for side in (prompts, [p.as_negative() for p in prompts])
    ]
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    sampler = Sampler(steps, guidance_scale=3.0, eta=eta)
    shape = backbone.latent_shape(prompts[0].seconds)
    return sampler, rollout(
        backbone.predict, backbone.path, sampler, prompts, *sides, shape, generators
    )


def test_text_becomes_sound_and_the_last_step_is_clean(tango):
    _, trajectory = sampled(tango)
    assert (
        trajectory.times_S.tolist() == [667, 334, 1, -1]
        and trajectory.std_S[-1] == 0
        and (trajectory.std_S[:-1] > 0).all()
    )
    wave = tango.decode(trajectory.clean)
    assert wave.shape == (2, 1, 3200) and wave.isfinite().all() and wave.abs().max() <= 1
    assert (wave[0] - wave[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [(0.01, 1), (0.04, 1), (0.0401, 2), (10.0, 250), (10.24, 256), (30.0, 750)],
)
def test_clips_have_any_length(tango, seconds, frames):
    assert tango.latent_shape(seconds) == (4, frames, 4)


def test_released_sizes_are_the_default():
    with torch.device("meta"):
        model = Tango()
    assert model.latent_shape(10.24) == (8, 256, 16) and model.arguments["unet"] == UNET
    counts = [
        sum(p.numel() for p in part.parameters()) for part in (model.denoiser, model.text_encoder)
    ]
    assert (
        sum(counts) == 1_207_164_872
        and len(attention_linears(model.denoiser, cross_only=True)) == 4 * 16
    )


def test_silence_and_constants_stay_silent():
    waves = torch.stack([torch.zeros(2000), torch.full((2000,), 0.7), 1e-3 * torch.randn(2000)])
    level = normalised(waves)
    assert not level[:2].any() and level[2].abs().max().item() == pytest.approx(0.5, abs=1e-4)
    made = prepared(waves, 2560)
    assert (
        not made[:2].any()
        and made[2].abs().max() == 0.5
        and not made[:, 2000:].any()
        and made.shape == (3, 2560)
    )
    late = torch.cat([torch.zeros(1000), torch.tensor([1.0, -1.0]).repeat(100)])
    assert not prepared(late[None], 500).any()  # what is left after the cut is silent


def test_bad_waves_are_refused(tango):
    for wave, message in (
        (torch.zeros(1, 2, 900), "mono waves"),
        (torch.zeros(1, 900), "mono waves"),
        (torch.zeros(1, 1, 0), "mono waves"),
        (torch.full((1, 1, 900), torch.nan), "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            tango.encode(wave)
    assert tango.encode(torch.zeros(1, 1, 900)).isfinite().all()


def test_mel_bands_are_slaneys():
    bank = slaney_mel_bank(16_000, 64)
    assert bank.shape == (64, 513) and not bank[:, 0].any() and (bank >= 0).all()
    torch.testing.assert_close(
        bank.sum(1), torch.full((64,), 1024 / 16_000), rtol=0.03, atol=0
    )  # each has an area of 1 Hz


def test_saved_and_loaded_as_an_artefact(tango, tmp_path):
    save_artifact(
        tmp_path / "m",
        kind="backbone",
        architecture="tango",
        arguments=tango.arguments,
        module=tango,
    )
    again = load_artifact(tmp_path / "m")
    assert again.arguments == tango.arguments
    latents = [sampled(model)[1].clean for model in (tango, again)]
    assert torch.equal(*latents) and torch.equal(tango.decode(latents[0]), again.decode(latents[1]))


def test_one_policy_step_starts_at_ratio_one_and_the_adapter_goes_out_and_in(tango, tmp_path):
    add_lora(tango, rank=2)
    tango.train()
    assert not any(part.training for part in (tango.text_encoder, tango.codec.vae))
    sampler, trajectory = sampled(tango)
    step_B = torch.tensor([0, 1])
    log_prob, _, _ = step_log_prob(tango.predict, tango.path, sampler, trajectory, step_B)
    ratio = (log_prob - trajectory.log_prob_SB[step_B, torch.arange(2)]).exp()
    torch.testing.assert_close(ratio, torch.ones(2), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="step 2 .* adds no noise"):
        step_log_prob(tango.predict, tango.path, sampler, trajectory, torch.tensor([2, 2]))
    learned = [p for p in tango.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, 1e-3)
    (-log_prob.sum()).backward()
    optimizer.step()
    with torch.no_grad():
        moved, _, _ = step_log_prob(tango.predict, tango.path, sampler, trajectory, step_B)
    assert moved.sum() > log_prob.sum()
    save_adapter(tango, tmp_path / "a")
    bare = Tango(**SMALL).eval()
    base = {name: tensor for name, tensor in tango.state_dict().items() if "lora_" not in name}
    bare.load_state_dict(
        {
            name.replace("base_model.model.", "").replace(".base_layer", ""): base[name]
            for name in base
        }
    )
    load_adapter(bare, tmp_path / "a")
    torch.testing.assert_close(sampled(bare)[1].clean, sampled(tango.eval())[1].clean)


def test_prompts_without_a_tokenizer_or_too_long_or_after_the_encoder_is_gone(tango):
    with pytest.raises(ValueError, match="no tokenizer.*google/flan-t5-large"):
        Tango(**{**SMALL, "tokenizer": None}).encode_prompts(PROMPTS)
    with pytest.raises(ValueError, match="cannot be read"):
        Tango(**{**SMALL, "tokenizer": "no tokenizer"})
    with pytest.raises(ValueError, match="does not belong to the text encoder"):
        Tango(**{**SMALL, "text_encoder": {**SMALL["text_encoder"], "eos_token_id": 5}})
    with pytest.raises(ValueError, match="has 9 tokens, T5 takes 4"):
        Tango(**SMALL, max_tokens=4).encode_prompts(PROMPTS[1:])
    before = tango.encode_prompts(PROMPTS)
    tango.drop_text_encoders(PROMPTS)
    assert (
        torch.equal(tango.encode_prompts(PROMPTS)["tokens_BLD"], before["tokens_BLD"])
        and tango.arguments is None
    )
    tango.encode_prompts([PROMPTS[0].as_negative()])
    with pytest.raises(ValueError, match="'sad piano'"):
        tango.encode_prompts([Prompt("c", "sad piano")])


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        (
            "text_encoder",
            "attn_implementation",
            "the text encoder has no setting 'attn_implementation'",
        ),
        ("vocoder", "auto_map", "the vocoder has no setting 'auto_map'"),
        ("vae", "latent_chanels", "did you mean 'latent_channels'"),
        ("unet", "quantization_config", "the U-Net has no setting 'quantization_config'"),
    ],
)
def test_unknown_settings_of_parts_are_refused(part, key, message):
    with pytest.raises(ValueError, match=message):
        Tango(**{**SMALL, part: {**SMALL[part], key: 1}})


def test_parts_must_fit():
    with pytest.raises(ValueError, match="text encoder gives 8"):
        Tango(**{**SMALL, "text_encoder": {**SMALL["text_encoder"], "d_model": 8}})


# -- the authors' folder
# ----------------------------------------------------------------------------------------------

SIZES = {name: SMALL[name] for name in ("unet", "text_encoder", "vae", "vocoder")}


def test_a_released_folder_gives_the_same_model(tango, tmp_path):
    folder = released_folder(tango, tmp_path)
    (folder / "config.json").write_text("{}")  # as the released ones have
    loaded = importer.load_tango(folder, folder / "words.json", **SIZES)
    expected, found = tango.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(sampled(loaded)[1].clean, sampled(tango)[1].clean)
    assert loaded.arguments == tango.arguments


def test_load_opens_both_layouts(tango, tmp_path, monkeypatch):
    folder = released_folder(tango, tmp_path)
    (folder / "words.json").rename(folder / "tokenizer.json")
    monkeypatch.setattr(importer, "load_tango", functools.partial(importer.load_tango, **SIZES))
    model = zoo.load(folder, dtype="bfloat16", checkpoint_activations=True)
    assert (
        model.denoiser.conv_in.weight.dtype == torch.bfloat16
        and model.denoiser.is_gradient_checkpointing
    )
    save_artifact(
        tmp_path / "m",
        kind="backbone",
        architecture="tango",
        arguments=tango.arguments,
        module=tango,
    )
    assert torch.equal(sampled(zoo.load(tmp_path / "m"))[1].clean, sampled(tango)[1].clean)


def test_the_zoo_opens_a_pulled_folder(tango, tmp_path, monkeypatch):
    folder = released_folder(tango, tmp_path)
    (folder / "words.json").rename(folder / "tokenizer.json")
    monkeypatch.setattr(importer, "load_tango", functools.partial(importer.load_tango, **SIZES))
    monkeypatch.setattr(zoo.hub.resolve, "find", lambda name: {"tango2": folder}[name])
    (folder / "config.json").write_text(
        '{"architectures": null}'
    )  # what lies there is no configuration of ours
    for loaded in (zoo.load("tango2"), zoo.open_model("tango2")):
        assert torch.equal(sampled(loaded)[1].clean, sampled(tango)[1].clean)
    assert zoo.generate(loaded, "a dog barks", steps=2, seconds=0.1)[0].samples_CN.shape == (
        1,
        1600,
    )


def test_an_owner_and_name_mean_the_entry_with_its_commit_hashes_and_licence(
    tango, tmp_path, monkeypatch
):
    folder = released_folder(tango, tmp_path)
    monkeypatch.setattr(importer, "load_tango", functools.partial(importer.load_tango, **SIZES))
    monkeypatch.setattr(zoo.hub.resolve, "find", lambda name: {"tango2": folder}[name])
    assert isinstance(zoo.load("declare-lab/tango2", tokenizer=folder / "words.json"), Tango)


def test_another_tokenizer_for_a_saved_model(tango, tmp_path):
    arguments = {**tango.arguments, "tokenizer": None}
    save_artifact(
        tmp_path / "m", kind="backbone", architecture="tango", arguments=arguments, module=tango
    )
    words = released_folder(tango, tmp_path) / "words.json"
    again = zoo.load(tmp_path / "m", tokenizer=words)
    assert torch.equal(sampled(again)[1].clean, sampled(tango)[1].clean)
    with pytest.raises(ValueError, match="no tokenizer"):
        zoo.load(tmp_path / "m").encode_prompts(PROMPTS)


def broken(folder, file, change):
    tensors = torch.load(folder / file, weights_only=True)
    change(tensors)
    torch.save(tensors, folder / file)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            importer.MAIN_FILE,
            lambda t: t.pop("unet.conv_in.bias"),
            "do not fit this Tango.*denoiser.conv_in.bias",
        ),
        (
            importer.MAIN_FILE,
            lambda t: t.update(stray=torch.zeros(1)),
            "'stray' is of neither the U-Net",
        ),
        (
            importer.MAIN_FILE,
            lambda t: t.update({"unet.x": torch.zeros(1)}),
            "do not fit this Tango.*denoiser.x",
        ),
        (
            importer.MAIN_FILE,
            lambda t: t.update({"unet.conv_in.bias": torch.zeros(3)}),
            "do not fit this Tango.*size mismatch",
        ),
        (
            importer.MAIN_FILE,
            lambda t: t["text_encoder.shared.weight"].add_(1),
            "differ, but are one table",
        ),
        (
            importer.MAIN_FILE,
            lambda t: t.update({"unet.conv_in.bias": 3}),
            "is a int, expected tensors only",
        ),
        (
            importer.VAE_FILE,
            lambda t: t.pop("encoder.mid.attn_1.q.weight"),
            "do not fit this Tango.*attentions.0.to_q.weight",
        ),
        (
            importer.VAE_FILE,
            lambda t: t.update({"loss.logvar": torch.zeros(1)}),
            "'loss.logvar' is not known",
        ),
        (
            importer.VAE_FILE,
            lambda t: t.update({"vocoder.ups.0.weight_g": torch.zeros(1)}),
            "'vocoder.ups.0.weight_g' is not",
        ),
        (
            importer.STFT_FILE,
            lambda t: t["mel_basis"].add_(0.01),
            "mel_basis is not that of Tango's mel front end",
        ),
        (importer.STFT_FILE, lambda t: t.pop("mel_basis"), "should hold"),
    ],
)
def test_every_tensor_is_accounted_for(tango, tmp_path, file, change, message):
    folder = released_folder(tango, tmp_path)
    broken(folder, file, change)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        importer.load_tango(folder, folder / "words.json", **SIZES)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            importer.MAIN_CONFIG,
            "text_encoder_name",
            "google/flan-t5-xl",
            "text_encoder_name is 'google/flan-t5-xl'",
        ),
        (
            importer.MAIN_CONFIG,
            "scheduler_name",
            "other/schedule",
            "scheduler_name is 'other/schedule'",
        ),
        (importer.VAE_CONFIG, "ddconfig", None, "is not a configuration of AudioLDM's autoencoder"),
        (importer.VAE_CONFIG, "subband", 4, "subband and time_shuffle"),
    ],
)
def test_other_configurations_are_refused(tango, tmp_path, file, key, value, message):
    folder = released_folder(tango, tmp_path)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, key: value}))
    with pytest.raises(ValueError, match=message):
        importer.load_tango(folder, folder / "words.json", **SIZES)


def test_a_missing_file_or_tokenizer_is_named(tango, tmp_path):
    folder = released_folder(tango, tmp_path)
    with pytest.raises(FileNotFoundError, match="tokenizer.json.*google/flan-t5-large"):
        importer.load_tango(folder, **SIZES)
    with pytest.raises(FileNotFoundError, match="there is no .*nowhere.json"):
        importer.load_tango(folder, folder / "nowhere.json", **SIZES)
    (folder / importer.VAE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {re.escape(importer.VAE_FILE)}"):
        importer.load_tango(folder, folder / "words.json", **SIZES)
    with pytest.raises(FileNotFoundError, match="neither a model"):
        zoo.load(tmp_path)


def test_names_of_another_size_are_not_known():
    assert (
        importer.codec_name("decoder.up.2.upsample.conv.weight", 3)
        == "vae.decoder.up_blocks.0.upsamplers.0.conv.weight"
    )
    assert importer.codec_name("decoder.up.3.upsample.conv.weight", 3) is None
    assert importer.codec_name("encoder.up.0.block.0.conv1.weight", 3) is None
