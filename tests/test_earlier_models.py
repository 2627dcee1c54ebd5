"""What version 0.1.0-dev wrote still loads: the shipped weights byte for byte, saved models and
adapters by their config.json, and runs by their config.yaml.

``earlier_artefacts.json`` holds what that version wrote for small models: config.json without the
hashes of its files, and for our own networks the SHA-256 of all (name, type, shape) of its tensors.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from toys import SMALL

import zoo
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.files import sha256_of
from zoo.hub.adapters import save_adapter
from zoo.hub.artifact import architecture_class, save_weights
from zoo.hub.table import ENTRIES

SHIPPED = {
    "embedded/clap": "b9fe975b7f78bf9feba9577df675b515d72003998382ba7513f03f3a2646459e",
    "embedded/mood": "69b2266724e3698c21fbf61dc0e3b3b951a6c73374ec682adbff7983d87ac4fc",
    "embedded/music": "1cc26cc0b5fafa2ab4ea379a28487af969016022562c247ec6cff2d4ae1d208f",
    "embedded/sounds": "46a8ae947dc04cc2dfb10a3e23dc7a69e1d7f4f4914d2123562ed4774bec1737",
}
EARLIER = json.loads(Path(__file__).with_name("earlier_artefacts.json").read_text())
MODELS = [name for name in EARLIER if name != "adapter"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_weights_are_those_of_before_byte_for_byte(name):
    assert sha256_of(ENTRIES[name].path / "model.safetensors") == SHIPPED[name]


def signature(folder: Path) -> str:
    rows = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            names = list(opened.keys())
            slices = [opened.get_slice(name) for name in names]
        rows += [(n, s.get_dtype(), s.get_shape()) for n, s in zip(names, slices, strict=True)]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_of_before_loads(name, tmp_path):
    config = EARLIER[name]["config"]
    kind, architecture = config["kind"], config["architecture"]
    module = architecture_class(kind, architecture, name)(**config["arguments"])
    save_weights(module.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if "tensors" in EARLIER[name]:
        assert signature(tmp_path) == EARLIER[name]["tensors"]
    loaded = zoo.load(tmp_path)
    assert type(loaded) is type(module) and loaded.arguments == config["arguments"]
    for key, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


@pytest.fixture
def adapter(tmp_path):
    """The files of a small adapter with the texts of before."""
    add_lora(backbone := TinyAudio(**SMALL), rank=2)
    folder = save_adapter(backbone, tmp_path / "adapter")
    (folder / "config.json").write_text(json.dumps(EARLIER["adapter"]["config"]))
    (folder / "adapter_config.json").write_text(json.dumps(EARLIER["adapter"]["adapter_config"]))
    return folder


def test_an_adapter_of_before_loads(adapter, tmp_path):
    assert signature(adapter) == EARLIER["adapter"]["tensors"]
    base = tmp_path / "base"
    base.mkdir()
    save_weights(TinyAudio(**SMALL).state_dict(), base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(EARLIER["tiny_audio"]["config"]))
    model = zoo.load(base, adapters=[(adapter, 0.5)])
    assert any(".lora_" in name for name in model.denoiser.state_dict())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_runs_of_before_open_by_their_configuration(adapter, tmp_path, small_zoo):
    settings = {
        "module": {
            "_target_": "lightning_modules.ddpo.DDPO",
            "backbone": {"_target_": "zoo.load", "name": str(tmp_path / "base")},
            "reward": {"_target_": "zoo.rewards.emotion.EmotionReward"},
            "lora_rank": 2,
            "train_step_share": 0.5,
        },
        "data": {"_target_": "datamodules.prompts.PromptDataModule"},
        "seed": 0,
    }
    test_an_adapter_of_before_loads(adapter, tmp_path)
    OmegaConf.save(settings, tmp_path / "config.yaml")
    for opened in (zoo.load(tmp_path), zoo.open_model(str(tmp_path))):
        assert any(".lora_" in name for name in opened.denoiser.state_dict())
    other = tmp_path / "other"
    (other / "adapter").mkdir(parents=True)
    opener = "zoo.backbones.audioldm2.AudioLDM2.from_pretrained"
    backbone = {"_target_": opener, "source": "audioldm2-music", "checkpoint_activations": True}
    OmegaConf.save({"module": {**settings["module"], "backbone": backbone}}, other / "config.yaml")
    add_lora(model := zoo.load("audioldm2-music"), rank=2)
    save_adapter(model, other / "adapter")
    assert type(zoo.load(other)).__name__ == "AudioLDM2"
