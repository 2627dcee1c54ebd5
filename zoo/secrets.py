"""Access tokens and passwords out of everything that is shown or written."""

from __future__ import annotations

import os
import re

MASK = "********"
# the forms in which Hugging Face, OpenAI-like services and GitHub hand out tokens, and a password inside an address
_FORMS = re.compile(r"\b(?:hf_|api_org_|sk-|gh[pousr]_)[A-Za-z0-9_-]{16,}|(?P<user>://[^/\s:@]+:)[^/\s@]+(?=@)")
_VARIABLES = re.compile(r"(?:^|_)(?:TOKEN|API_?KEY|SECRET|PASSWORD)$")


def without_secrets(text: str) -> str:
    """``text`` with masks in place of what has the form of a token, and of the values of variables such as ``HF_TOKEN``.

    Values of fewer than 8 characters are left: they could be any word.
    """
    known = {value for name, value in os.environ.items() if len(value) >= 8 and _VARIABLES.search(name.upper())}
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, MASK)
    return _FORMS.sub(lambda found: (found["user"] or "") + MASK, text)
