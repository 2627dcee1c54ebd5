"""Models to find, pull, run, score with and push.

``zoo.entries``, ``zoo.load``, ``zoo.generate``, ``zoo.score``, ``zoo.pull``, ``zoo.push``.

Importing this package imports none of the model libraries; they come with the first call.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "entries": "zoo.hub.registry",
    "generate": "zoo.generation",
    "load": "zoo.loading",
    "open_model": "zoo.loading",
    "pull": "zoo.hub.pull",
    "push": "zoo.hub.pull",
    "score": "zoo.generation",
}
__version__ = (  # setup.cfg reads it here, so that a checkout that was never installed knows it too
    "0.1.0"
)
__all__ = ["entries", "generate", "load", "names", "open_model", "pull", "push", "score"]


def names(kind: str | None = None) -> tuple[str, ...]:
    """The names of the zoo's entries, of one kind ("backbone", "reward" ...) or of all."""
    from zoo.hub.table import ENTRIES

    return tuple(name for name, entry in ENTRIES.items() if kind in (None, entry.kind))


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        from zoo.errors import named_misfit
        from zoo.versions import check_versions

        check_versions()
        with named_misfit():
            return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
