"""Users' recordings: which files are used, how they are cropped, and broken ones."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import soundfile
import torch

from datamodules.audio import (
    AudioDataModule,
    Clip,
    crop,
    find_clips,
    mix_channels,
    prepare,
    split_clips,
)
from datamodules.batches import AudioBatch
from zoo.types import Waveform

RATE_HZ = 8000


def write(
    path: Path, seconds: float = 1.0, channels: int = 1, level: float = 0.5, rate_hz: int = RATE_HZ
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, level, round(seconds * rate_hz), dtype=np.float32)
    soundfile.write(path, np.repeat(ramp[:, None], channels, 1), rate_hz)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sounds = tmp_path / "sounds"
    for index in range(6):
        write(sounds / f"{'deep/' if index % 2 else ''}{index}.wav", seconds=1 + 0.1 * index)
    return sounds


def module(folder: Path, **changes) -> AudioDataModule:
    settings = {
        "sample_rate_hz": RATE_HZ,
        "channels": 2,
        "seconds": 0.5,
        "batch_size": 2,
        "seed": 1,
    }
    return AudioDataModule(str(folder), **(settings | changes))


def ready(folder: Path, **changes) -> AudioDataModule:
    data = module(folder, **changes)
    data.setup("fit")
    return data


def table(folder: Path, rows: list[dict]) -> str:
    path = folder.parent / "captions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_files_of_all_folders_get_the_default_caption(folder: Path) -> None:
    (folder / "notes.txt").write_text("not audio")
    clips = find_clips(folder, caption="a ramp")
    assert [clip.name for clip in clips] == [
        "0.wav",
        "2.wav",
        "4.wav",
        "deep/1.wav",
        "deep/3.wav",
        "deep/5.wav",
    ]
    assert {clip.caption for clip in clips} == {"a ramp"}


def test_captions_weights_and_labels_come_from_the_table(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = {"file": "deep/1.wav", "caption": "one", "weight": 0.5, "mood": "sad"}
    rows = [one, {"file": "0.wav", "caption": "nil", "weight": 2}]
    with caplog.at_level(logging.WARNING):
        first, second = find_clips(folder, table(folder, rows))
    assert (first.caption, first.weight, first.labels) == ("nil", 2.0, {})
    assert (second.caption, second.weight, second.labels) == ("one", 0.5, {"mood": "sad"})
    assert "4 of 6 audio files have no row" in caplog.text


def test_csv_captions_may_hold_commas(folder: Path) -> None:
    path = folder.parent / "c.csv"
    path.write_text('file,caption\n0.wav,"rain, then wind"\n')
    assert find_clips(folder, path)[0].caption == "rain, then wind"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"file": f"{i}.ogg", "caption": "x"} for i in range(7)],
            r"0.ogg \(line 1\), .*4.ogg \(line 5\) and 2 more$",
        ),
        ([{"file": "0.wav", "caption": "x"}] * 2, "line 2: 0.wav is listed a second time"),
        ([{"file": "0.wav", "words": "x"}], "line 1: .*'caption'.* it has 'file', 'words'"),
        ([{"file": "0.wav", "caption": None}], "line 1: .*'caption', got None"),
        ([{"file": "0.wav", "caption": ["a dog", "a cat"]}], r"line 1: .*got \['a dog', 'a cat'\]"),
        ([{"file": "0.wav", "caption": True}], "line 1: .*got True"),
        ([{"file": True, "caption": "x"}], "line 1: file must be text or a number, got True"),
        ([{"file": "0.wav", "caption": "x", "weight": True}], "got True"),
        (
            [{"file": "0.wav", "caption": "x", "weight": -1}],
            "weight must be a number of at least 0, got -1",
        ),
        ([{"file": "0.wav", "caption": "x", "weight": "big"}], "got 'big'"),
        (
            [{"file": "0.wav", "caption": "x", "weight": 1}, {"file": "2.wav", "caption": "x"}],
            "some rows have a weight and some",
        ),
        ([], "holds no row"),
    ],
)
def test_bad_tables_are_named(folder: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_clips(folder, table(folder, rows))


def test_folders_without_audio_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no audio.*\.wav"):
        find_clips(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        find_clips(tmp_path / "nothing")


def test_channels_are_repeated_or_averaged() -> None:
    stereo = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert mix_channels(stereo, 1).tolist() == [[2.0, 3.0]]
    assert mix_channels(stereo[:1], 2).tolist() == [[1.0, 2.0]] * 2
    assert mix_channels(stereo, 2) is stereo
    with pytest.raises(ValueError, match="2 channels.* 4"):
        mix_channels(stereo, 4)


def test_crop_reaches_both_ends_and_pads_with_silence() -> None:
    wave = torch.arange(10.0)[None]
    assert crop(wave, 4, 0.0).tolist() == [[0, 1, 2, 3]]
    assert crop(wave, 4, 0.999).tolist() == [[6, 7, 8, 9]]
    assert crop(wave, 12, 0.7).tolist() == [[*range(10), 0, 0]]
    assert crop(wave, 10, 0.999).tolist() == wave.tolist()


def test_prepare_resamples_and_refuses_unusable_waves() -> None:
    assert prepare(Waveform(torch.zeros(1, 16000), 16000), RATE_HZ, 2).shape == (2, 8000)
    with pytest.raises(ValueError, match="no samples"):
        prepare(Waveform(torch.zeros(1, 0), RATE_HZ), RATE_HZ, 1)
    with pytest.raises(ValueError, match="not finite"):
        prepare(Waveform(torch.tensor([[0.0, torch.nan]]), RATE_HZ), RATE_HZ, 1)


def test_split_is_by_name_and_seed() -> None:
    clips = [Clip(f"{i}.wav", Path(f"{i}.wav")) for i in range(10)]
    train, held = split_clips(clips, 0.3, 0)
    assert len(held) == 3 and set(train) | set(held) == set(clips) and not set(train) & set(held)
    assert split_clips(clips[::-1], 0.3, 0)[1] == held[::-1]
    assert split_clips(clips, 0.3, 1)[1] != held and split_clips(clips, 0.0, 0)[1] == ()
    with pytest.raises(ValueError, match="val_share must be in"):
        split_clips(clips, 1.0, 0)


def test_batches_have_the_requested_shape(folder: Path) -> None:
    data = ready(folder, val_share=0.34, caption="a ramp")
    batches = list(data.train_dataloader())
    assert len(batches) == 2 and all(isinstance(batch, AudioBatch) for batch in batches)
    assert (
        batches[0].wave_BCN.shape == (2, 2, 4000)
        and batches[0].sample_rate_hz == RATE_HZ
        and batches[0].weight_B is None
    )
    assert {(p.text, p.seconds) for p in batches[0].prompts} == {("a ramp", 0.5)}
    (held,) = list(data.val_dataloader())
    assert (
        len(held) == 2 and held.wave_BCN[:, :, 0].abs().max() < 1e-3
    )  # validation takes the beginning of the ramps
    assert ready(folder).val_dataloader() == []


def test_weights_reach_the_batch(folder: Path) -> None:
    rows = [
        {"file": name, "caption": "x", "weight": weight}
        for name, weight in (("0.wav", 0.5), ("2.wav", 2.0))
    ]
    (batch,) = list(ready(folder, captions=table(folder, rows)).train_dataloader())
    assert sorted(batch.weight_B.tolist()) == [0.5, 2.0]


def starts(data: AudioDataModule, epoch: int) -> dict[str, float]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return {
        p.id: wave[0, 0].item()
        for batch in loader
        for wave, p in zip(batch.wave_BCN, batch.prompts, strict=True)
    }


def test_crops_change_with_epoch_and_seed_and_with_nothing_else(folder: Path) -> None:
    first = starts(ready(folder), 0)
    torch.manual_seed(99)
    assert starts(ready(folder), 0) == first and len(first) == 6
    assert starts(ready(folder, num_workers=1), 0) == first
    assert starts(ready(folder), 1) != first and starts(ready(folder, seed=2), 0) != first
    assert max(starts(ready(folder, crop="first"), 3).values()) < 1e-3


def test_broken_files_are_set_aside_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder / "empty.wav", seconds=0)
    (folder / "torn.wav").write_bytes(b"RIFF")
    write(folder / "six.wav", channels=6)
    with caplog.at_level(logging.WARNING):
        data = ready(folder)
    assert set(data.quarantined) == {"empty.wav", "torn.wav", "six.wav"}
    assert data.quarantined["empty.wav"] == "holds no samples"
    assert "6 channels" in data.quarantined["six.wav"]
    assert "3 of 9 clips set aside" in caplog.text and len(data.train_clips) == 6
    assert set(ready(folder, check="full").quarantined) == set(data.quarantined)


def test_values_that_are_not_finite_are_found_by_the_full_check(folder: Path) -> None:
    soundfile.write(
        folder / "nan.wav", np.full(RATE_HZ, np.nan, np.float32), RATE_HZ, subtype="FLOAT"
    )
    assert set(ready(folder, check="full").quarantined) == {"nan.wav"}
    data = ready(folder, batch_size=7)
    with pytest.raises(ValueError, match=r"nan\.wav.*data\.check=full"):
        list(data.train_dataloader())


def test_a_folder_of_broken_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="none of the 1 clips .*torn.wav: "):
        ready(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, "6 training clips do not fill one batch of 7 on 1 process"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"seconds": -1.0}, "seconds -1"),
        ({"seconds": 1e-9}, r"seconds 1e-09: .*0\.000125 s at 8000 Hz"),
        ({"seconds": 1e9}, r"seconds 1e\+09: .*3600 s"),
        ({"seconds": float("nan")}, "seconds nan"),
        ({"crop": "last"}, "crop must be random or first, got 'last'"),
        ({"check": "deep"}, "check must be header or full"),
    ],
)
def test_settings_out_of_range_are_refused(folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(folder, **changes)


class Listener(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.heard: list[list[tuple[str, float]]] = []

    def training_step(self, batch: AudioBatch, batch_idx: int) -> None:
        self.heard.append(
            [(p.id, w[0, 0].item()) for p, w in zip(batch.prompts, batch.wave_BCN, strict=True)]
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_passes_the_epoch_to_the_crops(folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    L.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(
        listener, module(folder)
    )
    heard = [
        dict(pair for batch in listener.heard[e * 3 : e * 3 + 3] for pair in batch) for e in (0, 1)
    ]
    assert heard == [starts(ready(folder), 0), starts(ready(folder), 1)]
