"""Votes in one SQLite file: one vote per rater and item, and a history of every click.

Every change is one transaction in the write-ahead log (WAL), synced to the disk before the rater
continues. A killed server therefore loses no acknowledged vote and leaves no half of one. A click
has an identifier of its own, so that a browser may send it again until it is acknowledged. The file
must be on a disk of this machine: SQLite's log does not work on network folders.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import UserError

FORMAT = 1
BUSY_S = 10.0
_SCHEMA = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (number INTEGER PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE raters (
  name TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, joined TEXT NOT NULL, seen_s REAL NOT NULL,
  restarts INTEGER NOT NULL DEFAULT 0, headphones TEXT NOT NULL DEFAULT '[]', about TEXT,
  finished TEXT
);
CREATE TABLE trials (
  key TEXT PRIMARY KEY, rater TEXT NOT NULL REFERENCES raters (name), position INTEGER NOT NULL,
  item INTEGER NOT NULL REFERENCES items (number), kind TEXT NOT NULL, swapped INTEGER NOT NULL,
  decoy INTEGER REFERENCES items (number), UNIQUE (rater, position)
);
CREATE UNIQUE INDEX one_vote ON trials (rater, item) WHERE kind = 'item';
CREATE TABLE plays (
  id TEXT PRIMARY KEY, trial TEXT NOT NULL REFERENCES trials (key), side INTEGER NOT NULL,
  restarts INTEGER NOT NULL, started_s REAL NOT NULL, ended_s REAL
);
CREATE INDEX plays_of ON plays (trial);
CREATE TABLE votes (
  trial TEXT PRIMARY KEY REFERENCES trials (key), answer TEXT NOT NULL, time_ms REAL,
  time TEXT NOT NULL
);
CREATE TABLE history (
  id INTEGER PRIMARY KEY, click TEXT UNIQUE, trial TEXT NOT NULL REFERENCES trials (key),
  what TEXT NOT NULL, answer TEXT, time_ms REAL, time TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class VoteStore:
    """The file of votes; every call opens its own connection, from any thread or process.

    ``idle``: a connection that does nothing. While it is open, SQLite does not copy its log into
    the file and delete it after every call.
    """

    path: Path
    idle: sqlite3.Connection | None = field(default=None, compare=False, repr=False)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is saved and synced, or nothing.

        Raises ``OSError`` where nothing can be written, and ``Busy`` while another program holds
        the file.
        """
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the file. Raises as ``writing``."""
        with self._connected() as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with _named_errors(self.path):
            connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            with closing(connection):
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                yield connection


class Busy(OSError):
    """Another program holds the file of votes; the same step may be tried again."""


def create_store(path: str | Path) -> VoteStore:
    """Opens a file of votes for writing, or creates one.

    Raises ``UserError`` for a file that is something else, and ``OSError`` where it cannot be
    written; such a file stays as it was.
    """
    store = VoteStore(Path(path))
    _is_missing(store.path)
    store.path.parent.mkdir(parents=True, exist_ok=True)
    with store.writing() as connection:
        is_empty = _is_empty(connection)
    if is_empty:
        with store._connected() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with store.writing() as connection:
            if _is_empty(connection):  # else another process was first
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute("INSERT INTO study VALUES ('format', ?)", (str(FORMAT),))
    _check_format(store)
    with store.writing() as connection:  # a file that is only readable lets a transaction begin
        connection.execute("UPDATE study SET value = value WHERE key = 'format'")
    with _named_errors(store.path):
        idle = sqlite3.connect(store.path, timeout=BUSY_S, check_same_thread=False)
        idle.execute("SELECT COUNT(*) FROM study").fetchone()
    return VoteStore(store.path, idle)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]


def open_store(path: str | Path) -> VoteStore:
    """Opens a file of votes that is there, to read it. Raises as ``create_store``."""
    path = Path(path)
    if _is_missing(path):
        raise UserError(f"{path}: there is no such file of votes")
    store = VoteStore(path)
    _check_format(store)
    return store


def _is_missing(path: Path) -> bool:
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file; name one for the votes")
    return not path.exists()


def _check_format(store: VoteStore) -> None:
    expected = f"expected a file of votes that tools/listen.py label wrote (format {FORMAT})"
    try:
        with store.reading() as connection:
            found = connection.execute("SELECT value FROM study WHERE key = 'format'").fetchone()
    except sqlite3.OperationalError as error:  # no such table
        raise UserError(f"{store.path}: {expected}, got another database") from error
    if found is None or found["value"] != str(FORMAT):
        got = "another database" if found is None else f"format {found['value']}"
        raise UserError(f"{store.path}: {expected}, got {got}")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors about the file, not those about statements, into ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise Busy(
                errno.EBUSY, "another program holds this file; close it and try again", str(path)
            ) from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            advice = "votes cannot be written here; name a file and a folder that you may write to"
            raise OSError(errno.EROFS, advice, str(path)) from error
        if name.startswith("SQLITE_FULL"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if name.startswith("SQLITE_IOERR"):
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} ({error})", str(path)) from error
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise UserError(f"{path} is not a readable file of votes ({error})") from error
        raise


@contextmanager
def served_alone(path: str | Path) -> Iterator[None]:
    """Holds the file of votes for one server; a second one gets a ``UserError``.

    The lock ends with the process, also when it is killed. Where the system has no ``flock`` there
    is none; votes are then still saved one by one.
    """
    lock = Path(path).with_name(Path(path).name + ".lock")
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows
        yield
        return
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            process = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{path} is served already, by process {process}; use that page, stop it, or name"
                " another file for the votes"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)
