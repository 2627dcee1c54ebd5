"""The run folder: its files, resuming, and what a kill or a full disk may do."""

from __future__ import annotations

import csv
import os
import zipfile
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from toy_run import ROOT, load

from lightning_modules import run, run_folder
from zoo.configuration import read_configuration
from zoo.errors import describe
from zoo.secrets import MASK


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_config_checkpoints_metrics_and_export(tmp_path):
    loaded = load(
        tmp_path,
        "data.token=hf_secret_words",
        "out_dir=" + str(tmp_path / "run"),
        "trainer.callbacks=[{_target_: lightning.pytorch.callbacks.Timer}]",
        f"trainer.logger={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {tmp_path},"
        " name: hf_secret_words}",
    )
    run.fit(loaded, ["python", "tools/fit.py", "data.token=hf_secret_words"])
    folder = tmp_path / "run"
    text = (folder / "config.yaml").read_text()
    content = yaml.safe_load(text)
    assert "hf_secret_words" not in text and content["data"]["token"] == MASK
    assert content["data"]["width"] == 4 and content["seed"] == 3
    record = content["provenance"][0]
    assert (
        record["versions"]["torch"] == torch.__version__.split("+")[0]
        or record["versions"]["torch"] == torch.__version__
    )
    assert set(record["versions"]) >= {"attune", "lightning", "diffusers", "transformers", "peft"}
    assert record["command_line"] == f"python tools/fit.py data.token={MASK}"
    in_git = (Path(run_folder.__file__).parents[1] / ".git").exists()
    assert (
        len(record["git_sha"].removesuffix("-dirty")) == 40 if in_git else record["git_sha"] is None
    )
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"]
    assert (folder / "exported.pt").is_file() and len(rows(folder)) == 8
    assert not list(folder.rglob("*.part*"))
    again = read_configuration(
        [folder / "config.yaml"], ["out_dir=" + str(tmp_path / "other")]
    )  # a run's config.yaml is a configuration
    assert again.module == loaded.module and "provenance" not in again.to_dict()


def test_masks():
    plain = {
        "tokens_BLD": "kept",
        "text_tokens": 77,
        "hf_token": "abcdef",
        "db": {"password": {"x": "pw123456"}},
        "url": "https://u:pw123456@host",
        "list": [{"api_key": "k"}],
        "OPENAI_API_KEY": "sk-1234",
        "token": None,
    }
    masked = run_folder.masked(plain)
    assert (
        masked["tokens_BLD"] == "kept" and masked["text_tokens"] == 77 and masked["token"] is None
    )
    assert (
        masked["hf_token"]
        == masked["db"]["password"]["x"]
        == masked["list"][0]["api_key"]
        == masked["OPENAI_API_KEY"]
        == "********"
    )
    assert masked["url"] == "https://u:********@host"
    assert (
        run_folder.masked_command(["fit.py", "a.api_key=x", "seed=1", "--flag"])
        == "fit.py a.api_key=******** seed=1 --flag"
    )


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    run.fit(load(tmp_path, "trainer.max_epochs=1"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ValueError, match=r"out_dir=\.\.\..*resume=true"):
        run.fit(load(tmp_path))
    with pytest.raises(ValueError, match="already holds a run"):
        run.dry_run(load(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        run.fit(load(tmp_path, f"out_dir={tmp_path / 'file'}"))


def test_data_that_is_missing_at_setup_leaves_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no clips"):
        run.fit(load(tmp_path, "data.missing_at_setup=true"))
    assert not run_folder.holds_run(tmp_path / "run")


def weights(module: L.LightningModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_resume_goes_on_where_it_stopped(tmp_path):
    whole = run.fit(load(tmp_path, "trainer.max_epochs=4", f"out_dir={tmp_path / 'whole'}"))
    with pytest.raises(ValueError, match="the reward gave NaN"):
        run.fit(load(tmp_path, "trainer.max_epochs=4", "module.fail_at=10"))  # in the third epoch
    folder = tmp_path / "run"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    saved["module"].pop("fail_at")
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    resumed = run.fit(load(tmp_path, "trainer.max_epochs=4", "resume=true"))
    assert resumed.trainer.global_step == whole.trainer.global_step == 16
    assert [row["step"] for row in rows(folder)] == [
        str(i) for i in range(16)
    ]  # no row lost, none doubled
    records = yaml.safe_load((folder / "config.yaml").read_text())["provenance"]
    assert [record["resumed_from"] for record in records] == [None, "last.ckpt"]


def test_resume_with_another_configuration(tmp_path, caplog):
    run.fit(load(tmp_path, "trainer.max_epochs=1"))
    with pytest.raises(
        ValueError, match=r"module.learning_rate \(0.1 -> 1\), data.count \(8 -> 4\)"
    ):
        run.fit(load(tmp_path, "module.learning_rate=1", "data.count=4", "resume=true"))
    checkpoint, notes = run_folder.starting_point(
        tmp_path / "run", load(tmp_path, "trainer.max_epochs=3").to_dict(), resume=True
    )
    assert checkpoint.name == "last.ckpt" and notes == [
        "resuming with changed trainer.max_epochs (1 -> 3)"
    ]
    built = run.fit(load(tmp_path, "trainer.max_epochs=3", "resume=true"))
    assert built.trainer.global_step == 12
    records = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["provenance"]
    assert [record["changed"] for record in records] == [[], ["trainer.max_epochs (1 -> 3)"]]


def test_a_damaged_checkpoint_falls_back_to_the_newest_intact_one(tmp_path):
    run.fit(load(tmp_path))
    folder = tmp_path / "run" / "checkpoints"
    newest = folder / "epoch=1-step=8.ckpt"
    newest.write_bytes(newest.read_bytes()[:-200])  # last.ckpt is a link to it
    configured = load(tmp_path, "resume=true").to_dict()
    checkpoint, notes = run_folder.starting_point(tmp_path / "run", configured, True)
    assert checkpoint.name == "epoch=0-step=4.ckpt"
    assert (
        "last.ckpt" in notes[0] and "is damaged" in notes[0] and "epoch=0-step=4.ckpt" in notes[0]
    )
    built = run.fit(load(tmp_path, "resume=true"))
    assert built.trainer.global_step == 8 and run_folder.is_intact(folder / "last.ckpt")
    for path in folder.glob("epoch*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="checkpoint.*out_dir"):
        run.fit(load(tmp_path, "resume=true"))


def test_leftovers_of_a_killed_run_are_not_checkpoints_and_are_removed(tmp_path):
    half = (
        tmp_path / "run/checkpoints/.epoch=0-step=4.4194305.part.ckpt"
    )  # (no process has such a number)
    half.parent.mkdir(parents=True)
    half.write_bytes(b"PK")
    assert (
        not run_folder.holds_run(tmp_path / "run")
        and run_folder.checkpoints(tmp_path / "run") == []
    )
    mine = half.with_name(f".mine.{os.getpid()}.part.ckpt")  # of a process that runs
    mine.touch()
    assert run.fit(load(tmp_path, "resume=true")).trainer.global_step == 8
    assert not half.exists() and mine.exists()


def test_one_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "a.ckpt"
    lists = {"optimizer_states": [], "lr_schedulers": [], "epoch": 0, "global_step": 1}
    torch.save({"state_dict": {"weights": torch.arange(1000)}, "loops": {}, **lists}, path)
    assert run_folder.is_intact(path) and run_folder.is_intact(tmp_path)
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[record.header_offset + 500] ^= 1
    path.write_bytes(content)
    assert not run_folder.is_intact(path)


def test_resume_of_nothing_starts_at_the_beginning(tmp_path):
    built = run.fit(load(tmp_path, "resume=true"))
    assert built.trainer.global_step == 8
    assert run_folder.starting_point(tmp_path / "none", {}, True)[1] == [
        f"{tmp_path / 'none'} holds no run yet: starting at the beginning"
    ]
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "config.yaml").write_text("seed: 3")
    assert (
        "no checkpoint yet" in run_folder.starting_point(tmp_path / "stub", {"seed": 3}, True)[1][0]
    )
    for broken, message in (
        ("a: [", r"config\.yaml is not valid YAML"),
        ("- 1", "is not the configuration of a run"),
    ):
        (tmp_path / "stub" / "config.yaml").write_text(broken)
        with pytest.raises(ValueError, match=message):
            run_folder.starting_point(tmp_path / "stub", {"seed": 3}, True)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    real = torch.save
    calls = []

    def save(checkpoint, file, *rest):
        calls.append(1)
        if len(calls) < 2:
            real(checkpoint, file, *rest)
            return
        file.write(b"half of it")
        with open("/dev/full", "wb") as full:
            real(checkpoint, full)

    monkeypatch.setattr(run_folder.torch, "save", save)
    with pytest.raises(
        OSError, match="the disk is full: .*/checkpoints/last.ckpt is intact; free some space"
    ) as caught:
        run.fit(load(tmp_path))
    assert "resume=true" in describe(caught.value) and "Errno" not in describe(caught.value)
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch=0-step=4.ckpt", "last.ckpt"]
    assert run.fit(load(tmp_path, "resume=true")).trainer.global_step == 8


def test_other_errors_of_saving_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def save(checkpoint, file):
        raise RuntimeError("cannot pickle")

    monkeypatch.setattr(run_folder.torch, "save", save)
    with pytest.raises(RuntimeError, match="cannot pickle"):
        run_folder.AtomicCheckpointIO().save_checkpoint({}, tmp_path / "checkpoints" / "a.ckpt")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_users_checkpoint_callback_replaces_ours(tmp_path):
    own = (
        "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, every_n_train_steps: 3,"
        " save_top_k: -1}"
    )
    run.fit(load(tmp_path, f"trainer.callbacks={own}"))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "epoch=0-step=3.ckpt",
        "epoch=1-step=6.ckpt",
    ]


def test_predict_uses_the_last_checkpoint_and_writes_nothing(tmp_path):
    built = run.fit(load(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    predicted = run.predict(load(tmp_path))
    expected = built.module.linear(built.data.points)
    assert torch.allclose(torch.cat(predicted), expected) and len(predicted) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_dry_run(tmp_path):
    text = run.dry_run(load(tmp_path))
    assert (
        "parameters        9\n" in text
        and "trainable         5 (55.56%)" in text
        and "no backbone" in text
    )
    assert "memory estimate" in text and sorted(path.name for path in tmp_path.iterdir()) == [
        "c.yaml"
    ]
    smoke = read_configuration(
        [ROOT / "configs/ddpo/quickstart_smoke.yaml"],
        [f"out_dir={tmp_path}/smoke", "data.seconds=1.024"],
    )
    assert "(32, 32) for 1.024 s" in run.dry_run(smoke) and not (tmp_path / "smoke").exists()


def test_the_seed_decides_the_weights(tmp_path):
    one, same, other = (
        weights(run.build(load(tmp_path, f"seed={seed}")).module) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
