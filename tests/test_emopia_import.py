"""EMOPIA checkpoints of small networks: what loads, what is refused, and messages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import zoo
from zoo.hub import registry
from zoo.hub.artifact import identity_of, save_artifact
from zoo.hub.table import ENTRIES
from zoo.importers.emopia import RATE_HZ, TASKS, load_emopia, network_sizes
from zoo.importers.pickles import LIGHTNING_CALLBACKS, load_pickle_weights
from zoo.rewards.short_chunk import ShortChunkResNet
from zoo.types import Prompt

SETTINGS = {
    "n_channels": 4,
    "n_fft": 256,
    "n_mels": 16,
    "sample_rate": RATE_HZ,
    "f_min": 0,
    "f_max": 11025,
    "batch_size": 128,
}


def network(classes: int = 4, n_fft: int = 256, rate_hz: int = RATE_HZ) -> ShortChunkResNet:
    torch.manual_seed(3)
    built = ShortChunkResNet(rate_hz, n_fft, n_fft // 2, 16, (4, 4, 4, 6, 6, 6, 8), classes)
    for name, buffer in built.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return built


def tensors(**settings) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in network(**settings).state_dict().items()}


def saved(folder: Path, state: dict, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "state_dict": state, **more}, folder / "best.ckpt")
    return folder / "best.ckpt"


@pytest.mark.parametrize("task", TASKS)
def test_the_folder_names_the_task_and_every_tensor_is_loaded(tmp_path: Path, task: str) -> None:
    original = network(len(TASKS[task])).eval()
    path = saved(
        tmp_path / task, {f"model.{name}": value for name, value in original.state_dict().items()}
    )
    reward = load_emopia(path)
    assert reward.class_names == tuple(TASKS[task]) and (reward.sample_rate_hz, reward.rms) == (
        22_050,
        None,
    )
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    state = reward.classifier.state_dict()
    assert all(torch.equal(state[name], value) for name, value in original.state_dict().items())
    wave = torch.randn(1, 1, 66_150) * 0.1
    assert torch.equal(reward.chunk_logits(wave, 22_050)[0], original(wave[0]))


def test_arousal_and_valence_score_prompts_with_moods_or_quadrants(tmp_path: Path) -> None:
    words = ("happy", "angry", "sad", "tender", "Q1", "Q2", "Q3", "Q4")
    asked = [Prompt(str(i), "x", labels={"mood": word}) for i, word in enumerate(words)]
    for task, expected in (
        ("arousal", "HA HA LA LA"),
        ("valence", "HV LV LV HV"),
        ("ar_va", "happy angry sad tender"),
    ):
        reward = load_emopia(saved(tmp_path / task, tensors(classes=len(TASKS[task]))))
        assert [reward.class_names[i] for i in reward.wanted_classes(asked)] == expected.split() * 2
    assert load_emopia(tmp_path / "arousal" / "best.ckpt").wanted_classes(
        [Prompt("a", "x", labels={"mood": "LA"})]
    ).tolist() == [1]


def test_an_imported_classifier_becomes_an_artefact(tmp_path: Path) -> None:
    reward = load_emopia(
        saved(tmp_path / "valence", tensors(classes=2)), value="log_odds", chunk_rule="upstream"
    )
    kind, architecture, arguments = identity_of(reward)
    save_artifact(
        tmp_path / "emopia",
        kind=kind,
        architecture=architecture,
        arguments=arguments,
        module=reward,
    )
    again = zoo.load(tmp_path / "emopia")
    wave = torch.randn(1, 2, 6 * 44_100) * 0.1
    asked = [Prompt("a", "x", labels={"mood": "sad"})]
    assert torch.equal(again(wave, 44_100, asked).score_B, reward(wave, 44_100, asked).score_B)
    assert (again.value, again.chunk_rule, again.class_names) == (
        "log_odds",
        "upstream",
        ("HV", "LV"),
    )


@pytest.fixture
def old_lightning(monkeypatch) -> type:
    """Classes that pickle under the names of Lightning 1.3."""
    made = {}
    for place in (
        "pytorch_lightning",
        "pytorch_lightning.callbacks",
        *(name.rpartition(".")[0] for name in LIGHTNING_CALLBACKS),
    ):
        monkeypatch.setitem(sys.modules, place, ModuleType(place))
    for place in LIGHTNING_CALLBACKS:
        module, _, name = place.rpartition(".")
        made[name] = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, made[name])
    return made["ModelCheckpoint"]


def test_a_checkpoint_that_names_lightnings_callbacks_is_read_without_lightning(
    tmp_path, monkeypatch, old_lightning
) -> None:
    instance = old_lightning()
    instance.secret = "state"
    callbacks = {old_lightning: {"best_model_score": torch.tensor(0.67)}, "kept": instance}
    path = saved(tmp_path / "ar_va", tensors(), callbacks=callbacks, hyper_parameters=SETTINGS)
    for place in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, place)
    with pytest.raises(ValueError, match="asks for pytorch_lightning.*which is code"):
        load_pickle_weights(path)
    read = load_pickle_weights(path, LIGHTNING_CALLBACKS)["callbacks"]
    blank, state = next(iter(read.items()))
    assert blank.__name__ == "ModelCheckpoint" and state["best_model_score"] == pytest.approx(0.67)
    assert type(read["kept"]) is blank and not hasattr(read["kept"], "secret")
    assert load_emopia(path).class_names[0] == "happy"
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


class Calls:
    def __reduce__(self):
        return os.system, ("exit 3",)


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="asks for posix.system, which is code"):
        load_emopia(saved(tmp_path, tensors(), callbacks=Calls()))


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


WRONG = {
    "missing": (
        lambda s: without(s, "model.layer3.bn_2.bias"),
        "1 missing: model.layer3.bn_2.bias",
    ),
    "unknown": (lambda s: s | {"model.layer8.x": torch.zeros(1)}, "1 unknown: model.layer8.x"),
    "shape": (
        lambda s: s | {"model.bn.bias": torch.zeros(3)},
        "1 of another shape: model.bn.bias has shape .3,., expected .8,.",
    ),
    "no head": (
        lambda s: without(s, "model.dense2.weight"),
        "it has no tensor model.dense2.weight",
    ),
    "no window": (
        lambda s: without(s, "model.spec.spectrogram.window"),
        "no tensor model.spec.spectrogram.window",
    ),
    "flat": (
        lambda s: s | {"model.layer1.conv_1.weight": torch.zeros(4)},
        "has shape .4,., expected 4 dimensions",
    ),
    "prefix": (
        lambda s: s | {"optimizer.x": torch.zeros(1)},
        "1 tensors that do not begin with 'model.', such as optimizer.x",
    ),
    "values": (lambda s: {"model.a": 3}, "no dictionary of tensors under state_dict"),
    "nan": (
        lambda s: s | {"model.bn.bias": torch.full((8,), torch.nan)},
        "model.bn.bias holds numbers that are not finite",
    ),
    "window": (
        lambda s: s | {"model.spec.spectrogram.window": torch.ones(256)},
        "window differs .* another front end",
    ),
    "bands": (lambda s: tensors(rate_hz=16_000), r"spec.mel_scale.fb differs .* 22050 Hz"),
    "task": (
        lambda s: tensors(classes=3),
        "3 classes; task 'ar_va' has 4: happy, angry, sad, tender",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_emopia(saved(tmp_path / "ar_va", change(tensors())))


def test_settings_must_agree_with_the_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path / "ar_va", tensors(), hyper_parameters=SETTINGS)
    beside = path.with_name("hparams.yaml")
    beside.write_text(
        "n_mels: 16\nargs: !!python/object:argparse.Namespace\n  gpus: !!python/tuple [0,"
        " 1]\nsample_rate: 22050\n"
    )
    load_emopia(path)
    beside.write_text("n_mels: 128\n")
    load_emopia(path)  # what the checkpoint itself says counts
    with pytest.raises(ValueError, match="n_mels = 128, .*front end say 16"):
        load_emopia(_without_settings(path))
    beside.write_text("a: [")
    with pytest.raises(ValueError, match=r"hparams\.yaml"):
        load_emopia(path)
    beside.unlink()
    with pytest.raises(ValueError, match="f_max.*8000.*11025"):
        load_emopia(
            saved(tmp_path / "ar_va", tensors(), hyper_parameters=SETTINGS | {"f_max": 8000})
        )


def _without_settings(path: Path) -> Path:
    return saved(path.parent, tensors())


def test_the_task_is_needed_only_where_it_is_ambiguous(tmp_path: Path) -> None:
    assert load_emopia(saved(tmp_path / "mine", tensors())).class_names == tuple(TASKS["ar_va"])
    path = saved(tmp_path / "mine", tensors(classes=2))
    with pytest.raises(ValueError, match="2 classes.*arousal.*valence"):
        load_emopia(path)
    assert load_emopia(path, "valence").class_names == ("HV", "LV")
    with pytest.raises(ValueError, match="'arousel'.*'arousal'"):
        load_emopia(path, "arousel")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_emopia(tmp_path / "none.ckpt")


def test_sizes_come_from_the_tensors() -> None:
    assert network_sizes(network(classes=2, n_fft=128).state_dict(), "here") == {
        "n_fft": 128,
        "hop_samples": 64,
        "n_mels": 16,
        "channels": [4, 4, 4, 6, 6, 6, 8],
        "n_classes": 2,
    }


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("emopia-")])
def test_the_zoos_rows_say_how_they_are_opened(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"zoo.importers.emopia.load_emopia\(PATH\).*not on the Hub"
    ):
        registry.find(name)
    assert ENTRIES[name].importer == f"{load_emopia.__module__}.{load_emopia.__name__}"
