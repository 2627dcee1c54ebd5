"""A labelling study without its page: who is asked what, what was heard, and what is saved.

Everything is in the file of votes, so a server that was killed continues where it stopped.
"""

from __future__ import annotations

import json
import math
import random
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from zoo.audio_files import read_audio
from zoo.errors import UserError
from zoo.listening.items import Clip, Item, fingerprint, is_intact, item_facts, item_from
from zoo.listening.questions import checked, fields_of
from zoo.listening.study_trials import StudySettings, Trial, draw_trials, trial_from
from zoo.listening.trials import equally_loud, listener_name, now
from zoo.listening.vote_store import VoteStore, create_store
from zoo.types import Waveform

ABANDONED_S = 3600.0  # unanswered trials of a rater who was away longer are given to others
EARLY_S = 0.25  # a clip may end so much too early, for the way of the two messages
_NOISE = 2.0  # level of the noise over that of the clip, in a clear negative of quality


@dataclass(frozen=True)
class Study:
    """A study that is served. ``secret`` draws orders and codes; ``seen``: see ``is_intact``."""

    store: VoteStore
    settings: StudySettings
    items: tuple[Item, ...]
    secret: str
    seen: dict[Path, tuple[int, int, bool]] = field(default_factory=dict, compare=False)


def open_study(path: str | Path, items: Sequence[Item], settings: StudySettings) -> Study:
    """Opens the file of votes for these items, or creates it.

    Raises ``UserError`` where the file belongs to other items, another task or other levels, and
    as ``create_store``.
    """
    if not items:
        raise UserError("a study needs at least one item")
    store = create_store(path)
    facts = {
        "task": settings.task,
        "items": fingerprint(settings.task, items),
        "equal_level": str(settings.equal_level),
    }
    with store.writing() as connection:
        known = dict(connection.execute("SELECT key, value FROM study").fetchall())
        if "items" not in known:
            rows = [(i, _json(item_facts(item))) for i, item in enumerate(items)]
            connection.executemany("INSERT INTO items VALUES (?, ?)", rows)
            known |= facts | {"secret": secrets.token_hex(16), "token": secrets.token_urlsafe(16)}
            connection.executemany("INSERT OR IGNORE INTO study VALUES (?, ?)", known.items())
    for name, value in facts.items():
        if known[name] != value:
            raise UserError(
                f"{path} holds votes with {name} {known[name]}, and this study has {name} {value};"
                " continue with the same clips and settings, or name another file for the votes"
            )
    # the stored items: their files may have moved since, but not changed
    moved = {clip.name: clip.path for item in items for clip in item.clips}
    with store.reading() as connection:
        stored = stored_items(connection)
    stored = tuple(
        replace(one, clips=tuple(replace(clip, path=moved[clip.name]) for clip in one.clips))
        for one in stored
    )
    return Study(store, settings, stored, known["secret"])


def stored_items(connection: sqlite3.Connection) -> tuple[Item, ...]:
    """The items of a file of votes."""
    rows = connection.execute("SELECT facts FROM items ORDER BY number").fetchall()
    return tuple(item_from(json.loads(row["facts"])) for row in rows)


def access_token(study: Study) -> str:
    """The token that a page outside this machine asks for; it stays the same after a restart."""
    with study.store.reading() as connection:
        return str(
            connection.execute("SELECT value FROM study WHERE key = 'token'").fetchone()["value"]
        )


def join(study: Study, name: str, resume: bool = False) -> str:
    """Adds a rater and draws the trials, or lets a known one continue; returns the name as kept.

    Raises ``UserError`` for an invalid name, and ``NameTaken`` for a known one without ``resume``.
    """
    rater = listener_name(name)
    with study.store.writing() as connection:
        if connection.execute("SELECT 1 FROM raters WHERE name = ?", (rater,)).fetchone():
            if not resume:
                raise NameTaken(f"{rater} has already started here")
            return rater
        row = (rater, secrets.token_hex(16), now(), time.time())
        connection.execute(
            "INSERT INTO raters (name, key, joined, seen_s) VALUES (?, ?, ?, ?)", row
        )
        votes = dict(
            connection.execute(
                "SELECT item, COUNT(*) FROM trials JOIN raters ON raters.name = trials.rater"
                " LEFT JOIN votes ON votes.trial = trials.key"
                " WHERE kind = 'item' AND (votes.trial IS NOT NULL OR seen_s > ?) GROUP BY item",
                (time.time() - ABANDONED_S,),
            ).fetchall()
        )
        counts = [votes.get(item, 0) for item in range(len(study.items))]
        draw = random.Random(f"{study.secret}/{rater}")
        for trial in draw_trials(study.items, study.settings, counts, draw):
            connection.execute(
                "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    secrets.token_hex(16),
                    rater,
                    trial.position,
                    trial.item,
                    trial.kind,
                    trial.swapped,
                    trial.decoy,
                ),
            )
    return rater


class NameTaken(UserError):
    """Somebody of this name has started; it may be the same person."""


def clips_of(study: Study, trial: Trial) -> tuple[Clip, ...]:
    """The clips that are heard, in the order of the sides."""
    clips = study.items[trial.item].clips
    if trial.decoy is not None:
        clips = (*clips[:-1], study.items[trial.decoy].clips[0])
    return clips[::-1] if trial.swapped else clips


def is_playable(study: Study, trial: Trial) -> bool:
    """Whether all files of a trial are there and unchanged."""
    return all(is_intact(clip, study.seen) for clip in clips_of(study, trial))


def sounds(study: Study, trial: Trial) -> tuple[Waveform, ...]:
    """What is heard, in the order of the sides. Raises ``UserError`` and ``OSError``."""
    for clip in clips_of(study, trial):
        if not is_intact(clip, study.seen):
            raise UserError(f"{clip.path} is gone, or has another content than at the start")
    waves = tuple(read_audio(clip.path) for clip in clips_of(study, trial))
    if len(waves) == 2 and study.settings.equal_level:
        return equally_loud(*waves)
    if trial.kind == "negative" and trial.decoy is None:
        return tuple(_spoiled(wave, trial.item) for wave in waves)
    return waves


def _spoiled(wave: Waveform, seed: int) -> Waveform:
    """The wave under white noise, at the level of the wave."""
    generator = torch.Generator().manual_seed(seed)
    noise_CN = torch.randn(wave.samples_CN.shape, generator=generator)
    rms = wave.samples_CN.square().mean().sqrt().clamp_min(0.02)
    mixed_CN = wave.samples_CN + _NOISE * rms * noise_CN
    level = rms / mixed_CN.square().mean().sqrt()
    return Waveform((mixed_CN * level).clamp(-1, 1), wave.sample_rate_hz)


def found_trial(connection: sqlite3.Connection, key: str) -> tuple[str, Trial]:
    """(rater, trial) of a key. Raises ``UserError`` for an unknown one."""
    row = connection.execute("SELECT * FROM trials WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise UserError("this question is not part of the study; reload the page")
    return row["rater"], trial_from(row)


def play_started(study: Study, key: str, side: int) -> str:
    """Notes that a clip begins to play and returns the identifier for ``play_ended``."""
    play = secrets.token_hex(8)
    with study.store.writing() as connection:
        rater, trial = found_trial(connection, key)
        if not 0 <= side < len(clips_of(study, trial)):
            raise UserError(f"side: expected 0 to {len(clips_of(study, trial)) - 1}, got {side}")
        connection.execute(
            "INSERT INTO plays SELECT ?, ?, ?, restarts, ?, NULL FROM raters WHERE name = ?",
            (play, key, side, time.time(), rater),
        )
        connection.execute("UPDATE raters SET seen_s = ? WHERE name = ?", (time.time(), rater))
    return play


def play_ended(study: Study, play: str) -> bool:
    """Notes that a clip has played to its end; returns whether it counts as heard.

    It does if as much time has passed on this machine as the clip lasts.
    """
    with study.store.writing() as connection:
        connection.execute(
            "UPDATE plays SET ended_s = ? WHERE id = ? AND ended_s IS NULL", (time.time(), play)
        )
        row = connection.execute("SELECT trial, side FROM plays WHERE id = ?", (play,)).fetchone()
        if row is None:
            raise UserError("this clip was not started here; play it again")
        _, trial = found_trial(connection, row["trial"])
        return heard_sides(study, connection, trial)[row["side"]]


def heard_sides(study: Study, connection: sqlite3.Connection, trial: Trial) -> tuple[bool, ...]:
    """Which clips of a trial were heard to their end since the rater last began."""
    rows = connection.execute(
        "SELECT side, MAX(ended_s - started_s) AS lasted_s FROM plays JOIN trials ON"
        " trials.key = plays.trial JOIN raters ON raters.name = trials.rater"
        " WHERE trial = ? AND plays.restarts = raters.restarts GROUP BY side",
        (trial.key,),
    ).fetchall()
    lasted_s = {row["side"]: row["lasted_s"] or 0.0 for row in rows}
    return tuple(
        lasted_s.get(side, 0.0) >= clip.seconds - min(EARLY_S, clip.seconds / 4)
        for side, clip in enumerate(clips_of(study, trial))
    )


def vote(study: Study, key: str, click: str, answer: Any, time_ms: float | None = None) -> str:
    """Saves an answer and returns the rater. Another answer to the same trial corrects it.

    Args:
        study: the study.
        key: of the trial.
        click: identifies the click; sent again, it changes nothing.
        answer: see ``zoo.listening.questions``.
        time_ms: since the question was shown; None: unknown.

    Raises:
        UserError: for an unknown trial or answer, and ``NotHeard`` before the clips were heard.
        OSError: when nothing could be saved.
    """
    if not isinstance(click, str) or not 8 <= len(click) <= 64:
        raise UserError("click: expected an identifier of 8 to 64 characters")
    is_number = isinstance(time_ms, int | float) and not isinstance(time_ms, bool)
    took_ms = float(time_ms) if is_number and 0 <= time_ms < math.inf else None
    with study.store.writing() as connection:
        rater, trial = found_trial(connection, key)
        if connection.execute("SELECT 1 FROM history WHERE click = ?", (click,)).fetchone():
            return rater
        item = study.items[trial.item]
        text = _json(checked(fields_of(study.settings.task, item), answer))
        if not all(heard_sides(study, connection, trial)):
            raise NotHeard("listen to the end first; the answer was not saved")
        before = connection.execute("SELECT 1 FROM votes WHERE trial = ?", (key,)).fetchone()
        what = "correction" if before else "vote"
        row = (text, took_ms, now())
        connection.execute(
            "INSERT INTO history (click, trial, what, answer, time_ms, time)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (click, key, what, *row),
        )
        connection.execute(
            "INSERT INTO votes VALUES (?, ?, ?, ?) ON CONFLICT (trial) DO UPDATE SET"
            " answer = excluded.answer, time_ms = excluded.time_ms, time = excluded.time",
            (key, *row),
        )
        connection.execute("UPDATE raters SET seen_s = ? WHERE name = ?", (time.time(), rater))
    return rater


class NotHeard(UserError):
    """The clips of a trial were not heard to their end."""


def restart(study: Study, name: str) -> None:
    """Withdraws all votes of a rater, who then begins again; the history keeps them.

    Raises ``UserError`` for an unknown rater.
    """
    with study.store.writing() as connection:
        rater = known_rater(connection, name)["name"]
        connection.execute(
            "INSERT INTO history (trial, what, time) SELECT trial, 'withdrawn', ? FROM votes"
            " JOIN trials ON trials.key = votes.trial WHERE rater = ?",
            (now(), rater),
        )
        connection.execute(
            "DELETE FROM votes WHERE trial IN (SELECT key FROM trials WHERE rater = ?)", (rater,)
        )
        connection.execute(
            "UPDATE raters SET restarts = restarts + 1, about = NULL, finished = NULL, seen_s = ?"
            " WHERE name = ?",
            (time.time(), rater),
        )


def known_rater(connection: sqlite3.Connection, name: str) -> sqlite3.Row:
    """The row of a rater. Raises ``UserError`` for an invalid or unknown name."""
    rater = listener_name(name)
    row = connection.execute("SELECT * FROM raters WHERE name = ?", (rater,)).fetchone()
    if row is None:
        raise UserError(f"nobody called {rater} has started here; start with your name")
    return row


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
