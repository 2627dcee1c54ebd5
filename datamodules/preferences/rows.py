"""Rows of label files, whatever they are packed in, and problems that name file, row and field.

A ``.json`` file may be an array, one object, JSON lines, or JSON lines that end in commas; its
content says which. A ``.parquet`` file needs pyarrow (``pip install "attune[labels]"``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.tables import lines, read_table, read_text
from zoo.errors import UserError
from zoo.files import parsed_json, written_beside

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of one row, and what to do about it."""

    path: Path
    place: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}, {self.place}, {self.field}: {self.message}"


def problem(path: Path, place: str, error: UserError) -> Problem:
    """A problem from an error whose message begins with the field and a colon."""
    field, _, message = str(error).partition(": ")
    return Problem(path, place, field, message)


@dataclass(frozen=True)
class Row:
    """One row: where it is ("line 3"), and its cells.

    The methods check one cell and raise ``UserError`` with a message that begins with its field.
    """

    place: str
    cells: Mapping[str, Any]

    def get(self, *fields: str) -> tuple[str, Any]:
        """The first of ``fields`` that is there and not null or empty, and its value.

        Without any: the first of ``fields``, and None.
        """
        for field in fields:
            value = self.cells.get(field)
            if value is not None and value != "":
                return field, value
        return fields[0], None

    def text(self, *fields: str) -> str:
        """Words without surrounding blanks, from the first of ``fields`` that has any."""
        field, value = self.get(*fields)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            got = "nothing" if value is None else repr(value)
            raise UserError(f"{field}: expected words, got {got}; fill it in or remove the row")
        return value.strip()

    def words(self, *fields: str) -> str:
        """As ``text``, but "" where there is nothing."""
        return "" if self.get(*fields)[1] is None else self.text(*fields)

    def name(self, *fields: str) -> str:
        """The name of a clip, with forward slashes."""
        return self.text(*fields).replace("\\", "/")

    def number(self, *fields: str) -> float | None:
        """A finite number, also one written as text; None where there is nothing."""
        field, value = self.get(*fields)
        return None if value is None else number(field, value)

    def share(self, *fields: str) -> float | None:
        """A number from 0 to 1; None where there is nothing."""
        field, value = self.get(*fields)
        return None if value is None else share(field, value)


def number(field: str, value: Any) -> float:
    """``value`` as a finite number. Raises ``UserError``."""
    try:
        read = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        read = math.nan
    if not math.isfinite(read):
        raise UserError(f"{field}: expected a number, got {value!r}; correct it or remove the row")
    return read


def share(field: str, value: Any) -> float:
    """``value`` as a number from 0 to 1. Raises ``UserError``."""
    try:
        read = number(field, value)
    except UserError:
        read = -1.0
    if not 0 <= read <= 1:
        raise UserError(
            f"{field}: expected a number from 0 to 1, got {value!r}; correct it or remove the row"
        )
    return read


def written_number(value: float) -> float | int:
    """``value`` as people write it: 1 instead of 1.0."""
    return int(value) if float(value).is_integer() else value


@dataclass(frozen=True)
class Content:
    """The rows of a file, and what could not be read of it.

    ``is_array``: whether it is one JSON array, not a row per line.
    """

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...] = ()
    is_array: bool = False


def read_rows(path: str | Path, extract_to: str | Path | None = None) -> Content:
    """Reads the rows of a label file.

    ``extract_to``: a folder for the audio that a parquet file holds itself; None leaves it there.
    Raises ``UserError`` for another suffix, a missing file, bytes that are not text, and a parquet
    file without pyarrow; broken rows become problems.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return Content(tuple(_parquet_rows(path, None if extract_to is None else Path(extract_to))))
    if suffix in (".csv", ".tsv"):
        rows = [Row(f"line {row.line}", row.cells) for row in read_table(path).rows]
        return Content(tuple(rows))
    text, _ = read_text(path, SUFFIXES)
    if text.lstrip().startswith("["):
        return _array(path, text)
    return _object_or_lines(path, text)


def _object_or_lines(path: Path, text: str) -> Content:
    filled = [(number, line) for number, line in lines(text) if line.strip()]
    try:
        if len(filled) > 1:
            json.loads(text)
            return Content((Row("line 1", _object(text)),))
    except json.JSONDecodeError:
        pass  # not one object over several lines: one object per line
    except (RecursionError, ValueError) as error:
        message = str(error) if isinstance(error, ValueError) else "nested too deeply"
        return Content((), (Problem(path, "line 1", "JSON", message),))
    rows = []
    problems = []
    for number, line in filled:
        try:
            rows.append(Row(f"line {number}", _object(line.strip().removesuffix(","))))
        except UserError as error:
            problems.append(Problem(path, f"line {number}", "JSON", str(error)))
    return Content(tuple(rows), tuple(problems))


def _object(text: str) -> dict[str, Any]:
    try:
        value = parsed_json(text)
    except UserError:
        raise
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"expected an object, got {type(value).__name__}")
    return value


def _array(path: Path, text: str) -> Content:
    """Reads an array value by value, so that every row has its line."""
    decoder = json.JSONDecoder()
    rows = []
    problems = []
    position = _after_blanks(text, text.index("[") + 1)
    line = 1 + text.count("\n", 0, position)
    while position < len(text) and text[position] != "]":
        place = f"line {line}"
        try:
            end = decoder.raw_decode(text, position)[1]
        except (ValueError, RecursionError) as error:
            problems.append(Problem(path, place, "JSON", f"not valid ({error})"))
            break
        try:
            rows.append(Row(place, _object(text[position:end])))
        except UserError as error:
            problems.append(Problem(path, place, "JSON", str(error)))
        following = _after_blanks(text, end)
        if following < len(text) and text[following] == ",":
            following = _after_blanks(text, following + 1)
        elif following >= len(text) or text[following] != "]":
            problems.append(
                Problem(path, place, "JSON", "the array is not closed, or lacks a comma here")
            )
            break
        line += text.count("\n", position, following)
        position = following
    return Content(tuple(rows), tuple(problems), is_array=True)


def _after_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def pyarrow_parquet() -> Any:
    """pyarrow's parquet module. Raises ``UserError`` when pyarrow is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f'parquet files need pyarrow ({error}); install it with pip install "attune[labels]"'
        ) from error
    return pyarrow.parquet


def _parquet_rows(path: Path, extract_to: Path | None) -> Iterator[Row]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    parquet = pyarrow_parquet()
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            names: set[str] = set()
            for batch in file.iter_batches(batch_size=32):
                for cells in batch.to_pylist():
                    number += 1
                    for field, cell in cells.items():
                        if isinstance(cell, dict) and "bytes" in cell and "path" in cell:
                            generated = f"{path.stem}-{number:06d}-{field}"
                            cells[field] = _clip_name(cell, generated, names, extract_to)
                    yield Row(f"row {number}", cells)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _clip_name(
    cell: Mapping[str, Any], generated: str, names: set[str], extract_to: Path | None
) -> str | None:
    """The name of a clip in an audio column; its bytes go to ``extract_to``, if given."""
    content = cell["bytes"]
    name = cell["path"]
    if content is None:
        return name
    inside = PurePosixPath((name or "").replace("\\", "/"))
    if not name or inside.is_absolute() or ".." in inside.parts or name in names:
        name = generated + _MAGIC.get(content[:4], inside.suffix or ".mp3")
    names.add(name)
    if extract_to is not None:
        target = extract_to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(target) as temporary:
            temporary.write_bytes(content)
    return name


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(
        json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    ).encode()


def json_array(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return (json.dumps(list(rows), ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()
