"""The results of an evaluation per clip, and ``results.json``, from which all tables are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.errors import UserError, did_you_mean
from zoo.files import parsed_json, written_beside

RESULTS = "results.json"
FORMAT = 1
# the roles of a set of clips
ORIGINAL = "original"
TRAINED = "trained"
CLIPS = "clips"  # plain files do not say whether a trained model made them


@dataclass(frozen=True)
class ScorerFacts:
    """What results say of a scorer.

    - ``name``: its checkpoint, part of every number's name.
    - ``title``: the head of its columns.
    - ``fingerprint``: hash of its weights and settings.
    - ``class_names``: of a classifier, in its order; empty for a scorer that only gives a number.
    """

    name: str
    title: str
    fingerprint: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredClip:
    """One clip: its file, its prompt, and what every scorer says of it.

    - ``sample``: number of the clip among those of its prompt: the seed of its noise where that is
      known.
    - ``values``: scorer -> name of a number (``score``, or a part) -> number.
    - ``wanted``, ``predicted``: scorer -> class, of classifiers only.
    """

    file: str
    id: str
    text: str
    sample: int
    labels: Mapping[str, Any]
    values: Mapping[str, Mapping[str, float]]
    wanted: Mapping[str, str] = field(default_factory=dict)
    predicted: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample


@dataclass(frozen=True)
class ClipSet:
    """The clips of one model.

    - ``setting``: its row of Table 2, such as "19-step, 10 sec.".
    - ``role``: ``original``, ``trained``, or ``clips`` where that is not known.
    - ``source``: where the clips came from and how they were sampled, as plain values.
    """

    name: str
    setting: str
    role: str
    clips: tuple[ScoredClip, ...]
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.setting} {self.role}: {self.name}"


@dataclass(frozen=True)
class Picking:
    """Best of ``n`` clips of a prompt by the scorer of the name ``by``."""

    by: str
    n: int


@dataclass(frozen=True)
class Results:
    """``picking``: what trained models are compared with beside their original, if anything."""

    scorers: tuple[ScorerFacts, ...]
    sets: tuple[ClipSet, ...]
    picking: Picking | None = None


def pairs(first: ClipSet, second: ClipSet) -> list[tuple[ScoredClip, ScoredClip]] | None:
    """The clips of both sets side by side, by prompt and sample number.

    None when the sets do not hold the same clips.
    """
    others = {clip.key: clip for clip in second.clips}
    is_unique = len(others) == len(second.clips) == len(first.clips)
    if not is_unique or {clip.key for clip in first.clips} != others.keys():
        return None
    return [(clip, others[clip.key]) for clip in first.clips]


def baseline_of(one: ClipSet, sets: Sequence[ClipSet]) -> ClipSet | None:
    """The original of the same setting that a trained model is compared with.

    Of several, the one with the same clips, else the first. None for other roles, and where there
    is none.
    """
    if one.role != TRAINED:
        return None
    originals = [other for other in sets if other.role == ORIGINAL and other.setting == one.setting]
    same = [other for other in originals if pairs(one, other) is not None]
    return next(iter([*same, *originals]), None)


def write_results(path: Path, results: Results, summary: Mapping[str, Any]) -> None:
    """Raises ``OSError``."""
    record = {"format": FORMAT, "summary": summary, **asdict(results)}
    with written_beside(path) as part:
        part.write_text(
            json.dumps(record, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8"
        )


def read_results(folder: Path) -> Results:
    """Reads the results of an evaluated folder; files of clips as paths that open from here.

    Raises ``FileNotFoundError`` where there is no ``results.json``, ``UserError`` for another file
    of that name.
    """
    path = folder / RESULTS
    if not path.is_file():
        evaluated = [place.name for place in folder.parent.glob("*") if (place / RESULTS).is_file()]
        raise FileNotFoundError(
            f"{folder} has no {RESULTS}, so it was not evaluated with tools/evaluate.py --out;"
            f" {did_you_mean(folder.name, evaluated)}"
        )
    try:
        record = parsed_json(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"format {record['format']!r} is not {FORMAT}")
        scorers = tuple(
            ScorerFacts(**{**facts, "class_names": tuple(facts["class_names"])})
            for facts in record["scorers"]
        )
        sets = tuple(_clip_set(folder, facts) for facts in record["sets"])
        picking = record.get("picking")  # older results have none
        return Results(scorers, sets, None if picking is None else Picking(**picking))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not what tools/evaluate.py writes ({error!r}); evaluate again into that"
            " folder"
        ) from error


def _clip_set(folder: Path, facts: Mapping[str, Any]) -> ClipSet:
    clips = [ScoredClip(**row) for row in facts["clips"]]
    here = tuple(replace(clip, file=str(folder / clip.file)) for clip in clips)
    return ClipSet(**{**facts, "clips": here})


def combined(parts: Mapping[str, Results]) -> Results:
    """Joins several results, by the name of their folder: each set once, and all scorers.

    Sets of equal name but other clips or numbers get their folder's name as well. A set lacks the
    numbers of scorers that it was not evaluated with. A picking stays where all parts that have one
    have the same. Raises ``UserError`` when one name stands for two scorers.
    """
    scorers: dict[str, ScorerFacts] = {}
    sets: list[ClipSet] = []
    for folder, results in parts.items():
        for facts in results.scorers:
            if scorers.setdefault(facts.name, facts) != facts:
                raise UserError(
                    f"{folder} was scored by another {facts.name} (fingerprint {facts.fingerprint})"
                    f" than the folders before ({scorers[facts.name].fingerprint}); their numbers"
                    " do not belong in one table: evaluate them with the same"
                )
        for one in results.sets:
            same_name = [other for other in sets if other.title == one.title]
            if any(_numbers(other) == _numbers(one) for other in same_name):
                continue
            sets.append(replace(one, name=f"{one.name} ({folder})") if same_name else one)
    pickings = {one.picking for one in parts.values() if one.picking is not None}
    picking = pickings.pop() if len(pickings) == 1 else None
    return Results(tuple(scorers.values()), tuple(sets), picking)


def _numbers(one: ClipSet) -> list[tuple]:
    return sorted(
        (clip.key, json.dumps(clip.values, sort_keys=True, allow_nan=False)) for clip in one.clips
    )
