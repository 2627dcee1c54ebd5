"""Masks access tokens and passwords in everything that is shown or written.

A value is masked by its key (``masked``, ``masked_command``), by its form (a token, a password in
an address), and wherever it appears again: this process remembers the value of every masked key
and of environment variables such as ``HF_TOKEN``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "********"
_KEY = re.compile(
    r"(?:^|_)(?:TOKENS?|PASS|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|AUTHORI[SZ]ATION|BEARER"
    r"|COOKIES?|(?:API|ACCESS|PRIVATE|AUTH|SIGNING|ENCRYPTION|ACCOUNT|SUBSCRIPTION|SSH)_?KEYS?)$"
    r"|_PWD$|(?:^|_)SECRETS?(?:_|$)"
)
_COUNTS = re.compile(r"TOKENS?$")  # `text_tokens: 77`
# tokens of well-known services, and PEM keys
_FORMS = re.compile(
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}"
    r"|\bgithub_pat_[A-Za-z0-9_]{16,}|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAKIA[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
)
_PASSWORD = re.compile(  # in an address, also one with / or @; `http://host:80/a@b` has none
    r"(?P<start>://)(?P<user>[^/\s:@\"'<>]*):(?!\d{1,5}(?:[/?#]|$))(?!\*{8}@)"
    r"(?P<word>(?:(?!://)[^\s\"'<>])*)@"
)
_USER = re.compile(r"(?P<start>\bhttps?://)[^/\s:@?#\"'<>]+@")  # `https://TOKEN@host`
_BEARER = re.compile(
    r"(?P<start>\bBearer[\s:]+)(?!\*{8}|(?:tokens?|auth\w*|scheme)\b)[^\s\"',;<>()]{4,}",
    re.IGNORECASE,
)
_QUERY = re.compile(r"(?P<start>[?&](?P<key>[\w.-]+)=)[^&\s#\"'<>]+")
_IN_QUERY = re.compile(r"(?:^|_)(?:KEY|SIG|SIGNATURE|CODE)$")
_NAME = re.compile(
    r"(?<![\w?&.-])(?P<key>[A-Za-z_][\w.-]*)(?P<quote>[\"']?)[ \t]*(?P<sign>[:=])[ \t]*"
)
_VALUE = re.compile(
    r"\"[^\"\n]*\"|'[^'\n]*'|(?:Basic |Bearer )?[^\s\"',;<>&(){}\[\]][^\s\"',;<>&)}\]]*"
)
_WORDS = ("none", "null", "true", "false")
_known: set[str] = set()


def is_secret_key(key: object) -> bool:
    """Whether a key or variable of this name holds a secret: ``apiKey``, ``DB_PASS``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(key).rpartition(".")[2])
    return _KEY.search(re.sub(r"[\s-]", "_", words).upper()) is not None


def remember(*values: str) -> None:
    """Masks these values from now on, except those under 4 characters, which may be words."""
    _known.update(
        value
        for value in map(str.strip, values)
        if len(value) >= 4 and value != MASK and value.lower() not in _WORDS
    )


def remember_in(config: Any) -> None:
    """Remembers the values of all secret keys in a tree of plain values."""
    remember(*_held(config, False))


def masked(config: Any, inside_secret: bool = False) -> Any:
    """``config`` as plain values without secrets: those of secret keys are masked and remembered.

    Counts and None stay: ``text_tokens: 77``. Other texts go through ``without_secrets``.
    """
    remember(*_held(config, inside_secret))
    return _masked(config, inside_secret)


def masked_command(words: Sequence[str]) -> str:
    """A command line without secrets, also inside values: ``module.llm={api_key: ...}``."""
    import yaml

    shown = []
    for word in words:
        key, equals, text = word.partition("=")
        last = re.split(r"[.\[\]]", key.rstrip("]"))[-1]
        try:
            node = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # a run would not accept it either
            node = text
        remember(*_held(node, bool(equals) and is_secret_key(last)))
        shown.append(f"{key}={MASK}" if equals and text and is_secret_key(last) else word)
    return without_secrets(" ".join(shown))


def without_secrets(text: str) -> str:
    """Masks all secrets in ``text``.

    They are remembered values, values of variables such as ``HF_TOKEN``, anything in the form of a
    token, and what is assigned to a secret name (``?token=``).
    """
    text = _FORMS.sub(MASK, _without_known(text))
    text = _PASSWORD.sub(_without_password, text)
    text = _USER.sub(lambda found: f"{found['start']}{MASK}@", text)
    text = _BEARER.sub(lambda found: found["start"] + MASK, text)
    text = _QUERY.sub(_without_value, text)
    return _without_assigned(text)


def holds_secret(text: str) -> bool:
    """Whether a text holds a known secret or something in the form of a token.

    Assignments are not checked: ``"password": 9206`` is a line of a vocabulary.
    """
    return _without_known(text) != text or any(
        form.search(text) for form in (_FORMS, _PASSWORD, _BEARER)
    )


def _held(node: Any, secret: bool, count: bool = False) -> Iterator[str]:
    """The values of secret keys in a tree of plain values."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _held(value, secret or is_secret_key(key), _is_count(key))
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _held(value, secret, count)
    elif secret and (isinstance(node, str) or _is_number(node) and not count and node >= 10**5):
        yield str(node)


def _masked(node: Any, secret: bool, count: bool = False) -> Any:
    if isinstance(node, Mapping):
        return {
            key: _masked(value, secret or is_secret_key(key), _is_count(key))
            for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return [_masked(value, secret, count) for value in node]
    if secret and (isinstance(node, str) and node or _is_number(node) and not count):
        return MASK
    return without_secrets(node) if isinstance(node, str) else node


def _is_count(key: object) -> bool:
    return _COUNTS.search(str(key).upper()) is not None


def _is_number(node: Any) -> bool:
    return isinstance(node, (int, float)) and not isinstance(node, bool)


def _without_known(text: str) -> str:
    variables = {
        value for name, value in os.environ.items() if len(value) >= 6 and is_secret_key(name)
    }
    for value in sorted(_known | variables, key=len, reverse=True):
        escaped = json.dumps(value, allow_nan=False)[1:-1]
        for form in {value, quote(value, safe=""), quote_plus(value), escaped}:
            if form not in text:
                continue
            if len(value) >= 8:
                text = text.replace(form, MASK)
            else:  # short values are not masked inside other words
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])", MASK, text)
    return text


def _without_password(found: re.Match[str]) -> str:
    user = found["user"]
    word = found["word"]
    is_token = not word or word == "x-oauth-basic" or len(user) >= 20
    return f"{found['start']}{MASK if is_token else user}:{MASK}@"


def _without_value(found: re.Match[str]) -> str:
    key = found["key"]
    is_secret = is_secret_key(key) or _IN_QUERY.search(key.replace("-", "_").upper())
    return found["start"] + MASK if is_secret else found[0]


def _without_assigned(text: str) -> str:
    """Masks ``api_key: x``, ``{'password': 'x'}``, ``DB_PASS=x``; not ``token: expected``."""
    pieces = []
    position = 0
    for name in _NAME.finditer(text):
        value = _VALUE.match(text, name.end()) if is_secret_key(name["key"]) else None
        if value is None or name.start() < position or _is_harmless(name, value[0]):
            continue
        mark = value[0][0] if value[0][0] in "\"'" else ""
        pieces += [text[position : value.start()], mark + MASK + mark]
        position = value.end()
    return "".join([*pieces, text[position:]])


def _is_harmless(name: re.Match[str], value: str) -> bool:
    """Whether the value after a secret name is a count, prose, empty or already masked."""
    key = name["key"]
    bare = value.strip("\"'")
    if not bare or bare.startswith((MASK, "$")) or bare.lower() in _WORDS:
        return True
    if _is_count(key) and (not re.search(r"[A-Za-z]", bare) or key.upper().endswith("TOKENS")):
        return True
    is_plain = name["sign"] == ":" and not name["quote"] and bare == value and "_" not in key
    return is_plain and not re.search(r"\d|^Basic ", bare)
