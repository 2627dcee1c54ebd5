"""Answers of a listening test: one line each, saved at once, and what they amount to.

A ``.csv`` file has a header and a line an answer; a ``.jsonl`` file has an object a line. A line is
written by a single append under a lock and synced to the disk before the listener goes on, so a
killed server loses no answer. A line that was cut off all the same is counted as such and never
joins with the next.
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

ANSWERS = ("A", "B", "none")
SIDES = ("base", "tuned")
SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Answer:
    """One trial of one listener.

    ``time``: UTC; ``test``: which sounds; ``trial``: from 1, in the listener's order; ``pair``:
    index of the sounds; ``a``, ``b``: which model was heard there ("base" or "tuned"); ``answer``:
    "A", "B" or "none".

    Raises ``UserError`` for values that cannot be meant.
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
        if self.answer not in ANSWERS or {self.a, self.b} != set(SIDES):
            raise UserError(
                f"expected an answer of {', '.join(ANSWERS)} about base and tuned, got"
                f" {self.answer!r}, a={self.a!r}, b={self.b!r}"
            )
        if self.trial < 1 or self.pair < 0 or not self.listener or not self.test:
            raise UserError("trial counts from 1, pair from 0, and listener and test have names")

    @property
    def preferred(self) -> str:
        """ "base", "tuned" or "none"."""
        return {"A": self.a, "B": self.b, "none": "none"}[self.answer]


COLUMNS = tuple(field.name for field in fields(Answer)) + (
    "preferred",
)  # the last is for human readers and must agree


@dataclass(frozen=True)
class Answers:
    """``answers``: the first of each listener to each pair; ``repeated``: later ones;
    ``bad_lines``: numbers of broken lines.
    """

    answers: tuple[Answer, ...]
    repeated: int
    bad_lines: tuple[int, ...]


def read_answers(path: str | Path) -> Answers:
    """The answers in a file; none where there is no file yet.

    Raises ``UserError`` for another suffix and a CSV that has another header (it is not ours to
    add to); ``OSError``.
    """
    path = _checked(path)
    return _parsed(path.read_bytes() if path.exists() else b"", path)


def append_answer(path: str | Path, answer: Answer) -> bool:
    """Adds one line and syncs it; False, and no line, when the listener answered to this pair of
    this test before.

    Raises ``UserError`` as ``read_answers`` does, and ``OSError`` when the line could not be
    written whole.
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
        elif content and not content.endswith(
            b"\n"
        ):  # what a killed writer left is a line of its own
            line = "\n" + line
        try:
            left = line.encode()
            while left:  # once, unless the disk is full: then the next try says so
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, len(content))  # no half line stays
            raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def check_answers_place(path: str | Path) -> None:
    """Raises ``OSError`` where answers could not be added to ``path``; writes nothing to it.

    Raises also what ``read_answers`` raises for a name that it does not take.
    """
    path = _checked(path)
    if path.exists():
        with path.open("ab"):
            return
    check_writable(path)  # the file itself is made by the first answer


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
            f"{path} is no answers file: expected the header {','.join(COLUMNS)}, got"
            f" {lines[0][:120]!r}"
        )
    answers, bad_lines, repeated = {}, [], 0
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
    """Raises ``UserError``, ``TypeError``, ``KeyError`` or ``csv.Error`` for a line that is no
    whole answer.
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
    """Counts of one ``test``.

    ``share``: of answers for a side, those for the fine-tuned one, with Wilson's 95 % ``interval``
    and the two-sided exact binomial ``p_value`` against one half (None where every answer is "no
    difference"). ``a_share``: of the same answers, those for side A: far from one half means that
    the side, not the sound, decided. ``by_listener``: counts of (tuned, base, none).
    """

    test: str
    listeners: int
    pairs: int
    tuned: int
    base: int
    none: int
    share: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    a_share: float | None
    by_listener: dict[str, tuple[int, int, int]]


def summarise(answers: Sequence[Answer]) -> tuple[Summary, ...]:
    """One summary a test, in the order of their first answers."""
    tests: dict[str, list[Answer]] = {}
    for answer in answers:
        tests.setdefault(answer.test, []).append(answer)
    return tuple(_summary(name, own) for name, own in tests.items())


def _counts(answers: Sequence[Answer]) -> tuple[int, int, int]:
    return tuple(
        sum(answer.preferred == side for answer in answers) for side in ("tuned", "base", "none")
    )


def _summary(name: str, answers: Sequence[Answer]) -> Summary:
    tuned, base, none = _counts(answers)
    decided = tuned + base
    listeners = sorted({answer.listener for answer in answers})
    by_listener = {
        one: _counts([answer for answer in answers if answer.listener == one]) for one in listeners
    }
    pairs = len({answer.pair for answer in answers})
    if not decided:
        return Summary(
            name, len(listeners), pairs, tuned, base, none, None, None, None, None, by_listener
        )
    from scipy.stats import binomtest

    a_share, p_value = (
        sum(answer.answer == "A" for answer in answers) / decided,
        float(binomtest(tuned, decided).pvalue),
    )
    return Summary(
        name,
        len(listeners),
        pairs,
        tuned,
        base,
        none,
        tuned / decided,
        wilson_interval(tuned, decided),
        p_value,
        a_share,
        by_listener,
    )


def described(found: Answers) -> str:
    """The summary for a terminal. Raises ``UserError`` when there is no answer."""
    if not found.answers:
        raise UserError(f"there is no answer yet ({len(found.bad_lines)} lines that are none)")
    lines = []
    for one in summarise(found.answers):
        count = one.tuned + one.base + one.none
        lines.append(
            f"test {one.test}: {count} answers (n) of {one.listeners} listeners to {one.pairs}"
            " pairs"
        )
        lines.append(
            f"  fits better: fine-tuned {one.tuned}, base {one.base}, no difference {one.none}"
        )
        if one.share is None:
            lines.append("  no answer is for a side, so there is no share")
        else:
            low, high = one.interval
            lines.append(
                f"  fine-tuned, of the {one.tuned + one.base} that chose a side: {one.share:.1%}"
                f" (95 % Wilson interval {low:.1%} to {high:.1%}; two-sided binomial p ="
                f" {one.p_value:.3g})"
            )
            lines.append(
                f"  fine-tuned, of all {count}: {one.tuned / count:.1%}; side A was chosen in"
                f" {one.a_share:.1%}"
            )
        if one.listeners > 1:
            lines += [
                f"  {name}: fine-tuned {t}, base {b}, no difference {n}"
                for name, (t, b, n) in one.by_listener.items()
            ]
            lines.append(
                "  answers of one listener, and to one pair, resemble each other: the true interval"
                " is wider"
            )
    if found.repeated:
        lines.append(f"{found.repeated} second answers to the same pair were left out")
    if found.bad_lines:
        shown = ", ".join(map(str, found.bad_lines[:8])) + (", ..." if found.bad_lines[8:] else "")
        lines.append(f"{len(found.bad_lines)} lines could not be read and were left out: {shown}")
    return "\n".join(lines)
