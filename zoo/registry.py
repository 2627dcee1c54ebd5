"""The models that go by a name. A literal table: what is not here is not a name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zoo.errors import did_you_mean

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class ZooEntry:
    """One model. ``kind``: "backbone" or "reward". ``folder``: where its artefact lies, relative to the package ``zoo``."""

    name: str
    kind: str
    folder: str
    summary: str

    @property
    def path(self) -> Path:
        return _PACKAGE / self.folder


ENTRIES: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry("embedded/music", "backbone", "embedded/music", "small text-to-music diffusion model, stereo, 16 kHz"),
        ZooEntry("embedded/mood", "reward", "embedded/mood", "mood of solo music: happy, angry, sad, tender"),
    )
}


def find(name_or_path: str | Path) -> Path:
    """The artefact folder of a name or a local path.

    Raises ``ValueError`` for an unknown name and ``FileNotFoundError`` for a known one whose files are not there.
    """
    entry = ENTRIES.get(str(name_or_path))
    if entry is None:
        path = Path(name_or_path)
        if path.is_dir():
            return path
        raise ValueError(f"there is no model {str(name_or_path)!r}, neither a name nor a folder; "
                         f"{did_you_mean(str(name_or_path), ENTRIES)}")
    if not (entry.path / "config.json").is_file():
        raise FileNotFoundError(f"the weights of {entry.name} are not in {entry.path}; install the package again")
    return entry.path
