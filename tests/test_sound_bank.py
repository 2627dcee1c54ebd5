"""The bank of recorded sounds on packages written here, a user's folder, and real packages."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from toy_sounds import SONIC_PI_SENTENCE, tone, write_packages

from datamodules.sounds import bank, fetch
from datamodules.sounds.bank import PERMISSIVE, load_bank, load_rules
from datamodules.sounds.clips import BankClip, SoundBank, draw_splits
from datamodules.sounds.sources import SMALL_SET, SOURCES

INSTALL = "`apt-get install --no-install-recommends " + " ".join(SMALL_SET) + "`"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return write_packages(tmp_path / "root")


def test_a_bank_reads_every_container_and_states_each_clip(packages: Path) -> None:
    bank = load_bank(packages)
    clips = {clip.id: clip for clip in bank.clips}
    cow = clips["opensfx/37"]
    assert (cow.sound_class, cow.caption, cow.family) == ("cow", "a cow mooing", "animal")
    assert cow.audioset_labels == ("Cattle, bovinae", "Moo") and cow.credit.startswith(
        '"Cow". Original'
    )
    assert cow.seconds == pytest.approx(0.5, abs=1e-3)
    assert {key: clip.licence for key, clip in clips.items()} == {
        "opensfx/37": "CC0-1.0",
        "opensfx/38": "CC-BY-3.0",
        "gcompris/explore_farm_animals__cat.ogg": "GPL-3.0-or-later",
        "gcompris/explore_farm_animals__dog.ogg": "CC-BY-3.0",
        **{f"sonic-pi/bd_{k}.flac": "CC0-1.0" for k in range(5)},
        "sonic-pi/perc_door.flac": "CC0-1.0",
    }
    assert (
        clips["gcompris/explore_farm_animals__dog.ogg"].credit
        == "2011 Dee; https://example.org/dog"
    )
    assert bank.classes() == ("bass_drum", "cat", "cow", "dog", "door", "horse")


def test_waves_are_mono_at_the_banks_rate_and_keep_their_pitch(packages: Path) -> None:
    bank = load_bank(packages, sample_rate_hz=8000)
    horse = next(clip for clip in bank.clips if clip.sound_class == "horse")
    wave = bank.wave(horse)
    assert wave.shape == (4000,) and wave.dtype == torch.float32 and wave.abs().max() <= 1
    assert torch.fft.rfft(wave).abs().argmax().item() / horse.seconds == pytest.approx(300, abs=2)
    wave.zero_()
    assert bank.wave(horse).abs().max() > 0.3  # a copy was handed out
    stranger = BankClip("x/1", "cow", "a cow", "animal", (), "CC0-1.0", "", "both", 1.0, False)
    with pytest.raises(ValueError, match="'x/1'"):
        bank.wave(stranger)


def test_unusable_clips_and_copies_are_named_with_the_reason(packages: Path) -> None:
    samples = packages / "usr/share/sonic-pi/samples"
    whole = (samples / "bd_4.flac").read_bytes()
    (samples / "bd_short.flac").write_bytes(tone(50, 0.03, kind="FLAC"))
    (samples / "bd_text.flac").write_bytes(b"no audio")
    (samples / "bd_silent.flac").write_bytes(tone(0, 0.5, kind="FLAC"))
    (samples / "bd_cut.flac").write_bytes(whole[: len(whole) // 2])
    (samples / "bd_void.flac").write_bytes(b"")
    bank = load_bank(packages)
    reasons = {
        "opensfx/36": "cannot be read as audio",
        "sonic-pi/misc_crow.flac": "is a copy of sonic-pi/bd_0.flac",
        "sonic-pi/bd_short.flac": r"lasts 0.030 s; the shortest allowed is 0.05 s",
        "sonic-pi/bd_text.flac": "cannot be read as audio",
        "sonic-pi/bd_void.flac": "is empty",
        "sonic-pi/bd_silent.flac": "is silent",
        "sonic-pi/bd_cut.flac": (
            "cannot be read as audio",
            "is cut off",
        ),  # as libsndfile's version has it
    }
    left_out = {
        key: reason
        for key, reason in bank.quarantined.items()
        if key == "opensfx/36" or "opensfx" not in key
    }
    assert left_out.keys() == reasons.keys()
    assert all(left_out[key].startswith(reason) for key, reason in reasons.items())
    assert len(bank) == 10


def test_a_licence_that_is_not_stated_stays_unknown(packages: Path) -> None:
    for papers in (
        "usr/share/doc/gcompris-qt-data/copyright",
        "usr/share/sonic-pi/samples/README.md",
    ):
        (packages / papers).unlink()
    (packages / "usr/share/doc/sonic-pi-samples/copyright").write_text("Written for people.")
    licences = {
        clip.id.split("/")[0]: clip.licence
        for clip in load_bank(packages, sources=["gcompris", "sonic-pi"]).clips
    }
    assert licences == {"gcompris": "unknown", "sonic-pi": "unknown"}
    assert (
        "CC0-1.0" in PERMISSIVE
        and not {"unknown", "GPL-3.0-or-later", "CC-BY-SA-3.0", "CC-BY-NC-3.0"} & PERMISSIVE
    )


def test_splits_keep_recordings_apart_and_small_classes_whole(packages: Path) -> None:
    splits = Counter(
        (clip.sound_class, clip.split, clip.recording_split) for clip in load_bank(packages).clips
    )
    assert splits[("bass_drum", "train", True)] == 4 and splits[("bass_drum", "test", True)] == 1
    assert all(key[1:] == ("both", False) for key in splits if key[0] != "bass_drum")
    papers = packages / "usr/share/doc/sonic-pi-samples/copyright"
    papers.write_text(
        papers.read_text()
        .replace("example.org/1", "example.org/0")
        .replace("example.org/2", "example.org/0")
    )
    again = load_bank(packages)
    sides = {}
    for clip in again.clips:
        sides.setdefault(clip.recording, set()).add(clip.split)
    assert all(len(side) == 1 for side in sides.values())
    assert sum(clip.recording == "http://example.org/0" for clip in again.clips) == 3
    assert again.clips == load_bank(packages).clips


def test_a_selection_draws_its_splits_over_what_the_licences_leave(packages: Path) -> None:
    bank = load_bank(packages)
    free = bank.select(licences=PERMISSIVE)
    assert (
        "cat" not in free.classes() and free.clips == load_bank(packages, licences=PERMISSIVE).clips
    )
    test = bank.select(split="test")
    assert {clip.split for clip in test.clips} == {"test", "both"}
    assert test.select(licences=["CC0-1.0"]).select(classes=["bass_drum"]).clips[0].split == "test"
    assert bank.select(families=["animal"], licences=["CC-BY-3.0"]).classes() == ("dog", "horse")
    mixed = [
        BankClip(
            f"a/{k}", "a", "an a", "x", (), "MIT" if k < 2 else "GPL-2.0-only", "", "", 1.0, False
        )
        for k in range(5)
    ]
    whole = SoundBank(draw_splits(mixed), {}, 16_000, redraw_splits=True)
    assert {clip.split for clip in whole.clips} == {"train", "test"}
    assert {
        (clip.split, clip.recording_split) for clip in whole.select(licences=["MIT"]).clips
    } == {("both", False)}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (
            {"licences": ["MIT"]},
            (
                r"no recorded sound is left with licences=\['MIT'\].*CC-BY-3.0, CC0-1.0,"
                r" GPL-3.0-or-later"
            ),
        ),
        ({"licences": "MIT"}, r"got the text 'MIT'; write \[MIT\]"),
        ({"classes": ["cows"]}, "no class 'cows'; did you mean 'cow'"),
        ({"classes": "cow"}, "expected a list of class names, got the text 'cow'"),
        ({"families": ["animals"]}, "no family 'animals'; did you mean 'animal'"),
        ({"split": "valid"}, "split 'valid' is unknown: expected 'train' or 'test'"),
        ({"families": ["music"], "classes": ["cow"]}, "no recorded sound is left"),
    ],
)
def test_a_filter_without_results_lists_what_exists(
    packages: Path, filters: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_bank(packages).select(**filters)


def test_absent_packages_are_named_with_the_command(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"{INSTALL}.*without root `python tools/sounds.py fetch --to DIR`"
    ):
        load_bank(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="lmms not found below .*install.* lmms-common`"):
        load_bank(packages, sources=["opensfx", "lmms"])
    with pytest.raises(ValueError, match="'openfx'.*'opensfx'"):
        load_bank(packages, sources=["openfx"])
    with pytest.raises(ValueError, match="sample_rate_hz"):
        load_bank(packages, sample_rate_hz=0)
    shutil.copytree(
        packages / "usr/share/sonic-pi/samples", tmp_path / "alsa/usr/share/sounds/alsa"
    )
    with pytest.raises(FileNotFoundError, match="no package of recorded sounds"):
        load_bank(tmp_path / "alsa")  # alsa-utils alone, which many machines have, is no bank
    (packages / ".packages").mkdir()
    (packages / ".packages/lmms-common.unpacking").touch()
    with pytest.raises(
        OSError,
        match=(r"lmms-common.*`python tools/sounds\.py fetch --to"),
    ):
        load_bank(packages)


def test_the_second_load_comes_from_one_file(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = load_bank(packages, cache_dir=cache)
    [file] = cache.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(bank, "decode", lambda *_: pytest.fail("decoded again"))
        second = load_bank(packages, cache_dir=cache)
    assert second.clips == first.clips and second.quarantined == first.quarantined
    assert all(torch.equal(first.wave(clip), second.wave(clip)) for clip in first.clips)
    (packages / "usr/share/sonic-pi/samples/README.md").write_text(SONIC_PI_SENTENCE + "changed")
    load_bank(packages, cache_dir=cache)
    load_bank(packages, cache_dir=cache, sample_rate_hz=8000)
    assert len(list(cache.iterdir())) == 3
    for path in cache.iterdir():
        path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="are damaged .*; delete the file"):
        load_bank(packages, cache_dir=cache)


def test_the_rule_table_is_whole_and_a_broken_one_is_named_by_line(tmp_path: Path) -> None:
    rules = load_rules()
    assert len(rules) == 288 and {rule.source for rule in rules} == SOURCES.keys()
    families = {"animal", "human", "music", "nature", "object", "speech", "vehicle"}
    assert {rule.family for rule in rules} == families and all(
        rule.audioset_labels for rule in rules
    )
    path = tmp_path / "rules.tsv"
    header = "source\tglob\tcaption\tclass\tfamily\taudioset_labels\n"
    for line, message in (
        ("opensfx\t24\ta helicopter\thelicopter\tvehicle", "line 2: expected 6 filled cells"),
        ("openfx\t24\ta\tb\tc\td", "line 2: unknown source 'openfx'"),
    ):
        path.write_text(header + line + "\n")
        load_rules.cache_clear()
        with pytest.raises(ValueError, match=message):
            load_rules(path)
    path.write_text("a\tb\n")
    load_rules.cache_clear()
    with pytest.raises(ValueError, match="expected the columns source, glob"):
        load_rules(path)


def test_the_command_lists_classes_with_their_licences(
    packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.main(["list", "--root", str(packages)])
    out = capsys.readouterr().out
    assert "bass_drum" in out and "unseen scenes only" in out and "10 clips, 6 classes" in out
    assert "left out: sonic-pi/misc_crow.flac is a copy of" in out
    rows = {row[0]: row for row in fetch.summary(load_bank(packages))}
    assert rows["bass_drum"] == ("bass_drum", "5", "1.2", "4 / 1", "CC0-1.0")


def test_the_real_small_set_matches_its_copyright_files(sounds_root: Path) -> None:
    bank = load_bank(
        sounds_root, sources=["opensfx", "gcompris", "sonic-pi", "simutrans"], sample_rate_hz=11_025
    )
    clips = {clip.id: clip for clip in bank.clips}
    assert len(bank) == 235 and len(bank.classes()) == 96
    assert (
        clips["opensfx/24"].licence == "CC-BY-SA-3.0" and clips["opensfx/37"].licence == "CC0-1.0"
    )
    assert clips["gcompris/guessnumber__helicopter.wav"].licence == "CC-BY-3.0"
    assert clips["gcompris/memory-sound__LRBuddhist_gong_05_LA.ogg"].licence == "free-art"
    assert {clip.licence for key, clip in clips.items() if key.startswith("sonic-pi/")} == {
        "CC0-1.0"
    }
    assert {clip.licence for key, clip in clips.items() if key.startswith("simutrans/")} == {
        "Artistic-1.0"
    }
    assert "unknown" not in {clip.licence for clip in bank.clips}
    free = bank.select(licences=PERMISSIVE)
    assert len(free) == 149 and len(free.classes()) == 55
    assert all(0 < bank.wave(clip).abs().max() <= 1 for clip in bank.clips)
