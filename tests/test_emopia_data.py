"""The EMOPIA reader on a generated folder in its layout."""

import math
import types

import numpy as np
import pytest
import soundfile
import torch

from datamodules.emopia import (
    EmopiaDataModule,
    check_song_disjoint,
    parse_clip_name,
    read_mono,
    read_split,
)

SONGS = {
    "train": ["Q1_ab_cd-efgh_0", "Q2_ab_cd-efgh_1", "Q3_song0000003_0", "Q4_song0000004_12"],
    "val": ["Q1_song0000005_0"],
    "test": ["Q4__song000006_0", "Q2_song0000007_0"],
}


@pytest.fixture
def emopia(tmp_path):
    (tmp_path / "audio").mkdir()
    for split, names in SONGS.items():
        rows = [f"{name}.mp3,{name[:2]}" for name in names]
        (tmp_path / f"{split}.csv").write_text("fname,label\n" + "\n".join(rows) + "\n")
        for index, name in enumerate(names):
            time = np.arange(int(22_050 * (1.5 + index))) / 22_050
            stereo = np.stack([np.sin(2 * np.pi * 440 * time), np.zeros_like(time)], axis=1) * 0.5
            soundfile.write(tmp_path / "audio" / f"{name}.mp3", stereo, 22_050)
    return tmp_path


def module(folder, **settings) -> EmopiaDataModule:
    settings = {
        "sample_rate_hz": 16_000,
        "crop_s": 2.0,
        "batch_size": 3,
        "num_workers": 0,
        **settings,
    }
    data = EmopiaDataModule(str(folder / "audio"), str(folder), **settings)
    data.setup()
    return data


def test_names_split_on_the_outer_underscores_only():
    assert parse_clip_name("Q1_ab_cd-efgh_0") == ("Q1", "ab_cd-efgh", "0")
    assert parse_clip_name("Q4__song000006_12") == ("Q4", "_song000006", "12")
    for bad in ("Q5_x_0", "Q1_0", "Q1_x_y", "piano"):
        with pytest.raises(ValueError, match="not an EMOPIA clip name"):
            parse_clip_name(bad)


def test_training_batches_are_crops_with_moods(emopia):
    batches = list(module(emopia).train_dataloader())
    assert [len(batch) for batch in batches] == [3, 1]
    assert all(
        batch.wave_BCN.shape[1:] == (1, 32_000) and batch.sample_rate_hz == 16_000
        for batch in batches
    )
    moods = {prompt.id: prompt.labels["mood"] for batch in batches for prompt in batch.prompts}
    assert moods == {
        "Q1_ab_cd-efgh_0": "happy",
        "Q2_ab_cd-efgh_1": "angry",
        "Q3_song0000003_0": "sad",
        "Q4_song0000004_12": "tender",
    }


def test_a_short_clip_is_padded_and_a_part_begins_at_its_place(emopia):
    dataset = module(emopia, sample_rate_hz=22_050).train_dataloader().dataset
    short, _ = dataset[0, 0.5]
    assert (
        short[-4000:].abs().max() == 0 and short[:4000].abs().max() > 0.1
    )  # 1.5 s of sound in 2 s
    whole = read_mono(dataset.clips[3].path, 22_050)
    (first, _), (middle, _) = (
        dataset[3, 0.0],
        dataset[3, 0.501],
    )  # 4.5 s of sound: a part begins within 2.5 s
    assert torch.allclose(first, whole[:44_100], atol=1e-5) and not torch.allclose(
        first, middle, atol=0.1
    )
    begin = round(0.501 * 2.5 * 22_050)
    assert torch.allclose(middle, whole[begin : begin + 44_100], atol=1e-5)


def test_a_part_of_an_mp3_is_exact_from_its_first_sample(tmp_path):
    """Frames depend on earlier ones: decoding must begin before the requested part."""
    noise = np.convolve(
        np.random.default_rng(0).standard_normal(22_050 * 4) * 0.1, np.ones(8) / 8, "same"
    )
    soundfile.write(tmp_path / "x.mp3", noise, 22_050)
    whole = read_mono(tmp_path / "x.mp3", 22_050)
    for start in (100, 22_050, 50_000, 60_000):
        part = read_mono(tmp_path / "x.mp3", 22_050, start / 22_050, 0.2)
        assert torch.allclose(part, whole[start : start + 4410], atol=1e-5)


def test_parts_are_new_each_epoch_and_the_same_for_a_resumed_one(emopia):
    def heard(epoch: int, seed: int = 0, split: str = "train", **settings) -> torch.Tensor:
        data = module(emopia, seed=seed, **settings)
        data.trainer = types.SimpleNamespace(current_epoch=epoch)
        state = torch.get_rng_state()
        waves = torch.cat([batch.wave_BCN for batch in data._loader(split)])
        assert torch.equal(torch.get_rng_state(), state), (
            "the global generator belongs to the module"
        )
        return waves

    assert torch.equal(heard(2), heard(2))
    assert not torch.equal(heard(2), heard(3)) and not torch.equal(heard(2), heard(2, seed=1))
    assert (
        heard(0, split="val", val_crop=True).shape[-1] == 32_000 != heard(0, split="val").shape[-1]
    )


def test_test_batches_are_whole_clips(emopia):
    lengths = [batch.wave_BCN.shape[-1] / 16_000 for batch in module(emopia).test_dataloader()]
    assert lengths == [
        pytest.approx(1.5, abs=0.1),
        pytest.approx(2.5, abs=0.1),
    ]  # mp3 pads a little
    assert len(list(module(emopia).val_dataloader())) == 1


def test_mono_mix_and_partial_reading(tmp_path):
    time = np.arange(44_100) / 44_100
    soundfile.write(
        tmp_path / "x.wav",
        np.stack([np.sin(2 * np.pi * 100 * time), np.zeros(44_100)], 1) * 0.8,
        44_100,
    )
    wave = read_mono(tmp_path / "x.wav", 22_050)
    assert len(wave) == 22_050 and float(wave.square().mean().sqrt()) == pytest.approx(
        0.4 / math.sqrt(2), rel=0.01
    )
    assert len(read_mono(tmp_path / "x.wav", 22_050, 0.5, 0.25)) == 5513
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    with pytest.raises(ValueError, match="cannot be read"):
        read_mono(tmp_path / "bad.wav", 22_050)


def test_a_song_in_two_splits_is_refused(emopia):
    (emopia / "val.csv").write_text("fname,label\nQ1_ab_cd-efgh_0,Q1\n")
    with pytest.raises(ValueError, match=r"'ab_cd-efgh'.*train and val"):
        module(emopia)
    check_song_disjoint({"train": [], "val": []})


@pytest.mark.long
@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            "name,label\nQ1_ab_cd-efgh_0,Q1\n",
            ValueError,
            "must name a column 'fname', it has 'name', 'label'",
        ),
        ("fname,label\nQ1_ab_cd-efgh_0,Q2\n", ValueError, "line 2.*its name says Q1"),
        ("fname,label\nQ1_missing0000_0,Q1\n", FileNotFoundError, "1 of the clips"),
        ("fname,label\nQ1_ab_cd-efgh_0\n", ValueError, "line 2.*the label None"),
        ("fname,label\nQ1_ab_cd-efgh_0,Q1,piano\n", ValueError, "line 2: more cells"),
        ("label,fname\nQ1\n", ValueError, "line 2.*not an EMOPIA clip name"),
        ("fname,label\n", ValueError, "lists no clips"),
        ("fname,label\nQ1_ab_cd-efgh_0,Q1\nQ1_ab_cd-efgh_0.mp3,Q1\n", ValueError, "more than once"),
        ("\ufefffname,label\nnonsense,Q1\n", ValueError, "not an EMOPIA clip name"),
    ],
)
def test_bad_split_files(emopia, content, error, message):
    (emopia / "bad.csv").write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_split(emopia / "bad.csv", emopia / "audio")


def test_spaces_and_other_files_are_harmless(emopia):
    """The authors' own preprocessing leaves a tensor beside each clip."""
    for suffix in ("pt", "mid", "txt"):
        (emopia / "audio" / f"Q1_ab_cd-efgh_0.{suffix}").write_bytes(b"no audio")
    (emopia / "loose.csv").write_text("fname, label\n\n Q1_ab_cd-efgh_0 , Q1\n", encoding="utf-16")
    (clip,) = read_split(emopia / "loose.csv", emopia / "audio")
    assert clip.path.suffix == ".mp3" and clip.quadrant == "Q1"


def test_a_bad_file_is_named_in_a_training_batch_too(emopia):
    """Otherwise a run stops with an error of the library, or learns from silence or NaN."""
    path = emopia / "audio" / "Q1_ab_cd-efgh_0.wav"
    (emopia / "train.csv").write_text("fname,label\nQ1_ab_cd-efgh_0,Q1\n")

    def message() -> str:
        with pytest.raises(ValueError, match=path.name) as caught:
            list(module(emopia).train_dataloader())
        return str(caught.value)

    path.write_bytes(b"not audio")
    assert "cannot be read" in message()
    soundfile.write(path, np.zeros(0), 22_050)
    assert "no samples" in message()
    soundfile.write(path, np.full(22_050, np.nan), 22_050, subtype="FLOAT")
    assert "NaN" in message()


def test_missing_split_and_bad_crop(emopia):
    (emopia / "test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.csv"):
        module(emopia)
    with pytest.raises(ValueError, match="crop_s"):
        module(emopia, crop_s=0)
