"""A bank of recorded sounds with captions, from Debian packages; the sounds are never committed.

``load_bank`` reads packages that are installed, or that ``python tools/sounds.py fetch --to DIR``
unpacked without root. ``rules.tsv`` describes their files: source, glob, caption, class, family,
and the AudioSet labels that count as right (separated by ``;``). The first rule that matches a file
counts. ``datamodules/sounds/folders.py`` reads your own folder instead.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from datamodules.sounds.clips import (
    BankClip,
    Bundle,
    SoundBank,
    cache_key,
    decode,
    draw_splits,
    read_cache,
    write_cache,
)
from datamodules.sounds.folders import load_folder_bank
from datamodules.sounds.licences import (
    PERMISSIVE,
    UNKNOWN,
    Stanza,
    allows,
    credit_licence,
    parse_copyright,
    stanza_for,
)
from datamodules.sounds.sources import SMALL_SET, SOURCES, Entry, Source, original_recording
from zoo.errors import UserError, did_you_mean, parsing

__all__ = [
    "PERMISSIVE",
    "BankClip",
    "SoundBank",
    "allows",
    "load_bank",
    "load_folder_bank",
    "load_rules",
]

RULES = Path(__file__).with_name("rules.tsv")
COLUMNS = ["source", "glob", "caption", "class", "family", "audioset_labels"]


@dataclass(frozen=True)
class Rule:
    """One line of ``rules.tsv``: describes files of ``source`` whose name matches ``glob``."""

    source: str
    glob: str
    caption: str
    sound_class: str
    family: str
    audioset_labels: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def load_rules(path: Path = RULES) -> tuple[Rule, ...]:
    """Reads the rule table.

    Raises ``UserError``, which names the line, for a wrong header, a missing cell or an unknown
    source, and for a file that is not UTF-8.
    """
    with open(path, encoding="utf-8", newline="") as file, parsing(path, "TSV"):
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or rows[0] != COLUMNS:
        raise UserError(
            f"{path}: expected the columns {', '.join(COLUMNS)}, got"
            f" {', '.join(rows[0]) if rows else 'nothing'}"
        )
    rules = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(COLUMNS) or not all(row):
            raise UserError(
                f"{path}, line {number}: expected {len(COLUMNS)} filled cells between tabs, got"
                f" {row}"
            )
        if row[0] not in SOURCES:
            raise UserError(
                f"{path}, line {number}: unknown source {row[0]!r}; {did_you_mean(row[0], SOURCES)}"
            )
        rules.append(Rule(*row[:5], tuple(row[5].split(";"))))
    return tuple(rules)


def install_command(packages: Iterable[str] = SMALL_SET) -> str:
    """The commands that install Debian packages, with root and without."""
    names = " ".join(packages)
    return (
        f"`apt-get install --no-install-recommends {names}`, or without root `python"
        " tools/sounds.py fetch --to DIR`"
    )


def load_bank(
    root: str | Path = "/",
    sources: Collection[str] | None = None,
    sample_rate_hz: int = 16_000,
    cache_dir: str | Path | None = None,
    licences: Collection[str] | None = None,
    rules: str | Path = RULES,
) -> SoundBank:
    """Loads the sounds of the packages below ``root``.

    Args:
        root: ``/`` where they are installed, else the folder in which they were unpacked.
        sources: names of ``SOURCES``, all of which must exist; None takes the existing ones, which
            must include one of the small set.
        sample_rate_hz: of the bank.
        cache_dir: keeps the decoded waves in one file, so that the next load takes a second.
        licences: keeps only these (such as ``PERMISSIVE``); applied before splits are drawn.
        rules: the rule table.

    Returns:
        A bank whose ``quarantined`` holds unusable files and exact copies of earlier clips.

    Raises:
        FileNotFoundError: names the command that installs what is missing.
        UserError: for an unknown source, a damaged package, or licences that leave nothing.
        OSError: for a package that is only partly unpacked.
    """
    if isinstance(sources, str):
        raise UserError(f"sources is a list of names, got the text {sources!r}; write [{sources}]")
    for name in sources or ():
        if name not in SOURCES:
            raise UserError(f"unknown source of sounds {name!r}; {did_you_mean(name, SOURCES)}")
    if sample_rate_hz <= 0:
        raise UserError(f"sample_rate_hz must be positive, got {sample_rate_hz}")
    root = Path(root)
    table = load_rules(Path(rules))
    chosen = _present(root, sources)
    found = [(name, rule, entry) for name in chosen for rule, entry in _matches(root, name, table)]
    facts = [
        f"rate {sample_rate_hz}",
        *(f"{name}\t{entry.name}\t{entry.stamp}\t{rule}" for name, rule, entry in found),
    ]
    facts += [f"{name}\t{_papers_text(root, SOURCES[name])}" for name in chosen]
    cache = (
        None if cache_dir is None else Path(cache_dir) / f"sounds-{cache_key(facts)}.safetensors"
    )
    if cache is not None and cache.is_file():
        bundle = read_cache(cache)
    else:
        bundle = _decoded(root, found, sample_rate_hz)
        if cache is not None and bundle.clips:
            write_cache(cache, bundle)
    if not bundle.clips:
        left_out = "; ".join(
            f"{name} {reason}" for name, reason in list(bundle.quarantined.items())[:3]
        )
        raise UserError(
            f"no sound below {root} can be used ({left_out or 'no file matches a rule'})"
        )
    bank = SoundBank(
        draw_splits(bundle.clips),
        bundle.waves,
        sample_rate_hz,
        bundle.quarantined,
        redraw_splits=True,
    )
    return bank if licences is None else bank.select(licences=licences)


def _present(root: Path, sources: Collection[str] | None) -> list[str]:
    half = sorted(path.stem for path in (root / ".packages").glob("*.unpacking"))
    if half:
        raise OSError(
            f"{', '.join(half)} below {root} is only partly unpacked; finish it with `python"
            f" tools/sounds.py fetch --to {root}`"
        )
    there = [name for name, source in SOURCES.items() if (root / source.place).exists()]
    if sources is None:
        if not any(SOURCES[name].package in SMALL_SET for name in there):
            raise FileNotFoundError(
                f"no package of recorded sounds found below {root}; get one: {install_command()}"
            )
        return there
    if missing := [name for name in sources if name not in there]:
        packages = dict.fromkeys(SOURCES[name].package for name in missing)
        raise FileNotFoundError(
            f"{', '.join(missing)} not found below {root}; get it: {install_command(packages)}"
        )
    return [name for name in there if name in sources]


def _matches(root: Path, name: str, table: Sequence[Rule]) -> list[tuple[Rule, Entry]]:
    mine = [rule for rule in table if rule.source == name]
    source = SOURCES[name]
    entries = source.entries(root / source.place, [rule.glob for rule in mine], source.origin)
    return [
        (next(rule for rule in mine if fnmatchcase(entry.name, rule.glob)), entry)
        for entry in entries
    ]


def _papers_text(root: Path, source: Source) -> str:
    papers = root / "usr/share/doc" / source.package / "copyright"
    text = papers.read_text("utf-8", errors="replace") if papers.is_file() else ""
    if source.statement:
        beside = root / source.place / source.statement[0]
        text += "\0" + (beside.read_text("utf-8", errors="replace") if beside.is_file() else "")
    return text


def licence_of(
    entry: Entry, source: Source, stanzas: Sequence[Stanza], statement: str
) -> tuple[str, str, str]:
    """(licence, credit, link to the original or "") of one file.

    The first of these counts: the credit in the container; the paragraph of the copyright file that
    names the file; the statement beside the sounds; the paragraph for all files; the licence in
    ``Source``, read by a person where the copyright file is not machine-readable; else ``unknown``.
    """
    if entry.credit:
        return credit_licence(entry.credit), entry.credit, original_recording(entry.credit)
    stanza = stanza_for(entry.origin, stanzas)
    named = stanza is not None and stanza.patterns != ("*",)
    if not named and source.statement and source.statement[1] in " ".join(statement.split()):
        return source.statement[2], f"{source.package}: {source.statement[0]}", ""
    if stanza is not None:
        return stanza.licence, stanza.credit, " ".join(stanza.links) if named else ""
    if not stanzas and source.licence is not None:
        return source.licence, f"{source.package}, its copyright file", ""
    return UNKNOWN, "", ""


def _decoded(root: Path, found: Sequence[tuple[str, Rule, Entry]], sample_rate_hz: int) -> Bundle:
    from rich.progress import track

    papers = {}
    for name in dict.fromkeys(name for name, _, _ in found):
        copyright_text, _, statement = _papers_text(root, SOURCES[name]).partition("\0")
        papers[name] = (parse_copyright(copyright_text), statement)
    clips: list[BankClip] = []
    waves: dict[str, Tensor] = {}
    quarantined: dict[str, str] = {}
    first_with: dict[str, str] = {}
    for name, rule, entry in track(found, "reading recorded sounds", transient=True):
        clip_id = f"{name}/{entry.name}"
        if "{words}" in rule.caption and not entry.words:
            quarantined[clip_id] = "is speech without a text of its words"
            continue
        try:
            wave_N = decode(entry.read(), sample_rate_hz, clip_id, first_with)
        except UserError as error:
            quarantined[clip_id] = str(error)
            continue
        licence, credit, original = licence_of(entry, SOURCES[name], *papers[name])
        caption = rule.caption.replace("{words}", (entry.words or "").rstrip("."))
        seconds = len(wave_N) / sample_rate_hz
        clips.append(
            BankClip(
                id=clip_id,
                sound_class=rule.sound_class,
                caption=caption,
                family=rule.family,
                audioset_labels=rule.audioset_labels,
                licence=licence,
                credit=credit,
                split="both",
                seconds=seconds,
                recording_split=False,
                recording=original or clip_id,
            )
        )
        waves[clip_id] = wave_N
    return Bundle(tuple(clips), waves, quarantined)
