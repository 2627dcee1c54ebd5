"""``ZooEntry``: what is known about one named model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from zoo.errors import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]  # zoo/
KINDS = ("backbone", "reward", "adapter", "classifier", "codec")
LAYOUTS = ("attune", "diffusers", "transformers", "original")
# The Hub's identifiers of licences that allow commercial use and ask for no agreement. Every other
# one is shown and must be accepted.
FREE_LICENCES = frozenset(
    {
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "isc",
        "cc0-1.0",
        "unlicense",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "mpl-2.0",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
    }
)
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ZooEntry:
    """One model of the zoo: a plain literal, for which nothing is read from disk or network.

    Args:
        name: what ``zoo.load`` takes.
        kind: one of ``KINDS``.
        architecture: a key of ``BACKBONES`` or ``REWARDS``, or the key that is kept for it.
        summary: one line.
        licence: the Hub's identifier, the publisher's own name of it, or "unknown".
        sample_rate_hz: of its audio.
        folder: inside the package ``zoo``, for models that come with it.
        repo_id: on the Hugging Face Hub. An entry with neither has its files elsewhere, as ``note``
            says.
        revision: the commit (40 hex digits); None: the first pull pins it (``zoo.hub.lock``).
        files: glob patterns of the files in the repository (empty: all), without those of ``skip``.
        layout: "attune" (config.json + safetensors of this project), or that of its authors.
        base: another entry's name or "owner/name".
        gated: whether its page on the Hub asks for consent.
        sha256: file name -> hash, where known; the others are pinned by the first pull, too.
        size_bytes: of a pull, None where unknown.
        card: the written body, below the project's root.
        metrics: short name -> measured value; the card has the protocol.
        note: what else a user must know.
        importer: the function that opens its authors' file, for models whose files are downloaded
            by hand.

    Raises: ``UserError`` for an invalid field.
    """

    name: str
    kind: str
    architecture: str
    summary: str
    licence: str
    sample_rate_hz: int
    folder: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    layout: str = "attune"
    base: str | None = None
    gated: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)
    size_bytes: int | None = None
    card: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    note: str = ""
    importer: str | None = None

    def __post_init__(self) -> None:
        where = f"zoo entry {self.name!r}"
        for value, choices, what in ((self.kind, KINDS, "kind"), (self.layout, LAYOUTS, "layout")):
            if value not in choices:
                raise UserError(
                    f"{where}: unknown {what} {value!r}; {did_you_mean(value, choices)}"
                )
        if not re.fullmatch(r"(embedded/)?[a-z0-9][a-z0-9._-]*", self.name):
            raise UserError(
                f"{where}: a name must be small letters, digits, '.', '_' and '-' (a '/' only after"
                " 'embedded')"
            )
        if self.folder is not None and self.repo_id is not None:
            raise UserError(
                f"{where}: its files are in the package (folder) or on the Hub (repo_id), not both"
            )
        if self.repo_id is not None and not is_repo_id(self.repo_id):
            raise UserError(f"{where}: repo_id must be owner/name, got {self.repo_id!r}")
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise UserError(
                f"{where}: revision must be a commit of 40 hex digits, got {self.revision!r}"
            )
        for name, digest in self.sha256.items():
            inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
            if not inside or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise UserError(
                    f"{where}: sha256 maps relative file names to 64 hex digits, got {name!r}:"
                    f" {digest!r}"
                )
        if not self.licence or not self.summary or self.sample_rate_hz <= 0:
            raise UserError(
                f"{where} needs a licence (or {UNKNOWN!r}), a summary and a sample rate in Hz"
            )

    @property
    def path(self) -> Path | None:
        """The folder of an embedded entry, None for the others."""
        return None if self.folder is None else PACKAGE / self.folder

    @property
    def needs_consent(self) -> bool:
        return needs_consent(self.licence, self.gated)


def is_repo_id(text: str) -> bool:
    """Whether this reads as ``owner/name`` on the Hub.

    Names that start with ``embedded/`` are ours.
    """
    return (
        re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None
        and not text.startswith("embedded/")
        and ".." not in text
        and "--" not in text
    )


def needs_consent(licence: str | None, gated: bool) -> bool:
    """Whether a pull asks for consent: non-commercial, unknown, custom or gated licences."""
    return gated or (licence or UNKNOWN).lower() not in FREE_LICENCES


def licence_words(licence: str | None, gated: bool) -> str:
    """A clause about a licence, such as "cc-by-nc-sa-4.0: not for commercial use"."""
    licence = licence or UNKNOWN
    low = licence.lower()
    if low == UNKNOWN:
        meaning = "no licence is known, so nothing is granted: ask the authors"
    elif "-nc" in low or "non-commercial" in low:
        meaning = "not for commercial use"
    elif low in FREE_LICENCES:
        meaning = "commercial use allowed on its terms"
    else:
        meaning = "terms of its publisher, read them"
    derived = "; what you derive from it inherits that" if needs_consent(licence, gated) else ""
    return (
        f"{licence}:"
        f" {meaning}{derived}{'; gated: access is granted on its Hub page' if gated else ''}"
    )
