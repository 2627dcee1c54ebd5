"""tools/evaluate.py: an invalid request is explained and writes no table; tables of folders."""

from __future__ import annotations

import json

import pytest
from toy_evaluation import evaluate, reward_file, sines

from zoo.evaluation import inputs
from zoo.evaluation.results import read_results
from zoo.evaluation.scores import ScoreCache

BASE = {"happy": [0.9, 0.9, 0.2, 0.2], "sad": [0.9, 0.2, 0.9, 0.9]}


@pytest.fixture
def rewards(tmp_path):
    return reward_file(tmp_path), reward_file(tmp_path, "similar", "Similarity")


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "say what is evaluated: one of --generations, --model, --combine"),
        (["--generations", "{g}", "--model", "x"], "got --generations and --model"),
        (["--generations", "{g}"], "--rewards is missing"),
        (["--generations", "{g}", "--rewards", "config"], "give --config too"),
        (["--generations", "{g}", "--rewards", "embedded/moood"], "did you mean 'embedded/mood'"),
        (["--generations", "{g}", "--rewards", "embedded/music"], "scores nothing; name a reward"),
        (["--generations", "{g}", "--rewards", "{j}", "{j}"], "names loudness twice"),
        (["--generations", "{g}", "--rewards", "no.yaml"], "there is no file no.yaml"),
        (["--generations", "{g}", "--rewards", "{run}"], "neither a _target_ nor a module.reward"),
        (["--generations", "{g}x", "--rewards", "{j}"], "did you mean 'g'"),
        (
            ["--model", "{g}x", "--rewards", "{j}"],
            "there is no model '.*gx', neither a name nor a folder",
        ),
        (
            ["--generations", "{empty}", "--rewards", "{j}"],
            "write a CSV with the header file,prompt,label",
        ),
        (["--generations", "{g}", "--table", "{rows}", "--rewards", "{j}"], "has no row"),
        (
            ["--generations", "{g}", "--table", "{bare}", "--rewards", "{j}"],
            r"has the mood None.*a column 'mood' or 'label'",
        ),
        (
            ["--generations", "{g}", "--table", "{missing}", "--rewards", "{j}"],
            "line 2: there is no file .*happy_9.wav; did",
        ),
        (
            ["--generations", "{g}", "--table", "{part}", "--rewards", "{j}"],
            "7 audio files are in no row of its table, first",
        ),
        (
            ["--generations", "{g}", "--table", "{twice}", "--rewards", "{j}"],
            "more than one row for happy_0.wav",
        ),
        (
            ["--generations", "{g}", "--table", "{outside}", "--rewards", "{j}"],
            "is not a file of .* itself",
        ),
        (
            ["--generations", "{g}", "--table", "{seeds}", "--rewards", "{j}"],
            "line 2: seed .*'x'",
        ),
        (["--generations", "{g}", "--table", "{quote}", "--rewards", "{j}"], "line 2: .*quotes"),
        (
            ["--generations", "{g}", "--rewards", "{nan}"],
            "returned score = nan for .*wav; listen to that clip",
        ),
        (
            ["--combine", "{g}", "--rewards", "{j}"],
            "--rewards belongs to evaluations, and --combine puts together",
        ),
        (["--combine", "{g}", "--name", "x"], "--name belongs to evaluations"),
        (
            ["--generations", "{g}", "--rewards", "{j}", "--steps", "5"],
            "--steps is for models that are sampled",
        ),
        (
            ["--generations", "{g}", "--baseline", "{g}", "--samples", "5"],
            "would be compared with itself",
        ),
        (
            ["--generations", "{g}", "--baseline", "{g2}", "--samples", "5"],
            "--samples is for models that are sampled",
        ),
        (
            ["--model", "base", "--config", "{run}", "--seconds", "5"],
            "--seconds belongs to --prompts; those of a configuration",
        ),
        (
            ["--model", "base", "--config", "{run}", "--negative", ""],
            "--negative belongs to --prompts",
        ),
        (
            ["--model", "base", "--config", "{run}", "--prompts", "{p}", "--which", "all"],
            "--which chooses among the prompts",
        ),
        (
            ["--model", "embedded/music", "--table", "{p}", "--prompts", "{p}"],
            "--table says what the files of a folder answer",
        ),
        (
            ["--model", "run/checkpoints/last.ckpt", "--rewards", "{j}"],
            "last.ckpt is the state of a run.*name the run's folder",
        ),
        (
            ["--generations", "{g}", "--rewards", "{j}", "--out", "{p}"],
            "p.csv is a file; name a folder",
        ),
        (
            ["--generations", "{g}", "--baseline", "{g}", "--role", "original"],
            "drop --role original",
        ),
        (["--generations", "{g}", "--adapter", "a"], "give --model too"),
        (
            [
                "--model",
                "embedded/music",
                "--adapter",
                "a=b",
                "--prompts",
                "{p}",
                "--rewards",
                "{j}",
            ],
            "expected NAME or NAME=",
        ),
        (["--model", "embedded/music", "--rewards", "{j}"], "no prompts: give --prompts FILE"),
        (
            ["--model", "embedded/music", "--prompts", "{p}", "--rewards", "{j}", "--samples", "0"],
            "--samples must be at least 1",
        ),
        (
            ["--model", "base", "--prompts", "{p}", "--rewards", "{j}"],
            "no module.backbone; name a model",
        ),
    ],
)
def test_bad_requests_say_so_and_leave_no_table(tmp_path, words, error):
    places = {
        "g": sines(tmp_path / "g", BASE),
        "g2": sines(tmp_path / "g2", BASE),
        "j": reward_file(tmp_path),
        "nan": reward_file(tmp_path, "nan", nan=True),
    }
    (tmp_path / "empty").mkdir()
    rows = "".join(f"{mood}_{i}.wav,a piano\n" for mood in BASE for i in range(4))
    tables = {
        "rows": "file,prompt\n",
        "bare": f"file,prompt\n{rows}",
        "missing": "file,prompt\nhappy_9.wav,a piano\n",
        "part": "file,prompt,label\nhappy_0.wav,a piano,happy\n",
        "twice": "file,prompt\nhappy_0.wav,a piano\nhappy_0.wav,a piano\n",
        "outside": "file,prompt\n../g/happy_0.wav,a piano\n",
        "seeds": "file,prompt,seed\nhappy_0.wav,a piano,x\n",
        "quote": 'file,prompt\nhappy_0.wav,"a piano\n',
        "p": "text,mood\na sad piano,sad\n",
    }
    (tmp_path / "run.yaml").write_text("{module: {_target_: toy_run.Line, width: 1}, out_dir: x}")
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    places |= {name: tmp_path / f"{name}.csv" for name in tables} | {
        "empty": tmp_path / "empty",
        "run": tmp_path / "run.yaml",
    }
    with pytest.raises((ValueError, OSError), match=error):
        evaluate("--out", tmp_path / "o", *(word.format(**places) for word in words))
    assert not list(tmp_path.glob("o/table*")) and not list(tmp_path.glob("o/results.json"))


def test_clips_take_the_labels_of_prompts_with_the_same_text(tmp_path, rewards):
    folder = sines(tmp_path / "g", {"happy": [0.9], "sad": [0.1]}, table="")
    entries = [
        {"file": f"{mood}_0.wav", "id": mood, "text": f"a {mood} piano", "seed": 3}
        for mood in ("happy", "sad")
    ]
    (folder / "samples.json").write_text(json.dumps(entries))
    words = ["--generations", folder, "--rewards", rewards[0], "--out", tmp_path / "o"]
    with pytest.raises(ValueError, match="'happy'.*mood.*None"):
        evaluate(*words)
    (tmp_path / "p.csv").write_text("text,mood\na happy piano,happy\na sad piano,sad\n")
    evaluate(*words, "--prompts", tmp_path / "p.csv")
    (one,) = read_results(tmp_path / "o").sets
    assert [
        (clip.sample, clip.labels["mood"], clip.predicted["loudness"]) for clip in one.clips
    ] == [
        (3, "happy", "happy"),
        (3, "sad", "sad"),
    ]
    (folder / "samples.json").write_text(json.dumps([{**entry, "id": "one"} for entry in entries]))
    with pytest.raises(ValueError, match="'one'.*seed 3"):
        evaluate(*words, "--prompts", tmp_path / "p.csv", "--overwrite")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"a": 1, "a": 2}'])
def test_records_of_an_evaluation_that_cannot_be_read_are_named(tmp_path, content):
    for name in ("source.json", "scores.json", "results.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"source\.json"):
        inputs._claim(tmp_path, {"steps": 2})
    with pytest.raises(ValueError, match=r"scores\.json"):
        ScoreCache(tmp_path / "scores.json")
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(tmp_path)
