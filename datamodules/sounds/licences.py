"""Licences of recordings, read from the copyright files of their packages and never guessed.

``parse_copyright`` reads Debian's machine-readable copyright files (DEP-5,
https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/); ``credit_licence`` reads the
credit of each sound in OpenTTD's catalogue. A licence is an SPDX-like expression: ids joined by
``AND`` and ``OR``, or ``unknown`` where none is stated.
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
"""Licences of recordings on which shipped weights may be trained: they require only credit.

The card lists the credits. Not included are ShareAlike, Free Art, GPL and Artistic (terms for
derived works, which weights may or may not be), NonCommercial, CC-sampling-plus and unknown ones.
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
    """One ``Files:`` paragraph; ``patterns`` are paths in the source of the package."""

    patterns: tuple[str, ...]
    licence: str
    credit: str
    links: tuple[str, ...]


def spdx(name: str) -> str:
    """The SPDX-like expression of a short name: ``GPL-2+`` -> ``GPL-2.0-or-later``.

    An unknown name stays as it is; an empty one is ``unknown``.
    """
    name = " ".join(name.split())
    # weakest first; a comma makes the word after it bind weaker (DEP-5, 7.2)
    for joint in (", or ", ", and ", " or ", " and "):
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
    """Whether all parts of one alternative (``A AND B OR C``) are among ``licences``."""
    return any(
        all(part in licences for part in way.split(" AND ")) for way in licence.split(" OR ")
    )


def credit_licence(text: str) -> str:
    """The licence after ``License:`` in a credit, else ``unknown``."""
    stated = text.rpartition("License:")[2] if "License:" in text else ""
    if re.search(r"Creative Commons Zero|\bCC0\b", stated, re.IGNORECASE):
        return "CC0-1.0"
    if match := _SENTENCE.search(stated):
        terms = [_TERMS.get(term.lower()) for term in match[1].split("-") if term]
        return UNKNOWN if None in terms else "-".join(["CC-BY", *terms, match[2]])
    return UNKNOWN


def parse_copyright(text: str) -> tuple[Stanza, ...]:
    """The ``Files:`` paragraphs in order; empty unless the file is DEP-5 (has ``Format:``)."""
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
    """The last paragraph that matches ``path``, as in DEP-5, where ``*`` also matches slashes."""
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
