"""Errors as people see them: one line that names the mistake and what to do about it.

``UserError`` (a ``ValueError``) and ``OSError`` report mistakes in the input; ``reported`` prints
them without a traceback. Any other exception, including a ``ValueError`` from numpy or torch, is a
bug and shows its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from zoo.secrets import without_secrets
from zoo.versions import VersionError, check_versions, misfit


class UserError(ValueError):
    """A mistake in the input: an argument, a setting or a file.

    The message says what was wrong, what was expected and what to do.
    """


def did_you_mean(name: str, choices: Iterable[str], limit: int = 12) -> str:
    """Ends a message about an unknown name: the nearest choice, or up to ``limit`` choices."""
    choices = sorted(set(choices))
    if not choices:
        return "there is nothing to choose from"
    near = nearest(name, choices)
    if near:
        return f"did you mean {' or '.join(repr(choice) for choice in near)}?"
    more = f" and {len(choices) - limit} more" if len(choices) > limit else ""
    return f"choose from {', '.join(choices[:limit])}{more}"


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """The choice spelled most like ``name``, else at most three that it abbreviates.

    ``lr`` abbreviates ``learning_rate``, ``fraction`` ``timestep_fraction``.
    """
    choices = sorted(set(choices))
    near = difflib.get_close_matches(
        str(name).lower(), [choice.lower() for choice in choices], n=1, cutoff=0.6
    )
    if near:
        return [next(choice for choice in choices if choice.lower() == near[0])]
    return _abbreviated(str(name).lower(), choices)


def _abbreviated(name: str, choices: Sequence[str]) -> list[str]:
    """At most three choices whose initials are ``name``, or that contain all words of ``name``."""
    words = {}
    for choice in choices:
        words[choice] = [word for word in re.split(r"[^a-z0-9]+", choice.lower()) if word]
    if len(name) > 1:
        initials = [
            choice for choice in choices if "".join(word[0] for word in words[choice]) == name
        ]
        if initials:
            return initials[:3]
    wanted = set(re.split(r"[^a-z0-9]+", name)) - {""}
    return [choice for choice in choices if wanted and wanted <= set(words[choice])][:3]


@contextmanager
def parsing(where: object, kind: str) -> Iterator[None]:
    """Turns any error of a parser into a ``UserError``: "WHERE is not valid KIND: why".

    Parsers also raise ``RecursionError`` (deep nesting), ``AssertionError`` and ``TypeError``, so
    every exception is converted, except an ``OSError`` from reading the file.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"{where} is not valid {kind}: {parser_message(error)}") from error


def parser_message(error: Exception) -> str:
    """The message of a parser's error, in one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    message = " ".join(str(error).partition("\n    full_key:")[0].split())
    return message or f"the parser stopped with {type(error).__name__}"


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is the error or its cause."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe(error: BaseException) -> str:
    """The message of an error for a person: no error numbers, and advice where a disk is full.

    Tokens and passwords are masked, control characters (which may come from a file or a server)
    are replaced, and text longer than a screen is cut.
    """
    return for_screen(without_secrets(_described(error)))


def for_screen(text: str, characters: int = 8000) -> str:
    """Replaces control and direction characters (not line breaks and tabs) and cuts long text."""
    plain = [
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for c in text[:characters]
    ]
    if len(text) > characters:
        plain.append("...")
    return "".join(plain)


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        advice = ""
        if is_disk_full(error) and "resume=true" not in error.strerror:
            advice = "; free some space and start again"
        return f"{error.strerror}{where}{advice}"
    return str(error) or type(error).__name__


class Stopped(KeyboardInterrupt):
    """The user stopped the program (Ctrl-C or SIGTERM); the message says how to continue."""


def reported(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs ``main(argv)`` and returns an exit status: 0, or 2 after ``error: ...`` on stderr.

    Ctrl-C and SIGTERM also print one line on stderr and return 128 plus the signal's number. The
    environment variable ``ATTUNE_TRACEBACK=1`` raises the error with its traceback instead, in
    which secrets are masked, as in that of any other exception.
    """
    sys.excepthook = _print_masked_traceback
    signals = [signal.SIGINT]
    try:
        with _terminated_as_interrupted(signals), named_misfit():
            check_versions()
            main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt as stop:
        how_to_go_on = str(stop) if isinstance(stop, Stopped) else "the same command starts again"
        print(f"\nstopped; {how_to_go_on}", file=sys.stderr)
        return 128 + signals[-1]
    except (UserError, OSError, VersionError) as error:
        if os.environ.get("ATTUNE_TRACEBACK") == "1":
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    return 0


def _print_masked_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python prints for an exception that nothing caught, without its secrets."""
    lines = traceback.format_exception(kind, error, trace)
    print(without_secrets("".join(lines)), end="", file=sys.stderr)


@contextmanager
def named_misfit() -> Iterator[None]:
    """Raises ``VersionError`` where an import fails because torchaudio does not fit torch."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        named = misfit(error)
        if named is None:
            raise
        raise named from error


@contextmanager
def _terminated_as_interrupted(received: list[int]) -> Iterator[None]:
    """Makes SIGTERM raise ``KeyboardInterrupt`` and appends it to ``received``.

    Does nothing under SLURM, where Lightning handles the signals of a preempted job, and outside
    the main thread, which alone receives signals.
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
