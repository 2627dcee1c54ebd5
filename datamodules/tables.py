"""Reads tables that people write: one prompt per line, CSV with a header, or JSON lines.

Every record keeps its file and line, so that later errors can name the place. Its methods
(``words``, ``number`` ...) read and check cells. Other formats build ``Record`` and ``Table``
themselves.
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
NAMES = {  # column -> accepted names
    "text": ("text", "prompt", "caption"),
    "prompt": ("prompt", "text", "caption"),
    "caption": ("caption", "text", "prompt"),
    "file": ("file", "file_name", "filename", "path"),
    "audio": ("audio", "file", "file_name", "filename", "path"),
}
_WORDS = "null, true, a list or an object"


@dataclass(frozen=True)
class Record:
    """One row of ``path``: ``cells`` by column, and its first ``line`` (from 1).

    Cells are text in ``.txt``, ``.csv`` and ``.tsv``, and any JSON value in ``.jsonl``.
    """

    path: Path
    line: int
    cells: dict[str, Any]

    @property
    def where(self) -> str:
        """File and line, for the beginning of a message."""
        return f"{self.path}, line {self.line}"

    def text(self, column: str) -> str:
        """The text of a cell without surrounding blanks; may be empty.

        Raises ``UserError`` for a missing cell and other values.
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
        """The text of a cell, which must not be empty. Raises ``UserError``."""
        if not (value := self.text(column)):
            raise UserError(f"{self.where}: expected words under {column!r}, the cell is empty")
        return value

    def name(self, column: str) -> str:
        """Text or a number, as text; "" for a missing, empty or null cell.

        Raises ``UserError`` for other values.
        """
        value = self.cells.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise UserError(f"{self.where}: {column} must be text or a number, got {value!r}")
        return "" if value is None else str(value).strip()

    def number(self, column: str) -> float | None:
        """A number, also one written as text; None for a missing, empty or null cell.

        Raises ``UserError`` for other values.
        """
        try:
            value = self.name(column)
            return float(value) if value else None
        except ValueError:
            raise UserError(
                f"{self.where}: {column} must be a number, got {self.cells[column]!r}"
            ) from None

    def whole_number(self, column: str) -> int | None:
        """A whole number; None for a missing, empty or null cell. Raises ``UserError``."""
        written = self.name(column)
        if re.fullmatch(r"[+-]?\d{1,1000}", written):
            return int(written)
        try:
            value = self.number(column)
        except UserError:
            value = math.nan
        if value is not None and not value.is_integer():
            raise UserError(
                f"{self.where}: {column} must be a whole number, got {self.cells[column]!r}"
            )
        return None if value is None else int(value)

    def mapping(self, column: str) -> dict[str, Any]:
        """A JSON object; ``{}`` for a missing, empty or null cell. Raises ``UserError``."""
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
    """The content of a file.

    - ``rows``: in the order of the file.
    - ``empty``: how many blank lines were dropped.
    - ``encoding``: ``utf-8``, ``utf-16``, or ``latin-1`` for anything else.
    """

    rows: tuple[Record, ...]
    empty: int
    encoding: str


def read_table(path: str | Path, *columns: str) -> Table:
    """Reads a ``.txt``, ``.csv``, ``.tsv`` or ``.jsonl`` file that has ``columns``.

    Each line of a ``.txt`` is one cell. A column may have another name from ``NAMES`` (``caption``
    for ``text``), in any case; the records use the name in ``columns``. Only a line feed, a
    carriage return, or both end a line. A quoted cell of a CSV may contain line ends and be of any
    length. Columns without a name are left out.

    Raises ``UserError``, which names the file and the line, for

    - a missing file, another suffix, and bytes that are not text;
    - a header without one of ``columns``, with two names for one of them, or with a repeated name;
    - more cells than the header has, and unclosed or misplaced quotes;
    - a line that is not a JSON object or repeats a key.
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
        _warn_of_line_ends(records)
    kept = tuple(record for record in records if record.cells)
    return Table(kept, len(records) - len(kept), encoding)


def _warn_of_line_ends(records: Sequence[Record]) -> None:
    """Warns of cells with several lines: two unclosed quotes look like one such cell."""
    spread = [
        record
        for record in records
        if any(re.search(r"[\r\n]", cell) for cell in record.cells.values())
    ]
    if spread:
        log.warning(
            "%s: %d rows have a cell of several lines; "
            "if that is not intended, a double quote is not closed",
            spread[0].where,
            len(spread),
        )


def read_text(path: Path, suffixes: Sequence[str]) -> tuple[str, str]:
    """The text of a file and its encoding (see ``decode``).

    Raises ``UserError`` for a missing file and another suffix.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{path}: expected a file that ends in {', '.join(suffixes)}, "
            f"got {path.suffix or 'no suffix'!r}"
        )
    if not path.is_file():
        found = "is not a regular file" if path.exists() else "there is no such file"
        raise UserError(f"{path}: {found}; paths are relative to the current folder ({Path.cwd()})")
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, name: str) -> tuple[str, str]:
    """Decodes bytes as UTF-8, as UTF-16 if they have its mark, else as Latin-1.

    Returns the text, without a byte order mark, and its encoding. Raises ``UserError`` for bytes
    that are not text (zero bytes or broken UTF-16).
    """
    text = None
    encoding = "utf-8"
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        if is_utf16:
            encoding = "utf-16"
            text = data.decode(encoding)
        elif b"\x00" not in data:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if not is_utf16:
            encoding = "latin-1"
            text = data.decode(encoding)
    if text is None or "\x00" in text:
        raise UserError(
            f"{name} is not a text file (it holds zero bytes or broken UTF-16); "
            "save it as UTF-8 text"
        )
    return text, encoding


def lines(text: str) -> list[tuple[int, str]]:
    """(number from 1, line) of each line.

    ``str.splitlines`` would also split at U+2028, U+0085 and form feeds, which occur inside texts.
    """
    parts = re.split(r"\r\n|\n|\r", text)
    return list(enumerate(parts if parts[-1] else parts[:-1], 1))


def delimited(
    text: str, path: Path, delimiter: str = ",", one_line: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells without surrounding blanks) of each record of a CSV, blank ones included.

    ``one_line``: a record must not span lines. Raises ``UserError``, which names file and line, for
    broken quotes, because they may swallow any number of records.
    """
    # a limit of the whole process, so it is only raised
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
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
            f"{path}, line {line}: broken double quotes ({error}); put text that contains the "
            "separator or begins with a quote in double quotes, and double every quote inside it"
        ) from None


def check_header(header: Sequence[str], path: Path) -> None:
    """Raises ``UserError`` for a repeated name; any number of columns may have no name."""
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
                f"{path}, line {line}: more cells than the header; "
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
    """Name in the file -> its name in ``columns``, where they differ."""
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
                f"rename the right one to {column!r}"
            )
        if not same:
            others = f" (or {', '.join(choices[1:])})" if choices[1:] else ""
            hint = f"; {did_you_mean(column, found, limit=8)}" if found else ""
            if len(found) == 1 and ";" in found[0]:
                hint = "; its cells are separated by ';': save it with commas, or with tabs as .tsv"
            raise UserError(
                f"{where}: the {what} must name a column {column!r}{others}, "
                f"it has {', '.join(map(repr, found)) or 'none'}{hint}"
            )
        renamed[(exact or same)[0]] = column
    return renamed
