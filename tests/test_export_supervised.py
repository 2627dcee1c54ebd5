"""Runs that train a whole model, finished or stopped, become the same model folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from toy_export import random_model
from toys import SMALL, supervised

import zoo
from zoo.hub.artifact import read_config
from zoo.hub.export import export_run
from zoo.hub.run_facts import stated_facts, write_facts
from zoo.instantiate import instantiate


@pytest.mark.parametrize("finished", [True, False])
def test_a_supervised_run_is_exported(tmp_path, finished):
    from lightning_modules.denoising import Denoising

    backbone = random_model(7)
    module = supervised(Denoising, backbone, total_steps=4, warmup_steps=1, ema_decay=0.9)
    with torch.no_grad():
        for average in module.ema.average:
            average.add_(0.01)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    node = {"_target_": "zoo.backbones.tiny.TinyAudio", **SMALL}
    settings = {"module": {"_target_": "lightning_modules.denoising.Denoising", "backbone": node}}
    (run / "config.yaml").write_text(json.dumps(settings))
    module.export(run)
    if not finished:
        content = {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "global_step": 2,
        }
        module.on_save_checkpoint(content)
        torch.save(content, run / "checkpoints" / "last.ckpt")
        shutil.move(run / "model", tmp_path / "model")
    folder = export_run(run, tmp_path / "out")
    wanted = load_file((run if finished else tmp_path) / "model" / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )
    assert read_config(folder)["training"]["finished"] is finished
    if not finished:
        short = {**content["ema"], "average": content["ema"]["average"][1:]}
        torch.save(content | {"ema": short}, run / "checkpoints" / "last.ckpt")
        with pytest.raises(ValueError, match="averaged weights in .* are of other parameters"):
            export_run(run, tmp_path / "out", overwrite=True)
        kept = {name: value for name, value in content["state_dict"].items() if "codec" not in name}
        torch.save(content | {"state_dict": kept}, run / "checkpoints" / "last.ckpt")
        with pytest.raises(ValueError, match="does not fit the model of config.yaml: .* differs"):
            export_run(run, tmp_path / "out", overwrite=True)


def test_a_classifiers_unfinished_run(tmp_path):
    from lightning_modules.mood_classifier import Emotion
    from zoo.rewards.mood import EmotionReward

    arguments = {**zoo.load("embedded/mood").arguments, "channels": (4,) * 7}
    torch.manual_seed(3)
    module = supervised(Emotion, EmotionReward(**arguments))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    node = {"_target_": "zoo.rewards.mood.EmotionReward", **arguments}
    (run / "config.yaml").write_text(
        json.dumps(
            {"module": {"_target_": "lightning_modules.mood_classifier.Emotion", "reward": node}}
        )
    )
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "global_step": 5,
    }
    torch.save(content, run / "checkpoints" / "last.ckpt")
    module.export(tmp_path)
    folder = export_run(run, tmp_path / "out", overwrite=True)
    wanted, found = (
        load_file(place / "model.safetensors") for place in (tmp_path / "model", folder)
    )
    assert found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )
    assert (
        read_config(folder)["kind"] == "reward"
        and "audio-classification" in (folder / "README.md").read_text()
    )


def test_a_preference_heads_unfinished_run(tmp_path):
    """Its checkpoints hold the head; the CLAP is that of the configuration."""
    from toy_preferences import TOWERS

    from lightning_modules.preference_model import Preference
    from zoo.rewards.preference import PreferenceReward

    clap = {
        "_target_": "zoo.rewards.clap.ClapReward",
        "checkpoint": "untrained",
        "towers": "tiny",
        "arguments": TOWERS,
    }
    settings = {"clap": clap, "embedding": 24, "hidden": 8, "listeners": ["ann"]}
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    node = {"_target_": "zoo.rewards.preference.PreferenceReward", **settings}
    module = {"_target_": "lightning_modules.preference_model.Preference", "reward": node}
    (run / "config.yaml").write_text(json.dumps({"module": module}))
    write_facts(run, stated_facts({"module": module}))
    own = Preference(PreferenceReward(instantiate(clap, "clap"), 24, 8, listeners=["ann"]))
    torch.nn.init.normal_(own.head.listener.weight)
    content = {"state_dict": own.state_dict(), "hyper_parameters": {}, "global_step": 5}
    own.on_save_checkpoint(content)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    folder = export_run(run, tmp_path / "out")
    head = zoo.load(str(folder)).head.state_dict()
    assert head.keys() == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "listener.weight"}
    assert all(torch.equal(head[name], value) for name, value in own.head.state_dict().items())
    assert read_config(folder)["training"]["finished"] is False
    del content["state_dict"]["head.fc2.bias"]
    torch.save(content, run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"head\.fc2\.bias"):
        export_run(run, tmp_path / "out", overwrite=True)


def test_the_codecs_run_has_no_model_folder(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(
        "module: {_target_: lightning_modules.codec.Codec}\n"
    )
    torch.save(
        {"state_dict": {"codec.x": torch.ones(1)}, "hyper_parameters": {}},
        tmp_path / "run" / "checkpoints" / "last.ckpt",
    )
    with pytest.raises(ValueError, match="trained neither a backbone nor a reward"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
