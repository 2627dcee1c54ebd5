"""Clips to be scored by a reward, and their scores as label files (RD records).

A record's score is from 0 to 1. ``MAPPINGS`` holds the named ways from a reward's scores to that.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from datamodules.batches import ClipFile
from datamodules.preferences.baton import Told, caption_of
from datamodules.preferences.clips import Clips, names_of, wrong_rate
from datamodules.preferences.dialects import read_labels, write_labels
from zoo.audio_files import audio_facts
from zoo.audio_files.folders import listed
from zoo.errors import UserError, did_you_mean
from zoo.files import written_beside
from zoo.types import TASKS, Preference, Prompt

log = logging.getLogger(__name__)
_OVER = 1e-5  # by which rounding may take a score out of its bounds


def _unit(scores: Sequence[float]) -> list[float]:
    return [_inside("unit", score, 0.0, 1.0) for score in scores]


def _cosine(scores: Sequence[float]) -> list[float]:
    return [(1 + _inside("cosine", score, -1.0, 1.0)) / 2 for score in scores]


def _sigmoid(scores: Sequence[float]) -> list[float]:
    return [(1 + math.tanh(score / 2)) / 2 for score in scores]


def _rank(scores: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for place, score in enumerate(sorted(scores)):
        places.setdefault(score, []).append(place)
    return [(math.fsum(places[s]) / len(places[s]) + 0.5) / len(scores) for s in scores]


def _inside(mapping: str, score: float, low: float, high: float) -> float:
    if not low - _OVER <= score <= high + _OVER:
        raise UserError(
            f"--mapping {mapping} takes scores from {low:g} to {high:g}, and one is {score:g};"
            " choose another mapping, the scores are kept"
        )
    return min(max(score, low), high)


# name -> from all scores of an annotation to numbers from 0 to 1, higher is better
MAPPINGS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "unit": _unit,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "rank": _rank,
}


def label_clips(
    files: Sequence[str],
    audio_root: str,
    moved: Sequence[tuple[str, str]] = (),
    task: str | None = None,
    sample_rate_hz: int | None = None,
) -> list[ClipFile]:
    """The clips that label files of any dialect name, once each, without what was said of them.

    Args:
        files: the label files.
        audio_root: the clips are below this folder.
        moved: old and new paths of folders or files.
        task: of the new records; None: as the files say. Both clips of a pair become records of
            this task, else of ``relevance``.
        sample_rate_hz: what the clips are said to have; None: what their files say.

    Raises:
        UserError: for bad rows, records without a prompt, and clips at another rate than stated.
    """
    checked_task(task)
    records = [one for file in files for one in read_labels(file).checked()]
    without = [record for record in records if not record.prompt]
    if without:
        raise UserError(
            f"{len(without)} records name no prompt, the first {without[0].audio!r}; add prompts"
            " with tools/labels.py convert --captions FILE"
        )
    single: dict[tuple[str, str, str], Preference] = {}
    for record in records:
        for one in _unlabelled(record, task):
            single.setdefault((one.prompt, one.audio, one.task), one)
    clips = Clips(audio_root, moved)
    found = []
    for record in single.values():
        try:
            path = clips.path(record.audio)
        except UserError as error:
            found.append(ClipFile(record, None, None, str(error)))
            continue
        found.append(clip_file(record, path, sample_rate_hz, record.seconds))
    return found


def _unlabelled(record: Preference, task: str | None) -> list[Preference]:
    """One record by a reward model per clip of ``record``."""
    is_pair = record.task == "pairwise"
    models = (record.model, record.other_model)
    return [
        replace(
            record,
            audio=name,
            other="",
            other_model="",
            task=task or ("relevance" if is_pair else record.task),
            votes=(),
            label=None,
            score=None,
            source="RD",
            model=model,
        )
        for name, model in zip(names_of(record), models, strict=False)
    ]


def named_clips(
    folder: str | Path, task: str | None = None, sample_rate_hz: int | None = None
) -> list[ClipFile]:
    """The audio files of a folder and its subfolders, with the captions in their names.

    A file whose name holds no caption is given with that fault.

    Raises ``UserError`` for no audio file, none with a caption, and clips at another rate than
    stated.
    """
    files = listed(folder, deep=True)
    files.log_set_aside(Path(folder))
    told = Told(checked_task(task), "RD", file=Path(folder).resolve().name)
    found = []
    for name, path in files.files.items():
        own_task = told.task_of(name)
        try:
            prompt = caption_of(name)
        except UserError as error:
            nameless = Preference("", name, own_task, source="RD")
            found.append(ClipFile(nameless, None, None, str(error)))
            continue
        record = Preference(prompt, name, own_task, source="RD")
        found.append(clip_file(record, path, sample_rate_hz))
    if not any(clip.record.prompt for clip in found):
        first = f"; {found[0].fault}" if found else ""
        raise UserError(
            f"{folder} has no samples.json and no audio file that is named"
            f" <id>_<caption>_<sample>.wav{first}"
        )
    return found


def prompted_clips(
    rows: Sequence[tuple[Path, Prompt, float | None]],
    place: str,
    task: str | None = None,
    sample_rate_hz: int | None = None,
    model: str = "",
) -> list[ClipFile]:
    """Clips whose prompts are known, under the names of their files.

    Args:
        rows: file, prompt and stated seconds (None: unknown) of each clip.
        place: the name of their folder, which may say the task ("2label").
        task: of the records; None: by ``place``, else ``relevance``.
        sample_rate_hz: what the clips are said to have; None: what their files say.
        model: which generator made them.

    Raises:
        UserError: for clips at another rate, or of another length, than stated.
    """
    task = Told(checked_task(task), file=place).task_of()
    found = []
    for path, prompt, seconds in rows:
        record = Preference(
            prompt.text.strip(), path.name, task, source="RD", model=model, seconds=seconds
        )
        found.append(clip_file(record, path, sample_rate_hz, seconds, prompt))
    return found


def checked_task(task: str | None) -> str | None:
    """``task``. Raises ``UserError`` for a name that no task of single clips has."""
    single = [name for name in TASKS if name != "pairwise"]
    if task is not None and task not in single:
        raise UserError(f"invalid task {task!r}: expected one of {', '.join(single)}")
    return task


def clip_file(
    record: Preference,
    path: Path,
    sample_rate_hz: int | None = None,
    seconds: float | None = None,
    prompt: Prompt | None = None,
) -> ClipFile:
    """A clip by the header of its file, which finds a missing end and no damage in the middle.

    Args:
        record: what is known of it.
        path: its file.
        sample_rate_hz, seconds: what the clip is said to have; None: what its file says.
        prompt: what the reward is asked; None: the record's, at the length of the clip.

    Raises:
        UserError: for a file of another rate or length than stated, because then all are suspect.
    """
    try:
        facts = audio_facts(path)
    except (UserError, OSError) as error:
        return ClipFile(record, None, None, str(error))
    wrong = wrong_rate(path, facts.sample_rate_hz, facts.seconds, sample_rate_hz, seconds)
    if wrong:
        raise UserError(f"audio: {wrong}")
    if prompt is None:
        prompt = Prompt(record.prompt, record.prompt, seconds=facts.seconds)
    return ClipFile(record, path, prompt)


def check_form(clips: Sequence[ClipFile], path: str | Path, dialect: str) -> None:
    """Writes the clips with an invented score to a temporary file of the dialect.

    Raises ``UserError`` as ``write_labels``, for a dialect without a place for scores, and for an
    unknown one: before any work is done.
    """
    records = [replace(clip.record, score=0.5) for clip in clips if not clip.fault]
    if not records:
        return
    with TemporaryDirectory() as folder:
        place = Path(folder) / Path(path).name
        write_labels(records, place, dialect)
        back = read_labels(place).records
    if any(one.label is None and one.score is None for one in back):
        raise UserError(
            f"--format {dialect} has no place for scores; choose attune, baton_ra or baton_finetune"
        )


@dataclass(frozen=True)
class ReportFacts:
    """What a report says of the reward: its name, its id and the unit of its scores."""

    reward: str
    reward_id: str
    unit: str


def write_annotation(
    clips: Sequence[ClipFile],
    scores: Mapping[int, float],
    faults: Mapping[int, str],
    out: str | Path,
    dialect: str,
    mapping: str,
    facts: ReportFacts,
) -> dict[str, int]:
    """Writes the label file, and beside it ``report_path`` with what was left out.

    Args:
        clips: all of them.
        scores: place of a clip -> what the reward says.
        faults: place of a clip -> why it has no score; more than ``clips`` say.
        out: the label file.
        dialect: a key of ``DIALECTS``.
        mapping: a key of ``MAPPINGS``.
        facts: of the reward.

    Returns:
        What the dialect had no place for, as ``write_labels``.

    Raises:
        UserError: for scores that the mapping does not take, and when no clip could be scored.
    """
    if mapping not in MAPPINGS:
        raise UserError(f"unknown mapping {mapping!r}; {did_you_mean(mapping, MAPPINGS)}")
    rows = sorted(scores)
    raw = [scores[row] for row in rows]
    mapped = MAPPINGS[mapping](raw)
    quarantined = []
    for row, clip in enumerate(clips):
        reason = clip.fault or faults.get(row, "")
        if reason:
            quarantined.append({"audio": clip.record.audio, "reason": reason})
    report = {
        **asdict(facts),
        "mapping": mapping,
        "clips": len(clips),
        "scored": len(rows),
        "raw_scores": {
            "least": min(raw, default=None),
            "mean": math.fsum(raw) / len(raw) if raw else None,
            "greatest": max(raw, default=None),
        },
        "quarantined": quarantined,
    }
    with written_beside(report_path(out)) as part:
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
    if not rows:
        first = quarantined[0] if quarantined else {"audio": "none", "reason": "there are no clips"}
        raise UserError(
            f"none of {len(clips)} clips could be scored; {first['audio']}: {first['reason']}"
        )
    records = [
        replace(clips[row].record, score=value) for row, value in zip(rows, mapped, strict=True)
    ]
    return write_labels(records, out, dialect)


def report_path(out: str | Path) -> Path:
    return Path(f"{out}.report.json")
