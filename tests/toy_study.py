"""Small labelling studies: folders of short clips with sounds in their labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_listening import tone

from datamodules.preferences.dialects import write_labels
from datamodules.preferences.votes import aggregate, krippendorff_alpha
from zoo.audio_files import write_audio
from zoo.commands import listen as listen_command
from zoo.commands.label import LabelFormats
from zoo.generations import Sample, write_index
from zoo.listening import study as studies
from zoo.listening.items import read_items
from zoo.listening.study import Study, open_study, play_ended, play_started, vote
from zoo.listening.study_trials import StudySettings
from zoo.listening.study_views import next_view
from zoo.types import Prompt

EVENTS = (("dog", "rain"), ("horn", "birds"), ("thunder", "sheep"), ("bell", "train"))


def command(argv: Sequence[str]) -> None:
    """What tools/listen.py does."""
    formats = LabelFormats(
        lambda records, rule: aggregate(records, rule)[0], write_labels, krippendorff_alpha
    )
    listen_command.main(argv, formats)


def generations(
    root: Path,
    name: str = "base",
    count: int = 4,
    seeds: Sequence[int] = (1,),
    seconds: float = 0.2,
    hz: float = 200.0,
) -> Path:
    """A folder of tones, each of another frequency, for captions without common words."""
    samples = []
    for i in range(count):
        events = EVENTS[i]
        for seed in seeds:
            path = root / name / f"{i:02d}_seed{seed}.wav"
            write_audio(path, tone(0.3, hz + 40 * i + 7 * seed, seconds))
            labels = {"events": list(events), "relation": "then"}
            prompt = Prompt(f"p{i}", f"{events[0]}, then {events[1]}", "", seconds, labels=labels)
            samples.append(Sample(path, prompt, seed))
    write_index(root / name, samples)
    return root / name


def small_study(tmp_path: Path, task: str = "quality", **settings: Any) -> Study:
    """A study of two systems with four clips each, in votes.sqlite; opened again if it is there."""
    folders = [tmp_path / name for name in ("base", "tuned")]
    if not folders[0].exists():
        generations(tmp_path, "base")
        generations(tmp_path, "tuned", hz=500.0)
    settings = {"headphones": "off", "questionnaire": False, **settings}
    found = read_items(folders, task == "pairwise")
    return open_study(tmp_path / "votes.sqlite", found.items, StudySettings(task, **settings))


class Clock:
    """Time that passes when it is told to, in place of ``time.time`` in a study."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.time()
        monkeypatch.setattr(studies.time, "time", lambda: self.now_s)

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


def listen(study: Study, clock: Clock, view: dict[str, Any]) -> None:
    """Hears every clip of a trial to its end."""
    for side in range(len(view["sounds"])):
        play = play_started(study, view["key"], side)
        clock.passes(1.0)
        assert play_ended(study, play)


def answer_all(
    study: Study, clock: Clock, rater: str, answer: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Answers every trial that is left; returns the last view."""
    while (view := next_view(study, rater))["stage"] == "trial":
        listen(study, clock, view)
        vote(study, view["key"], f"click {view['key']}", answer(view), 1500.0)
    return view
