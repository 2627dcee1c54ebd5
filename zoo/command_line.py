"""The command line of ``tools/fit.py``: accepts common variants and corrects common mistakes.

It imports nothing heavy, so that ``--help`` and typing mistakes are answered at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePath

from zoo.errors import UserError, did_you_mean

ROOT_KEYS = ("module", "data", "trainer", "out_dir", "seed", "resume")
CONFIG_OPTIONS = ("--config", "-c")
FLAGS = ("--print-config", "--dry-run", "--help", "-h")
_KEY = r"[A-Za-z_][\w-]*(\.[\w-]+|\[\d+\])*"
_DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"  # editors and chat programs replace hyphens


def normalized(words: Sequence[str]) -> list[str]:
    """The command line with ``--config`` before every YAML file.

    Raises ``UserError`` with the right spelling for ``--module.lr 1``, ``key value``, ``key =
    value``, a value without quotes that the shell has split, and unknown options.
    """
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in CONFIG_OPTIONS:
            if not rest or rest[0][:1] in _DASHES:
                raise UserError(
                    f"{word} needs a YAML file after it, such as --config"
                    " configs/ddpo/quickstart.yaml"
                )
            result += ["--config", rest.pop(0)]
        elif word in FLAGS or word.startswith("--config="):
            result.append(word)
        elif word[:1] and word[0] in _DASHES:
            raise UserError(_about_option(word, rest))
        elif "=" not in word and PurePath(word).suffix.lower() in (".yaml", ".yml"):
            result += ["--config", word]
        else:
            _check_override(word, rest)
            result.append(word)
    return result


def split_override(override: str) -> tuple[str, str]:
    """(key, text of the value) of ``key=value``. Raises ``UserError`` with what is missing."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(_KEY, key):
        raise UserError(
            f"override {override!r} is not of the form key=value, such as seed=1 or "
            f"trainer.max_epochs=20{_hint(key)}"
        )
    if not text.strip():
        empty = ""
        if key not in ROOT_KEYS:
            empty = f", {key}=null for none, or {key}='\"\"' for empty text"
        raise UserError(f"{key}= has no value; write {key}=VALUE{empty}")
    if _open_brackets(text) > 0 or text.startswith("_target_:"):
        raise UserError(
            f"the shell has split the value of {key} and left {text!r}; put the whole word"
            f" in quotes: '{key}={{_target_: package.Class, key: value}}'"
        )
    return key, text


def _hint(key: str) -> str:
    if key[:1] in ("+", "~"):
        return f" (without {key[0]!r}: a new key needs no sign, and key=null removes a value)"
    root = re.split(r"[.\[]", key)[0]
    near = difflib.get_close_matches(root, ROOT_KEYS, n=1)
    return f" (did you mean {near[0]}{'' if root == key else '...'}=VALUE?)" if near else ""


def _check_override(word: str, rest: Sequence[str]) -> None:
    """Checks an override together with the words after it, then by itself (``split_override``)."""
    following = rest[0] if rest else ""
    key, equals, text = word.partition("=")
    if equals and _open_brackets(text) > 0:
        whole = word
        for part in rest:
            whole = f"{whole} {part}"
            if _open_brackets(whole) <= 0:
                break
        if _open_brackets(whole) == 0:
            raise UserError(f"the shell has split the value of {key}; put it in quotes: '{whole}'")
    if following == "=" or (following.startswith("=") and not equals):
        value = following[1:] or (rest[1] if len(rest) > 1 else "VALUE")
        raise UserError(f"no spaces around the = of {key}: write {key}={value}")
    is_value = bool(following) and "=" not in following and following[0] not in _DASHES
    if equals and not text and is_value:
        raise UserError(f"no space after the = of {key}: write {key}={following}")
    if not equals and _is_key(word) and is_value:
        raise UserError(f"{word} {following}: a setting is written {word}={following}")
    split_override(word)


def _about_option(word: str, rest: Sequence[str]) -> str:
    name, equals, value = word.lstrip(_DASHES).partition("=")
    option = "--" + name.replace("_", "-")
    options = ("--config", *FLAGS)
    if option not in options and _is_key(name):
        if not equals:
            value = "true" if name == "resume" else "VALUE"
            if rest and rest[0][:1] not in _DASHES and "=" not in rest[0]:
                value = rest[0]
        return f"{word}: settings are written without dashes: {name}={value}"
    return f"there is no option {word}; {did_you_mean(option, options)}"


def _is_key(text: str) -> bool:
    """Whether this may be the key of a setting: a root key or a dotted key below one.

    A slightly misspelled root key counts.
    """
    root = re.split(r"[.\[]", text)[0]
    is_root = bool(difflib.get_close_matches(root, ROOT_KEYS, n=1, cutoff=0.8))
    return bool(re.fullmatch(_KEY, text)) and is_root


def _open_brackets(text: str) -> int:
    """How many brackets and braces outside quotes are opened and not closed."""
    bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", text)
    return sum(bare.count(c) for c in "{[") - sum(bare.count(c) for c in "}]")
