"""Clips scored by a reward become label files: whole, resumable, the same for any sharing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from toy_annotation import Level
from toy_preferences import tone

from datamodules.preferences import annotation as labels
from datamodules.preferences.annotation import MAPPINGS
from datamodules.preferences.dialects import read_labels, write_labels
from datamodules.prompt_sources import file_prompts
from lightning_modules import annotation_command
from lightning_modules.annotation import CountProgress
from lightning_modules.score_journal import Journal, Scored
from zoo.audio_files import Waveform, read_audio, write_audio
from zoo.errors import UserError
from zoo.generations import Sample, write_index
from zoo.types import Preference, Prompt, Vote

HARD = 'a "dog", then_rain, and so on 🐕'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Level.HEARD.clear()
    reward("level")
    return tmp_path


def reward(name: str, **settings: object) -> str:
    node = {"_target_": "toy_annotation.Level", **settings}
    Path(f"{name}.yaml").write_text(json.dumps(node))
    return f"{name}.yaml"


def annotate(*words: object, reward: str = "level.yaml", out: str = "rd.jsonl") -> int:
    argv = [*map(str, words), "--reward", reward, "--out", out, "--accelerator", "cpu"]
    try:
        annotation_command.main(argv, file_prompts, lambda: labels)
    except SystemExit as ended:
        return int(ended.code)
    return 0


def clips(folder: str, *names: str) -> None:
    for number, name in enumerate(names):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_audio(Path(folder, name), tone(440, number, samples=800 + number))


def level(path: str) -> float:
    return float(read_audio(path).samples_CN.abs().mean())


def test_a_folder_whose_names_hold_the_captions(here: Path) -> None:
    names = ("0001_rain_0.wav", f"0002_{HARD}_1.wav", "sub/0003_a bell._0.wav")
    (here / "2label" / "sub").mkdir(parents=True)
    clips("2label", *names)
    assert annotate("2label", "--format", "baton_ra", "--workers", 1, out="rd.json") == 0
    rows = [json.loads(line) for line in Path("rd.json").read_text().splitlines()]
    assert [row["location"] for row in rows] == list(names)
    assert [row["captions"] for row in rows] == ["rain", HARD, "a bell."]
    assert {row["dataset"] for row in rows} == {"2label_RA"}
    assert [row["SED"] for row in rows] == [level(f"2label/{name}") for name in names]
    assert [text for text, _ in Level.HEARD] == ["rain", HARD, "a bell."]


def test_what_cannot_be_scored_is_named_and_counted(here: Path) -> None:
    clips("made", "good.wav", "bad.wav", "refused.wav", "none.wav", "torn.wav")
    rows = {
        "good.wav": "rain",
        "bad.wav": "no number",
        "refused.wav": "refused",
        "none.wav": "wind",
        "torn.wav": "hail",
    }
    samples = [
        Sample(Path("made", name), Prompt(name, text, seconds=0.05, labels={"mood": "sad"}))
        for name, text in rows.items()
    ]
    write_index("made", samples)
    Path("made/none.wav").unlink()
    Path("made/torn.wav").write_bytes(Path("made/torn.wav").read_bytes()[:300])
    assert annotate("made") == 1
    (record,) = read_labels("rd.jsonl").checked()
    assert record == Preference(
        "rain", "good.wav", "relevance", score=level("made/good.wav"), source="RD", seconds=0.05
    )
    assert Level.HEARD == [("rain", {"mood": "sad"}), ("no number", {"mood": "sad"})]
    report = json.loads(Path("rd.jsonl.report.json").read_text())
    assert (report["clips"], report["scored"]) == (5, 1)
    reasons = {row["audio"]: row["reason"] for row in report["quarantined"]}
    assert list(reasons) == ["bad.wav", "refused.wav", "none.wav", "torn.wav"]
    assert "nan" in reasons["bad.wav"] and "too long" in reasons["refused.wav"]
    Path("made/good.wav").write_bytes(b"")
    with pytest.raises(UserError, match="none of 5"):
        annotate("made", out="nothing.jsonl")
    assert not Path("nothing.jsonl").exists()
    assert len(json.loads(Path("nothing.jsonl.report.json").read_text())["quarantined"]) == 5


def test_label_files_lose_what_others_said_and_keep_the_rest(here: Path) -> None:
    clips("audio", "a.wav", "b.wav", "c.wav")
    long = f"{HARD}\nand " * 500
    records = [
        Preference(long.strip(), "old/a.wav", "temporal", votes=(Vote("ann", 0.0),), split="val"),
        Preference("rain", "b.wav", "pairwise", "c.wav", label=1.0, model="x", other_model="y"),
        Preference("rain", "b.wav", "pairwise", "a.wav", label=0.0, model="x"),
    ]
    write_labels(records, "labels.jsonl", "attune")
    assert annotate("labels.jsonl", "--audio-root", "audio") == 0
    found = read_labels("rd.jsonl").checked()
    assert found == (
        replace(records[0], votes=(), source="RD", score=level("audio/a.wav")),
        Preference(
            "rain", "b.wav", "relevance", score=level("audio/b.wav"), source="RD", model="x"
        ),
        Preference(
            "rain", "c.wav", "relevance", score=level("audio/c.wav"), source="RD", model="y"
        ),
        Preference("rain", "a.wav", "relevance", score=level("audio/a.wav"), source="RD"),
    )
    assert len(Level.HEARD) == 4
    assert (
        annotate("labels.jsonl", "--audio-root", "audio", "--overwrite", "--task", "quality") == 0
    )
    assert {one.task for one in read_labels("rd.jsonl").checked()} == {"quality"}
    assert len(Level.HEARD) == 4  # the task is not a matter of the reward
    write_labels(
        [Preference("", "a.wav", "quality", votes=(Vote("ann", 0.0),))], "x.csv", "listeners"
    )
    with pytest.raises(UserError, match=r"a\.wav.*--captions"):
        annotate("x.csv", "--audio-root", "audio", out="x.jsonl")


def test_audio_at_another_rate_than_stated_stops_everything(here: Path) -> None:
    clips("audio", "1_rain_0.wav", "2_wind_0.wav")  # at 16 kHz
    with pytest.raises(UserError, match="16000 Hz"):
        annotate("audio", "--sample-rate-hz", 48_000)
    wave = read_audio("audio/2_wind_0.wav")
    write_audio("audio/2_wind_0.wav", Waveform(wave.samples_CN, 48_000))  # it lies
    write_labels(
        [Preference("wind", "2_wind_0.wav", "quality", label=1.0, seconds=0.05)],
        "l.jsonl",
        "attune",
    )
    with pytest.raises(UserError, match="wrong sample rate"):
        annotate("l.jsonl", "--audio-root", "audio")
    samples = [Sample(Path("audio/2_wind_0.wav"), Prompt("wind", "wind", seconds=0.05))]
    write_index("audio", samples)
    with pytest.raises(UserError, match="wrong sample rate"):
        annotate("audio")
    assert Level.HEARD == [] and not list(here.glob("rd.jsonl*"))


def test_an_interrupted_annotation_goes_on_to_the_same_bytes(here: Path) -> None:
    clips("audio", *(f"{i}_rain_0.wav" for i in range(6)))
    assert annotate("audio", out="whole.jsonl") == 0
    Level.HEARD.clear()
    # the journal names a reward without ``arguments`` by the content of its YAML
    reward("level", fail_after=4)
    failing = Path("level.yaml").read_text()
    with pytest.raises(RuntimeError, match="a bug"):
        annotate("audio")
    assert not Path("rd.jsonl").exists()
    journal = Path("rd.jsonl.journal/00000.jsonl")
    assert len(journal.read_text().splitlines()) == 4
    # as a machine that lost its power in the middle of the fourth line leaves it
    journal.write_bytes(journal.read_bytes()[:-40])
    Level.HEARD.clear()
    assert annotate("audio") == 0
    assert len(Level.HEARD) == 3
    assert Path("rd.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert Path("level.yaml").read_text() == failing
    Level.HEARD.clear()
    Path("rd.jsonl").unlink()
    assert annotate("audio") == 0
    assert Level.HEARD == []
    assert Path("rd.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_journal_of_another_reward_or_clip_is_not_used(here: Path, capsys) -> None:
    clips("audio", "1_rain_0.wav", "2_wind_0.wav")
    annotate("audio")
    assert len(Level.HEARD) == 2
    annotate("audio", "--overwrite", reward=reward("half", factor=0.5))
    assert len(Level.HEARD) == 4
    assert "2 of other rewards" in capsys.readouterr().out
    assert read_labels("rd.jsonl").checked()[0].score == pytest.approx(
        level("audio/1_rain_0.wav") / 2
    )
    # another sound of the same length under the same name
    write_audio("audio/2_wind_0.wav", tone(880, 1, samples=801))
    annotate("audio", "--overwrite")
    assert len(Level.HEARD) == 5


def test_mappings_are_what_they_are_called() -> None:
    assert MAPPINGS["unit"]([0.0, 0.25, 1.000001]) == [0.0, 0.25, 1.0]
    assert MAPPINGS["cosine"]([-1.0, 0.0, 0.5]) == [0.0, 0.5, 0.75]
    assert MAPPINGS["sigmoid"]([0.0, 800.0]) == [0.5, 1.0]
    assert MAPPINGS["sigmoid"]([1.5])[0] == pytest.approx(float(torch.tensor(1.5).sigmoid()))
    assert MAPPINGS["rank"]([7.0, -3.0, 7.0, 9.0]) == [0.5, 0.125, 0.5, 0.875]
    for name, score in (("unit", -0.2), ("unit", 1.1), ("cosine", 1.2)):
        with pytest.raises(UserError, match=name):
            MAPPINGS[name]([0.5, score])


def test_scores_of_other_bounds_need_a_named_mapping(here: Path) -> None:
    clips("audio", "1_rain_0.wav", "2_wind_0.wav")
    cosine = reward("cosine", factor=-1.0, bounds=[-1.0, 1.0])
    unknown = reward("unknown", factor=-1.0, bounds=None)
    for name in (cosine, unknown):
        with pytest.raises(UserError, match="--mapping"):
            annotate("audio", reward=name)
    assert Level.HEARD == [] and not list(here.glob("rd.jsonl*"))
    with pytest.raises(UserError, match="unit"):
        annotate("audio", "--mapping", "unit", reward=unknown)
    assert not Path("rd.jsonl").exists()
    assert annotate("audio", "--mapping", "cosine", reward=unknown) == 0
    assert len(Level.HEARD) == 2  # what was scored before the refusal is not lost
    scores = [one.score for one in read_labels("rd.jsonl").checked()]
    assert scores == [(1 - level(f"audio/{n}_0.wav")) / 2 for n in ("1_rain", "2_wind")]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("audio", "--format", "trl"), r"rd\.jsonl"),
        (("audio", "--format", "audiocaps"), "no place for scores"),
        (("audio", "--format", "listeners"), "listeners"),
        (("audio", "--format", "batom"), "batom"),
        (("audio", "--mapping", "cosin"), "cosine"),
        (("audio", "--task", "pairwise"), "pairwise"),
        (("audio", "--audio-root", "audio"), "--audio-root"),
        (("audio", "--map", "a=b"), "--map"),
        (("audio", "--devices", "0"), "--devices"),
        (("audio", "--generate", "embedded/sounds"), "--generate"),
        ((), "--generate"),
        (("audio", "audio"), "one folder"),
        (("level.yaml",), "--audio-root"),
        (("absent.jsonl",), "absent"),
        (("empty",), "samples.json"),
    ],
)
def test_mistakes_are_named_before_anything_is_scored(here: Path, words, named: str) -> None:
    clips("audio", "1_rain_0.wav")
    Path("empty").mkdir()
    with pytest.raises((UserError, FileNotFoundError), match=named):
        annotate(*words)
    assert Level.HEARD == [] and not Path("rd.jsonl.journal").exists()


def test_a_file_that_is_there_is_not_replaced_unasked(here: Path) -> None:
    clips("audio", "1_rain_0.wav")
    Path("rd.jsonl").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        annotate("audio")
    assert Path("rd.jsonl").read_text() == "mine"


@pytest.mark.long
def test_fresh_generations_are_made_once_and_scored(here: Path) -> None:
    Path("prompts.txt").write_text("a dog barking\nrain\n")
    words = ("--generate", "embedded/sounds", "--prompts", "prompts.txt", "--seeds", "0-1")
    how = ("--steps", 2, "--guidance", 1, "--seconds", 0.5, "--batch-size", 3)
    assert annotate(*words, *how) == 0
    found = read_labels("rd.jsonl").checked()
    assert [one.prompt for one in found] == ["a dog barking"] * 2 + ["rain"] * 2
    assert {one.model for one in found} == {"embedded/sounds"}
    files = {path: path.read_bytes() for path in Path("rd_clips").glob("*.wav")}
    assert len(files) == 4 and len(json.loads(Path("rd_clips/samples.json").read_text())) == 4
    first, *_ = sorted(files)
    first.unlink()
    assert annotate(*words, *how, "--overwrite") == 0
    assert first.read_bytes() == files[first]  # the same clip again, and it is known
    assert len(Level.HEARD) == 4
    assert annotate("rd_clips", out="again.jsonl") == 0
    again = [one.score for one in read_labels("again.jsonl").checked()]
    assert again == [one.score for one in found]
    with pytest.raises(UserError, match="steps"):
        annotate(*words, *how, "--steps", 3, "--overwrite")


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one_after_an_interruption(
    here: Path, project_root: Path
) -> None:
    """Stopped in the middle, then by two processes to the end; and fresh clips by three."""
    clips("audio", *(f"{i}_rain_0.wav" for i in range(7)))
    Path("audio/3_rain_0.wav").write_bytes(b"no sound")
    reward("level", wait_s=0.5)
    assert annotate("audio", out="one.jsonl") == 1

    def started(*words: str) -> subprocess.Popen:
        command = [sys.executable, f"{project_root}/tools/annotate.py", "--reward", "level.yaml"]
        env = {**os.environ, "PYTHONPATH": str(project_root / "tests")}
        return subprocess.Popen(
            [*command, "--accelerator", "cpu", *words], env=env, stderr=subprocess.PIPE, text=True
        )

    first = started("audio", "--out", "two.jsonl")
    journal = Path("two.jsonl.journal/00000.jsonl")
    limit = time.monotonic() + 600
    while not (journal.is_file() and journal.read_text().count("\n") >= 2):
        assert first.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=600)[1]
    assert first.returncode == 128 + signal.SIGTERM and "goes on" in said
    kept = journal.read_text().splitlines()
    assert 2 <= len(kept) < 6 and not Path("two.jsonl").exists()
    second = started("audio", "--out", "two.jsonl", "--devices", "2")
    assert second.communicate(timeout=600) and second.returncode == 1
    for name in ("{}.jsonl", "{}.jsonl.report.json"):
        two, one = (Path(name.format(word)).read_bytes() for word in ("two", "one"))
        assert two == one
    lines = [path.read_text().splitlines() for path in sorted(journal.parent.iterdir())]
    assert lines[0][: len(kept)] == kept
    keys = [json.loads(line)["key"] for own in lines for line in own]
    assert len(lines) == 2 and len(keys) == len(set(keys)) == 6  # nothing was scored twice
    # clips are made and scored by three, one of whom has nothing to do
    Path("prompts.txt").write_text("a dog barking\nrain\n")
    fresh = ("--generate", "embedded/sounds", "--prompts", "prompts.txt", "--batch-size", "1")
    fresh = (*fresh, "--steps", "2", "--guidance", "1", "--seconds", "0.5")
    third = started(*fresh, "--out", "three.jsonl", "--devices", "3")
    assert annotate(*fresh, out="single.jsonl") == 0
    assert third.communicate(timeout=600) and third.returncode == 0
    assert Path("three.jsonl").read_bytes() == Path("single.jsonl").read_bytes()
    for path in Path("single_clips").glob("*.wav"):
        assert path.read_bytes() == Path("three_clips", path.name).read_bytes()


def test_lines_that_are_no_scores_are_dropped(here: Path, caplog) -> None:
    journal = Journal("j")
    journal.open(0)
    good = Scored("k", "a.wav", "r", 0.5, {"x": 1.0})
    journal.add(good)
    journal.close()
    with open("j/00000.jsonl", "ab") as file:
        file.write(b'[1]\n{"key": "k"}\n\xff\n')
        file.write(b'{"key": 1, "audio": "", "reward": "", "score": NaN}\n')
    assert journal.read() == {"k": good}
    assert "4 unreadable" in caplog.text


def test_progress_is_lines_outside_a_terminal_and_a_bar_in_one() -> None:
    module = SimpleNamespace(title="scoring")
    trainer = SimpleNamespace(is_global_zero=True, num_predict_batches=[4], world_size=2)
    times = iter((0.0, 10.0, 31.0, 45.0, 62.0))
    text = io.StringIO()
    shown = CountProgress(Console(file=text, width=200), lambda: next(times))
    shown.on_predict_start(trainer, module)
    for batch in range(4):
        shown.on_predict_batch_end(trainer, module, None, None, batch)
    shown.on_predict_end(trainer, module)
    assert text.getvalue().splitlines() == [
        "scoring 2/4 (process 1 of 2), about 31 s left",
        "scoring 4/4 (process 1 of 2), about 0 s left",
    ]
    text = io.StringIO()
    shown = CountProgress(Console(file=text, width=200, force_terminal=True))
    shown.on_predict_start(trainer, module)
    shown.on_predict_batch_end(trainer, module, None, None, 3)
    shown.on_predict_end(trainer, module)
    assert "100%" in text.getvalue()
    silent = CountProgress(Console(file=io.StringIO()))
    other = SimpleNamespace(is_global_zero=False)
    silent.on_predict_start(other, module)
    silent.on_predict_batch_end(other, module, None, None, 0)
    silent.on_predict_end(other, module)
    assert silent.console.file.getvalue() == ""
