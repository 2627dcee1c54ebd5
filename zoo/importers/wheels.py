"""Files of networks that travel inside packages of PyPI; no code of these packages is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from zoo.errors import UserError
from zoo.files import sha256_of


def wheel_path(package: str, inside: str, what: str, install: str) -> Path:
    """The file or folder ``inside`` (``a/b``) of a ``package``, without running its code.

    Raises ``ImportError`` that says ``what`` is missing and the command that installs it.
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


def check_released(path: str | Path, sha256: str, what: str, install: str) -> None:
    """Compares a file with the released one, before anything opens it.

    Raises ``UserError`` for another file, ``OSError`` for a missing one.
    """
    found = sha256_of(path)
    if found != sha256:
        raise UserError(
            f"{path} is not the released {what} (sha256 {found[:12]}..., expected"
            f" {sha256[:12]}...); it was not opened: {install}"
        )
