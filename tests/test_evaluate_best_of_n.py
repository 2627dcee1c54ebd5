"""tools/evaluate.py: the row "best of n" beside a trained model, its cost, and errors."""

from __future__ import annotations

import json

import pytest
from toy_evaluation import evaluate, reward_file, sines

from zoo.evaluation.beside import best_of_n_table, draw_best_of_n, picking_of, ways
from zoo.evaluation.results import ClipSet, Picking, Results, ScoredClip, ScorerFacts, read_results

BASE = {"happy": [0.9, 0.9, 0.2, 0.2], "sad": [0.9, 0.2, 0.9, 0.9]}  # prompts in turn
TRAINED = {"happy": [0.9, 0.9, 0.9, 0.2], "sad": [0.2, 0.2, 0.9, 0.9]}


@pytest.fixture
def rewards(tmp_path):
    return reward_file(tmp_path), reward_file(tmp_path, "similar", "Similarity")


@pytest.fixture
def folders(tmp_path):
    base = sines(tmp_path / "base", BASE, prompts=2)
    return base, sines(tmp_path / "trained", TRAINED, prompts=2)


def best_row(path):
    record = json.loads((path / "results.json").read_text())
    (row,) = [way for way in record["summary"]["best_of_n"] if way["title"].startswith("best of")]
    return record, row


def test_choosing_stands_beside_the_trained_model(tmp_path, rewards, folders, capsys):
    base, trained = folders
    words = ["--generations", trained, "--baseline", base, "--setting", "s", "--rewards", *rewards]
    evaluate(*words, "--pick-by", rewards[1], "--best-of", 2, "--out", tmp_path / "o")
    record, row = best_row(tmp_path / "o")
    assert record["picking"] == {"by": "toy", "n": 2}
    assert row["title"] == "best of 2 by toy (base)" and row["own"] == "toy"
    # the loudest of both prompts that ask for a happy piano is right (half of all are), of the sad
    # ones none is (no clip of one, half of the other)
    assert row["values"]["loudness"]["value"] == pytest.approx((1 + 0) / 2)
    gain = row["differences"]["loudness"]
    assert row["values"]["loudness"]["high"] > 0.7  # all or none of a class right is not certainty
    assert gain["estimate"]["value"] == pytest.approx((0.5 - 0.25) / 2) and gain["is_paired"]
    assert row["values"]["toy"]["value"] == pytest.approx(0.9 / 2**0.5, abs=1e-3)
    assert (row["forwards"], row["reward_calls"]) == ("2 x", "2")
    titles = [way["title"] for way in record["summary"]["best_of_n"]]
    assert titles == ["s original: base", "best of 2 by toy (base)", "s trained: trained"]
    text = (tmp_path / "o" / "table2.md").read_text()
    assert "Table 3: beside the best of 2" in text and "| (0.636 [0.636, 0.636]) |" in text
    assert "Table 3" in capsys.readouterr().out
    assert "Table 3" in (tmp_path / "o" / "report.html").read_text()
    assert (tmp_path / "o" / "best_of_n.png").stat().st_size > 5000


def test_no_row_unasked_where_no_reward_is_known_to_have_trained(tmp_path, rewards, folders):
    base, trained = folders
    evaluate(
        "--generations", trained, "--baseline", base, "--rewards", *rewards, "--out", tmp_path / "o"
    )
    record = json.loads((tmp_path / "o" / "results.json").read_text())
    assert record["picking"] is None and record["summary"]["best_of_n"] == []
    assert "Table 3" not in (tmp_path / "o" / "table2.md").read_text()
    assert not (tmp_path / "o" / "best_of_n.png").exists()


def test_combine_keeps_the_row_or_asks_for_another(tmp_path, rewards, folders):
    base, trained = folders
    words = ["--generations", trained, "--baseline", base, "--setting", "s", "--rewards", *rewards]
    evaluate(*words, "--pick-by", "toy", "--out", tmp_path / "o")  # all of a prompt: 2
    one = read_results(tmp_path / "o")
    assert one.picking == Picking("toy", 2)
    evaluate("--combine", tmp_path / "o", "--out", tmp_path / "same")
    assert best_row(tmp_path / "same")[1] == best_row(tmp_path / "o")[1]
    evaluate("--combine", tmp_path / "o", "--out", tmp_path / "else", "--pick-by", "loudness")
    record, row = best_row(tmp_path / "else")
    assert record["picking"]["by"] == row["own"] == "loudness"
    evaluate("--combine", tmp_path / "o", "--out", tmp_path / "none", "--best-of", 1)
    assert json.loads((tmp_path / "none" / "results.json").read_text())["picking"] is None
    path = tmp_path / "o" / "results.json"
    record = json.loads(path.read_text())
    del record["picking"]  # of an earlier version
    path.write_text(json.dumps(record))
    assert read_results(tmp_path / "o").picking is None


LOUD = ScorerFacts("loud", "loud", "1")
CLAP = ScorerFacts("clap", "clap", "2")


def clip_set(role, rows, source=None) -> ClipSet:
    """``rows``: prompt -> (loud, clap) per clip."""
    clips = [
        ScoredClip("f", prompt, prompt, i, {}, {"loud": {"score": a}, "clap": {"score": b}})
        for prompt, pairs in rows.items()
        for i, (a, b) in enumerate(pairs)
    ]
    return ClipSet(role, "s", role, tuple(clips), source or {})


ROWS = {"a": [(1.0, 0.2), (2.0, 0.8)], "b": [(4.0, 0.1), (3.0, 0.5)]}
HOW = {"steps": 10, "guidance_scale": 3.0, "eta": [0.5] * 10, "rule": "ddim"}


def test_the_cost_is_that_of_the_sampler():
    sets = (clip_set("original", ROWS, HOW), clip_set("trained", ROWS, HOW))
    plain, best, trained = ways(Results((CLAP, LOUD), sets, Picking("loud", 2)))[0]
    prices = [(way.forwards, way.reward_calls) for way in (plain, best, trained)]
    assert prices == [("20", "0"), ("40", "2"), ("20", "0")]
    found = best.differences["clap"].estimate  # picks .8 and .1 where the means are .5 and .3
    assert found.value == pytest.approx((0.3 - 0.2) / 2) and found.prompts == 2
    assert trained.differences["clap"].estimate.value == 0


def test_one_network_under_two_names_does_not_judge_its_choice(tmp_path):
    twin = ScorerFacts("clap", "clap", LOUD.fingerprint)
    results = Results((twin, LOUD), (clip_set("original", ROWS),), Picking("loud", 2))
    assert ways(results)[0][1].own == "clap"
    alone = Results((LOUD,), (clip_set("original", ROWS),), Picking("loud", 2))
    assert "Nothing else judges" in " ".join(best_of_n_table(alone).notes)
    assert draw_best_of_n(alone, tmp_path / "one.png")
    assert best_of_n_table(Results((LOUD,), (clip_set("original", ROWS),))) is None


NAMES = {"loud": LOUD, "loud.yaml": LOUD, "clap": CLAP}


def test_what_picks_by_default():
    assert picking_of(None, None, NAMES, "loud.yaml", [6, 6]) == Picking("loud", 4)
    assert picking_of(None, None, NAMES, "loud", [6, 3]) == Picking("loud", 3)
    assert picking_of(None, None, NAMES, "loud", [6, 1]) is None
    assert picking_of(None, None, NAMES, None, [6]) is None
    assert picking_of(None, None, NAMES, "else", [6]) is None
    assert picking_of(None, None, NAMES, "loud", []) is None  # nothing to pick from
    assert picking_of(None, 1, NAMES, "loud", [6]) is None
    assert picking_of("clap", 2, NAMES, "loud", [6]) == Picking("clap", 2)
    assert picking_of(None, None, NAMES, Picking("clap", 2), [6]) == Picking("clap", 2)


BAD = {
    "an unknown reward": (("else", None, NAMES, None, [6]), "not among .*: loud, clap"),
    "a number alone": ((None, 4, NAMES, None, [6]), "--pick-by NAME"),
    "nothing to pick from": (("loud", None, NAMES, None, []), "--baseline too"),
    "too few clips": (("loud", 4, NAMES, None, [6, 3]), "--best-of 4: a prompt has 3 clips"),
    "one clip": (("loud", None, NAMES, None, [1]), "a prompt has 1 clip,"),
}


@pytest.mark.parametrize(("asked", "error"), BAD.values(), ids=BAD)
def test_refusals(asked, error):
    with pytest.raises(ValueError, match=error):
        picking_of(*asked)


def test_too_few_clips_are_refused_before_anything_is_scored(tmp_path, rewards, folders):
    base, trained = folders
    words = ["--generations", trained, "--baseline", base, "--rewards", *rewards]
    with pytest.raises(ValueError, match="a prompt has 2 clips"):
        evaluate(*words, "--pick-by", "toy", "--best-of", 3, "--out", tmp_path / "o")
    with pytest.raises(ValueError, match="--best-of must be at least 1"):
        evaluate(*words, "--pick-by", "toy", "--best-of", 0, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").iterdir())
