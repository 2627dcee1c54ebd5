"""Text files that people write: one prompt a line, CSV with a header, or one JSON object a line."""

from __future__ import annotations

import codecs
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Table:
    """``rows``: one dictionary a record, with its line number (from 1) in ``lines``. ``empty``: blank records that were dropped.

    ``encoding``: how the bytes were read: ``utf-8``, ``utf-16``, or ``latin-1`` where they are not UTF-8.
    """

    rows: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]
    empty: int
    encoding: str


def decode(data: bytes, name: str) -> tuple[str, str]:
    """The text and its encoding: UTF-8 (a byte order mark is dropped), UTF-16 with its mark, else Latin-1.

    Raises ``ValueError`` for bytes that are no text (they hold zero bytes).
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16"), "utf-16"
    if b"\x00" in data:
        raise ValueError(f"{name} is not a text file (it holds zero bytes); save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def read_table(path: str | Path, text_column: str) -> Table:
    """Reads ``.txt`` (each line becomes ``{text_column: line}``), ``.csv``, ``.tsv`` or ``.jsonl``.

    Raises ``ValueError`` naming the file, the line and the way out for: a missing file, another suffix, a CSV without the column
    ``text_column`` or with a row longer than its header, a line that is no JSON object.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'!r}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; paths are relative to where the command is started ({Path.cwd()})")
    text, encoding = decode(path.read_bytes(), str(path))
    if path.suffix.lower() == ".txt":
        records = [(number, {text_column: line.strip()}) for number, line in enumerate(text.splitlines(), 1)]
    elif path.suffix.lower() == ".jsonl":
        records = [(number, _json_object(line, path, number)) for number, line in enumerate(text.splitlines(), 1)]
    else:
        records = _delimited(text, path, text_column)
    kept = [(number, row) for number, row in records if any(value not in (None, "") for value in row.values())]
    return Table(tuple(row for _, row in kept), tuple(number for number, _ in kept), len(records) - len(kept), encoding)


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    if not line.strip():
        return {}
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg}); each line must be one JSON object") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(value).__name__}")
    return value


def _delimited(text: str, path: Path, text_column: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", skipinitialspace=True)
    header: list[str] | None = None
    records = []
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if header is None and any(cells):
            header = cells
            if text_column not in header:
                raise ValueError(f"{path}: the header must name a column {text_column!r}, it has {', '.join(map(repr, header))}")
        elif not any(cells):
            records.append((reader.line_num, {}))
        elif len(cells) > len(header):
            where = f"{path}, line {reader.line_num}"
            raise ValueError(f"{where}: more cells than the header has; put text with commas in double quotes")
        else:
            records.append((reader.line_num, dict(zip(header, cells, strict=False))))
    return records
