"""Verdicts of the judges on sets of clips with captions of scenes, as tables and a picture.

Columns, intervals and their meaning: ``embedded_sounds.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.evaluation import Clips, markdown_table, shown
from benchmarks.sound_judges import (
    EventJudge,
    Tagger,
    TextAudioJudge,
    in_order,
    is_hit,
    label_indices,
    matched_above_random,
    presence,
)
from datamodules.sounds.captions import RELATIONS
from zoo.files import written_beside
from zoo.statistics.clustered import clustered_mean
from zoo.statistics.intervals import wilson_interval
from zoo.types import Reward


@dataclass(frozen=True)
class EventVerdict:
    """The verdict on one event of a caption.

    - ``prompt``: the id of the caption.
    - ``new_recording``: its class is split by recording, so training never used its recordings.
    - ``above_absent``: None where every class of the model shares a label with the scene.
    """

    prompt: str
    sound_class: str
    relation: str
    new_recording: bool
    heard: bool
    p: float
    above_absent: float | None


@dataclass(frozen=True)
class ClipVerdict:
    """The verdict on one clip; a field that does not apply is None.

    ``in_order`` applies to "then" clips, ``nearest`` (the nearest class) to clips of one sound.
    """

    prompt: str
    relation: str
    sound_classes: tuple[str, ...]
    in_order: bool | None
    nearest: str | None
    caption: float | None
    reward: float | None


@dataclass(frozen=True)
class SetVerdicts:
    events: tuple[EventVerdict, ...]
    clips: tuple[ClipVerdict, ...]


def verdicts(
    clips: Clips,
    tagger: Tagger,
    judge: EventJudge,
    caption_judge: TextAudioJudge | None,
    reward: Reward | None,
) -> SetVerdicts:
    """All verdicts on clips whose prompts have the labels of ``captions.scene_labels``."""
    heard_BPK = tagger(clips.wave_BCN, clips.sample_rate_hz)
    captions = [None] * len(clips.prompts)
    if caption_judge is not None:
        captions = matched_above_random(
            caption_judge.scores(heard_BPK, [prompt.text for prompt in clips.prompts])
        ).tolist()
    rewards = [None] * len(clips.prompts)
    if reward is not None:
        pairs = zip(
            clips.wave_BCN.split(16),
            (clips.prompts[i : i + 16] for i in range(0, len(clips.prompts), 16)),
        )
        rewards = torch.cat(
            [reward(wave, clips.sample_rate_hz, prompts).score_B for wave, prompts in pairs]
        ).tolist()
    events = []
    rows = []
    for probability_PK, prompt, caption, score in zip(
        heard_BPK, clips.prompts, captions, rewards, strict=True
    ):
        relation = prompt.labels["relation"]
        classes = tuple(prompt.labels["events"])
        indices = [label_indices(labels, judge.class_names) for labels in prompt.labels["audioset"]]
        for name, new, own in zip(classes, prompt.labels["recording_split"], indices, strict=True):
            above = judge.separation(probability_PK, own, indices)
            verdict = (is_hit(probability_PK, own), presence(probability_PK, own), above)
            events.append(EventVerdict(prompt.id, name, relation, bool(new), *verdict))
        order = in_order(probability_PK, indices) if relation == "then" else None
        nearest = judge.nearest_class(probability_PK) if relation == "single" else None
        rows.append(ClipVerdict(prompt.id, relation, classes, order, nearest, caption, score))
    return SetVerdicts(tuple(events), tuple(rows))


Column = Sequence[tuple[str, float]]  # (prompt, value)


def share_interval(column: Column) -> tuple[float, float, float]:
    """(mean over captions, low, high) of hits.

    The interval is the wider one of Student's t over captions and Wilson's over the hits.
    """
    prompts, hits = zip(*column, strict=True)
    found = clustered_mean(hits, prompts)
    low, high = wilson_interval(sum(hits), len(hits))
    if found.low is not None and found.high is not None:
        low = max(0.0, min(low, found.low))
        high = min(1.0, max(high, found.high))
    return found.value, low, high


def share(column: Column) -> str:
    """``.83 [.74, .90] (60)``: a share, its interval and the number of values; a dash for none."""
    if not column:
        return "-"
    value, low, high = share_interval(column)
    return f"{value:.2f} [{low:.2f}, {high:.2f}] ({len(column)})"


def mean(column: Sequence[tuple[str, float | None]]) -> str:
    """``.83 [.75, .91]`` over captions, without None; a dash for fewer than two captions."""
    known = [(prompt, value) for prompt, value in column if value is not None]
    prompts = [prompt for prompt, _ in known]
    if len(set(prompts)) < 2:
        return "-"
    return shown(clustered_mean([value for _, value in known], prompts))


def right_class(clip: ClipVerdict) -> bool:
    return clip.nearest == clip.sound_classes[0]


def set_table(sets: Mapping[str, SetVerdicts]) -> str:
    """One row per set; the numbers in round brackets count the values."""
    relations = [
        name
        for name in RELATIONS
        if any(clip.relation == name for rows in sets.values() for clip in rows.clips)
    ]
    has_caption, has_reward = (
        any(getattr(clip, name) is not None for rows in sets.values() for clip in rows.clips)
        for name in ("caption", "reward")
    )
    header = [
        "clips",
        "n",
        "heard",
        "heard, new recordings",
        "heard, known recordings",
        f"heard: {', '.join(relations)}",
        "p",
    ]
    header += [
        "above absent",
        "order",
        "class",
        *(["caption"] if has_caption else []),
        *(["reward"] if has_reward else []),
    ]
    lines = []
    for name, rows in sets.items():
        events = rows.events
        clips = rows.clips
        by_relation = [
            [event.heard for event in events if event.relation == relation]
            for relation in relations
        ]
        line = [name, str(len(clips)), share([(event.prompt, event.heard) for event in events])]
        line += [
            share([(event.prompt, event.heard) for event in events if event.new_recording is new])
            for new in (True, False)
        ]
        line += [
            " ".join(f"{np.mean(heard):.2f}" for heard in by_relation),
            mean([(event.prompt, event.p) for event in events]),
        ]
        line += [mean([(event.prompt, event.above_absent) for event in events])]
        line += [
            share([(clip.prompt, clip.in_order) for clip in clips if clip.in_order is not None])
        ]
        line += [
            share([(clip.prompt, right_class(clip)) for clip in clips if clip.nearest is not None])
        ]
        line += [mean([(clip.prompt, clip.caption) for clip in clips])] if has_caption else []
        line += [mean([(clip.prompt, clip.reward) for clip in clips])] if has_reward else []
        lines.append(line)
    return markdown_table(header, lines)


def class_table(sets: Mapping[str, SetVerdicts]) -> str:
    """One row per class, for clips of one sound.

    The columns are heard / nearest class right, for every set but the last (shuffled), and the
    nearest classes of wrong generations.
    """
    names = list(sets)[:-1]
    classes = sorted(
        {clip.sound_classes[0] for clip in sets[names[0]].clips if clip.relation == "single"}
    )
    known = {event.sound_class: not event.new_recording for event in sets[names[0]].events}
    lines = []
    for sound_class in classes:
        line = [sound_class + (" *" if known[sound_class] else "")]
        own = []
        for name in names:
            own = [
                clip
                for clip in sets[name].clips
                if clip.relation == "single" and clip.sound_classes[0] == sound_class
            ]
            heard = [
                e.heard
                for e in sets[name].events
                if e.relation == "single" and e.sound_class == sound_class
            ]
            line.append(f"{sum(heard)} / {sum(map(right_class, own))} of {len(own)}")
        wrong = Counter(clip.nearest for clip in own if not right_class(clip)).most_common(3)
        lines.append([*line, ", ".join(f"{other} {count}" for other, count in wrong)])
    text = markdown_table(
        ["class", *(f"{name}: heard / nearest" for name in names), "nearest where not right"], lines
    )
    return text + "\n\\* fewer than three recordings: new scenes of known recordings\n"


def confusion(clips: Sequence[ClipVerdict], classes: Sequence[str]) -> np.ndarray:
    """Counts (classes, classes) of clips of one sound: row requested, column nearest."""
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for clip in clips:
        if clip.nearest is not None:
            counts[classes.index(clip.sound_classes[0]), classes.index(clip.nearest)] += 1
    return counts


def picture(sets: Mapping[str, SetVerdicts], classes: Sequence[str], path: Path) -> None:
    """Draws heard, order and class of every set, and the confusion of generated single sounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    bars, matrix = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for shift, measure in enumerate(("heard", "order", "class")):
        for place, rows in enumerate(sets.values()):
            values = {
                "heard": [(event.prompt, event.heard) for event in rows.events],
                "order": [
                    (clip.prompt, clip.in_order) for clip in rows.clips if clip.in_order is not None
                ],
                "class": [
                    (clip.prompt, right_class(clip))
                    for clip in rows.clips
                    if clip.nearest is not None
                ],
            }[measure]
            if values:
                middle, low, high = share_interval(values)
                error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
                label = measure if place == 0 else None
                bars.bar(
                    place + 0.27 * (shift - 1),
                    middle,
                    0.25,
                    yerr=error,
                    capsize=2,
                    color=f"C{shift}",
                    label=label,
                )
    bars.set_xticks(range(len(sets)), [name.replace(", ", ",\n") for name in sets], fontsize=8)
    bars.set_ylim(0, 1.05)
    bars.set_ylabel("share")
    bars.legend(ncols=3, fontsize=8)
    counts = confusion(sets["generated"].clips, classes)
    matrix.imshow(
        counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1
    )
    size = max(3.0, min(8.0, 330 / max(len(classes), 1)))
    matrix.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    matrix.set_yticks(range(len(classes)), classes, fontsize=size)
    matrix.set_xlabel("nearest class by YAMNet")
    matrix.set_ylabel("asked for")
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150)
