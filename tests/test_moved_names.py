"""Old names in configurations lead to the new object with one warning, or name the new place."""

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import toy_run
from omegaconf import OmegaConf
from toy_preferences import write_labels

from lightning_modules.resume_settings import changes, released_by
from lightning_modules.rl.ddpo import DDPO
from zoo import moved_names
from zoo.configuration import read_configuration
from zoo.errors import UserError
from zoo.hub.run_facts import stated_facts
from zoo.hub.runs import code_named_by, run_settings
from zoo.instantiate import check, instantiate, locate
from zoo.moved_names import MODULES, NAMES, OPENED, current_name, with_current_names

# What YAML files name: every one of these must still be found.
TARGETS = {
    "datamodules.captions.Scene": "datamodules.sounds.captions.Scene",
    "datamodules.emotion.EmopiaDataModule": "datamodules.emopia.EmopiaDataModule",
    "datamodules.music.MusicDataModule": "datamodules.music.music.MusicDataModule",
    "datamodules.scene_prompts.scene_prompts": "datamodules.sounds.scene_prompts.scene_prompts",
    "datamodules.scenes.SceneDataModule": "datamodules.sounds.scenes.SceneDataModule",
    "datamodules.sound_bank.load_bank": "datamodules.sounds.bank.load_bank",
    "datamodules.sound_folders.load_folder_bank": "datamodules.sounds.folders.load_folder_bank",
    "datamodules.rated_clips.LabelTable": "datamodules.preferences.rated.LabelFiles",
    "datamodules.rated_clips.ordered_pairs": "datamodules.preferences.pairs.ordered_pairs",
    "lightning_modules.ddpo.DDPO": "lightning_modules.rl.ddpo.DDPO",
    "lightning_modules.emotion.Emotion": "lightning_modules.mood_classifier.Emotion",
    "lightning_modules.held_out.HeldOutWatch": "lightning_modules.rl.held_out.HeldOutWatch",
    "zoo.backbones.lora.save_adapter": "zoo.hub.adapters.save_adapter",
    "lightning_modules.rl.settings.AdapterSettings": (
        "lightning_modules.training_settings.AdapterSettings"
    ),
    "lightning_modules.training_settings.CosineSettings": (
        "lightning_modules.training_settings.ScheduleSettings"
    ),
    "lightning_modules.run.load": "zoo.configuration.read_configuration",
    "zoo.checkpoint.load_artifact": "zoo.hub.artifact.load_artifact",
    "zoo.loading.load": "zoo.loading.load",
    "zoo.rewards.emotion.EmotionReward": "zoo.rewards.mood.EmotionReward",
    "zoo.rewards.emotion_tasks.untrained_classifier": (
        "zoo.rewards.mood_tasks.untrained_classifier"
    ),
    "zoo.targets.instantiate": "zoo.instantiate.instantiate",
}
# "module: its public classes and functions", of every module that moved
_LINES = Path(__file__).with_name("old_names.txt").read_text().splitlines()
OLD = [(module, names.split()) for module, names in (line.split(": ") for line in _LINES if line)]


@pytest.fixture(autouse=True)
def forgotten_warnings():
    moved_names._warn.cache_clear()


@pytest.mark.parametrize("old", TARGETS)
def test_a_name_of_a_configuration_leads_to_the_new_place_with_one_warning(old):
    module, _, name = TARGETS[old].rpartition(".")
    with pytest.warns(FutureWarning) as warned:
        assert locate(old) is getattr(importlib.import_module(module), name)
        locate(old)
    assert len(warned) == 1
    assert old in str(warned[0].message) and current_name(old) in str(warned[0].message)


@pytest.mark.parametrize(("old_module", "names"), OLD, ids=[module for module, _ in OLD])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_old_name_is_found_or_refused_with_its_new_place(old_module, names):
    for name in names:
        old = f"{old_module}.{name}"
        module, _, last = current_name(old).rpartition(".")
        assert f"{module}.{last}" != old
        home = importlib.import_module(module)
        if hasattr(home, last):
            assert locate(old) is getattr(home, last)
        else:
            with pytest.raises(UserError, match=f"{module} has no '{last}'"):
                locate(old)


def test_every_row_of_the_table_is_needed_and_leads_to_a_module_of_today():
    old_modules = {module for module, _ in OLD}
    assert set(MODULES) <= old_modules
    for old, new in MODULES.items():
        assert find_spec(new) is not None
        assert not (toy_run.ROOT / f"{old.replace('.', '/')}.py").exists()
    for name in [*NAMES.values(), *(f"{module}.x" for module in MODULES.values())]:
        assert current_name(name) == name  # no name moves twice


def test_names_that_did_not_move_are_left_alone():
    for name in ("zoo.load", "toy_run.Line", "datamodules.music.music.MusicDataModule", "music.X"):
        assert current_name(name) == name


def test_a_whole_tree_is_checked_and_built_with_one_warning_per_name():
    task = {
        "_target_": "zoo.rewards.emotion_tasks.untrained_classifier",
        "task": "arousal",
        "channels": [4] * 7,
    }
    tree = {"one": task, "two": [task]}
    with pytest.warns(FutureWarning) as warned:
        check(tree, "module")
        instantiate(tree, "module")
    assert len(warned) == 1


def test_a_tree_is_copied_with_current_names():
    old = {"a": [{"_target_": "lightning_modules.ddpo.DDPO", "x": 1}], "_target_": None}
    with pytest.warns(FutureWarning):
        new = with_current_names(old)
    assert new == {"a": [{"_target_": "lightning_modules.rl.ddpo.DDPO", "x": 1}], "_target_": None}
    assert old["a"][0]["_target_"] == "lightning_modules.ddpo.DDPO"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_setting_of_an_old_file_merges_with_a_new_one(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(
        "module: {_target_: lightning_modules.rl.ddpo.DDPO, a: 1}\ndata: {x: 1}\nout_dir: x\n"
    )
    own = tmp_path / "own.yaml"
    own.write_text("base: base.yaml\nmodule: {_target_: lightning_modules.ddpo.DDPO, b: 2}\n")
    loaded = read_configuration([own], ["data._target_=datamodules.scenes.SceneDataModule"])
    assert loaded.module == {"_target_": "lightning_modules.rl.ddpo.DDPO", "a": 1, "b": 2}
    assert loaded.data == {"_target_": "datamodules.sounds.scenes.SceneDataModule", "x": 1}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_old_run_resumes_and_opens(tmp_path):
    old = {"_target_": "lightning_modules.ddpo.DDPO", "backbone": {"_target_": "zoo.loading.load"}}
    new = {"_target_": "lightning_modules.rl.ddpo.DDPO", "backbone": {"_target_": "zoo.load"}}
    assert changes({"module": old}, {"module": new}) == []
    assert changes({"module": new}, {"module": old}) == []
    assert released_by(old) == DDPO.MAY_CHANGE_ON_RESUME
    OmegaConf.save({"module": old}, tmp_path / "config.yaml")
    assert code_named_by(tmp_path) is None
    assert stated_facts(run_settings(tmp_path)) == stated_facts({"module": new})
    assert stated_facts({"module": old}).algorithm == "DDPO"


@pytest.mark.parametrize("old", OPENED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_opened_one_kind_of_model_is_zoo_load(old, small_zoo):
    name = {
        "audioldm": "audioldm-s-full-v2",
        "stable_audio": "stable-audio-open-1.0",
        "tango": "tango2",
    }
    kind = old.split(".")[2]
    settings = {"dtype": "bfloat16", "checkpoint_activations": True}
    node = {"_target_": old, "source": name.get(kind, kind), **settings}
    now = {"_target_": "zoo.load", "name": name.get(kind, kind), **settings}
    assert with_current_names(node) == now
    assert changes({"module": {"backbone": node}}, {"module": {"backbone": now}}) == []
    check(node, "module.backbone")
    model = instantiate(node, "module.backbone")
    assert type(model).__name__ == old.split(".")[3]
    assert model.denoiser.dtype == torch.bfloat16 and model.denoiser.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_table_of_labels_is_read_by_what_reads_every_dialect(tmp_path):
    write_labels(tmp_path, prompts=2)
    files = {"file": str(tmp_path / "labels.csv"), "audio_dir": str(tmp_path / "audio")}
    source = {"_target_": "datamodules.rated_clips.LabelTable", **files}
    check(source, "data.source")
    rows = instantiate(source, "data.source").rated_clips()
    assert [(clip.audio.name, clip.label) for _, clip in rows][:2] == [
        ("0000_0.wav", 0.0),
        ("0000_1.wav", 1.0),
    ]
