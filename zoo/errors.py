"""What a person reads when something is wrong: one line that names the mistake and the way out.

The project raises ``UserError`` (a ``ValueError``) and ``OSError`` for mistakes in what it was
given; ``reported`` prints those without a traceback. Everything else, also a ``ValueError`` of
numpy or torch, is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from zoo.secrets import without_secrets
from zoo.versions import VersionError, check_versions, misfit


class UserError(ValueError):
    """A mistake in what the project was given: an argument, a setting, a file.

    The message is for people and complete: what was wrong, what was expected and what to do.
    """


def did_you_mean(name: str, choices: Iterable[str], limit: int = 12) -> str:
    """The end of a message about an unknown name: the nearest right one, else the choices (at most
    ``limit`` of them).

    Nearest is what is spelled alike, else what ``name`` abbreviates: ``lr`` is ``learning_rate``,
    ``rank`` is ``lora_rank``.
    """
    choices = sorted(set(choices))
    near = difflib.get_close_matches(
        str(name).lower(), [choice.lower() for choice in choices], n=1, cutoff=0.6
    )
    if near:
        return f"did you mean {next(choice for choice in choices if choice.lower() == near[0])!r}?"
    if not choices:
        return "there is nothing to choose from"
    short = _abbreviated(str(name).lower(), choices)
    if short:
        return f"did you mean {' or '.join(repr(choice) for choice in short)}?"
    more = f" and {len(choices) - limit} more" if len(choices) > limit else ""
    return f"choose from {', '.join(choices[:limit])}{more}"


def _abbreviated(name: str, choices: Sequence[str]) -> list[str]:
    """The choices (at most three) of which ``name`` is the initials of the words, or else some
    whole words.
    """
    words = {
        choice: [word for word in re.split(r"[^a-z0-9]+", choice.lower()) if word]
        for choice in choices
    }
    initials = [
        choice
        for choice in choices
        if len(name) > 1 and "".join(word[0] for word in words[choice]) == name
    ]
    wanted = set(re.split(r"[^a-z0-9]+", name)) - {""}
    return (initials or [choice for choice in choices if wanted and wanted <= set(words[choice])])[
        :3
    ]


@contextmanager
def parsing(where: object, kind: str) -> Iterator[None]:
    """Around the call of a parser: whatever it raises becomes a ``UserError`` in one line, "WHERE
    is not valid KIND: why".

    Parsers raise more than their own classes (``RecursionError`` on deep nesting,
    ``AssertionError``, ``TypeError``), so all of them count. An ``OSError`` of reading the file
    stays what it is.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"{where} is not valid {kind}: {parser_message(error)}") from error


def parser_message(error: Exception) -> str:
    """What a parser says, in one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = " ".join(str(error).partition("\n    full_key:")[0].split())
    return said or f"the parser stopped with {type(error).__name__}"


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is the error, or the reason that it was raised."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe(error: BaseException) -> str:
    """One message for a person: an ``OSError`` without its number, a full disk with the way on.

    Tokens and passwords are masked; control characters, which a file or a server may have put into
    it, are replaced, and what is longer than a screen is cut.
    """
    return for_screen(without_secrets(_described(error)))


def for_screen(text: str, characters: int = 8000) -> str:
    """``text`` without control and direction characters other than line breaks and tabs, and cut."""
    plain = (
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for c in text[:characters]
    )
    return "".join(plain) + ("..." if len(text) > characters else "")


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        advice = (
            ""
            if "resume=true" in error.strerror or not is_disk_full(error)
            else "; free some space and start again"
        )
        return f"{error.strerror}{where}{advice}"
    return str(error) or type(error).__name__


class Stopped(KeyboardInterrupt):
    """Somebody stopped the program (Ctrl-C or SIGTERM). The message says how to go on."""


def reported(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs ``main(argv)`` and returns an exit status: 0, or 2 after ``error: ...`` on stderr.

    Ctrl-C and SIGTERM give one line on stderr, too, and 128 plus the number of the signal. With the
    environment variable ``ATTUNE_TRACEBACK=1`` an error is raised with its traceback instead.
    """
    signals = [signal.SIGINT]
    try:
        with _terminated_as_interrupted(signals), named_misfit():
            check_versions()
            main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt as stop:
        way_on = str(stop) if isinstance(stop, Stopped) else "the same command starts again"
        print(f"\nstopped; {way_on}", file=sys.stderr)
        return 128 + signals[-1]
    except (UserError, OSError, VersionError) as error:
        if os.environ.get("ATTUNE_TRACEBACK") == "1":
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def named_misfit() -> Iterator[None]:
    """Imports inside that fail because torchaudio does not fit torch raise ``VersionError``."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        named = misfit(error)
        if named is None:
            raise
        raise named from error


@contextmanager
def _terminated_as_interrupted(received: list[int]) -> Iterator[None]:
    """SIGTERM raises ``KeyboardInterrupt`` inside, and is added to ``received``.

    Not below SLURM, where Lightning handles the signals of a preempted job, nor in another thread
    than the first, which gets no signals.
    """
    is_first = threading.current_thread() is threading.main_thread()
    if not is_first or "SLURM_JOB_ID" in os.environ:
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
