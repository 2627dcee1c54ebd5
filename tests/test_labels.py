"""Aggregation, agreement, splits and clips of labels, and the tool that works on label files."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules.preferences.clips import Clips, usable
from datamodules.preferences.command import main
from datamodules.preferences.dialects import Labels, read_labels, write_labels
from datamodules.preferences.splits import (
    crossings,
    doubles,
    of_split,
    prompt_key,
    split_by_prompt,
)
from datamodules.preferences.votes import aggregate, agreement, krippendorff_alpha
from zoo.audio_files import Waveform, write_audio
from zoo.errors import UserError
from zoo.types import Preference, Vote

CLIP = Preference("rain", "0001_rain_0.wav", "integrity", label=1.0)


def voted(*values: float) -> Preference:
    votes = tuple(Vote(f"r{number}", value) for number, value in enumerate(values))
    return replace(CLIP, label=None, votes=votes)


def held(*records: Preference, path: str = "x.jsonl") -> Labels:
    places = tuple(f"line {number}" for number, _ in enumerate(records, 1))
    return Labels(Path(path), "attune", records, places, ())


def save(path: Path, sample_rate_hz: int = 16_000, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = torch.linspace(-0.5, 0.5, round(sample_rate_hz * seconds))[None]
    write_audio(path, Waveform(wave, sample_rate_hz))
    return path


@pytest.mark.parametrize(
    ("values", "mean", "majority", "agrees"),
    [
        ((1, 1, 0), 2 / 3, 1.0, 2 / 3),
        ((1, 0), 0.5, 0.5, 0.5),
        ((0.25, 0.0, 1.0), 1.25 / 3, 0.0, 2 / 3),
        ((0.5, 0.5, 1.0), 2 / 3, 1.0, 2 / 3),
        ((0.5,), 0.5, 0.5, 1.0),
    ],
)
def test_rules_by_hand(values: tuple, mean: float, majority: float, agrees: float) -> None:
    assert aggregate([voted(*values)], "mean")[0][0].label == pytest.approx(mean)
    assert aggregate([voted(*values)], "majority")[0][0].label == majority
    assert agreement(voted(*values).votes) == pytest.approx(agrees)


def test_bounds_leave_records_out_and_count_them() -> None:
    records = [voted(1, 1, 1, 0), voted(1, 0), voted(1), CLIP, replace(CLIP, label=0.5)]
    kept, left_out = aggregate(records, "majority", 0.75, 2, drop_ties=True)
    assert kept == (replace(records[0], label=1.0), CLIP)
    assert left_out == {"too little agreement": 1, "too few votes": 1, "tie": 1}
    assert aggregate([voted(1, 0)], "mean", drop_ties=True) == ((), {"tie": 1})


@pytest.mark.parametrize(
    ("arguments", "key"),
    [(("median",), "median"), (("mean", 1.5), "agreement"), (("mean", 0, 0), "minimum_votes")],
)
def test_unknown_rules_and_bounds_are_refused(arguments: tuple, key: str) -> None:
    with pytest.raises(UserError, match=key):
        aggregate([CLIP], *arguments)


def test_alpha_is_that_of_the_textbook() -> None:
    """Krippendorff's example of four observers and twelve units: interval alpha 0.849."""
    table = (
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )
    records = []
    for unit in zip(*(row.split() for row in table), strict=True):
        cells = enumerate(unit)
        votes = tuple(Vote(str(rater), (int(v) - 1) / 4) for rater, v in cells if v != ".")
        records.append(replace(CLIP, votes=votes))
    assert krippendorff_alpha(records) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(records[::-1]) == pytest.approx(krippendorff_alpha(records))


@pytest.mark.parametrize("records", [[], [CLIP], [voted(1), voted(0)], [voted(1, 1), voted(0)]])
def test_alpha_is_none_where_it_is_not_defined(records: list[Preference]) -> None:
    assert krippendorff_alpha(records) is None


def many(draw: random.Random, prompts: int) -> list[Preference]:
    """Clips of prompts in several spellings, and pairs that tie some prompts together."""
    records = []
    for number in range(prompts):
        for sample in range(draw.randint(1, 4)):
            prompt = draw.choice((f"Prompt  {number}.", f"prompt {number}", f"PROMPT {number} "))
            name = f"{number}_{sample}.wav"
            records.append(Preference(prompt.strip(), name, "quality"))
            if draw.random() < 0.1:
                other = f"{draw.randrange(prompts)}_0.wav"
                if other != name:
                    records.append(Preference(prompt.strip(), name, "pairwise", other))
    draw.shuffle(records)
    return records


@pytest.mark.parametrize("seed", range(6))
def test_no_prompt_and_no_clip_crosses_splits(seed: int) -> None:
    records = many(random.Random(seed), 60)
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    drawn = split_by_prompt(records, shares, seed)
    assert [replace(one, split="") for one in drawn] == records
    homes: dict[str, set[str]] = {}
    for one in drawn:
        for key in (prompt_key(one.prompt), one.audio, *([one.other] if one.other else [])):
            homes.setdefault(key, set()).add(one.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert {one.split for one in drawn} == set(shares)
    assert crossings([held(*drawn)]) == ()
    again = split_by_prompt(records[::-1], shares, seed)
    assert again == drawn[::-1]
    assert split_by_prompt(records, shares, seed + 1) != drawn


def test_shares_are_kept_and_none_is_empty() -> None:
    records = [Preference(f"p{number}", f"{number}.wav", "quality") for number in range(100)]
    for shares, sizes in (
        ({"a": 0.8, "b": 0.1, "c": 0.1}, {"a": 80, "b": 10, "c": 10}),
        ({"a": 0.995, "b": 0.005}, {"a": 99, "b": 1}),
        ({"a": 0.005, "b": 0.995}, {"a": 1, "b": 99}),
        ({"a": 1.0}, {"a": 100}),
    ):
        drawn = split_by_prompt(records, shares)
        assert {name: len(of_split(drawn, name)) for name in shares} == sizes
    drawn = split_by_prompt(records[:3], {"a": 0.98, "b": 0.01, "c": 0.01})
    assert {one.split for one in drawn} == {"a", "b", "c"}


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}, {"": 1.0}]
)
def test_impossible_shares_are_refused(shares: dict) -> None:
    with pytest.raises(UserError, match="shares"):
        split_by_prompt([CLIP], shares)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        split_by_prompt([CLIP, replace(CLIP, audio="b.wav")], {"train": 0.5, "test": 0.5})
    with pytest.raises(UserError, match="'val' is empty"):
        of_split([replace(CLIP, split="train")], "val")
    with pytest.raises(UserError, match="empty"):
        of_split([CLIP], "train")


def test_a_clip_or_prompt_in_two_splits_is_named_also_across_files() -> None:
    first = held(replace(CLIP, split="train"), path="one.jsonl")
    for other in (replace(CLIP, prompt="wind"), replace(CLIP, audio="b.wav", prompt="Rain.")):
        second = held(CLIP, replace(other, split="test"), path="two.jsonl")
        (problem,) = crossings([first, second])
        assert (problem.path, problem.place, problem.field) == (
            Path("two.jsonl"),
            "line 2",
            "split",
        )
        assert "one.jsonl, line 1" in problem.message


def test_a_second_label_of_a_clip_is_named() -> None:
    pd = Preference("rain", "c.wav", "integrity", source="PD")
    (problem,) = doubles(held(CLIP, pd, pd, replace(CLIP, task="quality"), replace(CLIP, label=0)))
    assert (problem.place, problem.field) == ("line 5", "audio")


def test_clips_are_found_by_path_tail_name_and_map(tmp_path: Path) -> None:
    inside = save(tmp_path / "audio" / "HD" / "0001_a_0.wav")
    other = save(tmp_path / "audio" / "RD" / "0001_a_0.wav")
    lone = save(tmp_path / "audio" / "RD" / "lone.flac")
    clips = Clips(tmp_path / "audio", [("old/place", "RD"), ("cat.wav", "RD/lone.flac")])
    assert clips.path("HD/0001_a_0.wav") == inside
    assert clips.path("/home/them/data/RD/0001_a_0.wav") == other
    assert clips.path("./old/place/0001_a_0.wav") == other
    assert clips.path("cat.wav") == lone
    assert clips.elsewhere == 0
    assert clips.path("elsewhere/lone") == lone
    assert clips.elsewhere == 1
    for name in ("0001_a_0.wav", "none.wav", "", "../../etc/passwd"):
        with pytest.raises(UserError):
            clips.path(name)
    with pytest.raises(FileNotFoundError):
        Clips(tmp_path / "nowhere")


def test_unusable_audio_is_set_aside_by_name(tmp_path: Path) -> None:
    save(tmp_path / "good.wav")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    cut = save(tmp_path / "cut.wav")
    cut.write_bytes(cut.read_bytes()[:-500])
    names = ("good.wav", "empty.wav", "text.wav", "cut.wav", "missing.wav")
    records = [replace(CLIP, audio=name) for name in names]
    records.append(Preference("rain", "good.wav", "pairwise", "missing.wav"))
    found = usable(records, Clips(tmp_path))
    assert found.records == (records[0],)
    assert set(found.quarantined) == set(names[1:])
    with pytest.raises(UserError, match="none of 1"):
        usable(records[1:2], Clips(tmp_path))


def test_audio_of_another_rate_than_stated_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", 16_000)
    record = replace(CLIP, audio="a.wav")
    assert usable([record], Clips(tmp_path), 16_000).records == (record,)
    with pytest.raises(UserError, match="16000 Hz"):
        usable([record], Clips(tmp_path), 48_000)
    save(tmp_path / "fast.wav", 48_000, seconds=0.1)  # 0.3 s at 16 kHz, saved as 48 kHz
    with pytest.raises(UserError, match="48000 Hz"):
        usable([replace(record, audio="fast.wav", seconds=0.3)], Clips(tmp_path))
    assert usable([replace(record, seconds=0.11)], Clips(tmp_path)).records


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ten prompts of three clips each, labelled by people in BATON's format."""
    rows = []
    for prompt in range(10):
        for sample in range(3):
            name = f"{prompt:04d}_sound {prompt}, then more_{sample}.wav"
            save(tmp_path / "audio" / "2label_Integrity_HD_Audio" / name, seconds=0.01)
            rows.append(
                {
                    "dataset": "2label_HA",
                    "location": f"2label_Integrity_HD_Audio/{name}",
                    "captions": f"sound {prompt}, then more",
                    "feedback": int(sample > prompt % 3),
                }
            )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "2label_HA.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status(*words: str) -> int:
    try:
        main(words)
    except SystemExit as stop:
        return stop.code
    return 0


def test_check_counts_what_it_finds(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("check", "2label_HA.json", "--audio-root", "audio") == 0
    said = capsys.readouterr().out
    assert "30 records of baton_ha" in said
    assert "30 clips" in said
    assert "all good" in said


def test_check_names_every_bad_row(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path("2label_HA.json").read_text().splitlines()
    lines[3] = lines[3].replace('"feedback": ', '"feedback": 7')
    lines.append(lines[0])
    Path("bad.json").write_text("\n".join(lines))
    gone = sorted(Path("audio").rglob("*.wav"))[5]
    gone.unlink()
    assert status("check", "bad.json") == 1
    said = capsys.readouterr().out
    assert "bad.json, line 4, feedback" in said
    assert "bad.json, line 31, audio" in said
    assert "line 6" not in said
    assert status("check", "bad.json", "--audio-root", "audio", "--sample-rate-hz", "16000") == 1
    said = capsys.readouterr().out
    assert "bad.json, line 6, audio" in said
    assert gone.name in said
    assert "1 of them cannot be used" in said
    assert "3 bad" in said
    assert status("check", "2label_HA.json", "--audio-root", "audio", "--sample-rate-hz=48000") == 1
    assert "16000 Hz and was given as 48000 Hz" in capsys.readouterr().out


def test_stats_count_and_measure(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = "clip_id,listener_id,axis,score,time_ms\n"
    table += "a,ann,mos,5,1\na,bob,mos,5,1\nb,ann,mos,1,1\nb,bob,mos,1,1\n"
    Path("mos.csv").write_text(table)
    assert status("stats", "2label_HA.json", "mos.csv") == 0
    said = capsys.readouterr().out
    assert "integrity: 30 records, 10 prompts" in said
    assert "sources: 30 HD" in said
    assert "11 above 0.5, 19 below, 0 at 0.5; majority 0.633" in said
    assert "votes: 4 of 2 raters; 2 records with 2" in said
    assert "alpha (interval): 1.000" in said


def test_convert_makes_pairs_and_leaves_out_what_is_asked(
    bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("convert", "2label_HA.json", "--to", "tangoflux", "--out", "pairs.json")
    assert status(*words, "--pairs") == 0
    pairs = json.loads(Path("pairs.json").read_text())
    assert len(pairs) == 4 * 2 + 3 * 2  # prompts with one or two good clips of three
    assert set(pairs[0]) == {"captions", "chosen", "reject"}
    table = "clip_id,listener_id,axis,score\n0001_a_0,x,integrity,1\n0001_a_0,y,integrity,0\n"
    Path("votes.csv").write_text(table + "0001_a_1,x,integrity,1\n0001_a_2,x,integrity,9\n")
    words = ("convert", "votes.csv", "--to", "grouped", "--out", "grouped.json")
    with pytest.raises(UserError, match="line 5, score"):
        main([*words, "--aggregate", "majority"])
    assert status(*words, "--aggregate", "majority", "--drop-ties", "--drop-bad") == 0
    assert "left out 1 records: tie" in capsys.readouterr().out
    assert json.loads(Path("grouped.json").read_text()) == {
        "grouped_ratings": {"a": {"0001_a_1": 1.0}}
    }
    with pytest.raises(UserError, match="--aggregate"):
        main([*words, "--drop-bad", "--drop-ties"])


def test_convert_leaves_out_bad_clips_by_name(
    bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = sorted(Path("audio").rglob("*.wav"))[5]
    gone.write_bytes(b"broken")
    words = ("convert", "2label_HA.json", "--audio-root", "audio", "--to", "attune")
    with pytest.raises(UserError, match="line 6, audio"):
        main([*words, "--out", "kept.jsonl"])
    assert status(*words, "--out", "kept.jsonl", "--drop-bad") == 0
    assert gone.name in capsys.readouterr().out
    assert len(read_labels("kept.jsonl").checked()) == 29


def test_captions_of_a_table_become_prompts(
    bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mos.csv").write_text("clip_id,listener_id,axis,score\nx/a,ann,mos,5\nb,ann,mos,1\n")
    Path("captions.csv").write_text('file,caption\na.wav,"rain, then wind"\n')
    assert status("check", "mos.csv") == 0
    assert "2 of them name no prompt" in capsys.readouterr().out
    words = ("convert", "mos.csv", "--captions", "captions.csv", "--to", "attune")
    assert status(*words, "--out", "o.jsonl") == 0
    assert [one.prompt for one in read_labels("o.jsonl").records] == ["rain, then wind", ""]


def test_split_writes_one_file_per_split(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("split", "2label_HA.json", "--out", "splits", "--seed", "3") == 0
    files = [read_labels(f"splits/{name}.jsonl") for name in ("train", "val", "test")]
    assert [len(labels.checked()) for labels in files] == [24, 3, 3]
    assert crossings(files) == ()
    assert status("check", *(str(labels.path) for labels in files)) == 0
    whole = read_labels("2label_HA.json").records
    read = [replace(one, split="") for labels in files for one in labels.records]
    assert sorted(read, key=str) == sorted(whole, key=str)
    # the same clips under other splits: every one is named
    records = [replace(one, split="test") for one in files[0].records]
    write_labels(records, "again.jsonl", "attune")
    assert status("check", "splits/train.jsonl", "again.jsonl") == 1
    with pytest.raises(UserError, match="empty"):
        main(["split", "2label_HA.json", "--out", "s", "--shares", *[_shares(11)]])
    assert not Path("s").exists()


def _shares(count: int) -> str:
    return ",".join(f"s{number}={1 / count}" for number in range(count))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("check", "2label_HA.json", "--task", "loudness"), "--task"),
        (("check", "2label_HA.json", "--source", "hd"), "--source"),
        (("check", "2label_HA.json", "--map", "a=b"), "--audio-root"),
        (("check", "2label_HA.json", "--audio-root", "audio", "--map", "a"), "--map"),
        (("check", "2label_HA.json", "--scale", "5"), "--scale"),
        (("check", "2label_HA.json", "--scale", "5:1"), "scale"),
        (("check", "none.json"), "none.json"),
        (("convert", "2label_HA.json", "--to", "xml", "--out", "x.json"), "xml"),
        (("convert", "2label_HA.json", "--to", "grouped", "--out", "x.csv"), "x.csv"),
        (("split", "2label_HA.json", "--out", "s", "--shares", "../x=1"), "--shares"),
        (("split", "2label_HA.json", "--out", "s", "--shares", "train"), "--shares"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    words: tuple[str, ...], key: str, bench: Path
) -> None:
    with pytest.raises(UserError, match=key):
        main(words)
