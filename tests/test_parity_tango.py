"""Parity with declare-lab/tango on golden numbers; tolerances in golden/tango/FACTS.md."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.sounds.mixing import first_weight, levels_db, mixed
from zoo.backbones import mel_codec
from zoo.backbones.mel_codec import (
    MelCodec,
    log_mel,
    magnitudes,
    normalised,
    prepared,
    slaney_mel_bank,
)
from zoo.backbones.tango import TEXT_ENCODER, UNET, VAE, VOCODER, Tango
from zoo.diffusion import (
    Sampler,
    VPDiscrete,
    denoising_error,
    gaussian_step,
    guided_output,
    min_snr_weights,
    rollout,
    target,
)
from zoo.importers.tango import codec_state, main_state, vae_arguments
from zoo.types import Conditioning, Prompt

pytestmark = [pytest.mark.parity, pytest.mark.long]
PREDICTION = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class Golden:
    """One topic: ``facts`` (the JSON) and arrays by key."""

    def __init__(self, folder: Path, topic: str) -> None:
        self.folder = folder
        self.facts = read(folder, topic)
        self._arrays = np.load(folder / "tango" / f"{topic}.npz")
        self.keys = list(self._arrays.files)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._arrays[key])

    def weights(self) -> dict[str, Tensor]:
        """The seeded weights of the reference run."""
        spec = importlib.util.spec_from_file_location(
            "seeded_weights", self.folder / "seeded_weights.py"
        )
        seeded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(seeded)
        weights = self.facts["weights"]
        manifest = json.loads((self.folder / "tango" / weights["manifest"]).read_text())["tensors"]
        state = seeded.seeded_state(manifest, weights["seed"])
        promised = weights.get("state_sha256")
        assert promised in (
            None,
            seeded.state_sha256(state),
        ), "the generator of the weights differs"
        return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def read(folder: Path, topic: str) -> dict[str, Any]:
    return json.loads((folder / "tango" / f"{topic}.json").read_text())


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    worst = (got.double() - expected.double()).abs().max().item()
    assert got.shape == expected.shape and worst <= tolerance, (
        f"{what}: off by {worst:.2e}, allowed {tolerance:.0e}"
    )


def small(golden: Golden) -> Tango:
    """The small network of a golden run, with a codec of random weights that is not used."""
    config = read(golden.folder, Path(golden.facts["weights"]["manifest"]).stem)["config"]
    vae = {**VAE, "block_out_channels": [8, 16, 32], "norm_num_groups": 8}
    vocoder = {**VOCODER, "upsample_initial_channel": 32}
    model = Tango(config["unet"], config["text_encoder"], vae, vocoder)
    state = main_state(golden.weights(), "golden")
    state |= {
        name: tensor for name, tensor in model.state_dict().items() if name.startswith("codec.")
    }
    model.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False)


def codec(golden: Golden) -> MelCodec:
    config = vae_arguments(
        read(golden.folder, Path(golden.facts["weights"]["manifest"]).stem)["config"], "golden"
    )
    assert {**VAE, **config} == VAE
    weights = golden.weights()
    for name, first in golden.facts.get("probes", {}).items():
        assert weights[name].flatten()[: len(first)].tolist() == pytest.approx(first, abs=1e-7)
    with torch.device("meta"):
        model = MelCodec(VAE, VOCODER)
    model.load_state_dict(
        codec_state(weights, len(VAE["block_out_channels"]), "golden"), strict=True, assign=True
    )
    return model.eval().requires_grad_(False)


def test_tango_schedule(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "schedule")
    config = golden.facts["scheduler_config"]
    assert (
        config["beta_schedule"] == "scaled_linear"
        and not config["clip_sample"]
        and config["variance_type"] == "fixed_small"
    )

    def path_of(offset: int) -> VPDiscrete:
        kind = PREDICTION[config["prediction_type"]]
        count = config["num_train_timesteps"]
        return VPDiscrete.from_betas(
            config["beta_start"], config["beta_end"], kind, count, offset, ends_clean=True
        )

    path = path_of(config["steps_offset"])
    assert (
        (path.alphas_cumprod - golden["alphas_cumprod"]).abs() / golden["alphas_cumprod"]
    ).max() <= 1e-6
    grids = [key for key in golden.keys if key.startswith("timesteps")]
    assert grids
    for key in grids:
        times = path_of(0 if "offset0" in key else config["steps_offset"]).times(
            int(key.rpartition("N")[2])
        )
        assert torch.equal(times[: len(golden[key])], golden[key]), key
    alpha, sigma = path.coefficients(torch.arange(len(path.alphas_cumprod)))
    assert (alpha**2 / sigma**2 / golden["snr"] - 1).abs().max() <= 1e-4
    # the released weights were trained with min(SNR, 5) / SNR, which is the form for noise
    # prediction
    assert_close(
        min_snr_weights(alpha, sigma, "eps", 5.0), golden["min_snr_weight_gamma5"], 1e-5, "weights"
    )
    assert_close(
        min_snr_weights(alpha, sigma, "v", 5.0),
        golden["min_snr_weight_gamma5_vform"],
        1e-5,
        "weights, v form",
    )
    alpha, sigma = path.coefficients(golden["t"])
    wide = [coefficient.reshape(-1, 1, 1, 1) for coefficient in (alpha, sigma)]
    assert_close(wide[0] * golden["x0"] + wide[1] * golden["noise"], golden["noisy"], 1e-5, "noisy")
    assert_close(
        target(golden["x0"], golden["noise"], alpha, sigma, "v"), golden["v_target"], 1e-5, "v"
    )
    cases = [
        key.removesuffix(".t")
        for key in golden.keys
        if key.startswith("step.") and key.endswith(".t")
    ]
    assert cases
    for case in cases:
        times = path.times(int(case.rpartition("N")[2]))
        step = torch.tensor([times.tolist().index(time) for time in golden[f"{case}.t"].tolist()])
        coefficients = (*path.coefficients(times[step]), *path.coefficients(times[step + 1]))
        sample, output = golden[f"{case}.sample"], golden[f"{case}.v"]
        mean, std = gaussian_step(sample, output, *coefficients, prediction="v", eta=1.0)
        expected = golden[f"{case}.prev_sample"]
        assert_close(
            mean + std.reshape(-1, 1, 1, 1) * golden[f"{case}.noise"], expected, 1e-5, case
        )
        clean, _ = gaussian_step(
            sample,
            output,
            *coefficients[:2],
            *path.coefficients(torch.full_like(step, -1)),
            prediction="v",
            eta=0.0,
        )
        assert_close(clean, golden[f"{case}.pred_x0"], 1e-5, f"{case} clean")


def test_tango_released_sizes(golden_dir: Path) -> None:
    manifest = read(golden_dir, "manifest_main")
    config = manifest["config"]
    assert (
        UNET.items() <= config["unet"].items()
        and TEXT_ENCODER.items() <= config["text_encoder"].items()
    )
    with torch.device("meta"):
        model = Tango()
        tensors = {name: torch.empty(entry["shape"]) for name, entry in manifest["tensors"].items()}
        codec = {
            name: torch.empty(e["shape"])
            for name, e in read(golden_dir, "manifest_vae")["tensors"].items()
        }
    state = {
        name.replace("unet.", "denoiser.", 1) if name.startswith("unet.") else name: t
        for name, t in tensors.items()
    }
    state |= {f"codec.{name}": tensor for name, tensor in codec_state(codec, 3, "golden").items()}
    assert {name: t.shape for name, t in state.items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }


def test_tango_mel_bank(golden_dir: Path) -> None:
    facts = read(golden_dir, "manifest_stft")
    bank = slaney_mel_bank(facts["config"]["sampling_rate"], facts["config"]["n_mel_channels"])
    assert (
        list(bank.shape) == facts["tensors"]["mel_basis"]["shape"]
        and facts["config"]["filter_length"] == mel_codec.FFT
    )
    assert bank.sum(1).tolist() == pytest.approx(facts["mel_basis_row_sums"], rel=1e-5)
    assert bank.argmax(1).tolist() == facts["mel_basis_argmax"]


def test_tango_mel_frontend(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "mel_frontend")
    assert golden.facts["signals"]
    samples, frames = golden.facts["segment_length"], golden.facts["pad_frames"]
    for name in golden.facts["signals"]:
        wave = golden[f"{name}.waveform"][None]
        assert_close(normalised(wave)[0], golden[f"{name}.normalized"], 1e-6, f"{name} normalised")
        assert_close(prepared(wave, samples), golden[f"{name}.prepared"], 1e-6, f"{name} prepared")
        ready = golden[f"{name}.prepared"]
        mel = F.pad(log_mel(ready), (0, 0, 0, frames))[
            :, :frames
        ]  # zeros after the last frame there, not silence
        assert_close(mel, golden[f"{name}.mel"], 2e-3, f"{name} mel")
        assert_close(log_mel(wave), golden[f"{name}.mel_raw"], 2e-3, f"{name} raw mel")
        energy = magnitudes(ready, 160).norm(dim=1)
        expected = golden[f"{name}.energy"]
        assert ((energy - expected).abs() <= 1e-4 * expected + 1e-6).all(), name
    silent_samples = (golden["silence.mel"].shape[1] - 1) * 160
    silence = prepared(torch.zeros(1, silent_samples), silent_samples)
    assert (
        golden.facts["silence_prepared_all_nan"] and not silence.any()
    )  # it is NaN there, and zeros before the mel
    assert_close(log_mel(silence), golden["silence.mel"], 1e-5, "silence")


def test_tango_mixing(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "mixing")
    sounds = golden["sound1"], golden["sound2"]
    for number, sound in enumerate(sounds, 1):
        assert_close(
            levels_db(sound, 16_000), golden[f"gain{number}_db"], 1e-3, f"levels of sound {number}"
        )
    assert first_weight(*sounds, 16_000) == pytest.approx(golden["weight1"].item(), abs=1e-5)
    assert_close(mixed(*sounds, 16_000), golden["mixed"], 1e-5, "mixture")


def test_tango_vae_and_vocoder(golden_dir: Path) -> None:
    golden, sound = Golden(golden_dir, "vae"), Golden(golden_dir, "vocoder")
    vae = codec(golden)
    scale = golden.facts["scale_factor"]
    vocoder = (
        vae if golden.facts["weights"]["seed"] == sound.facts["weights"]["seed"] else codec(sound)
    )
    assert vae.vae.config.scaling_factor == scale
    mean, std = vae.posterior(golden["mel"])
    assert_close(mean, scale * golden["mean"], 1e-4, "mean")
    assert_close(std, scale * golden["std"], 1e-4, "std")
    assert_close(mean + std * golden["noise"], golden["latent"], 1e-4, "latent")
    assert_close(vae.to_mel(golden["latent"]), golden["reconstruction"], 1e-4, "reconstruction")
    decoded = vae.to_mel(golden["latent_in"])
    assert_close(decoded, golden["decoded"], 1e-4, "decoded")
    wave = vocoder.vocode(sound["mel"])
    assert_close(wave, sound["waveform"], 2e-4, "wave")
    assert_close((wave * 32768).trunc().clamp(-32768, 32767), sound["waveform_int16"], 1, "16 bits")
    expected = sound["waveform_of_decoded"]
    assert_close(vocoder.vocode(golden["decoded"][:, 0]), expected, 2e-4, "wave of the decoded mel")
    if vocoder is vae:
        whole = vae.decode(golden["latent_in"])
        assert_close(whole[:, 0], expected[:, : whole.shape[-1]], 2e-4, "latents to wave")
        assert whole.shape[-1] == golden["decoded"].shape[2] * 160


def test_tango_unet_and_text_encoder(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "unet_tiny")
    model = small(golden)
    mask = golden["attention_mask"].bool()
    told = model.encode_tokens(golden["input_ids"], mask)
    assert_close(told["tokens_BLD"], golden["text_states"] * mask[..., None], 1e-4, "text")
    output = model.predict(golden["latent"], golden["t"], told)
    assert_close(output, golden["out"], 1e-4, "output")
    full = Conditioning({"tokens_BLD": golden["text_states"], "mask_BL": torch.ones_like(mask)})
    assert_close(
        model.predict(golden["latent"], golden["t"], full),
        golden["out_full_mask"],
        1e-4,
        "output, mask all true",
    )
    count = len(golden["latent"])
    sides = Conditioning(
        {"tokens_BLD": golden["cfg.text_states"], "mask_BL": golden["cfg.mask"].bool()}
    )
    time_B = golden["cfg.t"].expand(count)
    negative = sides.rows(slice(0, count))
    positive = sides.rows(slice(count, None))
    assert_close(
        model.predict(golden["latent"], time_B, negative),
        golden["cfg.uncond"],
        1e-4,
        "unconditional",
    )
    assert_close(
        model.predict(golden["latent"], time_B, positive), golden["cfg.cond"], 1e-4, "conditional"
    )
    guided = guided_output(model.predict, golden["latent"], time_B, positive, negative, 3.0)
    assert_close(guided, golden["cfg.guided3"], 5e-4, "guided")
    ids = golden.facts["prompt_token_ids"][""]  # our own empty prompt: no padding at all
    empty = model.encode_tokens(
        torch.tensor([ids] * count), torch.ones(count, len(ids), dtype=torch.bool)
    )
    assert_close(
        model.predict(golden["latent"], time_B, empty),
        golden["cfg.uncond"],
        1e-4,
        "unconditional, unpadded",
    )


def test_tango_training_loss(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "training_loss_tiny")
    model = small(golden)
    told = model.encode_tokens(golden["input_ids"], golden["attention_mask"].bool())
    clean = golden["latents"]
    noise = golden["noise"]
    count = len(golden["t"])

    def errors(time_B: Tensor) -> tuple[Tensor, Tensor]:
        found = denoising_error(model.predict, model.path, clean, time_B, noise, told)
        return found, min_snr_weights(*model.path.coefficients(time_B), "eps", 5.0)

    model.denoiser.requires_grad_(True)
    found, weights = errors(golden["t"])
    assert torch.allclose(found, golden["per_sample_mse"], rtol=1e-4, atol=0)
    assert torch.allclose(weights, golden["weights"], rtol=1e-4, atol=0)
    for kind, factor in (("snr5", weights), ("plain", torch.ones(count))):
        loss = (found * factor).mean()
        assert loss.item() == pytest.approx(golden[f"loss.{kind}"].item(), rel=1e-4), kind
        gradients = torch.autograd.grad(loss, list(model.denoiser.parameters()), retain_graph=True)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        assert norm == pytest.approx(golden[f"grad_norm.{kind}"].item(), rel=1e-3), kind
        bias = torch.autograd.grad(loss, model.denoiser.conv_out.bias, retain_graph=True)[0]
        assert torch.allclose(bias, golden[f"grad_conv_out_bias.{kind}"], rtol=1e-3, atol=1e-6), (
            kind
        )
    found, weights = errors(torch.full((count,), 500))
    assert found.mean().item() == pytest.approx(golden["loss_validation.plain"].item(), rel=1e-4)
    assert (found * weights).mean().item() == pytest.approx(
        golden["loss_validation.snr5"].item(), rel=1e-4
    )


def test_tango_inference(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(golden_dir, "inference_tiny")
    model = small(golden)
    tokens = read(golden_dir, "unet_tiny")["prompt_token_ids"]

    def told(texts: list[str]) -> Conditioning:
        return Conditioning.cat(
            [
                model.encode_tokens(ids, ids >= 0)
                for ids in (torch.tensor([tokens[text]]) for text in texts)
            ]
        )

    texts, steps = golden.facts["prompts"], golden.facts["num_steps"]
    given = iter(torch.cat([golden["init_latent"][None], golden["step_noise"]]).flatten(0, 1))
    monkeypatch.setattr(
        torch, "randn", lambda *_, **__: next(given)
    )  # the given noise instead of drawn noise
    prompts = [Prompt(text, text) for text in texts]
    generators = [torch.Generator()] * len(texts)
    sampler = Sampler(steps, guidance_scale=golden.facts["guidance"], eta=1.0)
    shape = golden["init_latent"].shape[1:]
    assert golden.facts["steps_offset"] == model.path.steps_offset
    result = rollout(
        model.predict,
        model.path,
        sampler,
        prompts,
        told(texts),
        told([""] * len(texts)),
        shape,
        generators,
    )
    assert next(given, None) is None
    assert_close(result.clean, golden["latents"], 5e-4, "latents")
