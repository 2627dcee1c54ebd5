"""Unusual model folders: variants of weights, only pickles, tokenizers without a vocabulary."""

import shutil
from pathlib import Path

import pytest
import torch
import toy_audioldm2
import toy_stable_audio
from diffusers.utils import logging as of_diffusers
from toy_clap import random_clap, tokenizer_file
from transformers.utils import logging as of_transformers

import zoo
import zoo.importers.diffusers_folders as diffusers_folders
from zoo.importers.diffusers_folders import quiet_libraries, weights_variant
from zoo.importers.pretrained_clap import with_files
from zoo.rewards.clap import ClapReward


@pytest.fixture(scope="module")
def audioldm2(tmp_path_factory):
    return toy_audioldm2.written_folder(
        toy_audioldm2.small_model(), tmp_path_factory.mktemp("m") / "audioldm2"
    )


@pytest.fixture
def folder(audioldm2, tmp_path):
    return shutil.copytree(audioldm2, tmp_path / "model")


def renamed(folder: Path, old: str, new: str) -> None:
    for path in list(folder.rglob(f"*{old}")):
        path.rename(path.with_name(path.name.replace(old, new)))


@pytest.mark.long
def test_a_folder_with_one_variant_gives_the_same_model(folder, capfd):
    plain = zoo.load(str(folder)).state_dict()
    renamed(folder, ".safetensors", ".fp16.safetensors")
    capfd.readouterr()
    found = zoo.load(str(folder)).state_dict()
    assert found.keys() == plain.keys() and all(
        torch.equal(found[name], plain[name]) for name in plain
    )
    assert "no file named" not in capfd.readouterr().err


def test_which_variant(tmp_path):
    def held(*names: str) -> str | None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        for name in names:
            (tmp_path / name).touch()
        return weights_variant(tmp_path)

    assert held("model.safetensors", "model.fp16.safetensors") is None
    assert held("diffusion_pytorch_model-00001-of-00002.safetensors") is None
    assert held("diffusion_pytorch_model-00001-of-00002.fp16.safetensors") == "fp16"
    assert held("diffusion_pytorch_model.fp16-00001-of-00002.safetensors") == "fp16"
    with pytest.raises(ValueError, match="bf16, fp16"):
        held("model.bf16.safetensors", "model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match="diffusion_pytorch_model.bin.*safetensors"):
        held("diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no weights"):
        held("config.json")


def test_a_folder_of_pickles_says_what_to_do(folder):
    renamed(folder, ".safetensors", ".bin")
    with pytest.raises(FileNotFoundError, match=r"unet.*\.bin.*safetensors"):
        zoo.load(str(folder))


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_without_its_vocabulary_is_refused(folder, part, monkeypatch):
    (folder / part / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"{part} has no vocabulary: tokenizer.json"):
        zoo.load(str(folder))
    monkeypatch.setattr(
        diffusers_folders, "_check_vocabulary_files", lambda folder: None
    )  # what the library makes of it
    with pytest.raises(ValueError, match="the (T5|CLAP) tokenizer"):
        zoo.load(str(folder))


def test_stable_audio_without_its_vocabulary_is_refused(tmp_path):
    folder = toy_stable_audio.written_folder(toy_stable_audio.small_model(), tmp_path / "model")
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        zoo.load(str(folder))


@pytest.mark.parametrize("installed", [False, True])
def test_a_sentencepiece_file_alone(folder, monkeypatch, installed):
    (folder / "tokenizer_2/tokenizer.json").unlink()
    (folder / "tokenizer_2/spiece.model").write_bytes(b"not one")
    monkeypatch.setattr(
        diffusers_folders, "find_spec", lambda name: object() if installed else None
    )
    with pytest.raises(
        ValueError, match="tokenizer_2" if installed else "spiece.model.*pip install sentencepiece"
    ):
        zoo.load(str(folder))


def test_libraries_are_quiet_inside_only():
    before = [library.get_verbosity() for library in (of_diffusers, of_transformers)]
    with pytest.raises(KeyError), quiet_libraries():
        inside = [library.get_verbosity() for library in (of_diffusers, of_transformers)]
        raise KeyError
    assert min(inside) > 40  # above errors
    assert [library.get_verbosity() for library in (of_diffusers, of_transformers)] == before
    assert of_transformers.is_progress_bar_enabled()


def clap_folder(folder: Path, collapsed: bool = False) -> Path:
    model = random_clap()
    if collapsed:
        with torch.no_grad():
            # texts differ in their length only
            model.text_model.embeddings.word_embeddings.weight.zero_()
    model.save_pretrained(folder)
    tokenizer_file(folder)
    return folder


def test_a_clap_with_one_variant_gives_the_same_model(tmp_path):
    folder = clap_folder(tmp_path / "clap")
    plain = ClapReward("x", "transformers", with_files({"pretrained": str(folder)})).state_dict()
    renamed(folder, ".safetensors", ".fp16.safetensors")
    found = ClapReward("x", "transformers", with_files({"pretrained": str(folder)})).state_dict()
    assert found.keys() == plain.keys() and all(
        torch.equal(found[name], plain[name]) for name in plain
    )
    (folder / "model.bf16.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="model.bf16.safetensors, model.fp16.safetensors"):
        ClapReward("x", "transformers", with_files({"pretrained": str(folder)}))


def test_a_clap_with_a_collapsed_text_tower_is_refused_with_its_numbers(tmp_path):
    folder = clap_folder(tmp_path / "clap", collapsed=True)
    with pytest.raises(ValueError, match=r"CLAP music .*cosine of 0\.99.*clap-music-audioset"):
        ClapReward("music", "transformers", with_files({"pretrained": str(folder)}))
    audio_only = {"pretrained": str(folder), "tokenizer": "none"}  # embeds no texts
    assert ClapReward("music", "transformers", with_files(audio_only)).towers.tokenizer is None


@pytest.mark.parametrize("inside", [False, True])
def test_an_artefact_with_a_collapsed_text_tower_is_refused(tmp_path, inside):
    from zoo.hub.artifact import identity_of, load_artifact, save_artifact
    from zoo.rewards.ensemble import EnsembleReward

    small = {
        "window_s": 1.024,
        "n_mels": 32,
        "channels": [4, 4, 4, 8],
        "width": 16,
        "depth": 1,
        "text_depth": 1,
    }
    clap = ClapReward("untrained", "tiny", small)
    reward = (
        EnsembleReward({"clap": clap, "guards": {"architecture": "guards", "arguments": {}}})
        if inside
        else clap
    )
    kind, architecture, arguments = identity_of(reward)
    for folder in ("right", "wrong"):
        facts = {
            "kind": kind,
            "architecture": architecture,
            "arguments": arguments,
            "module": reward,
        }
        save_artifact(tmp_path / folder, **facts)
        clap.towers.text_pool.out.weight.data.zero_()  # what is left is the bias
    load_artifact(tmp_path / "right")  # random small towers tell captions apart
    with pytest.raises(ValueError, match=r"CLAP.*1\.0000"):
        load_artifact(tmp_path / "wrong")
