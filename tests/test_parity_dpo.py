"""Parity of preference learning with Tango 2's and TangoFlux's losses (golden/dpo/FACTS.md).

Nothing here knows particular seeds, shapes or betas.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tangoflux import given_conditioning
from test_tangoflux import golden as tangoflux
from torch import Tensor

from datamodules.batches import LatentPairBatch
from lightning_modules.diffusion_dpo import DiffusionDPO
from lightning_modules.preference_losses import preference_logits, preference_loss
from lightning_modules.training_settings import AdapterSettings
from zoo.diffusion import VPDiscrete, denoising_error, scored_mean, target
from zoo.types import Conditioning, Prompt

pytestmark = [pytest.mark.parity, pytest.mark.long]


class Tango2:
    """The cases of ``tango2_dpo``, with the path of their scheduler."""

    def __init__(self, folder: Path) -> None:
        self.facts = json.loads((folder / "dpo" / "tango2_dpo.json").read_text())
        arrays = np.load(folder / "dpo" / self.facts["file"])
        self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        config = self.facts["scheduler_config"]
        assert config["prediction_type"] == "v_prediction"
        assert config["beta_schedule"] == "scaled_linear"
        self.path = VPDiscrete.from_betas(
            config["beta_start"],
            config["beta_end"],
            "v",
            config["num_train_timesteps"],
            config["steps_offset"],
        )
        self.time_R = self.arrays["t"].repeat(2)
        self.noise = torch.cat([self.arrays["noise"]] * 2)

    def errors(self, prediction: Tensor) -> Tensor:
        """Of a given output of the network."""
        empty = Conditioning({"tokens_BLD": torch.zeros(len(prediction), 1, 1)})
        seen = []

        def predict(x: Tensor, *_: Any) -> Tensor:
            seen.append(x)
            return prediction

        latents = self.arrays["latents"]
        found = denoising_error(predict, self.path, latents, self.time_R, self.noise, empty)
        torch.testing.assert_close(seen[0], self.arrays["noisy"], rtol=0, atol=1e-5)
        return found


@pytest.fixture
def tango2(golden_dir: Path) -> Tango2:
    return Tango2(golden_dir)


def test_dpo_targets_are_velocities(tango2: Tango2) -> None:
    at = tango2.path.coefficients(tango2.time_R)
    found = target(tango2.arrays["latents"], tango2.noise, *at, "v")
    torch.testing.assert_close(found, tango2.arrays["target"], rtol=0, atol=1e-5)


def test_dpo_loss_and_gradient_of_tango_2(tango2: Tango2) -> None:
    cases = tango2.facts["cases"]
    assert cases
    for case in cases:
        name, beta = case["case"], case["beta"]
        expected = {k: tango2.arrays[f"{name}.{k}"] for k in ("err_model", "err_ref", "inside")}
        prediction = tango2.arrays[f"{name}.model_pred"].clone().requires_grad_(True)
        error_R = tango2.errors(prediction)
        reference_R = tango2.errors(tango2.arrays[f"{name}.ref_pred"])
        torch.testing.assert_close(error_R.detach(), expected["err_model"], rtol=1e-5, atol=0)
        torch.testing.assert_close(reference_R, expected["err_ref"], rtol=1e-5, atol=0)
        logit_P = preference_logits(error_R, reference_R, beta)
        torch.testing.assert_close(logit_P.detach(), expected["inside"], rtol=0, atol=2e-3)
        loss = preference_loss(error_R, reference_R, beta)
        assert loss.item() == pytest.approx(tango2.arrays[f"{name}.loss"].item(), rel=1e-3), name
        loss.backward()
        wanted = tango2.arrays[f"{name}.grad_model_pred"]
        allowed = 1e-3 * wanted.abs().max().item()
        torch.testing.assert_close(prediction.grad, wanted, rtol=0, atol=allowed)


def reference_weights(golden_dir: Path, facts: dict[str, Any], model: Any) -> dict[str, Tensor]:
    """The weights of the reference network, by the rule of the JSON."""
    rule = facts["weights"]["reference_network"]
    words = rule.split()
    scale = float(words[words.index("*") - 1])
    seed = int(words[-1])
    place = golden_dir / "seeded_weights.py"
    spec = importlib.util.spec_from_file_location("seeded_weights", place)
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    found = {}
    for name, value in model.denoiser.state_dict().items():
        noise = seeded.seeded_value(name, {"shape": value.shape}, seed)
        found[name] = value + scale * torch.from_numpy(noise)
    return found


@pytest.fixture
def crpo(golden_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """(module, batch, arrays): on the golden network with its times, noise, texts, reference."""
    facts, arrays, model = tangoflux(golden_dir, "tangoflux_tiny")
    module = DiffusionDPO(model, winner_weight=1.0, adapter=AdapterSettings(rank=0))
    values = reference_weights(golden_dir, facts, model)
    named = dict(model.denoiser.named_parameters())
    module.reference._values = [values[name].clone() for name in named]
    told = given_conditioning(
        model,
        arrays["input_ids"],
        arrays["text_mask"].bool(),
        arrays["duration"].float().reshape(-1),
    ).detach()
    monkeypatch.setattr(model, "encode_prompts", lambda asked: told)
    latents = arrays["latents"].transpose(1, 2)
    chosen, rejected = latents.chunk(2)
    prompts = tuple(Prompt(str(i), f"row {i}", seconds=1.0) for i in range(len(chosen)))
    monkeypatch.setattr(model, "scored_mask", lambda asked: None)
    time_P = (arrays["timesteps"] / 1000).chunk(2)[0]
    noise = arrays["noise"].transpose(1, 2)
    monkeypatch.setattr(DiffusionDPO, "drawn", lambda *_: (time_P, list(prompts), noise))
    monkeypatch.setattr(DiffusionDPO, "log", lambda *_, **__: None)
    return module, LatentPairBatch(chosen, rejected, prompts), arrays


def betas(arrays: dict[str, Tensor]) -> list[str]:
    found = sorted({key.split(".")[1] for key in arrays if key.startswith("crpo.beta")})
    assert found
    return found


@pytest.mark.parametrize("winner_weight", [0.0, 1.0], ids=["dpo-fm", "dpo-crpo"])
def test_dpo_of_tangoflux(crpo, winner_weight: float, monkeypatch) -> None:
    """Loss, logits, errors, accuracy and the gradient, of what ``training_step`` computes."""
    module, batch, arrays = crpo
    module.hparams.winner_weight = winner_weight
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(DiffusionDPO, "log_dict", lambda _, values, **__: logged.update(values))
    for name in betas(arrays):
        expected = {k: arrays[f"crpo.{name}.{k}"] for k in ("loss", "dpo_fm", "winner_flow_loss")}
        beta = module.hparams.beta = float(name.removeprefix("beta"))
        module.zero_grad()
        loss = module.training_step(batch, 0)
        part = expected["loss"] if winner_weight else expected["dpo_fm"]
        assert loss.item() == pytest.approx(part.item(), abs=2e-6 * beta)
        assert logged["train/winner_error"].item() == pytest.approx(
            expected["winner_flow_loss"].item(), rel=1e-5
        )
        assert logged["train/reference_error"].item() == pytest.approx(
            arrays[f"crpo.{name}.raw_ref_loss"].item(), rel=1e-5
        )
        mean = (logged["train/winner_error"] + logged["train/loser_error"]).item() / 2
        assert mean == pytest.approx(arrays[f"crpo.{name}.raw_model_loss"].item(), rel=1e-5)
        accuracy = arrays[f"crpo.{name}.implicit_accuracy"].item()
        assert logged["train/implicit_accuracy"].item() == accuracy
        if winner_weight:
            loss.backward()
            gradients = [p.grad.norm() for p in module.backbone.denoiser.parameters()]
            norm = torch.stack(gradients).norm().item()
            wanted = arrays[f"crpo.{name}.grad_norm_transformer"].item()
            assert norm == pytest.approx(wanted, rel=5e-3)


def test_dpo_errors_of_policy_and_reference(crpo) -> None:
    module, batch, arrays = crpo
    error_R, reference_R = module._both_errors(batch, *module.drawn())
    torch.testing.assert_close(error_R.detach(), arrays["err_model"], rtol=1e-5, atol=0)
    torch.testing.assert_close(reference_R, arrays["err_ref"], rtol=1e-5, atol=0)
    for name in betas(arrays):
        beta = float(name.removeprefix("beta"))
        logit_P = preference_logits(error_R.detach(), reference_R, beta)
        wanted = arrays[f"crpo.{name}.inside"]
        torch.testing.assert_close(logit_P, wanted, rtol=0, atol=2e-6 * beta)


def test_dpo_sft_epochs_learn_the_plain_error_of_the_winners(crpo, monkeypatch) -> None:
    module, batch, arrays = crpo
    monkeypatch.setattr(DiffusionDPO, "current_epoch", 0)
    module.hparams.sft_epochs = 1
    loss = module.training_step(batch, 0)
    assert loss.item() == pytest.approx(arrays["sft.loss"].item(), rel=1e-5)
    error_B = scored_mean((arrays["ref_pred"] - arrays["model_pred"]) ** 2)
    assert (error_B > 0).all()  # the reference is another network
