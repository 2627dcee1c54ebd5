"""docs/collecting_labels.md, walked through: every command on it, with three raters."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_raters import rate

from datamodules.preferences.dialects import read_labels
from zoo.errors import reported
from zoo.generations import read_samples
from zoo.listening.study import found_trial
from zoo.listening.vote_results import read_study
from zoo.listening.vote_store import open_store
from zoo.loading import load

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "collecting_labels.md"
PROMPTS = (
    ("a cow moos, then a hammer knocks", "cow; hammer"),
    ("a crow caws and a sheep bleats", "crow; sheep"),
    ("an explosion, followed by a car horn", "explosion; car horn"),
    ("a ship horn and a whistle", "ship horn; whistle"),
    ("glass breaks, then a lion roars", "glass; lion"),
    ("a choir sings and bubbles rise", "choir; bubbles"),
)
SECONDS = 0.5
# what makes the commands of the page short enough for a test
SHORT = {
    "generate.py": ["--seconds", str(SECONDS), "--steps", "2"],
    "annotate.py": ["--seconds", str(SECONDS), "--steps", "2"],
    "label": ["--port", "0", "--headphones", "off"],
    "quickstart.yaml": [
        "trainer.max_steps=2",
        "module.optimizer.warmup_steps=1",
        "trainer.precision=32-true",
    ],
    "reward_integrity.yaml": ["trainer.max_epochs=3"],
}


def commands() -> list[list[str]]:
    """The commands of the walk, each as words."""
    walk = PAGE.read_text("utf-8").partition("\n## ")[2].partition("\n## ")[0]
    blocks = re.sub(r"\\\n\s*", "", walk)
    found = [shlex.split(line) for line in re.findall(r"^    (python .+)$", blocks, re.M)]
    for words in found:
        words[0] = sys.executable
        for name, more in SHORT.items():
            if any(word.endswith(name) for word in words):
                words += more
    return found


Ears = Callable[[dict[str, Any]], dict[str, Any]]


def served(words: list[str], here: Path, environment: dict[str, str], answer: Ears) -> None:
    """Three raters answer everything that a labelling command asks."""
    server = subprocess.Popen(words, cwd=here, env=environment, stdout=subprocess.PIPE, text=True)
    codes: dict[str, str] = {}
    try:
        for line in server.stdout:
            if found := re.fullmatch(r"open http://127\.0\.0\.1:(\d+)/\n", line):
                break
        port = int(found[1])

        def label(name: str) -> None:
            codes[name] = rate(port, name, SECONDS, answer)

        threads = [threading.Thread(target=label, args=(name,)) for name in ("ann", "ben", "cem")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.terminate()
        server.wait(60)
    assert len(set(codes.values())) == 3, "every rater came to the end"


def ears(votes: Path) -> Ears:
    """Answers: both sounds where the text says "then" or "horn", else the first; A of two clips.

    Clear negatives, which the page does not tell from others, are looked up instead of heard.
    """

    def answer(view: dict[str, Any]) -> dict[str, Any]:
        with open_store(votes).reading() as connection:
            _, trial = found_trial(connection, view["key"])
        is_negative = trial.kind == "negative"
        if len(view["sounds"]) == 2:
            return {"better": "b" if is_negative and trial.swapped else "a"}
        both = re.search("then|horn", view["text"]) is not None
        heard = 0 if is_negative else 2 if both else 1
        return {"heard": list(view["fields"][0]["options"])[:heard]}

    return answer


def run(words: list[str]) -> int:
    """Runs a tool in this process, which imports everything once; returns its exit status."""
    path = list(sys.path)
    try:
        main = runpy.run_path(str(ROOT / words[1]), run_name="tool")["main"]
        return reported(main, words[2:])
    finally:
        sys.path[:] = path  # tools put the project first


@pytest.mark.slow
def test_the_walk_from_clips_to_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    study = tmp_path / "study"
    study.mkdir()
    rows = [f'"{text}",{events}' for text, events in PROMPTS]
    (study / "prompts.csv").write_text("\n".join(["text,events", *rows]) + "\n")
    (study / "more.txt").write_text("a cow moos and glass breaks\na lion roars\n")
    (study / "held_out.txt").write_text("a crow caws\nbubbles and a choir\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    steps = [(Path(words[1]).stem, words) for words in commands()]
    assert " ".join(step for step, _ in steps) == (
        "generate listen listen listen labels fit annotate fit generate generate listen"
    )
    for _, words in steps:
        if words[2] == "label":
            votes = tmp_path / words[words.index("--votes") + 1]
            served(words, tmp_path, environment, ears(votes))
            continue
        capsys.readouterr()
        assert run(words) == 0, (words, capsys.readouterr())
        if words[2] == "results":
            said = capsys.readouterr().out
            assert "2 of 2" in said and "Krippendorff's alpha (interval): 1.000" in said

    labels = read_labels(study / "labels.jsonl").checked()
    assert len(labels) == 24 and {record.task for record in labels} == {"integrity"}
    counts = [len(record.votes) for record in labels]
    assert sum(counts) == 3 * 12 and max(counts) - min(counts) <= 1, "coverage is balanced"
    for record in labels:
        truth = float(bool(re.search("then|horn", record.prompt)))
        assert {vote.value for vote in record.votes} == {truth}
    scores = read_labels(study / "scores.jsonl").checked()
    assert len(scores) == 8 and all(0 <= record.score <= 1 for record in scores)
    assert load(str(study / "reward" / "model")).differentiable in (True, False)
    assert len(read_samples(study / "after")) == 8
    comparison = read_study(open_store(study / "comparison.sqlite"))
    assert [len(item.clips) for item in comparison.items] == [2] * 8
    assert len(comparison.raters) == 3 and all(one.code for one in comparison.raters)
    assert (study / "results.html").stat().st_size > 10_000
