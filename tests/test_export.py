"""A run folder, finished or not, becomes a model folder that loads, or nothing is written."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from toy_export import BASE, named_base, random_model, trained
from toys import SMALL

import zoo
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.commands import generate
from zoo.diffusion import Sampler
from zoo.hub import export, weights
from zoo.hub.adapter_files import base_sha256
from zoo.hub.artifact import load_artifact, read_config, save_artifact
from zoo.hub.artifact_check import verify_artifact
from zoo.hub.export import export_run
from zoo.types import Prompt

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    with named_base(folder / "base"):
        yield folder


@pytest.fixture(scope="module")
def run(place):
    return trained(place / "run")


@pytest.fixture
def stopped(run, tmp_path):
    """The same run as if killed after its last checkpoint."""
    copy = tmp_path / "stopped"
    shutil.copytree(run, copy, symlinks=True)
    shutil.rmtree(copy / "adapter")
    return copy


def heard(backbone) -> torch.Tensor:
    (wave,) = zoo.generate(
        backbone,
        [Prompt("p", "A merry piano", seconds=0.256)],
        seeds=[3],
        steps=2,
        guidance_scale=1.5,
    )
    return wave.samples_CN


def test_an_adapter_is_what_the_run_has_learned(run, tmp_path):
    folder = export_run(run, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
    ]
    ours = load_file(folder / "adapter_model.safetensors")
    theirs = load_file(run / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    config = read_config(folder)
    base = load_artifact(zoo.hub.registry.find(BASE))
    assert config["base"]["name"] == BASE and config["base"]["sha256"]["float32"] == base_sha256(
        base.denoiser, "float32"
    )
    assert config["base"]["files"] == read_config(zoo.hub.registry.find(BASE))["sha256"]
    assert config["licence"] == config["base"]["licence"] == "cc-by-nc-sa-4.0"
    assert (
        config["training"]["algorithm"] == "DDPO"
        and config["training"]["finished"]
        and config["sampling"]["steps"] == 3
    )
    assert set(config["metrics"]["held_out/mean"]) == {"before", "after"}
    assert (
        "_target_" not in (folder / "config.json").read_text()
        and str(run) not in (folder / "config.json").read_text()
    )
    by_name, by_run = heard(zoo.load(folder)), heard(zoo.open_model(run))
    assert torch.equal(by_name, by_run) and not torch.equal(by_name, heard(zoo.load(BASE)))
    assert torch.equal(heard(zoo.load(BASE, adapters=[(folder, 1.0)])), by_name)
    assert torch.equal(heard(zoo.load(BASE, adapters=[(folder, 0.0)])), heard(zoo.load(BASE)))
    assert torch.equal(heard(zoo.open_model(str(folder))), by_name)
    assert torch.equal(heard(zoo.open_model(str(folder), strength=0.0)), heard(zoo.load(BASE)))
    twice = heard(zoo.open_model(str(folder), folder))
    assert torch.equal(
        twice, heard(zoo.load(BASE, adapters=[(folder, 1.0), (folder, 1.0)]))
    ) and not torch.equal(twice, by_name)
    assert any("fits its base tiny-base" in fact for fact in verify_artifact(folder, zoo.load))
    again = export_run(run, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_peft_loads_the_folder_without_this_project(run, tmp_path):
    from peft import PeftModel

    folder = export_run(run, tmp_path / "out")
    base = zoo.load(BASE)
    base.denoiser = PeftModel.from_pretrained(base.denoiser, str(folder))
    assert torch.equal(heard(base), heard(zoo.load(folder)))


def test_an_adapter_of_a_diffusers_unet_loads_beside_a_plain_pipeline(tmp_path):
    from diffusers import UNet2DConditionModel
    from peft import PeftModel

    from zoo.hub.adapters import load_adapter, save_adapter

    class Holder:
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.denoiser = UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                layers_per_block=1,
                block_out_channels=(8, 16),
                norm_num_groups=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=2,
            ).eval()

        def output(self) -> torch.Tensor:
            with torch.no_grad():
                return self.denoiser(
                    torch.ones(1, 4, 8, 8), 3, torch.linspace(-1, 1, 96).reshape(1, 3, 32)
                ).sample

    ours = Holder()
    base = ours.output()
    add_lora(ours, 2)
    with torch.no_grad():
        for name, parameter in ours.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    wanted = ours.output()
    assert not torch.allclose(wanted, base, atol=1e-4)
    folder = save_adapter(ours, tmp_path / "adapter")
    plain, again = Holder(), Holder()
    plain.denoiser = PeftModel.from_pretrained(plain.denoiser, str(folder))
    load_adapter(again, folder)
    assert torch.equal(plain.output(), wanted) and torch.equal(again.output(), wanted)
    plain.denoiser = plain.denoiser.merge_and_unload()
    torch.testing.assert_close(plain.output(), wanted, rtol=0, atol=1e-5)


def test_merged_it_is_a_whole_model_without_peft(run, tmp_path):
    folder = export_run(run, tmp_path / "out", merge=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = read_config(folder)
    assert config["kind"] == "backbone" and config["merged"] and config["base"]["name"] == BASE
    assert not any(
        "lora" in name or "base_layer" in name for name in load_file(folder / "model.safetensors")
    )
    whole = zoo.load(folder)
    assert type(whole.denoiser) is type(zoo.load(BASE).denoiser)
    torch.testing.assert_close(
        heard(whole),
        heard(zoo.load(run.parent / "base", adapters=[(run / "adapter", 1.0)])),
        rtol=0,
        atol=2e-3,
    )
    assert any("loads strictly" in fact for fact in verify_artifact(folder, zoo.load))
    half = export_run(run, tmp_path / "half", merge=True, dtype="float16")
    assert {
        t.dtype for t in load_file(half / "model.safetensors").values() if t.is_floating_point()
    } == {torch.float16}


def test_an_unfinished_run_gives_its_newest_checkpoint_with_averaged_weights(
    run, stopped, tmp_path
):
    folder = export_run(stopped, tmp_path / "out")
    training = read_config(folder)["training"]
    assert (
        not training["finished"]
        and training["optimiser_steps"] > 0
        and training["taken_from"].startswith("checkpoints/")
    )
    ours = load_file(folder / "adapter_model.safetensors")
    whole = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert "was not finished" in (folder / "README.md").read_text()


def test_a_damaged_checkpoint_is_passed_over_and_an_older_result_too(run, stopped, tmp_path):
    names = sorted(
        (path for path in (stopped / "checkpoints").glob("*.ckpt") if not path.is_symlink()),
        key=os.path.getmtime,
    )
    assert len(names) == 2
    names[-1].write_bytes(names[-1].read_bytes()[:500])
    os.utime(names[-1])
    assert (
        read_config(export_run(stopped, tmp_path / "out"))["training"]["taken_from"]
        == f"checkpoints/{names[0].name}"
    )
    names[0].write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        export_run(stopped, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(ValueError, match="has nothing to export yet"):
        export_run(stopped, tmp_path / "none")


def test_a_resumed_and_stopped_run_gives_the_checkpoint_not_the_older_adapter(
    run, stopped, tmp_path
):
    shutil.copytree(run / "adapter", stopped / "adapter")
    old = 1_000_000_000
    os.utime(stopped / "adapter" / "adapter_model.safetensors", (old, old))
    assert not read_config(export_run(stopped, tmp_path / "out"))["training"]["finished"]


def test_a_base_that_has_changed_since_training_is_refused(run, stopped, tmp_path, place):
    other = random_model(6)
    kept = tmp_path / "kept"
    shutil.copytree(place / "base", kept)
    recorded = read_config(run / "adapter")["base"]["sha256"]["float32"]
    try:
        save_artifact(
            place / "base",
            kind="backbone",
            architecture="tiny_audio",
            arguments=SMALL,
            module=other,
        )
        for folder in (run, stopped):
            with pytest.raises(ValueError, match="trained on another base: on ") as caught:
                export_run(folder, tmp_path / "out")
            assert recorded in str(caught.value) and base_sha256(other.denoiser, "float32") in str(
                caught.value
            )
        with pytest.raises(ValueError, match="trained on another base"):
            trained(place / "run", "trainer.max_epochs=3", "resume=true")
    finally:
        shutil.rmtree(place / "base")
        shutil.move(kept, place / "base")
    assert not (tmp_path / "out").exists()


def test_the_whole_denoiser_of_a_run_without_adapter(place, tmp_path):
    whole = trained(place / "whole", "module.adapter.rank=0", "trainer.max_epochs=1")
    folder = export_run(whole, tmp_path / "out")
    model = zoo.load(folder)
    saved = load_file(whole / "denoiser.safetensors")
    assert all(
        torch.equal(value, saved[name]) for name, value in model.denoiser.state_dict().items()
    )
    (whole / "denoiser.safetensors").unlink()
    again = zoo.load(export_run(whole, tmp_path / "again"))
    assert all(
        torch.equal(value, saved[name]) for name, value in again.denoiser.state_dict().items()
    )


def test_a_models_own_folder_is_copied_as_it_is_with_a_card(run, place, tmp_path):
    other = tmp_path / "supervised"
    other.mkdir()
    (other / "config.yaml").write_text(
        "module: {_target_: lightning_modules.denoising.Denoising, learning_rate: 1.0}\nseed: 1\n"
    )
    save_artifact(
        other / "model",
        kind="backbone",
        architecture="tiny_audio",
        arguments=SMALL,
        module=TinyAudio(**SMALL),
        dtype=torch.float16,
    )
    folder = export_run(other, tmp_path / "out", licence="mit")
    assert (folder / "model.safetensors").read_bytes() == (
        other / "model" / "model.safetensors"
    ).read_bytes()
    config = read_config(folder)
    assert (
        config["licence"] == "mit"
        and "base" not in config
        and config["training"]["algorithm"] == "Denoising"
    )
    assert "license: mit" in (folder / "README.md").read_text() and verify_artifact(
        folder, zoo.load
    )
    with pytest.raises(ValueError, match=r"cc-by-nc-sa-4\.0.*mit"):
        export_run(run, tmp_path / "no", licence="mit")


def test_bad_input(run, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="dtype must be float32, .*got 'int8'"):
        export_run(run, tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match=r"embedded_musik\.md.*'embedded_music'"):
        export_run(run, tmp_path / "out", card="embedded_musik")
    with pytest.raises(ValueError, match="holds other files .* which would be lost"):
        export_run(run, run)
    with pytest.raises(OSError):
        export_run(run, run / "config.yaml" / "below a file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_export_leaves_nothing_or_the_older_one(
    run, tmp_path, monkeypatch, merge, error
):
    def broken(*_, **__):
        raise error

    for step in ((weights, "save_file"), (export, "write_card")):
        with monkeypatch.context() as patch:
            patch.setattr(*step, broken)
            with pytest.raises(type(error)):
                export_run(run, tmp_path / "out", merge=merge)
            assert list(tmp_path.iterdir()) == []
    folder = export_run(run, tmp_path / "out", merge=merge)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(weights, "save_file", broken)
    with pytest.raises(type(error)):
        export_run(run, tmp_path / "out", merge=not merge, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and len(
        list(tmp_path.iterdir())
    ) == 1


def test_an_older_export_is_replaced_only_when_asked(run, tmp_path):
    folder = export_run(run, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="out exists; .*--overwrite"):
        export_run(run, folder, merge=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for name in (
        ".out.999999999.part",
        "..out.999999999.part.999999999.part",
    ):  # what a killed export leaves of its adapter
        (tmp_path / name).mkdir()
    export_run(run, folder, merge=True, overwrite=True)
    assert "adapter_config.json" in before and not (folder / "adapter_config.json").exists()
    (folder / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"mine\.txt"):
        export_run(run, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_a_killed_one_had_moved_away_is_not_replaced_unasked(run, tmp_path):
    export_run(run, tmp_path / "out").rename(tmp_path / ".out.999999999.old")
    with pytest.raises(ValueError, match="out exists"):
        export_run(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (
        tmp_path / "out/adapter_config.json"
    ).is_file()


def test_a_live_adapter_is_not_saved_as_a_model(tmp_path):
    model = TinyAudio(**SMALL)
    add_lora(model, 2)
    with pytest.raises(ValueError, match="the model has a live adapter"):
        save_artifact(
            tmp_path / "out",
            kind="backbone",
            architecture="tiny_audio",
            arguments=SMALL,
            module=model,
        )
    assert list(tmp_path.iterdir()) == []


def test_loading_an_adapter_by_itself_needs_a_base_with_a_name(run, tmp_path):
    with pytest.raises(ValueError, match=r"None.*zoo\.load\(BASE, adapters="):
        zoo.load(run / "adapter")
    folder = export_run(run, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"base": {**config["base"], "name": "../../etc"}})
    )
    with pytest.raises(ValueError, match=r"'\.\./\.\./etc'"):
        zoo.load(folder)
    with pytest.raises(ValueError, match="EmotionReward.*adapter"):
        zoo.load("embedded/mood", adapters=[(folder, 1.0)])


def test_the_command_line_samples_from_an_exported_adapter_as_its_run_did(
    run, tmp_path, monkeypatch
):
    folder = export_run(run, tmp_path / "out")
    seen = {}

    def keep(maker, prompts, groups, paths, folder):
        seen.update(sampler=maker.sampler, seconds=prompts[0].seconds, heard=heard(maker.backbone))

    monkeypatch.setattr(generate, "_generate_files", keep)
    generate.main(
        [str(folder), "a piano", "--strength", "0", "--out", str(tmp_path / "waves")], None
    )
    assert torch.equal(seen.pop("heard"), heard(zoo.load(BASE)))
    assert seen == {"sampler": Sampler(3, 1.5), "seconds": 0.256}
