"""Answers of a listening test: saved line by line, and summarised.

A ``.csv`` file has a header and one line per answer; a ``.jsonl`` file has one object per line. A
line is written by a single append under a lock and synced to the disk before the listener
continues, so a killed server loses no answer. A line that is cut off anyway counts as broken and is
never joined to the next one.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from zoo.errors import UserError
from zoo.files import check_writable, parsed_json
from zoo.statistics.intervals import wilson_interval

NO_DIFFERENCE = "none"
ANSWERS = ("A", "B", NO_DIFFERENCE)
SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Answer:
    """The answer of one listener to one trial.

    Args:
        time: in UTC.
        test: fingerprint of the test's sounds.
        listener: name or code.
        trial: number of the trial in the listener's order, from 1.
        pair: index of the pair of sounds, from 0.
        prompt_id: of that pair.
        a, b: names of the systems that were heard as A and as B.
        answer: "A", "B" or "none" (no difference).

    Raises:
        UserError: for values out of range, and for names that are not of two systems.
    """

    time: str
    test: str
    listener: str
    trial: int
    pair: int
    prompt_id: str
    a: str
    b: str
    answer: str

    def __post_init__(self) -> None:
        check_systems((self.a, self.b))
        if self.answer not in ANSWERS:
            raise UserError(f"invalid answer {self.answer!r}: expected {', '.join(ANSWERS)}")
        if self.trial < 1 or self.pair < 0 or not self.listener or not self.test:
            raise UserError("trial counts from 1, pair from 0, and listener and test have names")

    @property
    def systems(self) -> tuple[str, str]:
        """Both systems in alphabetical order, which does not tell their sides."""
        first, second = sorted((self.a, self.b))
        return first, second

    @property
    def preferred(self) -> str:
        """The name of a system, or "none"."""
        return {"A": self.a, "B": self.b, NO_DIFFERENCE: NO_DIFFERENCE}[self.answer]


def check_systems(names: Sequence[str]) -> None:
    """Raises ``UserError`` unless these are different names that an answer can hold."""
    for name in names:
        if name != " ".join(name.split()) or name in ("", NO_DIFFERENCE):
            raise UserError(
                f"invalid name of a system {name!r}: expected words with single spaces between"
                f" them, other than {NO_DIFFERENCE!r}"
            )
    if len(set(names)) < len(names):
        raise UserError(f"two systems need two names, got {' and '.join(map(repr, names))}")


# the last column is for human readers, and must agree with the others
COLUMNS = (*(field.name for field in fields(Answer)), "preferred")


@dataclass(frozen=True)
class Answers:
    """What a file of answers holds.

    ``answers``: the first one of each listener to each pair. ``repeated``: count of later ones.
    ``bad_lines``: numbers of the broken lines.
    """

    answers: tuple[Answer, ...]
    repeated: int
    bad_lines: tuple[int, ...]


def read_answers(path: str | Path) -> Answers:
    """The answers in a file; empty where there is no file yet.

    Raises ``UserError`` for another suffix, and for a CSV with another header, which may belong to
    something else; ``OSError``.
    """
    path = _checked(path)
    return _parsed(path.read_bytes() if path.exists() else b"", path)


def append_answer(path: str | Path, answer: Answer) -> bool:
    """Adds one line and syncs it; returns False if the listener already answered for this pair.

    Then nothing is added. Raises ``UserError`` as ``read_answers``, and ``OSError`` when the line
    could not be written completely.
    """
    path = _checked(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as handle:
        content = _everything(handle)
        known = {(one.test, one.listener, one.pair) for one in _parsed(content, path).answers}
        if (answer.test, answer.listener, answer.pair) in known:
            return False
        line = _line(answer, path)
        if path.suffix == ".csv" and not content:
            line = ",".join(COLUMNS) + "\n" + line
        elif content and not content.endswith(b"\n"):  # a killed writer left part of a line
            line = "\n" + line
        try:
            left = line.encode()
            while left:  # once, unless the disk is full: then the next write raises
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, len(content))  # removes a partial line
            raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def check_answers_place(path: str | Path) -> None:
    """Raises ``OSError`` where answers could not be added to ``path``; writes nothing.

    Raises ``UserError`` as ``read_answers``.
    """
    path = _checked(path)
    if path.exists():
        with path.open("ab"):
            return
    check_writable(path)  # the first answer creates the file


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: answers are kept in a file that ends in {' or '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file; name one for the answers")
    return path


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        try:
            from fcntl import LOCK_EX, flock
        except ImportError:  # not on Windows, where one server writes at a time
            yield handle
        else:
            flock(handle, LOCK_EX)  # released with the handle
            yield handle
    finally:
        os.close(handle)


def _everything(handle: int) -> bytes:
    parts = []
    os.lseek(handle, 0, os.SEEK_SET)
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _line(answer: Answer, path: Path) -> str:
    row = {**asdict(answer), "preferred": answer.preferred}
    if path.suffix == ".jsonl":
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    cells = io.StringIO()
    csv.writer(cells, lineterminator="\n").writerow(
        " ".join(str(row[name]).split()) for name in COLUMNS
    )
    return cells.getvalue()


def _parsed(content: bytes, path: Path) -> Answers:
    lines = content.decode("utf-8", errors="replace").split("\n")
    if (
        path.suffix == ".csv"
        and content
        and tuple(lines[0].lstrip("\ufeff").rstrip("\r").split(",")) != COLUMNS
    ):
        raise UserError(
            f"{path} is not a file of answers: expected the header {','.join(COLUMNS)}, got"
            f" {lines[0][:120]!r}"
        )
    answers: dict[tuple[str, str, int], Answer] = {}
    bad_lines = []
    repeated = 0
    for number, line in enumerate(lines, 1):
        if not line.strip() or (path.suffix == ".csv" and number == 1):
            continue
        try:
            answer = _answer(line, path.suffix)
        except (ValueError, TypeError, KeyError, csv.Error):
            bad_lines.append(number)
            continue
        key = (answer.test, answer.listener, answer.pair)
        repeated += key in answers
        answers.setdefault(key, answer)
    return Answers(tuple(answers.values()), repeated, tuple(bad_lines))


def _answer(line: str, suffix: str) -> Answer:
    """The answer in a line.

    Raises ``UserError``, ``TypeError``, ``KeyError`` or ``csv.Error`` for an incomplete or invalid
    one.
    """
    if suffix == ".jsonl":
        row = parsed_json(line)
    else:
        (cells,) = csv.reader([line.rstrip("\r")], strict=True)
        row = dict(zip(COLUMNS, cells, strict=True))
    values = {field.name: row[field.name] for field in fields(Answer)}
    numbers = {name: int(values[name]) for name in ("trial", "pair")}
    answer = Answer(**{name: str(value) for name, value in values.items()} | numbers)
    if row["preferred"] != answer.preferred:
        raise UserError("preferred does not agree with a, b and answer")
    return answer


@dataclass(frozen=True)
class Summary:
    """The answers of one test about two systems.

    Args:
        test: fingerprint of its sounds.
        systems: the two names, in alphabetical order.
        listeners, pairs: how many there were.
        wins: answers for each of the two systems.
        none: answers "no difference".
        share: wins of the second system as a share of both; None without any win.
        interval: Wilson's 95 % interval of ``share``.
        p_value: of ``share`` against one half, by the two-sided exact binomial test.
        a_share: share of the wins that were for side A. Far from one half, the side decided, not
            the sound.
        by_listener: listener -> (wins of the first, wins of the second, no difference).
    """

    test: str
    systems: tuple[str, str]
    listeners: int
    pairs: int
    wins: tuple[int, int]
    none: int
    share: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    a_share: float | None
    by_listener: dict[str, tuple[int, int, int]]

    @property
    def decided(self) -> int:
        return sum(self.wins)


def summarise(answers: Sequence[Answer]) -> tuple[Summary, ...]:
    """One summary per test and two systems in it, in the order of their first answers."""
    groups: dict[tuple[str, tuple[str, str]], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.test, answer.systems), []).append(answer)
    return tuple(_summary(*key, own) for key, own in groups.items())


def _counts(answers: Sequence[Answer], systems: tuple[str, str]) -> tuple[int, int, int]:
    preferred = [answer.preferred for answer in answers]
    first, second = systems
    return preferred.count(first), preferred.count(second), preferred.count(NO_DIFFERENCE)


def _summary(test: str, systems: tuple[str, str], answers: Sequence[Answer]) -> Summary:
    first, second, none = _counts(answers, systems)
    decided = first + second
    listeners = sorted({answer.listener for answer in answers})
    share = interval = p_value = a_share = None
    if decided:
        from scipy.stats import binomtest

        share = second / decided
        interval = wilson_interval(second, decided)
        p_value = float(binomtest(second, decided).pvalue)
        a_share = sum(answer.answer == "A" for answer in answers) / decided
    return Summary(
        test=test,
        systems=systems,
        listeners=len(listeners),
        pairs=len({answer.pair for answer in answers}),
        wins=(first, second),
        none=none,
        share=share,
        interval=interval,
        p_value=p_value,
        a_share=a_share,
        by_listener={
            one: _counts([answer for answer in answers if answer.listener == one], systems)
            for one in listeners
        },
    )


def described(found: Answers) -> str:
    """The summaries for a terminal. Raises ``UserError`` when there is no answer."""
    if not found.answers:
        raise UserError(f"there is no answer yet ({len(found.bad_lines)} broken lines)")
    lines = [line for one in summarise(found.answers) for line in _summary_lines(one)]
    if found.repeated:
        lines.append(f"{found.repeated} second answers to the same pair were left out")
    if found.bad_lines:
        shown = ", ".join(map(str, found.bad_lines[:8])) + (", ..." if found.bad_lines[8:] else "")
        lines.append(f"{len(found.bad_lines)} lines could not be read and were left out: {shown}")
    return "\n".join(lines)


def _summary_lines(one: Summary) -> list[str]:
    count = one.decided + one.none
    second = one.systems[1]
    lines = [
        f"test {one.test}: {count} answers (n) of {one.listeners} listeners to {one.pairs} pairs",
        f"  fits better: {_counted(one.systems, (*one.wins, one.none))}",
    ]
    if one.share is None or one.interval is None:
        lines.append("  no answer is for a side, so there is no share")
    else:
        low, high = one.interval
        lines += [
            f"  {second}, of the {one.decided} that chose a side: {one.share:.1%} (95 % Wilson"
            f" interval {low:.1%} to {high:.1%}; two-sided binomial p = {one.p_value:.3g})",
            f"  {second}, of all {count}: {one.wins[1] / count:.1%}; side A was chosen in"
            f" {one.a_share:.1%}",
        ]
    if one.listeners > 1:
        lines += [
            f"  {name}: {_counted(one.systems, counts)}" for name, counts in one.by_listener.items()
        ]
        lines.append(
            "  answers of one listener, and to one pair, resemble each other: the true interval is"
            " wider"
        )
    return lines


def _counted(systems: tuple[str, str], counts: tuple[int, int, int]) -> str:
    first, second = systems
    return f"{second} {counts[1]}, {first} {counts[0]}, no difference {counts[2]}"
