"""tools/listen.py label, results and export: mistakes, and files of every dialect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy_study import Clock, answer_all, command, small_study

from datamodules.preferences.dialects import DIALECTS, read_labels
from zoo.errors import reported
from zoo.listening.study import found_trial, join
from zoo.listening.vote_results import read_study, records_of
from zoo.listening.vote_store import create_store

PAIRS = ("attune", "labelstudio", "arena", "trl", "tangoflux")
NO_LABELS = ("audiocaps", "tangoflux_sft")  # captions only


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_votes_are_exported_in_every_dialect(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture, dialect: str
) -> None:
    if dialect == "trl":
        pytest.importorskip("pyarrow", reason="parquet needs the extra labels")
    task = "pairwise" if dialect in ("arena", "trl", "tangoflux") else "relevance"
    study = small_study(tmp_path, task, repeats=1, negatives=1)

    def answer(view: dict) -> dict:
        with study.store.reading() as connection:
            _, trial = found_trial(connection, view["key"])
        if task == "pairwise":  # the second system wins two of four pairs
            return {"better": "a" if (trial.item < 2) != trial.swapped else "b"}
        return {"relevance": "5" if trial.item % 2 else "1"}

    for name in ("ann", "ben"):
        answer_all(study, clock, join(study, name), answer)
    records = records_of(read_study(study.store))
    out = tmp_path / f"labels{DIALECTS[dialect].suffixes[0]}"
    words = ["export", str(tmp_path / "votes.sqlite"), "--to", dialect, "--out", str(out)]
    words += ["--aggregate", "mean", "--copy-audio", str(tmp_path / "copies")]
    assert reported(command, words) == 0
    said = capsys.readouterr().out
    assert f"on {len(records)} records as {dialect}" in said
    assert f"below {tmp_path / 'copies'}" in said
    back = read_labels(out)
    assert back.dialect == dialect or dialect.startswith("baton")
    found = back.checked()
    assert len(found) == len(records)
    for record in found:
        names = [name for name in (record.audio, record.other) if name]
        assert all((tmp_path / "copies" / name).is_file() for name in names)
        value = record.label if record.label is not None else record.score
        if dialect in NO_LABELS:
            assert value is None
        elif dialect in ("tangoflux", "trl"):
            assert value == 1.0
        elif record.votes:
            assert [vote.value for vote in record.votes] == [record.votes[0].value] * 2
        else:
            assert value in (0.0, 1.0)
    if dialect in ("attune", "labelstudio", "arena", "listeners"):
        assert {vote.rater for record in found for vote in record.votes} == {"ann", "ben"}


def test_an_export_names_the_clips_as_they_are(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture
) -> None:
    study = small_study(tmp_path, "mos", repeats=0, negatives=0)
    answer_all(study, clock, join(study, "ann"), lambda view: {"quality": "4", "relevance": "1"})
    out = tmp_path / "labels.jsonl"
    words = ["export", str(tmp_path / "votes.sqlite"), "--out", str(out)]
    assert reported(command, words) == 0
    assert re.search(f"^the clips are below {tmp_path}$", capsys.readouterr().out, re.M)
    records = read_labels(out).checked()
    assert len(records) == 16 and all((tmp_path / record.audio).is_file() for record in records)
    assert records == records_of(read_study(study.store))
    assert reported(command, [*words, "--axis", "quality"]) == 0
    assert {record.task for record in read_labels(out).checked()} == {"quality"}


def test_mistakes_are_one_line(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture) -> None:
    study = small_study(tmp_path)
    votes = str(tmp_path / "votes.sqlite")
    base = str(tmp_path / "base")
    empty = str(tmp_path / "empty.sqlite")
    create_store(empty)
    page = tmp_path / "page.html"
    page.write_text("mine")
    for words, word in (
        (["export", votes, "--out", str(tmp_path / "x.jsonl")], "no votes to export"),
        (["export", str(tmp_path / "no.sqlite"), "--out", "x.jsonl"], "no such file"),
        (["export", empty, "--out", "x.jsonl"], "no study"),
        (["results", str(page)], "not a readable file of votes"),
        (["results", votes, "--out", str(page)], "--overwrite"),
        (["results", votes, "--out", str(tmp_path / "x.txt")], ".html"),
        (["results", votes, "--min-passed", "2"], "min_passed"),
        (["label", base, "--task", "loud", "--votes", votes], "'loud'"),
        (["label", base, "--task", "quality", "--votes", votes], "items"),
        (["label", base, "--task", "pairwise", "--votes", empty], "no two different clips"),
        (["label", str(tmp_path / "no"), "--task", "quality", "--votes", empty], "no folder"),
        (
            ["label", base, "--task", "quality", "--votes", empty, "--pairs-per-prompt", "2"],
            "--pairs-per-prompt",
        ),
    ):
        assert reported(command, words) == 2, words
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1, (words, said)
    answer_all(study, clock, join(study, "ann"), lambda view: {"quality": "4"})
    for words, word in (
        (["export", votes, "--out", str(tmp_path / "x.jsonl"), "--axis", "loud"], "--axis loud"),
        (["export", votes, "--out", str(tmp_path / "x.json"), "--to", "baton"], "baton"),
        (["export", votes, "--out", str(tmp_path / "x.json"), "--to", "grouped"], "aggregate"),
    ):
        assert reported(command, words) == 2, words
        assert word in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists() and not (tmp_path / "x.json").exists()
    assert page.read_text() == "mine"
    assert reported(command, ["results", votes, "--out", str(page), "--overwrite"]) == 0
    assert "<h2>Raters</h2>" in page.read_text()
