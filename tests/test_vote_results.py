"""What votes come to: records, checks of the raters, and tables of means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_study import Clock, answer_all, small_study

from zoo.errors import UserError
from zoo.listening.items import Item
from zoo.listening.questions import (
    TASKS,
    checked,
    fields_of,
    is_repeated,
    passes_negative,
    task_named,
    votes_of,
)
from zoo.listening.results_page import result_lines, results_html
from zoo.listening.study import Study, found_trial, join
from zoo.listening.vote_results import mean_opinions, read_study, records_of, trusted
from zoo.types import Preference, Vote


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


ITEM = Item("a dog, then rain", ("dog", "rain"), ())
BARE = Item("a dog, then rain", (), ())


@pytest.mark.parametrize(
    ("task", "item", "answer", "swapped", "value"),
    [
        ("integrity", ITEM, {"heard": ["dog", "rain"]}, False, {"integrity": (1.0, False)}),
        ("integrity", ITEM, {"heard": ["dog"]}, False, {"integrity": (0.0, False)}),
        ("integrity", ITEM, {"heard": []}, False, {"integrity": (0.0, False)}),
        ("integrity", BARE, {"all": "yes"}, False, {"integrity": (1.0, False)}),
        ("integrity", BARE, {"all": "no"}, False, {"integrity": (0.0, False)}),
        ("temporal", ITEM, {"order": "yes"}, False, {"temporal": (1.0, False)}),
        ("temporal", ITEM, {"order": "order"}, False, {"temporal": (0.0, False)}),
        ("temporal", ITEM, {"order": "missing"}, False, {"temporal": (0.0, False)}),
        ("pairwise", ITEM, {"better": "a"}, False, {"pairwise": (1.0, False)}),
        ("pairwise", ITEM, {"better": "a"}, True, {"pairwise": (0.0, False)}),
        ("pairwise", ITEM, {"better": "b"}, False, {"pairwise": (0.0, False)}),
        ("pairwise", ITEM, {"better": "tie"}, True, {"pairwise": (0.5, False)}),
        ("pairwise", ITEM, {"better": "both_bad"}, True, {"pairwise": (0.5, True)}),
        ("quality", ITEM, {"quality": "1"}, False, {"quality": (0.0, False)}),
        ("relevance", ITEM, {"relevance": "5"}, False, {"relevance": (1.0, False)}),
        (
            "mos",
            ITEM,
            {"quality": "2", "relevance": "4"},
            False,
            {"quality": (0.25, False), "relevance": (0.75, False)},
        ),
    ],
)
def test_what_an_answer_means(task, item, answer, swapped, value) -> None:
    assert checked(fields_of(task, item), answer) == answer
    assert votes_of(task, item, answer, swapped) == value


def test_ticks_are_kept_in_the_order_of_the_sounds() -> None:
    given = checked(fields_of("integrity", ITEM), {"heard": ["rain", "dog"]})
    assert given == {"heard": ["dog", "rain"]}
    with pytest.raises(UserError, match="loudness"):
        task_named("loudness")


@pytest.mark.parametrize(
    ("task", "swapped", "right", "wrong"),
    [
        ("integrity", False, [{"heard": []}, {"all": "no"}], [{"heard": ["dog"]}, {"all": "yes"}]),
        ("temporal", False, [{"order": "missing"}], [{"order": "yes"}, {"order": "order"}]),
        ("pairwise", False, [{"better": "a"}, {"better": "both_bad"}], [{"better": "b"}]),
        ("pairwise", True, [{"better": "b"}], [{"better": "a"}, {"better": "tie"}]),
        ("quality", False, [{"quality": "2"}], [{"quality": "3"}]),
        ("mos", False, [{"quality": "5", "relevance": "1"}], [{"quality": "1", "relevance": "3"}]),
    ],
)
def test_clear_negatives(task, swapped, right, wrong) -> None:
    assert all(passes_negative(task, answer, swapped) for answer in right)
    assert not any(passes_negative(task, answer, swapped) for answer in wrong)


def test_repeats() -> None:
    def same(task: str, first: dict, again: dict, sides=(False, False)) -> bool:
        return is_repeated(task, ITEM, first, again, sides)

    assert same("quality", {"quality": "3"}, {"quality": "4"})
    assert not same("quality", {"quality": "3"}, {"quality": "5"})
    assert same("pairwise", {"better": "a"}, {"better": "b"}, (False, True))
    assert not same("pairwise", {"better": "a"}, {"better": "a"}, (False, True))
    assert not same("pairwise", {"better": "a"}, {"better": "tie"}, (False, True))
    assert not same("integrity", {"heard": ["dog"]}, {"heard": ["dog", "rain"]})


def careful(study: Study, better: str = "tuned"):
    """Answers a pair for one system, and negatives and repeats as they should be."""

    def answer(view: dict) -> dict:
        with study.store.reading() as connection:
            _, trial = found_trial(connection, view["key"])
        first, _ = study.items[trial.item].clips
        wants_first = trial.kind == "negative" or first.model == better
        return {"better": "a" if wants_first != trial.swapped else "b"}

    return answer


def test_records_and_raters_of_pairs(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, "pairwise", repeats=1, negatives=1)
    for name in ("ann", "ben"):
        answer_all(study, clock, join(study, name), careful(study))
    answer_all(study, clock, join(study, "cem"), lambda view: {"better": "a"})
    answer_all(study, clock, join(study, "dan"), lambda view: {"better": "both_bad"})
    join(study, "eve")
    result = read_study(study.store)
    raters = {rater.name: rater for rater in result.raters}
    assert list(raters) == ["ann", "ben", "cem", "dan", "eve"]
    ann = raters["ann"]
    assert (ann.done, ann.total, ann.passed, ann.negatives) == (6, 6, 1, 1)
    assert (ann.agreed, ann.repeats, ann.seconds, ann.headphones) == (1, 1, 1.5, None)
    assert raters["cem"].agreed == 0, "A again after the sides were exchanged"
    assert raters["dan"].passed == 1
    eve = raters["eve"]
    assert (eve.done, eve.total, eve.negatives, eve.seconds, eve.code) == (0, 6, 0, None, "")
    assert ann.code and ann.code != raters["ben"].code

    records = records_of(result)
    assert len(records) == 4, "checks are not among them"
    for record in records:
        assert (record.model, record.other_model) == ("base", "tuned")
        votes = {vote.rater: vote for vote in record.votes}
        assert list(votes) == ["ann", "ben", "cem", "dan"]
        assert votes["ann"] == Vote("ann", 0.0, False, 1500.0)
        assert votes["dan"] == Vote("dan", 0.5, True, 1500.0)
    assert sum(record.votes[2].value for record in records) == 2, "A is each system in half"
    (row,) = mean_opinions(records)
    assert (row.model, row.raters, row.clips, row.votes) == ("base against tuned", 4, 4, 16)
    # 8 losses, 2 wins and 2 losses of cem, 4 ties
    assert row.mean.value == (2 + 0.5 * 4) / 16 and row.both_bad == 4
    assert row.mean.low < row.mean.value < row.mean.high

    good, bad = trusted(result, 1.0)
    assert "cem" in bad or raters["cem"].passed == 1
    assert {"ann", "ben", "dan", "eve"} <= good
    with pytest.raises(UserError, match="min_passed"):
        records_of(result, 1.5)

    text = "\n".join(result_lines(result, (row,), {"pairwise": 0.25}))
    for word in ("ann", "6 of 6", ann.code, "base against tuned: 0.25", "0.250", "4 raters"):
        assert word in text
    page = results_html(result, (row,), {"pairwise": None})
    assert page.count("<img ") == 1 and "not defined" in page and ann.code not in page


def test_raters_who_miss_negatives_are_left_out(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, "quality", repeats=0, negatives=2)

    def fair(view: dict) -> dict:
        with study.store.reading() as connection:
            _, trial = found_trial(connection, view["key"])
        return {"quality": "1" if trial.kind == "negative" else "4"}

    answer_all(study, clock, join(study, "ann"), fair)
    answer_all(study, clock, join(study, "bot"), lambda view: {"quality": "5"})
    result = read_study(study.store)
    assert trusted(result, 0.5) == ({"ann"}, {"bot"})
    assert trusted(result) == ({"ann", "bot"}, set())
    assert {v.rater for record in records_of(result, 0.5) for v in record.votes} == {"ann"}
    rows = mean_opinions(records_of(result))
    assert [(row.axis, row.model, row.mean.value) for row in rows] == [
        ("quality", "base", 4.5),
        ("quality", "tuned", 4.5),
    ]
    text = "\n".join(result_lines(result, rows, {"quality": None}, 0.5))
    assert "bot" in text and "0 of 2" in text and "50%" in text


def test_two_axes_of_one_click(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, "mos", repeats=0, negatives=0)
    answer_all(study, clock, join(study, "ann"), lambda view: {"quality": "5", "relevance": "2"})
    records = records_of(read_study(study.store))
    assert [(record.task, record.votes[0].value) for record in records] == (
        [("quality", 1.0)] * 8 + [("relevance", 0.25)] * 8
    )
    assert {axis for task in TASKS.values() for axis in task.axes} == {
        "integrity", "temporal", "pairwise", "quality", "relevance",
    }  # fmt: skip


def test_an_unused_file_has_results_too(tmp_path: Path) -> None:
    study = small_study(tmp_path, "mos")
    result = read_study(study.store)
    assert records_of(result) == () and mean_opinions(()) == ()
    assert "no votes yet" in result_lines(result, (), {})[-1]
    assert "<h2>Raters</h2>" in results_html(result, (), {})


def test_pairs_within_a_system_have_no_row() -> None:
    pair = Preference("p", "a", "pairwise", "b", (Vote("x", 1.0),), model="m", other_model="m")
    assert mean_opinions([pair]) == ()


def test_names_are_escaped_on_the_page(tmp_path: Path, clock: Clock) -> None:
    """A name with HTML cannot be given; names of systems can hold it."""
    study = small_study(tmp_path, "quality", repeats=0, negatives=0)
    answer_all(study, clock, join(study, "ann"), lambda view: {"quality": "5"})
    result = read_study(study.store)
    records = [
        Preference(
            one.prompt, one.audio, one.task, votes=one.votes, model="<script>alert(1)</script>"
        )
        for one in records_of(result)
    ]
    page = results_html(result, mean_opinions(records), {})
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert json.dumps(result.raters[0].about) == "{}"
