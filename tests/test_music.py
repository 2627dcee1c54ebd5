"""Rule-made music: scores, rendering, captions and the batches made of them."""

import importlib.util
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import small_audio

from datamodules.cache import LatentCache, encode_clips
from datamodules.music import render
from datamodules.music.music import (
    NEGATIVE,
    Clip,
    MusicDataModule,
    caption,
    clip_list,
    held_out_pairs,
    render_clip,
)
from datamodules.music.render import find_font
from datamodules.music.score import MOODS, WORDS, compose


def small(**changes):
    settings = {
        "clips": 12,
        "val_clips": 4,
        "seconds": 0.5,
        "workers": 1,
        "batch_size": 4,
        "batches_per_epoch": 2,
    }
    return MusicDataModule(**{"renderer": "additive", **settings, **changes})


def test_scores_are_repeatable_and_moods_differ_in_density_and_mode():
    assert compose("sad", 1, 4.0) == compose("sad", 1, 4.0) != compose("sad", 2, 4.0)
    density = {
        mood: np.mean([len(compose(mood, seed, 4.0)) for seed in range(8)]) for mood in MOODS
    }
    assert density["angry"] > 2 * density["tender"] > 2 * density["sad"] / 2
    assert all(
        note.start_s < 4.0 and 28 <= note.pitch <= 100
        for mood in MOODS
        for note in compose(mood, 3, 4.0)
    )
    with pytest.raises(ValueError, match="mood .* is unknown"):
        compose("bored", 0, 1.0)


def test_clips_have_one_level_and_repeat_exactly():
    waves = [render_clip(Clip(mood, "piano", 5), 1.0, 16_000, "additive") for mood in MOODS]
    levels = [np.sqrt(np.mean((wave / 32768.0) ** 2)) for wave in waves]
    assert all(level == pytest.approx(0.06, rel=0.1) for level in levels)
    assert np.array_equal(waves[0], render_clip(Clip("happy", "piano", 5), 1.0, 16_000, "additive"))
    assert waves[0].shape == (2, 16_000) and waves[0].dtype == np.int16


def test_flawed_clips_hold_more_and_say_so():
    clean = Clip("sad", "piano", 5)
    flawed = Clip("sad", "piano", 5, flawed=True)
    assert caption(flawed, random.Random(0)) == NEGATIVE != caption(clean, random.Random(0))
    assert not np.array_equal(
        render_clip(clean, 0.5, 16_000, "additive"), render_clip(flawed, 0.5, 16_000, "additive")
    )
    assert sum(clip.flawed for clip in clip_list(40, ["piano"], 0, 0.1)) == 4


def test_held_out_pairs_never_reach_a_caption():
    instruments = ("piano", "guitar", "harp")
    pairs = held_out_pairs(instruments)
    assert len(pairs) == 12 and len({word for word, _ in pairs}) == 12
    rng = random.Random(0)
    for mood in MOODS:
        for instrument in instruments:
            for _ in range(60):
                text = caption(Clip(mood, instrument, 0), rng, pairs)
                assert any(word in text for word in WORDS[mood])
                assert not any(
                    word in text.split() and (word, instrument) in pairs for word in WORDS[mood]
                )


def test_batches_are_a_function_of_seed_and_epoch():
    one = small()
    two = small()
    three = small(seed=1)
    for module in (one, two, three):
        module.setup()
    first, again, other = (next(iter(module.train_dataloader())) for module in (one, two, three))
    assert torch.equal(first.wave_BCN, again.wave_BCN) and first.prompts == again.prompts
    assert not torch.equal(first.wave_BCN, other.wave_BCN)
    one.trainer = SimpleNamespace(current_epoch=1, global_rank=0)
    assert not torch.equal(next(iter(one.train_dataloader())).wave_BCN, first.wave_BCN)
    assert len(list(two.train_dataloader())) == 2 and len(list(two.val_dataloader())) == 1


def test_crops_are_shorter_and_prompts_know_it():
    module = small(crop_seconds=0.25)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert batch.wave_BCN.shape == (4, 2, 4000) and batch.prompts[0].seconds == 0.25
    assert batch.to("cpu").wave_BCN is not None and len(batch) == 4


def test_rendered_clips_are_kept_between_runs(tmp_path):
    first = small(cache_dir=str(tmp_path)).clip_sets()[0]
    files = sorted(tmp_path.iterdir())
    again = small(cache_dir=str(tmp_path)).clip_sets()[0]
    assert len(files) == 2 and sorted(tmp_path.iterdir()) == files
    assert isinstance(again.waves, np.memmap) and np.array_equal(first.waves, again.waves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"renderer": "fluid"}, "soundfont, additive"),
        ({"instruments": ["kazoo"]}, "kazoo"),
        ({"crop_seconds": 2.0}, "longer than the clips"),
        ({"crop_seconds": 0.0}, "crop_seconds 0: "),
        ({"seconds": 1e9}, r"seconds 1e\+09: .*3600 s"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_font_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTUNE_SOUNDFONT", str(tmp_path / "none.sf2"))
    with pytest.raises(FileNotFoundError, match="ATTUNE_SOUNDFONT"):
        find_font()


class Halver:
    """Encodes by keeping every second sample."""

    def encode(self, wave):
        return wave[..., ::2]


def test_cached_latents_are_the_clips_encoded_once():
    module = small()
    cache = LatentCache(module, Halver())
    cache.setup()
    batch = next(iter(cache.train_dataloader()))
    clips = module.clip_sets()[0]
    everything = encode_clips(Halver(), clips)
    assert batch.latent_BCT.shape == (4, 2, 4000) and len(batch) == 4
    seeds = [int(prompt.id.removeprefix("clip-")) for prompt in batch.prompts]
    for row, seed in enumerate(seeds):
        torch.testing.assert_close(batch.latent_BCT[row].half(), everything[seed])
    assert len(list(cache.val_dataloader())) == 1 and batch.to("cpu").prompts == batch.prompts


def test_the_size_of_encoded_batches_moves_no_latent_by_more_than_rounding():
    clips = small().clip_sets()[0]
    backbone = small_audio().eval()
    few = encode_clips(backbone, clips).float()
    many = encode_clips(backbone, clips, batch_size=32).float()
    assert len(clips) > 4 and few.shape == many.shape
    torch.testing.assert_close(few, many, rtol=2**-10, atol=1e-4)


def test_a_cache_checks_the_files_of_its_source(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTUNE_SOUNDFONT", str(tmp_path / "none.sf2"))
    LatentCache(small(), Halver()).check_files()  # of the additive renderer, which needs none
    with pytest.raises(FileNotFoundError, match=r"none\.sf2"):
        LatentCache(small(renderer="soundfont"), Halver()).check_files()


SOUNDFONT = (
    "needs `pip install --no-deps pretty_midi==0.2.11.post0 tinysoundfont==0.3.7` (CI installs"
    " them)"
)


def test_a_soundfont_plays_the_same_notes_the_same_way_whatever_came_before():
    pytest.importorskip("tinysoundfont", reason=SOUNDFONT)
    first = render_clip(Clip("sad", "piano", 5), 1.0, 16_000)
    render_clip(Clip("angry", "guitar", 1), 1.0, 16_000)
    assert np.array_equal(first, render_clip(Clip("sad", "piano", 5), 1.0, 16_000))
    assert not np.array_equal(first, render_clip(Clip("sad", "guitar", 5), 1.0, 16_000))
    assert not np.array_equal(first[0], first[1])  # stereo


def test_the_font_inside_the_wheel_is_found_without_debians(monkeypatch):
    if (
        importlib.util.find_spec("pretty_midi") is None
    ):  # only the font inside is used: the package itself need not import
        pytest.skip(SOUNDFONT)
    monkeypatch.delenv("ATTUNE_SOUNDFONT", raising=False)
    monkeypatch.setattr(render, "_FLUID", Path("/nonexistent/font.sf2"))
    assert find_font().name == "TimGM6mb.sf2"
    monkeypatch.setattr(render.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="renderer='additive' needs none"):
        find_font()
