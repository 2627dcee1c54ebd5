"""Whether the installed torchaudio and torchvision fit the installed torch.

pip accepts pairs that cannot be loaded together, and the linker's error message does not help.
This reads only the metadata of the packages and imports nothing.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "torchaudio", "torchvision")
FITTING = (  # tested sets, in the order of PACKAGES (docs/dependencies.md)
    ("2.14.1", "2.11.1", "0.29.1"),
    ("2.11.0", "2.11.0", "0.26.0"),
)
_BROKEN = ("undefined symbol", "could not load", "cannot open shared object", "torchvision::nms")


class VersionError(ImportError):
    """Installed packages do not fit each other; the message names the command that fixes it."""


def installed() -> dict[str, str | None]:
    """Package -> version without its local part ("+cu130"); None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = None
    return found


def check_versions() -> None:
    """Raises ``VersionError`` for torch 2.11 with a torchaudio above 2.11.0."""
    found = installed()
    torch = found["torch"] or ""
    torchaudio = found["torchaudio"] or ""
    if torch.startswith("2.11.") and torchaudio.startswith("2.11.") and torchaudio != "2.11.0":
        raise VersionError(_advice())


def misfit(error: BaseException) -> VersionError | None:
    """The error to raise instead of one from importing torchaudio or torchvision, else None."""
    if isinstance(error, VersionError) or not isinstance(
        error, ImportError | OSError | RuntimeError
    ):
        return None
    text = str(error).lower()
    about = any(name in text for name in ("torchaudio", "torchvision"))
    return VersionError(_advice()) if about and any(one in text for one in _BROKEN) else None


def _advice() -> str:
    found = installed()
    kept = next((row for row in FITTING if row[0] == found["torch"]), FITTING[0])
    have = ", ".join(f"{package} {number or 'missing'}" for package, number in found.items())
    fitting = "; ".join(
        ", ".join(f"{package} {number}" for package, number in zip(PACKAGES, row, strict=True))
        for row in FITTING
    )
    wanted = " ".join(
        f"{package}=={number}" for package, number in zip(PACKAGES, kept, strict=True)
    )
    return (
        f"the installed torchaudio or torchvision does not fit torch: found {have}; "
        f"these fit each other: {fitting}. Fix it with: pip install {wanted}"
    )
