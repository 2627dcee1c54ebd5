"""English grammar of prompts: pure functions, no models."""

from __future__ import annotations

import re

ARTICLE = "{article}"
_VOWEL = re.compile(r"[aio]|e(?!u)|u(?!k|ni[cfqtv]|s[ae])|hour|honest|heir")
_LIKE_W = re.compile(r"one\b|once\b")


def article_of(word: str) -> str:
    """``a`` or ``an`` before ``word``, by its sound: an hour, a European, a ukulele."""
    lower = word.lower()
    return "an" if _VOWEL.match(lower) and not _LIKE_W.match(lower) else "a"


def with_articles(text: str) -> str:
    """Replaces every ``{article}`` with ``a`` or ``an``, as the next word requires."""
    return re.sub(
        re.escape(ARTICLE) + r"(\s*)(\S*)",
        lambda found: article_of(found[2]) + found[1] + found[2],
        text,
    )
