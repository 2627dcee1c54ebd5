"""A labelling study without its page: who is asked what, what counts, and what is left out."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_listening import tone
from toy_study import EVENTS, Clock, answer_all, generations, listen, small_study

from zoo.audio_files import write_audio
from zoo.errors import UserError
from zoo.generations import INDEX
from zoo.listening import study as studies
from zoo.listening.headphones import NEEDED, QUESTIONS, headphone_questions, three_tones
from zoo.listening.items import Clip, Item, copied_clips, events_of, fingerprint, read_items
from zoo.listening.study import (
    ABANDONED_S,
    NameTaken,
    NotHeard,
    clips_of,
    join,
    play_ended,
    play_started,
    restart,
    sounds,
    vote,
)
from zoo.listening.study_trials import StudySettings, draw_trials
from zoo.listening.study_views import (
    answer_headphones,
    answer_questionnaire,
    headphone_sound,
    next_view,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def items_of(count: int) -> list[Item]:
    return [
        Item(f"word{i}", (), (Clip(f"{i}.wav", Path(f"{i}.wav"), str(i), 1.0, "base"),))
        for i in range(count)
    ]


def test_single_clips_have_names_from_the_folder_above_all(tmp_path: Path) -> None:
    folders = [generations(tmp_path / "runs", name) for name in ("b", "a")]
    found = read_items(folders).items
    names = [item.clips[0].name for item in found]
    assert names == [f"{name}/{i:02d}_seed1.wav" for name in "ab" for i in range(4)]
    assert [item.clips[0].model for item in found] == ["a"] * 4 + ["b"] * 4
    assert found[0].events == EVENTS[0] and found[0].clips[0].seconds == 0.2
    assert read_items(folders[::-1]).items == found, "the order of the folders does not matter"
    assert {one.clips[0].model for one in read_items(folders, names=["x", "y"]).items} == {"x", "y"}
    alone = read_items(folders[:1]).items
    assert alone[0].clips[0].name == "b/00_seed1.wav"
    assert fingerprint("quality", alone) != fingerprint("relevance", alone)


def test_pairs_are_of_one_prompt(tmp_path: Path) -> None:
    folder = generations(tmp_path, count=2, seeds=(1, 2, 3))
    pairs = read_items([folder], pairs=True).items
    assert len(pairs) == 2 * 3 and all(len(set(item.clips)) == 2 for item in pairs)
    assert len(read_items([folder], pairs=True, pairs_per_prompt=2).items) == 4
    other = generations(tmp_path, "tuned", count=2, seeds=(1, 2), hz=500)
    across = read_items([folder, other], pairs=True).items
    assert [tuple(clip.name for clip in item.clips) for item in across] == [
        (f"base/{i:02d}_seed{seed}.wav", f"tuned/{i:02d}_seed{seed}.wav")
        for i in range(2)
        for seed in (1, 2)
    ]


def test_a_prompt_with_one_clip_and_equal_clips_make_no_pair(tmp_path: Path) -> None:
    folder = generations(tmp_path, count=3, seeds=(1, 2))
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index[1:]))  # the first prompt has one clip now
    first, second = (folder / f"01_seed{seed}.wav" for seed in (1, 2))
    second.write_bytes(first.read_bytes())
    found = read_items([folder], pairs=True)
    assert [item.prompt for item in found.items] == ["thunder, then sheep"]
    assert found.left_out == {"prompts with one clip": 1, "pairs of equal files": 1}
    (folder / INDEX).write_text(json.dumps(index[1:4]))
    with pytest.raises(UserError, match=r"1 prompts with one clip.*1 pairs of equal files"):
        read_items([folder], pairs=True)


def test_mistakes_in_the_folders(tmp_path: Path) -> None:
    folder = generations(tmp_path)
    for folders, knobs, word in (
        ([], {}, "at least one folder"),
        ([folder, tmp_path / "x" / ".." / "base"], {}, "given twice"),
        ([folder], {"names": ["a", "b"]}, "names"),
        ([folder], {"pairs": True, "pairs_per_prompt": 0}, "pairs_per_prompt"),
    ):
        with pytest.raises(UserError, match=word):
            read_items(folders, **knobs)
    assert events_of({"events": "dog_bark; rain"}) == ("dog bark", "rain")
    assert events_of({"events": ["a", "b"]}) == ("a", "b") and events_of({}) == ()
    for bad in (3, ["a", "a"], ["a", ""], ["a", 1]):
        with pytest.raises(UserError, match="events"):
            events_of({"events": bad})
    (folder / "00_seed1.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"00_seed1\.wav.*empty"):
        read_items([folder])


def test_copies_with_batons_names(tmp_path: Path) -> None:
    items = read_items([generations(tmp_path, count=2, seeds=(1, 2))], pairs=True).items
    names = copied_clips(items, tmp_path / "copies")
    assert names["base/01_seed2.wav"] == "0001_horn, then birds_1.wav"
    copy = tmp_path / "copies" / names["base/01_seed2.wav"]
    assert copy.read_bytes() == (tmp_path / "base" / "01_seed2.wav").read_bytes()
    with pytest.raises(UserError, match="a/b"):
        copied_clips([replace(items[0], prompt="a/b")], tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("task", {"task": "loudness"}),
        ("per_rater", {"task": "quality", "per_rater": 0}),
        ("repeats", {"task": "quality", "repeats": -1}),
        ("headphones", {"task": "quality", "headphones": "maybe"}),
    ],
)
def test_invalid_settings(field: str, settings: dict) -> None:
    with pytest.raises(UserError, match=field):
        StudySettings(**settings)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_trials_of_a_rater(count: int) -> None:
    settings = StudySettings("pairwise", per_rater=20, repeats=2, negatives=2)
    items = items_of(count)
    for seed in range(20):
        trials = draw_trials(items, settings, [0] * count, random.Random(seed))
        assert [trial.position for trial in trials] == list(range(len(trials)))
        kinds = Counter(trial.kind for trial in trials)
        wanted = min(20, count)
        assert kinds["item"] == wanted == len({t.item for t in trials if t.kind == "item"})
        assert kinds["repeat"] == max(0, min(2, wanted - min(5, max(1, wanted // 3))))
        assert kinds["negative"] == (0 if count == 1 else min(2, wanted))
        swapped = sum(trial.swapped for trial in trials if trial.kind == "item")
        assert swapped in (wanted // 2, wanted - wanted // 2)
        assert trials[0].kind == "item"
        for trial in trials:
            if trial.kind == "repeat":
                first = next(t for t in trials if t.kind == "item" and t.item == trial.item)
                between = trial.position - first.position - 1
                assert between >= min(5, max(1, wanted // 3)) and trial.swapped != first.swapped
            if trial.kind == "negative":
                assert trial.decoy not in (None, trial.item)


def test_negatives_are_of_prompts_without_a_common_word() -> None:
    items = items_of(3)
    items[1] = replace(items[1], prompt="a Word0 and a bird")
    draws = [
        draw_trials(items, StudySettings("relevance"), [0] * 3, random.Random(seed))
        for seed in range(30)
    ]
    pairs = {(t.item, t.decoy) for trials in draws for t in trials if t.kind == "negative"}
    assert pairs == {(0, 2), (1, 2), (2, 0), (2, 1)}
    alike = [replace(item, prompt="the rain") for item in items]
    trials = draw_trials(alike, StudySettings("relevance"), [0] * 3, random.Random(0))
    assert {trial.kind for trial in trials} == {"item", "repeat"}
    trials = draw_trials(alike, StudySettings("quality"), [0] * 3, random.Random(0))
    assert {trial.decoy for trial in trials if trial.kind == "negative"} == {None}


def test_coverage_is_balanced_and_subsets_are_random(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, per_rater=3, repeats=0, negatives=0)
    subsets = []
    for number in range(16):
        join(study, f"rater {number}")
        with study.store.reading() as connection:
            rows = connection.execute("SELECT rater, item FROM trials").fetchall()
        counts = Counter(row["item"] for row in rows)
        assert max(counts.values()) - min(counts.get(i, 0) for i in range(8)) <= 1
        subsets.append(frozenset(row["item"] for row in rows if row["rater"].endswith(str(number))))
    assert set(counts.values()) == {6} and len(set(subsets)) > 8


def test_trials_of_raters_who_left_are_given_to_others(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, per_rater=4, repeats=0, negatives=0)

    def asked(name: str) -> set[int]:
        join(study, name)
        with study.store.reading() as connection:
            rows = connection.execute("SELECT item FROM trials WHERE rater = ?", (name,))
            return {row["item"] for row in rows}

    first = asked("ann")
    answer_all(study, clock, "ann", lambda view: {"quality": "3"})
    left = asked("ben")
    assert not first & left, "while ben may still answer, his items count"
    clock.passes(ABANDONED_S + 1)
    assert asked("cem") == left, "ann's votes count for ever, ben's empty trials do not"


def test_a_vote_counts_after_the_whole_clip(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, "pairwise")
    view = next_view(study, join(study, "ann"))
    key = view["key"]
    answer = {"better": "a"}
    assert view["heard"] == [False, False]
    with pytest.raises(NotHeard):
        vote(study, key, "click 01", answer)
    play = play_started(study, key, 0)
    clock.passes(0.1)  # of 0.2 s
    assert not play_ended(study, play)
    clock.passes(1.0)
    assert not play_ended(study, play), "the first end of a play counts"
    play = play_started(study, key, 0)
    clock.passes(0.2)
    assert play_ended(study, play)
    with pytest.raises(NotHeard):
        vote(study, key, "click 01", answer)
    play = play_started(study, key, 1)
    clock.passes(0.2)
    assert play_ended(study, play) and next_view(study, "ann")["heard"] == [True, True]
    vote(study, key, "click 01", answer)
    assert next_view(study, "ann")["done"] == 1
    for wrong in (lambda: play_started(study, key, 2), lambda: play_ended(study, "x")):
        with pytest.raises(UserError):
            wrong()


def test_a_correction_replaces_the_vote_and_the_history_keeps_both(
    tmp_path: Path, clock: Clock
) -> None:
    study = small_study(tmp_path)
    view = next_view(study, join(study, "ann"))
    listen(study, clock, view)
    vote(study, view["key"], "click 01", {"quality": "2"}, 900.0)
    vote(study, view["key"], "click 01", {"quality": "5"})  # the same click again
    assert next_view(study, "ann", at=0)["answer"] == {"quality": "2"}
    vote(study, view["key"], "click 02", {"quality": "4"}, float("nan"))
    assert next_view(study, "ann", at=0)["answer"] == {"quality": "4"}
    with study.store.reading() as connection:
        history = connection.execute("SELECT what, answer, time_ms FROM history").fetchall()
        votes = connection.execute("SELECT COUNT(*) FROM votes").fetchone()[0]
    assert votes == 1 and [tuple(row) for row in history] == [
        ("vote", '{"quality": "2"}', 900.0),
        ("correction", '{"quality": "4"}', None),
    ]


def test_a_rater_continues_after_a_restart_of_the_server(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path)
    rater = join(study, " ann   lee ")
    assert rater == "ann lee"
    view = next_view(study, rater)
    listen(study, clock, view)
    vote(study, view["key"], "click 01", {"quality": "2"})
    following = next_view(study, rater)
    again = small_study(tmp_path)
    assert again == study and next_view(again, rater) == following
    with pytest.raises(NameTaken):
        join(again, "ann lee")
    assert join(again, "ann lee", resume=True) == rater and next_view(again, rater) == following
    assert next_view(again, rater, at=0)["key"] == view["key"]
    assert next_view(again, rater, at=99) == following, "nothing behind the first open one"


def test_starting_over_withdraws_all_votes(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path)
    end = answer_all(study, clock, join(study, "ann"), lambda view: {"quality": "3"})
    assert end["stage"] == "done"
    restart(study, "ann")
    view = next_view(study, "ann")
    assert (view["done"], view["at"], view["heard"]) == (0, 0, [False])
    with pytest.raises(NotHeard):  # what was heard before does not count
        vote(study, view["key"], "another click", {"quality": "3"})
    with study.store.reading() as connection:
        kinds = Counter(row[0] for row in connection.execute("SELECT what FROM history"))
    assert kinds == {"vote": end["total"], "withdrawn": end["total"]}
    assert answer_all_again(study, clock) == "done"


def answer_all_again(study: studies.Study, clock: Clock) -> str:
    while (view := next_view(study, "ann"))["stage"] == "trial":
        listen(study, clock, view)
        vote(study, view["key"], f"again {view['key']}", {"quality": "1"})
    return view["stage"]


def test_other_clips_or_settings_do_not_continue_a_study(tmp_path: Path, clock: Clock) -> None:
    small_study(tmp_path)
    with pytest.raises(UserError, match="task quality, .* task relevance"):
        small_study(tmp_path, "relevance")
    with pytest.raises(UserError, match="equal_level True, .* equal_level False"):
        small_study(tmp_path, equal_level=False)
    write_audio(tmp_path / "base" / "00_seed1.wav", tone(0.1, 300, 0.2))
    with pytest.raises(UserError, match="items"):
        small_study(tmp_path)
    for folder in ("base", "tuned"):  # the same clips elsewhere continue it
        generations(tmp_path / "moved", folder, hz=200.0 if folder == "base" else 500.0)
    for file in tmp_path.glob("votes.sqlite*"):  # with SQLite's log
        file.rename(tmp_path / "moved" / file.name)
    assert small_study(tmp_path / "moved").items[0].clips[0].path.parts[-3] == "moved"


def test_a_clip_that_vanished_is_left_out_until_it_is_back(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, repeats=0, negatives=0)
    first = next_view(study, join(study, "ann"))
    with study.store.reading() as connection:
        _, trial = studies.found_trial(connection, first["key"])
    (clip,) = clips_of(study, trial)
    content = clip.path.read_bytes()
    clip.path.unlink()
    view = next_view(study, "ann")
    assert view["key"] != first["key"] and (view["total"], view["missing"]) == (7, 1)
    with pytest.raises(UserError, match=clip.path.name):
        sounds(study, trial)
    write_audio(clip.path, tone(0.2, 999, 0.2))  # another clip under this name does not count
    assert next_view(study, "ann")["missing"] == 1
    end = answer_all(study, clock, "ann", lambda view: {"quality": "3"})
    assert (end["stage"], end["done"], end["missing"]) == ("done", 7, 1)
    clip.path.write_bytes(content)
    assert next_view(study, "ann")["key"] == first["key"]


@pytest.mark.parametrize("name", ["", "<b>ann</b>", "=cmd", "x" * 65, "ann\n<script>"])
def test_invalid_names(tmp_path: Path, name: str) -> None:
    study = small_study(tmp_path)
    with pytest.raises(UserError, match="name or code"):
        join(study, name)
    with pytest.raises(UserError):
        next_view(study, name)
    with pytest.raises(UserError, match="nobody called ben"):
        next_view(study, "ben")


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("quality", {"quality": 3}),
        ("quality", {"quality": "6"}),
        ("quality", {"quality": ["3"]}),
        ("quality", {}),
        ("quality", ["3"]),
        ("mos", {"quality": "3"}),
        ("integrity", {"heard": "dog"}),
        ("integrity", {"heard": ["cat"]}),
        ("integrity", {"heard": ["dog", "dog"]}),
        ("pairwise", {"better": "none"}),
    ],
)
def test_invalid_answers(tmp_path: Path, clock: Clock, task: str, answer: object) -> None:
    study = small_study(tmp_path, task)
    view = next_view(study, join(study, "ann"))
    listen(study, clock, view)
    with pytest.raises(UserError, match="answer"):
        vote(study, view["key"], "click 01", answer)
    for click in ("short", "x" * 65, 12345678):
        with pytest.raises(UserError, match="click"):
            vote(study, view["key"], click, answer)
    assert next_view(study, "ann")["done"] == 0


def test_what_is_sent_reveals_nothing(tmp_path: Path, clock: Clock) -> None:
    """No check, system, side or file is told to the browser: all views have the same fields."""
    study = small_study(tmp_path, "pairwise", repeats=2, negatives=2)
    name = join(study, "ann")
    views = []

    def answer(view: dict) -> dict:
        views.append(view)
        return {"better": "tie"}

    answer_all(study, clock, name, answer)
    assert len(views) == 4 + 2 + 2 and len({tuple(view) for view in views}) == 1
    text = json.dumps(views)
    for word in ("base", "tuned", "seed", ".wav", "swap", "repeat", "negative", "decoy", "model"):
        assert word not in text


def test_sides_repeats_and_negatives_are_what_is_played(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, "pairwise", equal_level=False)
    join(study, "ann")
    with study.store.reading() as connection:
        rows = connection.execute("SELECT * FROM trials").fetchall()
    for row in rows:
        trial = studies.trial_from(row)
        clips = clips_of(study, trial)
        waves = sounds(study, trial)
        assert [clip.seconds for clip in clips] == [
            wave.samples_CN.shape[1] / wave.sample_rate_hz for wave in waves
        ]
        first, second = study.items[trial.item].clips
        if trial.kind == "negative":
            second = study.items[trial.decoy].clips[0]
        assert clips == ((second, first) if trial.swapped else (first, second))


def test_a_clear_negative_of_quality_is_noise_at_the_level_of_the_clip(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    trial = studies.Trial(0, "negative", False)
    (clean,) = sounds(study, replace(trial, kind="item"))
    (wave,) = sounds(study, trial)
    rms = [one.samples_CN.square().mean().sqrt().item() for one in (clean, wave)]
    assert rms[1] == pytest.approx(rms[0], rel=0.05)
    likeness = torch.nn.functional.cosine_similarity(clean.samples_CN, wave.samples_CN).item()
    assert 0.3 < likeness < 0.6  # 1 / sqrt(1 + 2**2) = 0.45
    assert torch.equal(wave.samples_CN, sounds(study, trial)[0].samples_CN), "the same each time"


def test_headphones(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, headphones="require", questionnaire=True)
    view = next_view(study, join(study, "ann"))
    assert (view["stage"], view["attempt"], len(view["sounds"])) == ("headphones", 0, QUESTIONS)
    key = view["sounds"][0].split("/")[1]

    def right(attempt: int) -> list[int]:
        seed = f"{study.secret}/{key}/{attempt}"
        return [quiet for quiet, _ in headphone_questions(seed)]

    first = [headphone_sound(study, key, number) for number in range(QUESTIONS)]
    for wave, (quiet, opposite) in zip(
        first, headphone_questions(f"{study.secret}/{key}/0"), strict=True
    ):
        tones_C3N = wave.samples_CN[:, : 3 * 66_150 - 22_050].clone()
        parts = [tones_C3N[:, i * 66_150 : i * 66_150 + 44_100] for i in range(3)]
        levels = [part.square().mean().sqrt().item() for part in parts]
        assert levels.index(min(levels)) == quiet
        assert [round((part[0] * part[1]).sum().sign().item()) for part in parts].index(
            -1
        ) == opposite
        assert min(levels) / max(levels) == pytest.approx(0.501, abs=0.002)  # -6 dB
    for bad in ([0] * 5, [3] * 6, [True] * 6, "012012", None):
        with pytest.raises(UserError, match="answers"):
            answer_headphones(study, "ann", 0, bad)
    wrong = [(one + 1) % 3 for one in right(0)]
    answer_headphones(study, "ann", 0, wrong)
    answer_headphones(study, "ann", 0, right(0))  # sent again: the first result stays
    view = next_view(study, "ann")
    assert (view["stage"], view["attempt"]) == ("headphones", 1) and right(1) != right(0)
    almost = [(one + (i == 0)) % 3 for i, one in enumerate(right(1))]
    assert sum(a == b for a, b in zip(almost, right(1), strict=True)) == NEEDED
    answer_headphones(study, "ann", 1, almost)
    assert next_view(study, "ann")["stage"] == "trial"
    join(study, "ben")
    for attempt in range(2):
        answer_headphones(study, "ben", attempt, [0] * QUESTIONS)  # two of six are right
    assert next_view(study, "ben")["stage"] == "refused"
    checked = replace(study, settings=replace(study.settings, headphones="check"))
    assert next_view(checked, "ben")["stage"] == "trial", "only the result is saved"
    with pytest.raises(UserError):
        headphone_sound(study, "unknown", 0)
    assert three_tones(0, 1).samples_CN.shape == (2, 3 * 44_100 + 2 * 22_050)


def test_the_questionnaire_and_the_code_come_at_the_end(tmp_path: Path, clock: Clock) -> None:
    study = small_study(tmp_path, questionnaire=True)
    view = answer_all(study, clock, join(study, "ann"), lambda view: {"quality": "3"})
    assert view["stage"] == "questions" and "code" not in view
    with pytest.raises(UserError, match="answer"):
        answer_questionnaire(study, "ann", {"device": "headphones"})
    given = {"device": "headphones", "hearing": "no", "experience": "some"}
    answer_questionnaire(study, "ann", given)
    code = next_view(study, "ann")["code"]
    assert len(code) == 9 and next_view(small_study(tmp_path), "ann")["code"] == code
    answer_all(study, clock, join(study, "ben"), lambda view: {"quality": "3"})
    answer_questionnaire(study, "ben", given)
    assert next_view(study, "ben")["code"] != code
