"""Models to pull, run and score with: ``zoo.load``, ``zoo.generate``, ``zoo.score``, ``zoo.names``.

Importing this package imports none of the model libraries; they come with the first call.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {"load": "zoo.generation", "generate": "zoo.generation", "score": "zoo.generation", "open_model": "zoo.generation"}
__all__ = ["generate", "load", "names", "open_model", "score"]


def names(kind: str | None = None) -> tuple[str, ...]:
    """The names that ``load`` knows, of one kind ("backbone", "reward") or of all."""
    from zoo.registry import ENTRIES

    return tuple(name for name, entry in ENTRIES.items() if kind in (None, entry.kind))


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
