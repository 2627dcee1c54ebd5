"""What ``benchmarks/baton_sounds.py`` measures, and its statistics, tables and picture.

A record has one number per clip and measure, or None where a measure does not apply (the order of
sounds that are asked for together). Clips of two records are in the same order and come from the
same noise, so differences are paired by clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baton_chain import pair_of
from benchmarks.evaluation import half_width, markdown_table
from benchmarks.sound_scores import above_absent, asked, both_in_top3, class_scores, in_order
from zoo.audio_files import read_audio
from zoo.evaluation.best_of_n import Cost, best_of_n
from zoo.files import written_beside
from zoo.generations import Sample, read_samples
from zoo.rewards.guards import distance_to_others, level_dbfs, mel_statistics
from zoo.statistics.clustered import Clustered, clustered_mean

MEASURES = {  # name -> (title, digits)
    "B.both3": ("B both", 3),
    "C.both3": ("C both", 3),
    "B.above": ("B above absent", 3),
    "C.above": ("C above absent", 3),
    "B.order": ("B order", 3),
    "clap": ("CLAP", 3),
    "level_db": ("level dB", 2),
    "diversity_db": ("diversity dB", 2),
    "A.both3": ("A both (made the labels)", 3),
}
DRAWN = ("B.both3", "C.both3")


@dataclass(frozen=True)
class Record:
    """Measures of the clips of one model.

    - ``captions``: the id of each clip's caption; ``pairs``: its sounds.
    - ``values``: measure -> a number per clip, NaN where it does not apply.
    """

    captions: tuple[str, ...]
    pairs: tuple[str, ...]
    values: Mapping[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        values = {
            name: [None if np.isnan(value) else float(value) for value in column]
            for name, column in self.values.items()
        }
        return {"captions": list(self.captions), "pairs": list(self.pairs), "values": values}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Record:
        values = {
            name: np.array([np.nan if value is None else value for value in column], dtype=float)
            for name, column in record["values"].items()
        }
        return Record(tuple(record["captions"]), tuple(record["pairs"]), values)


def measured(folder: Path, judges: Mapping[str, Any], clap: Any, batch_size: int = 16) -> Record:
    """Measures the clips of a folder, in the order of its index.

    Args:
        folder: clips with their index.
        judges: of ``benchmarks.sound_probes.load_judges``.
        clap: the embedded CLAP.
        batch_size: clips that are heard at a time.
    """
    samples = read_samples(folder)
    columns: dict[str, list[torch.Tensor]] = {}
    texture = []
    for start in range(0, len(samples), batch_size):
        rows = samples[start : start + batch_size]
        prompts = [row.prompt for row in rows]
        waves = [read_audio(row.path) for row in rows]
        rate_hz = waves[0].sample_rate_hz
        wave_BCN = torch.stack([wave.samples_CN for wave in waves])
        with torch.no_grad():
            found = {
                "clap": clap(wave_BCN, rate_hz, prompts).score_B,
                "level_db": level_dbfs(wave_BCN),
            }
            texture.append(mel_statistics(wave_BCN, rate_hz))
            for name, judge in judges.items():
                logit_BPK = judge.hear(wave_BCN, rate_hz)
                score_BK = class_scores(logit_BPK)
                found[f"{name}.both3"] = both_in_top3(score_BK, prompts)
                found[f"{name}.above"] = above_absent(score_BK, prompts)
                found[f"{name}.graded"] = weakest_of_asked(score_BK, prompts)
                if logit_BPK.shape[1] > 1:
                    found[f"{name}.order"] = in_order(logit_BPK, prompts)
        for name, column in found.items():
            columns.setdefault(name, []).append(column.double())
    captions = tuple(sample.prompt.id for sample in samples)
    columns["diversity_db"] = [distance_to_others(torch.cat(texture), captions, cosine=False)[0]]
    values = {name: torch.cat(parts).double().numpy() for name, parts in columns.items()}
    pairs = tuple(" ".join(pair_of(sample.prompt)) for sample in samples)
    return Record(captions, pairs, values)


def both_by_judges(samples: Sequence[Sample], judges: Mapping[str, Any]) -> dict[str, list[float]]:
    """Judge -> whether it hears both asked sounds in each clip, 1 or 0."""
    waves = [read_audio(sample.path) for sample in samples]
    wave_BCN = torch.stack([wave.samples_CN for wave in waves])
    prompts = [sample.prompt for sample in samples]
    return {
        name: both_in_top3(
            class_scores(judge.hear(wave_BCN, waves[0].sample_rate_hz)), prompts
        ).tolist()
        for name, judge in judges.items()
    }


def weighted_gain(clips: Sequence[Mapping[str, Any]], judge: str) -> Clustered:
    """What clips drawn by their weight have more, by a judge, than the clips of their caption.

    ``sum((weight - mean weight of the caption) * heard) / sum(weight)``, as the mean over captions.
    """
    by_caption: dict[str, list[tuple[float, float]]] = {}
    for clip in clips:
        by_caption.setdefault(clip["caption"], []).append((clip["weight"], clip[judge]))
    mean = np.mean([clip["weight"] for clip in clips])
    terms = []
    for rows in by_caption.values():
        weight, heard = np.array(rows).T
        terms.append(float(((weight - weight.mean()) * heard).mean() / mean))
    return clustered_mean(terms, list(by_caption))


def weakest_of_asked(score_BK: torch.Tensor, prompts: Sequence[Any]) -> torch.Tensor:
    """(B,) the lower of a judge's scores of the asked sounds: a graded form of "both are there"."""
    return score_BK.masked_fill(~asked(prompts), torch.inf).amin(dim=1)


def difference(
    before: Record, after: Sequence[Record], name: str, by: str = "captions"
) -> Clustered:
    """Mean over captions (or ``pairs``) of after - before, averaged over the ``after`` of seeds."""
    change = np.mean([one.values[name] for one in after], axis=0) - before.values[name]
    known = ~np.isnan(change)
    groups = [group for group, here in zip(getattr(before, by), known, strict=True) if here]
    return clustered_mean(change[known], groups)


def over_seeds(before: Sequence[Record], after: Sequence[Record], name: str) -> Clustered:
    """Mean over seeds of after - before, with the interval over seeds.

    ``before`` has one record per seed, or one for all.
    """
    first = list(before) * (len(after) // len(before))
    changes = [difference(old, [new], name).value for old, new in zip(first, after, strict=True)]
    return clustered_mean(changes, range(len(changes)))


def contrast(first: Sequence[Record], second: Sequence[Record], name: str) -> Clustered:
    """Mean over captions of second - first of the same seeds, with the interval over captions."""
    mean = np.mean([one.values[name] for one in first], axis=0)
    return difference(Record(first[0].captions, first[0].pairs, {name: mean}), second, name)


def direction(*intervals: Clustered) -> str:
    """``rose`` or ``fell`` where every interval is on that side of 0, else ``unchanged``."""
    if any(found.low is None for found in intervals):
        return "unchanged"
    if all(found.low > 0 for found in intervals):
        return "rose"
    return "fell" if all(found.high < 0 for found in intervals) else "unchanged"


def best_of(scores: Sequence[np.ndarray], record: Record, name: str) -> Clustered:
    """What the clip of each caption that a reward picks has more than the mean of its clips.

    Args:
        scores: of the clips, by one reward or by several, over which gains are averaged.
        record: with the same number of clips of every caption, next to each other.
        name: the measure.

    Returns:
        The mean over captions, with its interval.
    """
    captions = list(dict.fromkeys(record.captions))
    rows = (len(captions), -1)
    judged = list(record.values[name].reshape(rows))
    n = len(judged[0])
    gains = [
        best_of_n(
            {"reward": list(score.reshape(rows)), "judge": judged}, "reward", "judge", n, captions
        ).gain_P
        for score in scores
    ]
    return clustered_mean(np.mean(gains, axis=0), captions)


def signed(found: Clustered, digits: int = 3) -> str:
    """``+.083 [+.021, +.145]``: a difference with its 95 % interval."""
    text = f"{found.value:+.{digits}f}"
    if found.low is None:
        return text
    return f"{text} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def arm_table(base: Record, arms: Mapping[str, Sequence[Record]]) -> str:
    """One row per measure: the base, and of each arm the difference to it, averaged over seeds.

    "3 of 5" counts the seeds in which the measure rose.
    """
    titles = [f"{arm} ({len(records)} seeds)" for arm, records in arms.items()]
    lines = []
    for name, (title, digits) in MEASURES.items():
        cells = [title, f"{np.nanmean(base.values[name]):.{digits}f}"]
        for records in arms.values():
            up = sum(difference(base, [one], name).value > 0 for one in records)
            found = signed(difference(base, records, name), digits)
            cells.append(f"{found}, {up} of {len(records)}")
        lines.append(cells)
    return markdown_table(["measure", "base", *titles], lines)


def verdict_table(base: Record, arms: Mapping[str, Sequence[Record]]) -> str:
    """One row per arm and judge: the interval over captions, pairs and seeds, and the verdict."""
    header = ["arm", "measure", "over captions", "over pairs", "over seeds", "each seed", "verdict"]
    lines = []
    for arm, records in arms.items():
        for name in DRAWN:
            captions = difference(base, records, name)
            seeds = over_seeds([base], records, name)
            each = " ".join(f"{difference(base, [one], name).value:+.3f}" for one in records)
            pairs = signed(difference(base, records, name, "pairs"))
            verdict = direction(captions, seeds)
            lines.append(
                [arm, MEASURES[name][0], signed(captions), pairs, signed(seeds), each, verdict]
            )
    return markdown_table(header, lines)


def contrast_table(
    arms: Mapping[str, Sequence[Record]], contrasts: Sequence[tuple[str, str]]
) -> str:
    """One row per pair of arms: the second minus the first, over captions."""
    names = [*DRAWN, "B.above", "C.above", "clap", "level_db", "diversity_db"]
    header = ["contrast", *(MEASURES[name][0] for name in names)]
    lines = [
        [
            f"{second} - {first}",
            *(signed(contrast(arms[first], arms[second], n), MEASURES[n][1]) for n in names),
        ]
        for first, second in contrasts
        if first in arms and second in arms and len(arms[first]) == len(arms[second])
    ]
    return markdown_table(header, lines)


@dataclass(frozen=True)
class Choice:
    """Best of n by one reward: ``gains`` by measure, with the cost of a clip that is kept."""

    title: str
    cost: Cost
    gains: Mapping[str, Clustered]


def headroom_table(choices: Sequence[Choice]) -> str:
    header = ["choice", "network evaluations", "reward calls"]
    header += [MEASURES[name][0] for name in choices[0].gains]
    lines = [
        [
            choice.title,
            str(choice.cost.network_evaluations),
            str(choice.cost.reward_calls),
            *(signed(found) for found in choice.gains.values()),
        ]
        for choice in choices
    ]
    return markdown_table(header, lines)


def picture(
    choices: Sequence[Choice], base: Record, arms: Mapping[str, Sequence[Record]], path: Path
) -> None:
    """Draws gains in "both sounds are heard" by B and C: best of n above, fine-tuning below.

    Bars are means with 95 % intervals over captions, dots single seeds.
    """
    from matplotlib.figure import Figure

    rows = [(choice.title, choice.gains, ()) for choice in choices]
    for arm, records in arms.items():
        rows.append((arm, {name: difference(base, records, name) for name in DRAWN}, records))
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for shift, name in enumerate(DRAWN):
        places = [-row + 0.18 - 0.36 * shift for row in range(len(rows))]
        found = [gains[name] for _, gains, _ in rows]
        axes.barh(
            places,
            [one.value for one in found],
            0.34,
            xerr=[half_width(one) for one in found],
            capsize=2,
            color=f"C{shift}",
            alpha=0.75,
            label=f"judge {name[0]}",
        )
        for place, (_, _, records) in zip(places, rows, strict=True):
            seeds = [difference(base, [one], name).value for one in records]
            axes.plot(seeds, [place] * len(seeds), "o", color="black", markersize=2.5)
    axes.axvline(0, color="black", linewidth=0.8)
    if choices and arms:
        axes.axhline(-len(choices) + 0.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set_yticks([-row for row in range(len(rows))], [title for title, _, _ in rows])
    axes.set_xlabel("gain in the share of clips with both sounds (95 % over held-out captions)")
    axes.legend(loc="lower right", fontsize=8)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150, format="png")
