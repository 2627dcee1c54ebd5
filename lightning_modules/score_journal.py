"""Scores of clips, kept line by line as they come, so that an interrupted annotation goes on.

A journal is a folder with one JSON Lines file per process. A line is on the disk before the next
clip is scored. Its key is made of the bytes of the clip, of what was asked, and of the reward, so
lines of another reward, or of a file that was changed, are not found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from zoo.errors import UserError
from zoo.files import parsed_json
from zoo.types import Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """One line: ``score`` and ``parts`` as the reward gave them.

    - ``key``: see ``score_key``.
    - ``audio``, ``reward``: the name of the clip and the id of the reward, for people.
    """

    key: str
    audio: str
    reward: str
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)


def score_key(content: str, prompt: Prompt, reward_id: str) -> str:
    """Names a score (32 hex digits) by the SHA-256 of the clip's bytes, what is asked, by whom."""
    asked = json.dumps(
        [prompt.text, prompt.negative, prompt.seconds, dict(prompt.labels)],
        sort_keys=True,
        default=str,
        allow_nan=False,
    )
    return hashlib.sha256(f"{content} {reward_id} {asked}".encode()).hexdigest()[:32]


class Journal:
    """A folder of lines; ``open`` one file of it to add lines."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: BinaryIO | None = None

    def read(self) -> dict[str, Scored]:
        """Key -> score of all files. A line that a killed process left unfinished is dropped."""
        found: dict[str, Scored] = {}
        dropped = 0
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    scored = _scored(parsed_json(line.decode()))
                except ValueError:
                    dropped += bool(line.strip())
                    continue
                found[scored.key] = scored
        if dropped:
            log.warning(
                "%s: %d unreadable lines; their clips are scored again", self.folder, dropped
            )
        return found

    def open(self, process: int) -> None:
        """Opens the file of a process. Raises ``OSError`` where it cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{process:05d}.jsonl"
        is_torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("ab")
        if is_torn:
            self._file.write(b"\n")

    def add(self, scored: Scored) -> None:
        """Appends a line and waits until it is on the disk. Raises ``OSError``."""
        line = json.dumps(asdict(scored), ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _scored(line: Any) -> Scored:
    """A line as a record. Raises ``UserError`` for anything else."""
    try:
        scored = Scored(**line)
        is_whole = isinstance(scored.key, str) and math.isfinite(scored.score)
    except TypeError as error:
        raise UserError(f"not a line of a journal ({error})") from error
    if not is_whole:
        raise UserError("not a line of a journal")
    return scored
