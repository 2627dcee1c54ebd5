"""BATON's fine-tuning configurations at toy size, on files in BATON's own dialects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy_weighted import write_tone

import zoo
from lightning_modules import run
from zoo.configuration import read_configuration
from zoo.errors import UserError
from zoo.hub.artifact_check import verify_artifact
from zoo.hub.export import export_run
from zoo.hub.run_facts import read_facts
from zoo.types import Prompt

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "baton"
TASKS = {"integrity": ("2label", "Integrity"), "temporal": ("3label", "Temporal")}


def write_baton(folder: Path) -> Path:
    """Label files and audio of both tasks, and AudioCaps lists, as BATON publishes them."""
    for word, task in TASKS.values():
        for source, column in (("HA", "feedback"), ("RA", "SED")):
            rows = []
            for number in range(3):
                caption = ("a dog barks", "rain falls on a roof")[number // 2]
                name = f"{number:04d}_{caption}_{number % 2}.wav"
                place = f"{word}_{task}_{source[0]}D_Audio"
                write_tone(folder / "baton" / place / name, 200 + 40 * number)
                # released rows of 3label_RA point at the folder of the other task
                stated = (
                    "2label_Integrity_RD_Audio" if (word, source) == ("3label", "RA") else place
                )
                row = {"dataset": f"{word}_{source}", "location": f"data/{stated}/{name}"}
                rows.append(row | {"captions": caption, column: (1, 0, 0.5)[number]})
            text = "\n".join(json.dumps(row) for row in rows)
            (folder / "baton" / f"{word}_{source}.json").write_text(text)
    for name, count in (("train", 4), ("valid", 2)):
        rows = []
        for number in range(count):
            clip = f"{name}/{number}.wav"
            write_tone(folder / "audiocaps" / clip, 900 + 20 * number)
            rows.append({"dataset": "audiocaps", "location": clip, "captions": "a bird and a dog"})
        text = ",\n".join(json.dumps(row) for row in rows)  # JSON lines with commas
        (folder / "baton" / f"{name}_audiocaps.json").write_text(text)
    return folder


def small(folder: Path, config: str) -> list[str]:
    """Overrides: the files in ``folder`` for those in data/, and toy sizes."""
    word, _ = TASKS.get(config, TASKS["integrity"])
    files = [f"{folder}/baton/{word}_{source}.json" for source in ("HA", "RA")]
    data = {
        "labelled.files": f"[{','.join(files)}]",
        "labelled.audio_root": f"{folder}/baton",
        "seconds": "0.5",
        "pretrain.files": f"{folder}/baton/train_audiocaps.json",
        "pretrain.val_files": f"{folder}/baton/valid_audiocaps.json",
        "pretrain.audio_root": f"{folder}/audiocaps",
        "pretrain.seconds": "0.5",
        "mixing.pool": "3",
        "mixing.per_batch": "1",
        "pretrain_batch_size": "2",
        "cache_dir": f"{folder}/latents",
    }
    trainer = ["trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
    return [*(f"data.{key}={value}" for key, value in data.items()), *trainer]


def fit(config: str, folder: Path, *overrides: str) -> run.Built:
    given = [*small(folder, config), f"out_dir={folder / 'run'}", *overrides]
    return run.fit(read_configuration([CONFIGS / f"{config}.yaml"], given))


def played(backbone: object) -> torch.Tensor:
    (wave,) = zoo.generate(backbone, [Prompt("p", "a dog barks", seconds=0.5)], seeds=[1], steps=2)
    return wave.samples_CN


@pytest.mark.long
@pytest.mark.parametrize("config", ["integrity", "temporal", "audioldm2"])
def test_it_trains_resumes_exports_and_plays(config: str, tmp_path: Path, small_zoo: Path) -> None:
    write_baton(tmp_path)
    fit(config, tmp_path, "trainer.max_epochs=1")
    built = fit(config, tmp_path, "trainer.max_epochs=2", "resume=true")
    assert built.trainer.global_step == 2  # three micro-batches per epoch, accumulated
    assert len(built.data.clips) == 6 and built.data.rows["val"] is not None
    word, _ = TASKS.get(config, TASKS["integrity"])
    assert all(clip.audio.parent.name.startswith(f"{word}_") for clip in built.data.clips)
    rows = (tmp_path / "run" / "metrics.csv").read_text()
    assert "val/loss" in rows and "train/pretrain" in rows and "train/labelled" in rows
    assert (tmp_path / "run" / "denoiser.safetensors").is_file()
    own = zoo.open_model(str(tmp_path / "run"))
    exported = zoo.load(export_run(tmp_path / "run", tmp_path / "model"))
    # equal weights of AudioLDM 2 play the same to 1e-7 only, from its two layouts on disk
    closeness = {"rtol": 0, "atol": 1e-6 if config == "audioldm2" else 0}
    torch.testing.assert_close(played(own), played(exported), **closeness)
    base = read_configuration([CONFIGS / f"{config}.yaml"]).module["backbone"]["name"]
    assert not torch.equal(played(zoo.load(base)), played(own))


@pytest.mark.long
def test_an_adapter_trains_resumes_exports_and_plays(tmp_path: Path, small_zoo: Path) -> None:
    write_baton(tmp_path)
    adapter = ["module.adapter={rank: 2}", "module.optimizer.learning_rate=1e-2"]
    fit("integrity", tmp_path, *adapter, "trainer.max_epochs=1")
    built = fit("integrity", tmp_path, *adapter, "trainer.max_epochs=2", "resume=true")
    trained = [name for name, p in built.module.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    facts = read_facts(tmp_path / "run", {})
    assert facts.adapter.rank == 2 and facts.checkpoint == "learned"
    assert facts.settings["pretrain_weight"] == 0.25
    own = zoo.open_model(str(tmp_path / "run"))
    folder = export_run(tmp_path / "run", tmp_path / "adapter")
    exported = zoo.load("tango-full-ft-audiocaps", adapters=[folder])
    assert torch.equal(played(own), played(exported))
    assert any("fits its base" in fact for fact in verify_artifact(folder, zoo.load))


@pytest.mark.long
def test_a_stopped_run_is_exported_from_its_checkpoint(tmp_path: Path, small_zoo: Path) -> None:
    write_baton(tmp_path)
    fit("integrity", tmp_path, "trainer.max_epochs=1")
    finished = export_run(tmp_path / "run", tmp_path / "finished")
    (tmp_path / "run" / "denoiser.safetensors").unlink()
    stopped = export_run(tmp_path / "run", tmp_path / "stopped")
    assert torch.equal(played(zoo.load(finished)), played(zoo.load(stopped)))


@pytest.mark.long
def test_a_dry_run_reads_all_files(tmp_path: Path, small_zoo: Path) -> None:
    write_baton(tmp_path)
    given = [*small(tmp_path, "integrity"), f"out_dir={tmp_path / 'run'}"]
    config = CONFIGS / "integrity.yaml"
    assert "trainable" in run.dry_run(read_configuration([config], given))
    for key, value, named in (
        ("data.labelled.sample_rate_hz", 48_000, "48000 Hz"),
        ("data.labelled.task", "temporal", "temporal"),
        ("data.pretrain_batch_size", 0, "pretrain_batch_size"),
        ("data.rewards.kind", "centered", "centred"),
        ("module.optimizer.schedule", "lineer", "linear"),
        ("module.adapter", "{rnk: 2}", "rank"),
    ):
        with pytest.raises(UserError, match=named):
            run.dry_run(read_configuration([config], [*given, f"{key}={value}"]))
    assert not (tmp_path / "run").exists() and not (tmp_path / "latents").exists()
