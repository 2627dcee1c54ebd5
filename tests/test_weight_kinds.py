"""Invalid weights: integers, booleans, complex numbers, NaN; and an absurd adapter strength."""

import json
import math
import shutil

import pytest
import torch
import toy_audioldm2
from safetensors.torch import load_file, save_file
from toy_artifacts import model_folder
from toy_clap import random_clap, tokenizer_file
from toys import SMALL

import zoo
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.hub.adapters import load_adapter, save_adapter
from zoo.hub.runs import load_weights
from zoo.hub.weights import wrong_numbers
from zoo.importers.pretrained_clap import with_files
from zoo.rewards.clap import ClapReward

HARMS = {
    "integer": lambda tensor: torch.ones_like(tensor, dtype=torch.int32),
    "bool": lambda tensor: tensor > 0,
    "complex": lambda tensor: torch.complex(tensor, tensor),
    "NaN": lambda tensor: torch.full_like(tensor, torch.nan),
    "infinity": lambda tensor: torch.full_like(tensor, torch.inf),
}


def harmed(path, harm):
    """Changes the first two-dimensional tensor of ``path`` and returns its name."""
    state = load_file(path)
    name = next(
        name
        for name, tensor in sorted(state.items())
        if tensor.ndim == 2 and tensor.is_floating_point()
    )
    save_file(state | {name: HARMS[harm](state[name].float())}, path, metadata={"format": "pt"})
    return name


def without_hashes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sha256": {}}))


@pytest.mark.parametrize("harm", HARMS)
def test_in_an_artefact(harm, tmp_path):
    folder = model_folder(tmp_path / "model")
    without_hashes(folder)
    name = harmed(folder / "model.safetensors", harm)
    with pytest.raises(ValueError, match=name):
        zoo.load(folder)


@pytest.mark.parametrize("harm", HARMS)
def test_in_a_run_s_own_backbone(harm, tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(TinyAudio(**SMALL).state_dict(), path)
    name = harmed(path, harm)
    with pytest.raises(ValueError, match=name):
        load_weights(TinyAudio(**SMALL), path)


@pytest.mark.long
@pytest.mark.parametrize("harm", HARMS)
def test_in_an_adapter(harm, tmp_path):
    backbone = TinyAudio(**SMALL)
    add_lora(backbone, 2)
    save_adapter(backbone, tmp_path / "adapter")
    (tmp_path / "adapter/config.json").unlink()  # as a plain peft folder
    name = harmed(tmp_path / "adapter/adapter_model.safetensors", harm)
    with pytest.raises(ValueError, match=name):
        load_adapter(TinyAudio(**SMALL), tmp_path / "adapter")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of models of others:

    AudioLDM 2 in diffusers layout, CLAP in transformers'; and what opens them.
    """
    place = tmp_path_factory.mktemp("models")
    toy_audioldm2.written_folder(toy_audioldm2.small_model(), place / "audioldm2")
    random_clap().save_pretrained(place / "clap")
    tokenizer_file(place / "clap")
    return place


@pytest.mark.long
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    "file",
    [
        "audioldm2/unet/diffusion_pytorch_model.safetensors",
        "audioldm2/text_encoder_2/model.safetensors",
        "clap/model.safetensors",
    ],
)
def test_in_models_of_others(harm, file, folders, tmp_path):
    model = file.partition("/")[0]
    shutil.copytree(folders / model, tmp_path / model)
    name = harmed(tmp_path / file, harm)
    with pytest.raises(ValueError, match=name):
        if model == "clap":
            ClapReward("x", "transformers", with_files({"pretrained": str(tmp_path / model)}))
        else:
            zoo.load(str(tmp_path / model))


def test_invalid_weights():
    wanted = {"a": torch.zeros(2), "n": torch.tensor(0)}
    assert (
        wrong_numbers(
            {"a": torch.ones(2).half(), "n": torch.tensor(3), "other": torch.tensor(True)}, wanted
        )
        == {}
    )
    assert wrong_numbers(
        {"a": torch.ones(2).to(torch.float8_e4m3fn), "n": torch.tensor(0.5)}, wanted
    ) == {
        "of another kind of number": [
            "a is float8_e4m3fn, expected float32",
            "n is float32, expected int64",
        ]
    }


@pytest.mark.parametrize("alpha", [1e30, -4.0, 0, 2001, math.nan, math.inf])
def test_an_absurd_alpha_is_refused(alpha, tmp_path):
    backbone = TinyAudio(**SMALL)
    add_lora(backbone, 2)
    save_adapter(backbone, tmp_path)
    (tmp_path / "config.json").unlink()
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": alpha}))
    with pytest.raises(ValueError, match="lora_alpha"):
        load_adapter(TinyAudio(**SMALL), tmp_path)
    with pytest.raises(ValueError, match="LoRA alpha"):
        add_lora(TinyAudio(**SMALL), 2, alpha)
