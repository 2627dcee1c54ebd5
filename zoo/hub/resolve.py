"""From a name to the files of a model on this machine, and what their layout is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import UserError, did_you_mean
from zoo.hub.artifact import CONFIG_FILE, read_config
from zoo.hub.entry import ZooEntry
from zoo.hub.registry import ENTRIES, find, looks_remote
from zoo.hub.store import newest
from zoo.hub.untrusted import read_json

# _class_name in a folder's model_index.json -> its architecture, in the layout "diffusers"
PIPELINES = {
    "AudioLDMPipeline": "audioldm",
    "AudioLDM2Pipeline": "audioldm2",
    "StableAudioPipeline": "stable_audio",
}
# A file that only the authors' own folders have -> the architecture, in the layout "original"
_ORIGINALS = {"pytorch_model_main.bin": "tango", "tangoflux.safetensors": "tangoflux"}
_PEFT_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Located:
    """The files of one model on this machine.

    Args:
        name: the requested name, for messages.
        folder: where the files are.
        layout: "attune" (a model or adapter of this project), "run" (the folder of a training run),
            "peft" (an adapter that names no base), or that of the model's authors: "diffusers",
            "transformers" or "original".
        architecture: a key of ``BACKBONES`` or ``REWARDS``; "lora" for adapters, None for runs.
        config: the content of config.json in the layout "attune", else empty.
    """

    name: str
    folder: Path
    layout: str
    architecture: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def is_adapter(self) -> bool:
        return self.layout == "peft" or self.config.get("kind") == "adapter"


def resolve(name: str | Path) -> Located:
    """The files of a zoo name, a folder or an ``owner/name``, which are pulled if they are missing.

    An ``owner/name`` from which one entry of the zoo takes its files means that entry, with its
    commit and hashes, unless it was pulled by itself.

    Raises: ``UserError`` for unknown names, entries that cannot be loaded yet and damaged files,
        ``FileNotFoundError`` for a folder that holds no model, and what ``zoo.pull`` raises.
    """
    entry = _entry_for(str(name))
    folder = found_or_pulled(name if entry is None else entry.name)
    if entry is not None and entry.layout != "attune":
        return Located(entry.name, folder, entry.layout, entry.architecture)
    return in_folder(folder, str(name))


def in_folder(folder: Path, name: str | None = None) -> Located:
    """The model in ``folder``, by the files in it. Raises as ``resolve``."""
    name = str(folder) if name is None else name
    if (folder / "model_index.json").is_file():
        pipeline = str(read_json(folder / "model_index.json").get("_class_name"))
        if pipeline not in PIPELINES:
            raise UserError(
                f"{folder} holds a diffusers {pipeline}; {did_you_mean(pipeline, PIPELINES)}"
            )
        return Located(name, folder, "diffusers", PIPELINES[pipeline])
    for file, architecture in _ORIGINALS.items():
        if (folder / file).is_file():
            return Located(name, folder, "original", architecture)
    if (folder / CONFIG_FILE).exists():
        config = read_config(folder)
        return Located(name, folder, "attune", config["architecture"], config)
    if (folder / _PEFT_FILE).is_file():
        return Located(name, folder, "peft", "lora")
    if (folder / "config.yaml").is_file():
        return Located(name, folder, "run")
    raise FileNotFoundError(
        f"{folder} is neither a model (it has no {CONFIG_FILE}, and no model_index.json of"
        " diffusers) nor a run (config.yaml)"
    )


def adapter_in(name: str | Path) -> Located:
    """An adapter by its zoo name, ``owner/name`` or folder; a folder may be one that peft wrote.

    The files of a folder are checked when they are read. Raises as ``resolve``.
    """
    if str(name) in ENTRIES or looks_remote(str(name)):
        return resolve(name)
    folder = Path(name)
    if (folder / CONFIG_FILE).exists():
        config = read_config(folder)
        return Located(str(name), folder, "attune", config["architecture"], config)
    return Located(str(name), folder, "peft", "lora")


def _entry_for(name: str) -> ZooEntry | None:
    if name in ENTRIES or Path(name).exists() or newest(name) is not None:
        return ENTRIES.get(name)
    theirs = [entry for entry in ENTRIES.values() if entry.repo_id == name]
    return theirs[0] if len(theirs) == 1 else None


def found_or_pulled(name: str | Path) -> Path:
    """The folder of a name, a path or an ``owner/name``, pulled when it is on the Hub only.

    Raises as ``resolve``.
    """
    entry = ENTRIES.get(str(name))
    try:
        return find(name)
    except FileNotFoundError:
        if entry is not None and entry.path is not None:
            raise
    near = difflib.get_close_matches(
        str(name).lower(), [own for own in ENTRIES if "/" in own], n=1, cutoff=0.85
    )
    if entry is None and near:  # most likely a typing error, and no question to the network
        raise UserError(
            f"there is no model {str(name)!r} on this machine; did you mean {near[0]!r}? "
            f"If it is on the Hub, fetch it first: python tools/zoo.py pull {name}"
        )
    from zoo.hub.pull import pull

    return pull(str(name))
