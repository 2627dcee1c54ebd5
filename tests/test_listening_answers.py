"""Answers of a listening test: a file that loses none, and their summary."""

from __future__ import annotations

import csv
import os
import threading
from pathlib import Path

import pytest
from toy_disk import no_file_above

from zoo.listening import answers as answer_file
from zoo.listening.answers import (
    COLUMNS,
    Answer,
    Answers,
    append_answer,
    check_answers_place,
    described,
    read_answers,
    summarise,
)


def an_answer(
    listener: str = "ann", pair: int = 0, answer: str = "A", a: str = "tuned", prompt_id: str = "p"
) -> Answer:
    b = "base" if a == "tuned" else "tuned"
    return Answer("2026-01-01T00:00:00Z", "t1", listener, pair + 1, pair, prompt_id, a, b, answer)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_cut_off_line_is_counted_and_not_joined(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"answers{suffix}"
    strange = an_answer(pair=0, prompt_id='a "quoted", id')
    assert append_answer(path, strange) and append_answer(path, an_answer(pair=1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # killed within the second line
    assert read_answers(path).answers == (strange,) and len(read_answers(path).bad_lines) == 1
    assert append_answer(path, an_answer(pair=1)) and append_answer(path, an_answer(pair=2))
    found = read_answers(path)
    assert [one.pair for one in found.answers] == [0, 1, 2] and len(found.bad_lines) == 1
    assert f"1 lines could not be read and were left out: {found.bad_lines[0]}" in described(found)


def test_the_csv_is_a_plain_table(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.csv"
    append_answer(path, an_answer(prompt_id="two\nlines, =1+1"))
    append_answer(path, an_answer(pair=1, answer="B"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and [row["preferred"] for row in rows] == ["tuned", "base"]
    assert rows[0]["prompt_id"] == "two lines, =1+1" and len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2026,t1,ann,1,0,p,tuned,base,A,base", "preferred does not agree"),
        ("2026,t1,ann,1,0,p,tuned,tuned,A,tuned", "both sides are one model"),
        ("2026,t1,ann,one,0,p,tuned,base,A,tuned", "no number"),
        ("2026,t1,ann,1,0,p,tuned,base,C,tuned", "no such answer"),
        ("2026,t1,ann", "too short"),
    ],
)
def test_broken_lines_are_never_counted_as_answers(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "answers.csv"
    path.write_text(",".join(COLUMNS) + "\n2026,t1,ann,1,0,p,tuned,base,A,tuned\n" + line + "\n")
    found = read_answers(path)
    assert len(found.answers) == 1 and found.bad_lines == (3,), why


def test_foreign_files_are_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("name,score\nann,3\n")
    with pytest.raises(ValueError, match="header.*time,test"):
        append_answer(path, an_answer())
    assert path.read_text() == "name,score\nann,3\n"
    with pytest.raises(ValueError, match=r"\.csv.*\.jsonl"):
        read_answers(tmp_path / "answers.txt")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="is not a file"):
        append_answer(tmp_path / "folder.csv", an_answer())


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_full_disk_is_an_error_and_leaves_no_part_of_an_answer(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"answers{suffix}"
    for room in (0, 10):
        with pytest.raises(OSError) as caught, no_file_above(room):
            append_answer(path, an_answer())
        assert caught.value.filename == str(path) and path.read_bytes() == b""
    append_answer(path, an_answer())
    before = path.read_bytes()
    for room in (0, 10):
        with pytest.raises(OSError) as caught, no_file_above(len(before) + room):
            append_answer(path, an_answer(pair=1))
        assert caught.value.filename == str(path) and path.read_bytes() == before
    assert append_answer(path, an_answer(pair=1))
    found = read_answers(path)
    assert len(found.answers) == 2 and found.bad_lines == ()


def test_a_disk_that_takes_a_line_in_pieces_gets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.csv"
    write = os.write
    monkeypatch.setattr(answer_file.os, "write", lambda handle, data: write(handle, data[:10]))
    append_answer(path, an_answer())
    assert read_answers(path).answers == (an_answer(),)


def test_an_unwritable_place_is_reported_before_the_first_answer(tmp_path: Path) -> None:
    append_answer(tmp_path / "there.csv", an_answer())
    before = (tmp_path / "there.csv").read_bytes()
    for name in ("there.csv", "new.csv", "deep/new.csv"):
        check_answers_place(tmp_path / name)
    assert (tmp_path / "there.csv").read_bytes() == before
    assert not (tmp_path / "new.csv").exists() and not (tmp_path / "deep/new.csv").exists()
    for name in ("there.csv/a.csv", "there.csv/deep/a.csv", "/proc/answers.csv"):
        with pytest.raises(OSError, match=f"cannot be written here .*{name}"):
            check_answers_place(tmp_path / name)


def test_listeners_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    work = [
        threading.Thread(
            target=lambda i=i: [append_answer(path, an_answer(f"l{i}", pair)) for pair in range(5)]
        )
        for i in range(6)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    found = read_answers(path)
    assert len(found.answers) == 30 and not found.bad_lines and not found.repeated


def test_the_summary_is_arithmetic_that_a_reader_can_redo() -> None:
    """14 of 20 (70 %, as in the paper of CLAP-guided fine-tuning) is not beyond chance."""
    given = [
        an_answer(
            "ann" if i < 10 else "ben",
            i,
            "A" if i % 2 else "B",
            *(["tuned"] if i % 2 else ["base"]),
        )
        for i in range(14)
    ]
    given += [an_answer("ben", i, "A", "base") for i in range(14, 20)] + [
        an_answer("ben", i, "none") for i in range(20, 25)
    ]
    (one,) = summarise(given)
    assert (*one.wins[::-1], one.none, one.listeners, one.pairs) == (14, 6, 5, 2, 25)
    assert one.share == 0.7 and one.interval == pytest.approx((0.4810, 0.8545), abs=1e-4)
    assert one.p_value == pytest.approx(0.11532, abs=1e-5) and one.a_share == 13 / 20
    assert one.by_listener == {"ann": (0, 10, 0), "ben": (6, 4, 5)}
    text = described(Answers(tuple(given), 2, (7,)))
    for part in (
        "25 answers (n) of 2 listeners to 25 pairs",
        "70.0% (95 % Wilson interval 48.1% to 85.5%",
        "p = 0.115)",
        "of all 25: 56.0%",
        "side A was chosen in 65.0%",
        "2 second answers",
        "1 lines could not be read",
    ):
        assert part in text


def test_systems_have_names_and_each_two_of_them_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    sides = (("tango", "baton"), ("baton", "tango"), ("tango", "our own"))
    for pair, (a, b) in enumerate(sides):
        answer = Answer("2026", "t1", "ann", pair + 1, pair, "p", a, b, "A")
        assert append_answer(path, answer)
    first, second = summarise(read_answers(path).answers)
    assert first.systems == ("baton", "tango") and first.wins == (1, 1) and first.share == 0.5
    assert second.systems == ("our own", "tango") and second.wins == (0, 1)
    assert "tango 1, our own 0, no difference 0" in described(read_answers(path))
    for names in (("x", "x"), ("none", "x"), ("", "x"), ("two\nlines", "x")):
        with pytest.raises(ValueError, match="system"):
            Answer("2026", "t1", "ann", 1, 0, "p", *names, "A")


def test_a_summary_without_sides_or_answers() -> None:
    (one,) = summarise([an_answer(answer="none")])
    assert (one.share, one.p_value, one.none) == (None, None, 1)
    assert "so there is no share" in described(Answers((an_answer(answer="none"),), 0, ()))
    with pytest.raises(ValueError, match="3 broken lines"):
        described(Answers((), 0, (2, 3, 4)))
