"""Bad input in every dialect of label files, whatever is added to their table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.preferences.command import main
from datamodules.preferences.dialects import DIALECTS, read_labels, write_labels
from zoo.errors import UserError
from zoo.types import Preference, Vote

WITHOUT_NUMBERS = {"arena", "trl", "tangoflux", "tangoflux_sft", "audiocaps"}  # from 0 to 1
RAIN = Preference("rain, 'wind' & \"hail\" _ 雷", "0001_x_0.wav", "integrity", source="RD")
FIRST = 0.4375  # on a scale to 10: 4.375


def saved(folder: Path, dialect: str) -> Path:
    """Two records with what the dialect can hold of a pair, a label, a score or a vote."""
    if dialect == "trl":
        pytest.importorskip("pyarrow")
    pair = replace(RAIN, task="pairwise", other="0001_x_1.wav", label=1.0, seconds=9.0)
    voted = replace(RAIN, votes=(Vote("ann", FIRST),), task="relevance", source="HD")
    plain = replace(RAIN, source="PD", seconds=9.0)
    compared = replace(pair, label=None, votes=(Vote("ann", 1.0),), source="HD")
    path = folder / f"labels{DIALECTS[dialect].suffixes[0]}"
    # the first that the dialect can hold
    rated = (replace(RAIN, score=FIRST), replace(RAIN, label=FIRST), voted)
    for one in (*rated, pair, compared, plain):
        if dialect in ("pages", "scores"):  # their prompts stand in the names of files
            one = replace(one, prompt="x")
        two = replace(
            one,
            audio="0001_x_2.wav",
            score=None if one.score is None else 0.5,
            label=one.label if one.label in (None, 1.0) else 0.5,
            votes=tuple(replace(vote, value=0.5) for vote in one.votes),
        )
        try:
            lost = write_labels([one, two], path, dialect)
        except UserError:
            continue
        if not lost.keys() & {"score", "label", "votes"}:
            return path
    raise AssertionError(f"{dialect} holds none of these records")


def status(*words: str) -> int:
    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code)
    return 0


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_check_reads_every_dialect(dialect: str, tmp_path: Path, capsys) -> None:
    path = saved(tmp_path, dialect)
    assert status("check", str(path)) == 0
    said = capsys.readouterr().out
    assert f"2 records of {dialect}" in said and "all good" in said


@pytest.mark.parametrize("dialect", list(DIALECTS))
@pytest.mark.parametrize("value", ["NaN", "11.5", "-0.25"])
def test_a_number_that_cannot_be_is_named_and_the_other_record_is_read(
    dialect: str, value: str, tmp_path: Path, capsys
) -> None:
    path = saved(tmp_path, dialect)
    if dialect in WITHOUT_NUMBERS:
        if DIALECTS[dialect].suffixes != (".parquet",):
            assert "4375" not in path.read_text("utf-8")
        return
    text = path.read_text("utf-8")
    written = next(number for number in ("0.4375", "4.375", "2.75") if number in text)
    path.write_text(text.replace(written, value), "utf-8")
    assert status("check", str(path)) == 1
    said = capsys.readouterr().out
    assert f"bad: {path}, " in said and "1 bad" in said
    labels = read_labels(path)
    assert len(labels.records) == len(labels.problems) == 1
    with pytest.raises(UserError, match=labels.problems[0].field):
        labels.checked()


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_a_file_that_is_cut_off_is_bad_and_not_another_dialect(
    dialect: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, dialect)
    content = path.read_bytes()
    if path.suffix == ".csv":
        return  # every beginning of a table is one
    path.write_bytes(content[: len(content) * 2 // 3])
    try:
        labels = read_labels(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert labels.problems and labels.dialect in ("", dialect)


def test_a_clip_that_is_labelled_twice_is_named_by_both_places(tmp_path: Path, capsys) -> None:
    path = tmp_path / "labels.json"
    record = replace(RAIN, source="HD", label=1.0)
    write_labels([record, replace(record, label=0.0)], path, "baton_ha")
    assert status("check", str(path)) == 1
    said = capsys.readouterr().out
    assert "line 2, audio" in said and "line 1" in said
