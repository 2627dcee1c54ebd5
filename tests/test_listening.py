"""The blind test without its page: pairs, trials, and continuing where a listener stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy_listening import NAMES, RATE_HZ, folders, tone

from zoo.audio_files import write_audio
from zoo.generations import Sample, write_index
from zoo.listening.answers import read_answers, summarise
from zoo.listening.pairs import paired_difference, pairs_fingerprint, read_pairs, spread_pairs
from zoo.listening.trials import (
    BlindTest,
    equally_loud,
    give_answer,
    heard,
    listener_name,
    listening_test,
    next_view,
    playable,
    trials,
)
from zoo.types import Prompt, Waveform


def small_test(tmp_path: Path, count: int = 4, name: str = "answers.csv", **knobs) -> BlindTest:
    return listening_test(
        read_pairs(*folders(tmp_path, count)).pairs, tmp_path / name, NAMES, **knobs
    )


def test_pairs_are_of_one_prompt_and_seed(tmp_path: Path) -> None:
    before, after = folders(tmp_path, count=2, seeds=(3, 4))
    lines = json.loads((after / "samples.json").read_text())
    (after / "samples.json").write_text(
        json.dumps([lines[3], lines[1], lines[0]])
    )  # another order, and one is gone
    found = read_pairs(before, after)
    assert [(pair.prompt.id, pair.first.seed, pair.second.seed) for pair in found.pairs] == [
        ("p0", 3, 3),
        ("p0", 4, 4),
        ("p1", 4, 4),
    ]
    assert found.alone == 1 and all(pair.second.path.parent == after for pair in found.pairs)
    assert [pair.prompt.id for pair in spread_pairs(found.pairs, 2)] == [
        "p0",
        "p0",
    ] and spread_pairs(found.pairs, None) == found.pairs
    with pytest.raises(ValueError, match="count.* 4.* 3 pairs"):
        spread_pairs(found.pairs, 4)


def test_repeats_without_seeds_are_paired_in_order(tmp_path: Path) -> None:
    before, after = folders(tmp_path, count=1)
    for folder in (before, after):
        again = Sample(folder / "again.wav", Prompt("p0", "sound number 0", seconds=0.1))
        (folder / "00_None.wav").rename(folder / "first.wav")
        (folder / "again.wav").write_bytes((folder / "first.wav").read_bytes())
        (folder / "samples.json").unlink()
        write_index(folder, [Sample(folder / "first.wav", again.prompt), again])
    pairs = read_pairs(before, after).pairs
    assert [(pair.first.path.name, pair.second.path.name) for pair in pairs] == [
        ("first.wav",) * 2,
        ("again.wav",) * 2,
    ]


def test_folders_that_do_not_belong_together(tmp_path: Path) -> None:
    before, after = folders(tmp_path, count=1)
    with pytest.raises(ValueError, match="is given for both sides"):
        read_pairs(before, tmp_path / "after" / ".." / "before")
    index = json.loads((after / "samples.json").read_text())
    (after / "samples.json").write_text(json.dumps([{**index[0], "text": "wind"}]))
    with pytest.raises(
        ValueError,
        match="'p0'.*'sound number 0'.*before.*'wind'.*after",
    ):
        read_pairs(before, after)
    (after / "samples.json").write_text(json.dumps([{**index[0], "seed": 7}]))
    with pytest.raises(ValueError, match="no prompt .with its seed. is in both"):
        read_pairs(before, after)


def test_difference_counts_a_prompt_once() -> None:
    found = paired_difference(["a", "a", "b", "c"], [0.0, 0.2, 0.3, 0.5], [0.2, 0.4, 0.3, 0.4])
    assert (found.prompts, found.clips, found.higher, found.lower) == (3, 4, 1, 1)
    assert (
        found.first == pytest.approx(0.3)
        and found.second == pytest.approx(1 / 3)
        and found.change == pytest.approx(1 / 30)
    )
    # changes 0.2, 0, -0.1: deviation 0.15275, error 0.08819, Student's t of 2 degrees 4.30265
    assert found.interval == pytest.approx((1 / 30 - 0.37946, 1 / 30 + 0.37946), abs=1e-4)
    assert paired_difference(["a", "a"], [0, 0], [1, 2]).interval is None
    with pytest.raises(ValueError, match="got 0 prompts"):
        paired_difference([], [], [])
    with pytest.raises(ValueError, match="NaN or infinite"):
        paired_difference(["a"], [0.0], [float("nan")])


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_sides_are_balanced_and_every_pair_occurs_once(count: int) -> None:
    for listener in ("ann", "ben", "cem"):
        mine = trials(count, listener, seed=5)
        assert [trial.number for trial in mine] == list(range(1, count + 1))
        assert sorted(trial.pair for trial in mine) == list(range(count))
        assert sum(trial.a_is_second for trial in mine) in (count // 2, count - count // 2)


def test_trials_are_drawn_for_each_listener_and_seed_and_stay() -> None:
    assert trials(12, "ann", 5) == trials(12, "ann", 5)
    assert len({trials(12, name, seed) for name in ("ann", "ben") for seed in (5, 6)}) == 4
    firsts = [trials(8, f"listener {i}", 0)[0] for i in range(200)]
    assert 70 < sum(trial.a_is_second for trial in firsts) < 130, (
        "the first trial says nothing about the sides"
    )
    assert len({trial.pair for trial in firsts}) == 8
    by_pair = [
        sum(
            trial.a_is_second
            for i in range(200)
            for trial in trials(8, f"l{i}", 0)
            if trial.pair == pair
        )
        for pair in range(8)
    ]
    assert all(70 < count < 130 for count in by_pair), "nor does the pair"


def test_a_and_b_are_the_sounds_that_the_file_says(tmp_path: Path) -> None:
    test = small_test(tmp_path, equal_level=False)
    for trial in trials(4, "ann", test.seed):
        a, b = heard(test, trial)
        levels = [wave.samples_CN.abs().max().item() for wave in (a, b)]
        assert levels == pytest.approx([0.5, 0.25] if trial.a_is_second else [0.25, 0.5], abs=0.01)


def test_both_sides_are_equally_loud_unless_one_is_broken(tmp_path: Path) -> None:
    a, b = heard(small_test(tmp_path), trials(4, "ann", 0)[0])
    rms = [wave.samples_CN.square().mean().sqrt().item() for wave in (a, b)]
    assert rms == pytest.approx([0.25 / 2**0.5] * 2, rel=0.01), "that of the quieter one"
    silent = Waveform(torch.zeros(1, 80), RATE_HZ)
    loud = tone(0.9, 300)
    assert equally_loud(silent, loud) == (silent, loud)
    faint = tone(0.08, 300)
    assert equally_loud(faint, loud) == (faint, loud), "21 dB apart: that is to be heard"
    rate, samples = playable(Waveform(torch.tensor([[0.0, 1.5], [-1.0, 0.5]]), RATE_HZ))
    assert (
        rate == RATE_HZ
        and samples.dtype == torch.int16
        and samples.tolist() == [[0, -32767], [32767, 16384]]
    )


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_answers_are_saved_at_once_and_a_test_continues_where_it_stopped(
    tmp_path: Path, name: str
) -> None:
    test = small_test(tmp_path, name=name)
    mine = trials(4, "ann lee", 0)
    assert next_view(test, " ann  lee ").trial == mine[0] and not test.answers.exists()
    view = give_answer(test, "ann lee", 1, "A")
    assert (view.trial, view.done, view.total) == (mine[1], 1, 4)
    (saved,) = read_answers(test.answers).answers
    first = mine[0]
    assert (saved.a, saved.b) == (("tuned", "base") if first.a_is_second else ("base", "tuned"))
    assert (
        saved.preferred == saved.a
        and saved.prompt_id == test.pairs[first.pair].prompt.id
        and saved.pair == first.pair
    )
    again = small_test(tmp_path, name=name)  # the server was started anew
    assert again == test and next_view(again, "ann lee").trial == mine[1]
    assert next_view(again, "ben").done == 0, "another listener starts at the beginning"
    for number, answer in ((2, "B"), (3, "none"), (4, "A")):
        view = give_answer(again, "ann lee", number, answer)
    assert view.trial is None and view.done == 4
    assert [a.answer for a in read_answers(test.answers).answers] == ["A", "B", "none", "A"]


def test_the_first_answer_to_a_trial_stays(tmp_path: Path) -> None:
    test = small_test(tmp_path)
    give_answer(test, "ann", 1, "A")
    size = test.answers.stat().st_size
    view = give_answer(test, "ann", 1, "B")
    assert (
        view.done == 1
        and "first answer counts" in view.message
        and test.answers.stat().st_size == size
    )


@pytest.mark.parametrize("names", [("one", "two"), ("tuned", "base")])
def test_a_test_continues_with_its_original_names(tmp_path: Path, names) -> None:
    test = small_test(tmp_path)
    give_answer(test, "ann", 1, "A")
    with pytest.raises(ValueError, match=" and ".join(names)):
        listening_test(test.pairs, test.answers, names)
    assert listening_test(test.pairs, test.answers, NAMES) == test


def test_other_sounds_are_another_test(tmp_path: Path) -> None:
    test = small_test(tmp_path)
    give_answer(test, "ann", 1, "A")
    folders(tmp_path, 4, tuned_level=0.3)
    pairs = read_pairs(tmp_path / "before", tmp_path / "after").pairs
    other = listening_test(pairs, test.answers, NAMES)
    assert (
        other.name != test.name == pairs_fingerprint(test.pairs) or not next_view(other, "ann").done
    )
    assert next_view(other, "ann").done == 0
    give_answer(other, "ann", 1, "A")
    assert [one.test for one in summarise(read_answers(test.answers).answers)] == [
        test.name,
        other.name,
    ]


@pytest.mark.parametrize(
    ("listener", "number", "answer", "message"),
    [
        ("", 1, "A", "give a name or code of 1 to 64"),
        ("x" * 65, 1, "A", "give a name or code"),
        ("=cmd|x,", 1, "A", "give a name or code"),
        ("@SUM", 1, "A", "a letter or digit first"),
        ("ann", 1, "C", "the answer 'C' is unknown"),
        ("ann", 5, "A", "there is no trial 5; this test has 1 to 4"),
        ("ann", 0, "A", "there is no trial 0"),
    ],
)
def test_invalid_answers_are_not_saved(
    tmp_path: Path, listener: str, number: int, answer: str, message: str
) -> None:
    test = small_test(tmp_path)
    with pytest.raises(ValueError, match=message):
        give_answer(test, listener, number, answer)
    assert not test.answers.exists()


def test_names_are_of_any_language() -> None:
    for name in ("Ann-Marie O. 7", "O'Brien", "नमिता", "Ñandú", "山田 太郎", "7"):
        assert listener_name(f"  {name} ") == name
    assert listener_name("Jose\u0301") == listener_name("Jos\u00e9"), (
        "two ways to write one letter are one listener"
    )


def test_mistakes_are_found_before_anyone_listens(tmp_path: Path) -> None:
    pairs = read_pairs(*folders(tmp_path)).pairs
    with pytest.raises(ValueError, match="at least one pair"):
        listening_test([], tmp_path / "a.csv", NAMES)
    write_audio(pairs[1].second.path, Waveform(tone(0.5, 300).samples_CN[:, :-500], RATE_HZ))
    with pytest.raises(
        ValueError,
        match="lasts .* s and .* s",
    ):
        listening_test(pairs, tmp_path / "a.csv", NAMES)
    pairs[1].second.path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        listening_test(pairs, tmp_path / "a.csv", NAMES)
