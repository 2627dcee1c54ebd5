"""Tables that people write: one prompt per line, CSV with a header, or one JSON object per line.

Every record keeps its file and line, so that whatever is wrong with it later is told by place.
Formats that divide their rows in another way build ``Record`` and ``Table`` themselves; what a
column may hold is asked of the record (``words``, ``number`` ...).
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError, did_you_mean
from zoo.files import parsed_json

log = logging.getLogger(__name__)

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
NAMES = {  # column -> what people call it
    "text": ("text", "prompt", "caption"),
    "prompt": ("prompt", "text", "caption"),
    "caption": ("caption", "text", "prompt"),
    "file": ("file", "file_name", "filename", "path"),
}
_WORDS = "null, true, a list or an object"


@dataclass(frozen=True)
class Record:
    """One row of ``path``: ``cells`` by column, and the ``line`` (from 1) on which it begins.

    Cells are text in ``.txt``, ``.csv`` and ``.tsv``, and any JSON value in ``.jsonl``.
    """

    path: Path
    line: int
    cells: dict[str, Any]

    @property
    def where(self) -> str:
        """File and line, to begin a message with."""
        return f"{self.path}, line {self.line}"

    def text(self, column: str) -> str:
        """The text of a cell, without blanks at its ends, perhaps "".

        Raises ``UserError`` where there is no text.
        """
        value = self.cells.get(column)
        if not isinstance(value, str):
            got = "nothing" if column not in self.cells else repr(value)
            raise UserError(
                f"{self.where}: expected words under {column!r}, got {got}; "
                f"columns here: {', '.join(self.cells)}"
            )
        return value.strip()

    def words(self, column: str) -> str:
        """As ``text``, and at least one letter of it. Raises ``UserError``."""
        if not (value := self.text(column)):
            raise UserError(f"{self.where}: expected words under {column!r}, the cell is empty")
        return value

    def name(self, column: str) -> str:
        """Text or a number, as text; "" for a cell that is absent, empty or null.

        Raises ``UserError`` for other values.
        """
        value = self.cells.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise UserError(f"{self.where}: {column} must be text or a number, got {value!r}")
        return "" if value is None else str(value).strip()

    def number(self, column: str) -> float | None:
        """A number, perhaps written as text; None for a cell that is absent, empty or null.

        Raises ``UserError``.
        """
        try:
            value = self.name(column)
            return float(value) if value else None
        except ValueError:
            raise UserError(
                f"{self.where}: {column} must be a number, got {self.cells[column]!r}"
            ) from None

    def whole_number(self, column: str) -> int | None:
        """As ``number``, without a fraction. Raises ``UserError``."""
        written = self.name(column)
        if re.fullmatch(r"[+-]?\d{1,1000}", written):
            return int(written)
        try:
            value = self.number(column)
        except ValueError:
            value = math.nan
        if value is not None and not value.is_integer():
            raise UserError(f"{self.where}: {column} is a whole number, got {self.cells[column]!r}")
        return None if value is None else int(value)

    def mapping(self, column: str) -> dict[str, Any]:
        """A JSON object; ``{}`` for a cell that is absent, empty or null. Raises ``UserError``."""
        value = self.cells.get(column)
        if value in (None, ""):
            return {}
        if not isinstance(value, dict):
            raise UserError(
                f'{self.where}: {column} must be an object such as {{"mood": "sad"}}, got {value!r}'
            )
        return value

    def others(self, *columns: str) -> dict[str, Any]:
        """The cells of all other columns."""
        return {name: value for name, value in self.cells.items() if name not in columns}


@dataclass(frozen=True)
class Table:
    """``rows`` in the order of the file.

    ``empty``: blank lines that were dropped. ``encoding``: ``utf-8``, ``utf-16``, or ``latin-1``
    for what is neither.
    """

    rows: tuple[Record, ...]
    empty: int
    encoding: str


def read_table(path: str | Path, *columns: str) -> Table:
    """The records of a ``.txt``, ``.csv``, ``.tsv`` or ``.jsonl`` file that has ``columns``.

    Each line of a ``.txt`` is one cell.
    A column may have another name that ``NAMES`` lists (``caption`` for ``text``), in small or
    capital letters; in the records it has the one that is asked for. A line ends with a line feed,
    a carriage return, or both, and nothing else. A cell of a CSV in double quotes may hold line
    ends, and any number of characters. Columns without a name are left out.

    Raises ``UserError`` naming the file, and where it has one the line, for: a missing file,
    another suffix, bytes that are no text; a header without one of ``columns``, with two that could
    be meant, or with one twice; more cells than the header has; quotes that are not closed or stand
    in the middle of a cell; a line that is no JSON object, or has one key twice.
    """
    path = Path(path)
    text, encoding = read_text(path, SUFFIXES)
    suffix = path.suffix.lower()
    if suffix == ".txt" and len(columns) != 1:
        raise UserError(
            f"{path}: a .txt has one column; write a .csv with the columns {', '.join(columns)}"
        )
    if suffix == ".txt":
        rows = (
            (number, {columns[0]: line.strip()} if line.strip() else {})
            for number, line in lines(text)
        )
    elif suffix == ".jsonl":
        rows = (
            (number, _json_cells(line, f"{path}, line {number}", columns))
            for number, line in lines(text)
        )
    else:
        rows = _delimited_cells(text, path, "\t" if suffix == ".tsv" else ",", columns)
    records = [Record(path, number, cells) for number, cells in rows]
    if suffix in (".csv", ".tsv"):
        _tell_line_ends(records)
    kept = tuple(record for record in records if record.cells)
    return Table(kept, len(records) - len(kept), encoding)


def _tell_line_ends(records: Sequence[Record]) -> None:
    """Two quotes that were never closed look like one cell over several lines: that is told."""
    spread = [
        record
        for record in records
        if any(re.search(r"[\r\n]", cell) for cell in record.cells.values())
    ]
    if spread:
        log.warning(
            "%s: %d rows hold a cell of several lines; "
            "if that is not meant, a double quote is not closed",
            spread[0].where,
            len(spread),
        )


def read_text(path: Path, suffixes: Sequence[str]) -> tuple[str, str]:
    """The text of a file and its encoding (see ``decode``).

    Raises ``UserError`` for no such file and another suffix.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{path}: expected a file that ends in {', '.join(suffixes)}, "
            f"got {path.suffix or 'no suffix'!r}"
        )
    if not path.is_file():
        found = "is no regular file" if path.exists() else "there is no such file"
        raise UserError(
            f"{path}: {found}; paths are relative to where the command is started ({Path.cwd()})"
        )
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, name: str) -> tuple[str, str]:
    """The text and its encoding.

    UTF-8 (a byte order mark is dropped), UTF-16 with its mark, else Latin-1.

    Raises ``UserError`` for bytes that are no text (they hold zero bytes, or half a character of
    UTF-16).
    """
    text, encoding = None, "utf-8"
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text, encoding = data.decode("utf-16"), "utf-16"
        elif b"\x00" not in data:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if encoding == "utf-8" and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text, encoding = data.decode("latin-1"), "latin-1"
    if text is None or "\x00" in text:
        raise UserError(
            f"{name} is not a text file (it holds zero bytes or broken UTF-16); "
            "save it as UTF-8 text"
        )
    return text, encoding


def lines(text: str) -> list[tuple[int, str]]:
    """(number from 1, line) of each line.

    ``str.splitlines`` would also divide at U+2028, U+0085 and form feeds, which stand inside texts.
    """
    parts = re.split(r"\r\n|\n|\r", text)
    return list(enumerate(parts if parts[-1] else parts[:-1], 1))


def delimited(
    text: str, path: Path, delimiter: str = ",", one_line: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells without blanks at their ends) of each record of a CSV, blank ones too.

    ``one_line``: no record may run over the end of its line. Raises ``UserError`` naming file and
    line for broken quotes: nobody knows how many records they swallow.
    """
    csv.field_size_limit(
        max(csv.field_size_limit(), len(text))
    )  # of the whole process; only ever raised
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    line = 1
    try:
        for cells in reader:
            if one_line and reader.line_num > line:
                raise csv.Error(f"the record runs on to line {reader.line_num}")
            yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: broken double quotes ({error}); text that holds the separator "
            "or begins with a quote stands in one pair of double quotes, and a quote inside it is "
            "doubled"
        ) from None


def check_header(header: Sequence[str], path: Path) -> None:
    """Raises ``UserError`` for a name that stands twice; columns without a name may be many."""
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise UserError(
            f"{path}: the header names {', '.join(doubled)} twice; name every column once"
        )


def _delimited_cells(
    text: str, path: Path, delimiter: str, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    header: list[str] | None = None
    for line, cells in delimited(text, path, delimiter):
        if not any(cells):
            yield line, {}
        elif header is None:
            check_header(cells, path)
            renamed = _renamed(cells, columns, str(path), "header")
            header = [renamed.get(name, name) for name in cells]
        elif len(cells) > len(header):
            raise UserError(
                f"{path}, line {line}: more cells than the header has; "
                "put text with commas in double quotes"
            )
        else:
            yield line, {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _json_cells(line: str, where: str, columns: Sequence[str]) -> dict[str, Any]:
    if not line.strip():
        return {}
    try:
        value = parsed_json(line)
    except ValueError as error:
        raise UserError(f"{where}: {error}; each line must be one JSON object") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(value).__name__}")
    renamed = _renamed(list(value), columns, where, "object")
    return {renamed.get(name, name): cell for name, cell in value.items()}


def _renamed(found: Sequence[str], columns: Sequence[str], where: str, what: str) -> dict[str, str]:
    """name in the file -> the one of ``columns`` that it stands for, where they differ."""
    renamed = {}
    for column in columns:
        if column in found:
            continue
        choices = NAMES.get(column, (column,))
        same = [
            name
            for name in found
            if name.casefold() in choices and name not in columns and name not in renamed
        ]
        exact = [name for name in same if name.casefold() == column]
        if len(exact or same) > 1:
            both = " or ".join(map(repr, exact or same))
            raise UserError(
                f"{where}: {both} could be the column {column!r}; "
                f"rename the one that is meant to {column!r}"
            )
        if not same:
            others = f" (or {', '.join(choices[1:])})" if choices[1:] else ""
            hint = f"; {did_you_mean(column, found, limit=8)}" if found else ""
            if len(found) == 1 and ";" in found[0]:
                hint = "; its cells are divided by ';': save it with commas, or with tabs as .tsv"
            raise UserError(
                f"{where}: the {what} must name a column {column!r}{others}, "
                f"it has {', '.join(map(repr, found)) or 'none'}{hint}"
            )
        renamed[(exact or same)[0]] = column
    return renamed
