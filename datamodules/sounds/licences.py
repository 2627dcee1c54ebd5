"""Who may use a recording for what: licences read from a package's own papers, never guessed.

``parse_copyright`` reads Debian's machine-readable copyright files (DEP-5,
https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/); ``credit_licence`` reads the
sentence that OpenTTD's sound catalogue carries beside each sound. A licence is an SPDX-like
expression: ids joined by ``AND`` and ``OR``; what nobody states is ``unknown``.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"

PERMISSIVE = frozenset(
    ("CC0-1.0", "public-domain", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0")
    + ("MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Apache-2.0")
)
"""The licences of recordings that weights which this project ships may be trained on.

They ask for no more than credit (the card lists it). Left out: ShareAlike, Free Art, GPL and
Artistic (terms for derived works, and it is undecided whether weights are one), NonCommercial,
CC-sampling-plus, and everything unknown.
"""

_SHORT_NAMES = {name.lower(): name for name in PERMISSIVE} | {
    "cc0": "CC0-1.0",
    "expat": "MIT",
    "public domain": "public-domain",
}
_GNU = re.compile(r"(A?GPL|LGPL|GFDL)-(\d+)(?:\.(\d+))?(\+?)", re.IGNORECASE)
_CREATIVE_COMMONS = re.compile(r"CC-BY((?:-(?:SA|NC|ND))*)-(\d)(?:\.(\d))?", re.IGNORECASE)
_SENTENCE = re.compile(r"Creative Commons Attribution((?:-\w+)*)\s+(\d\.\d)", re.IGNORECASE)
_TERMS = {"sharealike": "SA", "noncommercial": "NC", "noderivs": "ND", "noderivatives": "ND"}


@dataclass(frozen=True)
class Stanza:
    """One ``Files:`` paragraph:

    ``patterns`` (paths in the package's source), ``licence``, ``credit`` and its ``links``.
    """

    patterns: tuple[str, ...]
    licence: str
    credit: str
    links: tuple[str, ...]


def spdx(name: str) -> str:
    """A copyright file's short name as an SPDX-like expression:

    ``GPL-2+`` -> ``GPL-2.0-or-later``, ``CC0`` -> ``CC0-1.0``.

    A name that is not known here stays as it is written; an empty one is ``unknown``.
    """
    name = " ".join(name.split())
    for joint in (
        ", or ",
        ", and ",
        " or ",
        " and ",
    ):  # weakest first; a comma makes the word after it weaker (DEP-5, 7.2)
        if joint in name.lower():
            parts = [spdx(part) for part in re.split(joint, name, flags=re.IGNORECASE)]
            if joint == ", and ":  # (A or B), and C  ->  A and C or B and C
                return " OR ".join(
                    " AND ".join(way)
                    for way in itertools.product(*(part.split(" OR ") for part in parts))
                )
            return joint.strip(", ").upper().join(f" {part} " for part in parts).strip()
    if not name:
        return UNKNOWN
    if match := _GNU.fullmatch(name):
        family, major, minor, later = match.groups()
        return f"{family.upper()}-{major}.{minor or 0}-{'or-later' if later else 'only'}"
    if match := _CREATIVE_COMMONS.fullmatch(name):
        return f"CC-BY{match[1].upper()}-{match[2]}.{match[3] or 0}"
    return _SHORT_NAMES.get(name.lower(), name)


def allows(licence: str, licences: Collection[str]) -> bool:
    """Whether every part of some alternative (``A AND B OR C``) is among ``licences``."""
    return any(
        all(part in licences for part in way.split(" AND ")) for way in licence.split(" OR ")
    )


def credit_licence(text: str) -> str:
    """The licence that a credit names (``...

    License: Creative Commons Attribution 3.0 Unported.``), else ``unknown``.
    """
    stated = text.rpartition("License:")[2] if "License:" in text else ""
    if re.search(r"Creative Commons Zero|\bCC0\b", stated, re.IGNORECASE):
        return "CC0-1.0"
    if match := _SENTENCE.search(stated):
        terms = [_TERMS.get(term.lower()) for term in match[1].split("-") if term]
        return UNKNOWN if None in terms else "-".join(["CC-BY", *terms, match[2]])
    return UNKNOWN


def parse_copyright(text: str) -> tuple[Stanza, ...]:
    """The ``Files:`` paragraphs in order; empty for a file that is not in DEP-5 (its header lacks
    ``Format:``).
    """
    paragraphs = [
        _fields(paragraph) for paragraph in re.split(r"\n[ \t]*\n", text.lstrip("\ufeff\n"))
    ]
    if not paragraphs or "format" not in paragraphs[0]:
        return ()
    stanzas = []
    for fields in paragraphs:
        if "files" in fields:
            holders = [
                line.strip() for line in fields.get("copyright", "").splitlines() if line.strip()
            ]
            links = re.findall(
                r"https?://[^\s,;>)]+", f"{fields.get('source', '')}\n{fields.get('comment', '')}"
            )
            licence = spdx(fields.get("license", "").partition("\n")[0])
            credit = "; ".join([*holders, *links])
            stanzas.append(Stanza(tuple(fields["files"].split()), licence, credit, tuple(links)))
    return tuple(stanzas)


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if match := re.match(r"([A-Za-z][\w-]*):[ \t]*(.*)", line):
            name = match[1].lower()
            fields[name] = match[2]
        elif name and line[:1] in (" ", "\t"):
            fields[name] += "\n" + line
    return fields


def stanza_for(path: str, stanzas: Sequence[Stanza]) -> Stanza | None:
    """The last paragraph that matches ``path``, as DEP-5 says; ``*`` crosses slashes there."""
    for stanza in reversed(stanzas):
        if any(_pattern(pattern).fullmatch(path) for pattern in stanza.patterns):
            return stanza
    return None


@functools.cache
def _pattern(glob: str) -> re.Pattern[str]:
    parts = re.findall(r"\\.|.", glob)
    return re.compile(
        "".join({"*": ".*", "?": "."}.get(part, re.escape(part[-1])) for part in parts), re.DOTALL
    )
