"""Intervals, balanced means and comparisons of an evaluation, by simple arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from zoo.evaluation.page import _bars
from zoo.evaluation.results import (
    ClipSet,
    Results,
    ScoredClip,
    ScorerFacts,
    baseline_of,
    combined,
    pairs,
)
from zoo.evaluation.statistics import (
    Estimate,
    accuracy,
    accuracy_difference,
    confusion_matrix,
    mean,
    mean_difference,
    power_note,
)
from zoo.evaluation.tables import (
    Table,
    as_html,
    as_markdown,
    lines,
    one_class_means,
    parts_table,
    table_1,
    table_2,
)
from zoo.statistics.bootstrap import bootstrap_means, percentile_interval
from zoo.statistics.intervals import (
    clips_needed,
    mean_of_shares_interval,
    paired_shares_interval,
    smallest_rise,
    wilson_interval,
)

JUDGE = ScorerFacts("judge", "judge", "abc", ("happy", "angry", "sad", "tender"))
CLAP = ScorerFacts("toy", "clap/toy", "def")
# Table 1 of the paper, 25 clips a mood: base at 19 steps and 10 s, and trained
BASE_HITS, TRAINED_HITS = (25, 1, 0, 0), (15, 15, 6, 0)


def clip_set(
    hits, role="original", setting="19-step, 10 sec.", count=25, shift=0.0, name="m"
) -> ClipSet:
    clips = []
    for mood, right in zip(JUDGE.class_names, hits, strict=True):
        for i in range(count):
            called = mood if i < right else "happy" if mood != "happy" else "sad"
            values = {
                "judge": {"score": float(i < right)},
                "toy": {"score": 0.4 + 0.01 * i + shift},
            }
            clips.append(
                ScoredClip(
                    "f.wav",
                    mood,
                    f"a {mood} piano",
                    i,
                    {},
                    values,
                    {"judge": mood},
                    {"judge": called},
                )
            )
    return ClipSet(name, setting, role, tuple(clips))


def test_table_1_of_the_paper_is_its_own_numbers_with_intervals():
    found = accuracy(clip_set(BASE_HITS), JUDGE)
    assert [each.value for each in found.classes.values()] == [1.0, 0.04, 0.0, 0.0]
    assert found.balanced.value == pytest.approx(0.26) and found.count == 100 and found.prompts == 4
    assert (found.classes["angry"].low, found.classes["angry"].high) == pytest.approx(
        wilson_interval(1, 25)
    )
    assert found.confusion == [[25, 0, 0, 0], [24, 1, 0, 0], [25, 0, 0, 0], [25, 0, 0, 0]]
    # four prompts, one per class, whose shares are 1, .04, 0 and 0: of other prompts they say
    # nothing
    assert (found.balanced.low, found.balanced.high) == (0.0, 1.0)
    trained = accuracy(clip_set(TRAINED_HITS, "trained"), JUDGE)
    assert trained.balanced.value == pytest.approx(0.36)


def test_the_balanced_mean_does_not_weigh_classes_by_their_clips():
    one = clip_set((2, 2, 1, 0), count=2)
    few = ClipSet(
        "m", "s", "original", one.clips[:1] + one.clips[2:4]
    )  # one happy clip, two angry ones
    found = accuracy(few, JUDGE)
    assert found.classes["sad"] is None and found.classes["happy"].count == 1
    assert found.balanced.value == 1.0
    uneven = ClipSet(
        "m", "s", "original", (*one.clips[:1], *one.clips[4:6])
    )  # happy 1 of 1, sad 1 of 2
    assert accuracy(uneven, JUDGE).balanced.value == pytest.approx(0.75)
    assert one_class_means(Results((JUDGE,), (few,)), JUDGE) == [1 / 2], (
        "of four classes two were asked for"
    )
    assert one_class_means(Results((JUDGE,), (one, few, uneven)), JUDGE) == [1 / 4, 1 / 2]


def test_differences_are_paired_clip_by_clip():
    old = clip_set(BASE_HITS, shift=0.0)
    new = clip_set(TRAINED_HITS, "trained", shift=0.03)
    found = accuracy_difference(old, new, JUDGE)
    assert (
        found.is_paired
        and found.estimate.value == pytest.approx(0.10)
        and found.estimate.count == 100
    )
    changes = [
        -10 / 25,
        14 / 25,
        6 / 25,
        0.0,
    ]  # of the four prompts: happy loses 10 clips; angry wins 14, sad 6
    half = 3.18245 * np.std(changes, ddof=1) / 2  # Student's t of 3 degrees of freedom
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (0.10 - half, 0.10 + half), abs=1e-4
    )
    similar = mean_difference(old, new, CLAP)
    assert (
        similar.estimate.value == pytest.approx(0.03)
        and similar.estimate.high - similar.estimate.low < 1e-9
    )
    shuffled = ClipSet(new.name, new.setting, new.role, new.clips[::-1])
    assert accuracy_difference(old, shuffled, JUDGE).estimate.value == pytest.approx(0.10)
    fewer = ClipSet("m", new.setting, "trained", new.clips[:-1])
    apart = mean_difference(old, fewer, CLAP)
    assert (
        pairs(old, fewer) is None
        and not apart.is_paired
        and apart.estimate.low < apart.estimate.value < apart.estimate.high
    )
    assert not accuracy_difference(old, fewer, JUDGE).is_paired
    only_happy = ClipSet("m", new.setting, "trained", new.clips[:25])
    assert accuracy_difference(old, only_happy, JUDGE) is None


def test_no_change_is_not_certainty():
    low, high = mean_of_shares_interval([(0, 25)] * 4)
    assert low == 0 and high == pytest.approx(wilson_interval(0, 25)[1] / 2)
    assert mean_of_shares_interval([(5, 20)]) == pytest.approx(wilson_interval(5, 20))
    same = accuracy_difference(clip_set(BASE_HITS), clip_set(BASE_HITS, "trained"), JUDGE)
    assert same.estimate.value == 0
    assert (same.estimate.low, same.estimate.high) == pytest.approx(
        (-0.0513, 0.0513), abs=1e-4
    )  # 1.96 * sqrt(2 / 27 / 27 / 4)
    assert paired_shares_interval([(1, 0, 8)]) == pytest.approx(
        (0.1 - 0.3338, 0.1 + 0.3338), abs=1e-4
    )
    with pytest.raises(ValueError, match="gained . lost <= clips"):
        paired_shares_interval([(3, 3, 5)])
    with pytest.raises(ValueError, match="at least one"):
        mean_of_shares_interval([])


def test_the_smallest_rise_that_clips_can_show():
    assert clips_needed(0.26, 0.36) == pytest.approx(
        334.6, abs=0.1
    )  # the paper's gain at 80 % power
    assert (
        smallest_rise(0.26, 335) == pytest.approx(0.10, abs=1e-3)
        and smallest_rise(0.26, 100) > 0.18
    )
    assert smallest_rise(0.5, 2) is None and clips_needed(0.3, 0.3) == math.inf
    assert smallest_rise(1.0, 1000) is None
    with pytest.raises(ValueError, match=r"proportions.*0\.\.1"):
        clips_needed(0.5, 1.2)
    note = power_note(accuracy(clip_set(BASE_HITS), JUDGE))
    assert "100 independent clips per model show a rise of 0.19 or more from 0.26" in note
    assert "a rise of 0.10 needs 335 clips per model" in note


def test_the_bootstrap_gives_the_same_draws_and_knows_prompts():
    values = np.random.default_rng(0).normal(size=60)
    prompts = [i % 6 for i in range(60)]
    draws = bootstrap_means(values, prompts, draws=500)
    assert np.array_equal(draws, bootstrap_means(values, prompts, draws=500))
    assert not np.array_equal(draws, bootstrap_means(values, prompts, draws=500, seed=1))
    alone = bootstrap_means(values, list(range(60)), draws=2000)
    assert alone.std() == pytest.approx(
        values.std() / math.sqrt(60), rel=0.1
    ) and alone.mean() == pytest.approx(values.mean(), abs=0.02)
    alike = np.repeat(
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 10
    )  # all clips of a prompt are the same: 6 prompts, not 60 clips
    by_prompt = bootstrap_means(alike, np.repeat(np.arange(6), 10).tolist(), draws=2000).std()
    assert by_prompt == pytest.approx(0.5 / math.sqrt(6), rel=0.1)
    assert bootstrap_means(alike, list(range(60)), draws=2000).std() == pytest.approx(
        0.5 / math.sqrt(60), rel=0.1
    )


def test_the_bootstrap_of_classes_is_that_of_their_mean():
    hits = [1.0] * 30 + [1.0, 0.0]
    classes = ["a"] * 30 + ["b"] * 2
    draws = bootstrap_means(hits, list(range(32)), classes, draws=4000)
    assert set(np.round(draws, 6)) == {0.5, 0.75, 1.0} and draws.mean() == pytest.approx(
        0.75, abs=0.01
    )
    assert percentile_interval(draws) == (0.5, 1.0)
    with pytest.raises(ValueError, match="got 0 values"):
        bootstrap_means([], [])
    with pytest.raises(ValueError, match="finite"):
        bootstrap_means([float("nan")], ["p"])
    with pytest.raises(ValueError, match="one prompt"):
        bootstrap_means([1.0, 2.0], ["p"])


def test_confusion_refuses_unknown_classes():
    assert confusion_matrix(["a", "b", "b"], ["a", "a", "b"], ["a", "b"]) == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match="merry.* a, b"):
        confusion_matrix(["a"], ["merry"], ["a", "b"])


def test_tables_pair_originals_with_trained_models_of_their_setting():
    base = clip_set(BASE_HITS, name="base")
    other = clip_set((23, 0, 4, 2), setting="38-step, 5 sec.", name="base")
    one = clip_set(TRAINED_HITS, "trained", name="emopia")
    two = clip_set(BASE_HITS, "trained", name="clap", shift=0.03)
    results = Results((CLAP, JUDGE), (base, other, one, two))
    assert [(line.original, line.one) for line in lines(results)] == [
        (base, one),
        (base, two),
        (None, other),
    ]
    assert baseline_of(one, results.sets) is base
    assert baseline_of(other, results.sets) is None
    table = table_2(results)
    assert (
        table.header[2] == "similarity by clap/toy: original"
        and table.header[5] == "accuracy by judge: original"
    )
    first, second, third = table.rows
    assert (
        first[0] == "19-step, 10 sec. (emopia)"
        and first[1] == "100 (4)"
        and first[5].startswith("0.26 [")
    )
    assert first[6].startswith("0.36 [") and first[7].startswith("+0.10 [")
    assert (
        second[4].startswith("+0.030 [")
        and third[3] == third[4] == third[6] == "-"
        and third[0] == "38-step, 5 sec."
    )
    accuracies = table_1(results, JUDGE)
    assert accuracies.header == (
        "setting, model",
        "clips (prompts)",
        "happy",
        "angry",
        "sad",
        "tender",
        "mean",
    )
    assert accuracies.rows[0][2] == f"1.00 [{wilson_interval(25, 25)[0]:.2f}, 1.00] (25/25)"
    assert (
        "Fewer than 10 prompts (19-step, 10 sec. (clap); 19-step, 10 sec. (emopia); 38-step, 5"
        " sec.)" in table.notes[1]
    )
    assert "Fewer than 10 prompts" in table_1(results, JUDGE).notes[1], "under Table 1 too"
    assert "Fewer than 10 prompts" in parts_table(results, CLAP).notes[1]
    assert all(
        "over prompts" in each.notes[0]
        for each in (table, table_1(results, JUDGE), parts_table(results, CLAP))
    )
    assert sum("speaks for that prompt only" in note for note in table_1(results, JUDGE).notes) == 4
    assert sum("80 % power" in note for note in accuracies.notes) == 2  # once a setting
    assert any("a mean of at most 0.25" in note for note in accuracies.notes) and any(
        "fingerprint abc" in note for note in accuracies.notes
    )


def test_every_table_counts_its_clips():
    base = clip_set(BASE_HITS)
    trained = clip_set(TRAINED_HITS, "trained")
    fewer = ClipSet(trained.name, trained.setting, trained.role, trained.clips[:50])
    both = Results((JUDGE, CLAP), (base, trained))
    uneven = Results((JUDGE, CLAP), (base, fewer))
    for results, sizes in ((both, "100 (4)"), (uneven, "100 (4) / 50 (2)")):
        for table in (table_2(results), parts_table(results, CLAP)):
            assert table.header[1] == "clips (prompts)" and {row[1] for row in table.rows} == {
                sizes
            }
    assert [row[1] for row in table_1(uneven, JUDGE).rows] == ["100 (4)", "50 (2)"]


def test_a_set_without_a_scorer_has_dashes():
    plain = ClipSet(
        "m",
        "s",
        "trained",
        tuple(ScoredClip("f", "p", "t", i, {}, {"toy": {"score": 0.1}}) for i in range(3)),
    )
    assert (
        accuracy(plain, JUDGE) is None
        and mean(plain, JUDGE) is None
        and mean(plain, CLAP).value == pytest.approx(0.1)
    )
    assert table_1(Results((JUDGE,), (plain,)), JUDGE).rows == ()
    table = table_2(Results((JUDGE, CLAP), (plain,)))
    assert table.header[2:] == ("accuracy by judge: trained", "similarity by clap/toy: trained")
    assert table.rows[0][2] == "-"
    assert table.rows[0][3].startswith("0.100 (")


def test_combining_keeps_each_set_once_and_refuses_other_scorers():
    base = clip_set(BASE_HITS)
    one = clip_set(TRAINED_HITS, "trained", name="t")
    two = clip_set(BASE_HITS, "trained", name="t")
    both = combined({"a": Results((JUDGE,), (base, one)), "b": Results((JUDGE, CLAP), (base, two))})
    assert [each.name for each in both.sets] == ["m", "t", "t (b)"] and both.scorers == (
        JUDGE,
        CLAP,
    )
    with pytest.raises(ValueError, match=r"\bb .*fingerprint other"):
        combined(
            {
                "a": Results((JUDGE,), (base,)),
                "b": Results((ScorerFacts("judge", "judge", "other"),), (one,)),
            }
        )


def test_tables_as_text_and_html_escape_what_is_in_them():
    table = Table("T <1>", ("a", "b"), (("x | y", "<script>\n"),), ("a & b",))
    assert (
        as_markdown([table])
        == "## T <1>\n\n| a | b |\n| --- | --- |\n| x \\| y | <script> |\n\n- a & b\n"
    )
    assert (
        "<script>" not in as_html(table)
        and "&lt;script&gt;" in as_html(table)
        and "a &amp; b" in as_html(table)
    )


def spread_set(hits_of_prompts: dict[str, list[list[int]]], role: str = "original") -> ClipSet:
    """Mood -> for each of its prompts the hits of its clips."""
    clips = []
    for mood, prompts in hits_of_prompts.items():
        for place, hits in enumerate(prompts):
            for i, hit in enumerate(hits):
                called = {"judge": mood if hit else "angry" if mood == "sad" else "sad"}
                values = {"judge": {"score": float(hit)}}
                clips.append(
                    ScoredClip("f", f"{mood}-{place}", "t", i, {}, values, {"judge": mood}, called)
                )
    return ClipSet("m", "s", role, tuple(clips))


def test_the_share_of_a_class_is_over_its_prompts():
    one = spread_set({"sad": [[1] * 20, [0] * 20, [1] * 20]})
    sad = accuracy(one, JUDGE).classes["sad"]
    half = (
        4.30265 / 3
    )  # t of two degrees of freedom; deviation 1 / sqrt 3 of the shares, over sqrt 3
    assert (
        (sad.value, sad.prompts) == (pytest.approx(2 / 3), 3)
        and (sad.low, sad.high) == (0.0, 1.0)
        and 2 / 3 + half > 1
    )
    sure = accuracy(spread_set({"sad": [[1] * 20] * 3}), JUDGE).classes["sad"]
    assert (sure.low, sure.high) == pytest.approx(wilson_interval(60, 60)), (
        "shares that are all 1 are no certainty"
    )


def test_many_prompts_per_class_stay_within_bounds():
    hits = {mood: [[1, 1, 1, int(place > 0)] for place in range(12)] for mood in ("sad", "angry")}
    found = accuracy(spread_set(hits), JUDGE).balanced
    assert found.value == pytest.approx(47 / 48) and found.high == 1.0 and 0.9 < found.low < 0.98


def test_a_single_prompt_has_no_interval_and_says_so():
    clips = tuple(ScoredClip("f", "p", "t", i, {}, {"toy": {"score": 0.1 * i}}) for i in range(3))
    one = ClipSet("m", "s", "trained", clips)
    assert (
        mean(one, CLAP).low is None
        and "one prompt, no interval" in table_2(Results((CLAP,), (one,))).rows[0][2]
    )
    change = mean_difference(ClipSet("b", "s", "original", clips), one, CLAP)
    assert change.is_paired and change.estimate.low is None


def test_unpaired_arms_are_not_drawn_together():
    old = clip_set(BASE_HITS)
    new = ClipSet(
        "t",
        old.setting,
        "trained",
        tuple(replace(clip, sample=clip.sample + 100) for clip in old.clips),
    )
    apart = mean_difference(old, new, CLAP).estimate
    alone = mean(old, CLAP)
    assert apart.value == 0 and not mean_difference(old, new, CLAP).is_paired
    assert apart.high - apart.low >= 0  # all prompts have one mean here: nothing varies
    shifted = [
        replace(clip, values={"toy": {"score": float("hast".index(clip.id[0]))}})
        for clip in old.clips
    ]
    old = replace(old, clips=tuple(shifted))
    new = replace(new, clips=tuple(replace(clip, sample=clip.sample + 100) for clip in shifted))
    apart = mean_difference(old, new, CLAP).estimate
    alone = mean(old, CLAP)
    widths = [each.high - each.low for each in (apart, alone)]
    assert widths[0] == pytest.approx(
        widths[1] * math.sqrt(2) * 2.44691 / 3.18245, rel=1e-4
    )  # t of 6 and of 3 degrees


def test_error_bars_reach_from_low_to_high():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    found = [Estimate(0.5, 0.4, 0.9, 3, 2), Estimate(0.2, None, None, 3, 1)]
    _bars(axis, [clip_set(BASE_HITS)], ["one", "none"], lambda one: found)
    (lines_drawn,) = [
        container for container in axis.containers if isinstance(container, ErrorbarContainer)
    ]
    ends = [sorted(segment[:, 1]) for segment in lines_drawn[2][0].get_segments()]
    assert ends == [pytest.approx([0.4, 0.9]), pytest.approx([0.2, 0.2])]
