"""Reads and writes label files of every dialect; inside the project there is only ``Preference``.

``DIALECTS`` is the table. A file's dialect is the first one whose keys most of its rows have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.preferences import baton, listeners, pairs, tidy
from datamodules.preferences.baton import Read, Told
from datamodules.preferences.rows import Content, Problem, Row, problem, read_rows
from zoo.errors import UserError, did_you_mean
from zoo.files import written_beside
from zoo.types import Preference

Writer = Callable[[Sequence[Preference]], bytes]


@dataclass(frozen=True)
class Dialect:
    """One layout of label files.

    - ``about``: what it is, in plain words.
    - ``suffixes``: of its files; the first one is the usual one. The writer serves these only.
    - ``keys``: what every row has.
    - ``array``: True = only a JSON array is of this dialect, None = does not matter.
    - ``names``: key -> the names that it may have, in any case; others have their own.
    """

    about: str
    suffixes: tuple[str, ...]
    keys: frozenset[str]
    read: Callable[[Sequence[Row], Told], Read]
    write: Writer
    array: bool | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def fits(self, row: Row) -> bool:
        if not self.names:
            return self.keys <= row.cells.keys()
        there = {str(name).strip().casefold() for name in row.cells}
        return all(there & set(self.names.get(key, (key,))) for key in self.keys)


def _dialect(
    about: str,
    suffixes: str,
    keys: str,
    read: Callable[[Sequence[Row], Told], Read],
    write: Writer,
    array: bool | None = None,
    names: Mapping[str, tuple[str, ...]] | None = None,
) -> Dialect:
    fields = frozenset(keys.split())
    return Dialect(about, tuple(suffixes.split()), fields, read, write, array, names or {})


DIALECTS: dict[str, Dialect] = {
    "attune": _dialect(
        "our JSON lines, which hold every field and vote",
        ".jsonl .json",
        "prompt audio task",
        listeners.read_own,
        listeners.write_own,
    ),
    "labelstudio": _dialect(
        "tasks of Label Studio",
        ".json",
        "data",
        listeners.read_label_studio,
        listeners.write_label_studio,
    ),
    "listeners": _dialect(
        "a table with one score of one listener per row",
        ".csv",
        "clip_id listener_id axis score",
        listeners.read_listeners,
        listeners.write_listeners,
    ),
    "arena": _dialect(
        "arena rows: one vote on two clips per row",
        ".jsonl .json",
        "model_a model_b winner",
        pairs.read_arena,
        pairs.write_arena,
    ),
    "trl": _dialect(
        "chosen and rejected clips with their audio (audio-alpaca, TRL)",
        ".parquet",
        "prompt chosen rejected",
        pairs.read_chosen,
        pairs.parquet_writer(),
    ),
    "tangoflux": _dialect(
        "chosen and rejected clips of TangoFlux",
        ".json",
        "captions chosen reject",
        pairs.read_chosen,
        pairs.write_tangoflux,
    ),
    "grouped": _dialect(
        "BATON's ratings, grouped by prompt",
        ".json",
        "grouped_ratings",
        baton.read_grouped,
        baton.write_grouped,
    ),
    "pages": _dialect(
        "BATON's pages of ratings",
        ".json",
        "ratings",
        baton.read_pages,
        baton.write_pages,
    ),
    "scores": _dialect(
        "scores of BATON's older reward model",
        ".json",
        "audio pre_score",
        baton.read_scores,
        baton.write_scores,
    ),
    "baton_ra": _dialect(
        "BATON's labels by a reward model (column SED)",
        ".json .jsonl",
        "location captions SED",
        baton.read_rated,
        baton.write_sed,
    ),
    "baton_finetune": _dialect(
        "BATON's array for fine-tuning",
        ".json",
        "location captions feedback",
        baton.read_rated,
        baton.write_finetune,
        array=True,
    ),
    "baton_ha": _dialect(
        "BATON's labels by people",
        ".json .jsonl",
        "location captions feedback",
        baton.read_rated,
        baton.write_feedback,
    ),
    "tangoflux_sft": _dialect(
        "clips with captions and lengths, without labels (TangoFlux)",
        ".json",
        "location captions duration",
        baton.read_located,
        baton.write_durations,
    ),
    "audiocaps": _dialect(
        "clips with captions, without labels (AudioCaps as Tango and BATON list it)",
        ".json .jsonl",
        "location captions",
        baton.read_located,
        baton.write_captions,
    ),
    "table": _dialect(
        "a table with one row per clip, or per clip and listener",
        ".csv",
        "audio prompt",
        tidy.read_tidy,
        tidy.write_tidy,
        names=tidy.COLUMNS,
    ),
}


@dataclass(frozen=True)
class Labels:
    """What a file holds: ``places`` says where each of ``records`` begins.

    ``dialect`` is "" when no row could be read.
    """

    path: Path
    dialect: str
    records: tuple[Preference, ...]
    places: tuple[str, ...]
    problems: tuple[Problem, ...]

    def checked(self) -> tuple[Preference, ...]:
        """The records. Raises ``UserError``, which names the first problems, if there are any."""
        if self.problems:
            raise UserError(
                f"{len(self.problems)} bad entries: {'; '.join(map(str, self.problems[:3]))}"
            )
        return self.records


def dialect_of(content: Content, path: Path) -> str:
    """The dialect of the rows of a file. Raises ``UserError`` when none fits any row."""
    if not content.rows:
        raise UserError(f"{path}: the file has no rows; name one with labels")
    best = ("", 0)
    for name, dialect in DIALECTS.items():
        if dialect.array and not content.is_array:
            continue
        if name == "attune" and path.suffix.lower() in (".csv", ".tsv"):
            continue  # its votes are lists
        fitting = sum(map(dialect.fits, content.rows))
        if fitting > best[1]:
            best = (name, fitting)
    if not best[0]:
        keys = ", ".join(sorted(map(str, content.rows[0].cells)))
        known = "; ".join(f"{name}: {' '.join(sorted(d.keys))}" for name, d in DIALECTS.items())
        raise UserError(
            f"{path}: rows with the fields {keys} are of no known dialect; rename the fields to"
            f" those of one ({known})"
        )
    return best[0]


def read_labels(
    path: str | Path,
    task: str | None = None,
    source: str | None = None,
    scale: tuple[float, float] | None = None,
    extract_to: str | Path | None = None,
) -> Labels:
    """Reads a label file of any dialect.

    Args:
        path: ``.json``, ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``.
        task: for every record; None: as the file says, else ``relevance``.
        source: for every record; None: as the file or its dialect says.
        scale: lowest and highest value of listener scores and ratings; None: by their axis.
        extract_to: a folder for audio inside a parquet file; None leaves it there.

    Returns:
        The good records, and a problem for every bad one.

    Raises:
        UserError: for a file that is of no dialect or cannot be read at all.
    """
    path = Path(path)
    if scale is not None and not scale[0] < scale[1]:
        raise UserError(f"invalid scale {scale}: expected the lowest score and then the highest")
    content = read_rows(path, extract_to)
    if content.problems and not content.rows:
        return Labels(path, "", (), (), content.problems)
    name = dialect_of(content, path)
    problems = list(content.problems)
    records = []
    places = []
    told = Told(task, source, scale, path.name)
    for place, found in DIALECTS[name].read(content.rows, told):
        if isinstance(found, UserError):
            problems.append(problem(path, place, found))
        else:
            records.append(found)
            places.append(place)
    return Labels(path, name, tuple(records), tuple(places), tuple(problems))


def write_labels(
    records: Sequence[Preference],
    path: str | Path,
    dialect: str,
    found: Callable[[str], Path] | None = None,
) -> dict[str, int]:
    """Writes a label file, reads it back and compares.

    Args:
        records: at least one.
        path: of the file; its suffix must be one of the dialect's.
        dialect: a key of ``DIALECTS``.
        found: gives the file of a clip, for a dialect that holds audio; None leaves it out.

    Returns:
        Field -> in how many records its content could not be kept, because the dialect has no place
        for it; empty when nothing was lost.

    Raises:
        UserError: for a record that the dialect cannot hold, or whose prompt it would change.
    """
    path = Path(path)
    if dialect not in DIALECTS:
        raise UserError(f"unknown dialect {dialect!r}; {did_you_mean(dialect, DIALECTS)}")
    form = DIALECTS[dialect]
    if path.suffix.lower() not in form.suffixes:
        raise UserError(f"{path}: a file of {dialect} ends in {' or '.join(form.suffixes)}")
    if not records:
        raise UserError(f"{path}: there are no records to write")
    write = pairs.parquet_writer(found) if dialect == "trl" else form.write
    with written_beside(path) as temporary:
        temporary.write_bytes(write(records))
        read = DIALECTS[dialect].read(read_rows(temporary).rows, Told(file=path.name))
        back = []
        for place, one in read:
            if isinstance(one, UserError):
                raise UserError(f"{path}, {place} cannot be written as {dialect}: {one}") from one
            back.append(one)
        lost = _lost(records, back)
        if "prompt" in lost or len(back) != len(records):
            raise UserError(
                f"{path}: {dialect} would lose or change the prompts of {lost.get('prompt', 0)} of"
                f" {len(records)} records and hold {len(back)} records; choose another dialect"
            )
    return lost


def _lost(records: Sequence[Preference], back: Sequence[Preference]) -> dict[str, int]:
    """Field -> how many records differ in it. Records are matched by clips, then by order."""

    def ordered(some: Sequence[Preference]) -> list[Preference]:
        return sorted(some, key=_identity)

    lost: Counter[str] = Counter()
    for one, other in zip(ordered(records), ordered(back), strict=False):
        same = pairs.turned(other) if one.other and one.audio == other.other else other
        for own in dataclasses.fields(Preference):
            if getattr(one, own.name) != getattr(same, own.name):
                lost[own.name] += 1
    return dict(lost)


def _identity(record: Preference) -> tuple[str, ...]:
    clips = sorted(name.rpartition("/")[2] for name in (record.audio, record.other))
    models = (record.model, record.other_model)
    return (*clips, record.prompt, record.task, *(() if record.audio else models))
