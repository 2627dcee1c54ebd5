"""Checks a model folder without trusting it: hashes, strict loading, card, foreign files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.hub.artifact import CARD_FILE, CONFIG_FILE, is_own_file, load_artifact, read_config
from zoo.hub.cards import check_card, licence_of
from zoo.hub.entry import UNKNOWN
from zoo.hub.registry import find
from zoo.hub.table import ENTRIES
from zoo.hub.untrusted import read_json
from zoo.hub.verify import verify_folder


def is_artifact(folder: str | Path) -> bool:
    """Whether a folder is in our layout: its config.json names kind and architecture."""
    path = Path(folder) / CONFIG_FILE
    return path.is_file() and {"kind", "architecture"} <= read_json(path).keys()


def verify_artifact(folder: str | Path, load: Callable[[str], Any]) -> list[str]:
    """Checked facts about an artefact, one per line.

    Files have the hashes that config.json promises, none is there that does not belong, every
    tensor is used and none is missing (an adapter: put on its base, where that base is on this
    machine, by ``load``, which is ``zoo.load``), the card is one that the Hub takes and says the
    licence that the model has to keep.
    Raises ``UserError`` (``FileNotFoundError`` for a missing file) saying what is wrong.
    """
    folder = Path(folder)
    files = verify_folder(folder)
    config = read_config(folder)
    names = [file.name for file in files]
    foreign = [name for name in names if not is_own_file(name)]
    if foreign:
        raise UserError(
            f"{folder} holds files that do not belong to a model: {', '.join(foreign[:4])}; remove"
            " them"
        )
    promised = config.get("sha256") or {}
    loose = [
        name
        for name in names
        if name.endswith((".safetensors", ".safetensors.index.json")) and name not in promised
    ]
    if loose:
        raise UserError(
            f"{folder}: config.json has no hash of {', '.join(loose[:4])}; export it again"
        )
    size = sum(file.size_bytes for file in files)
    writer = (config.get("versions") or {}).get("attune", "an unknown version")
    facts = [
        (
            f"{config['kind']} {config['architecture']}, format {config.get('format', 1)}, written"
            f" by attune {writer}"
        ),
        f"{len(files)} files, {size:,} bytes, {len(promised)} of them as config.json promises",
        _loaded(folder, config, load),
        _card(folder, CARD_FILE in names),
    ]
    return [*facts, f"licence {licence_of(folder) or UNKNOWN}"]


def _loaded(folder: Path, config: dict[str, Any], load: Callable[[str], Any]) -> str:
    if config["kind"] != "adapter":
        model = load_artifact(folder)
        state = model.state_dict()
        return (
            f"loads strictly: {len(state)} tensors,"
            f" {sum(tensor.numel() for tensor in state.values()):,} numbers"
        )
    from zoo.hub.adapter_files import read_adapter
    from zoo.hub.adapters import stack_adapters

    _, weights, _ = read_adapter(folder)
    name = (config.get("base") or {}).get("name")
    count = (
        f"{len(weights)} tensors, {sum(tensor.numel() for tensor in weights.values()):,} numbers"
    )
    try:
        base = (
            load(name) if name in ENTRIES and find(name) else None
        )  # nothing is fetched: find knows this machine only
    except (UserError, FileNotFoundError) as error:
        return f"adapter of {count}; not tried on its base {name}: {error}"
    if base is None:
        return (
            f"adapter of {count}; not tried on its base, {name or 'which it does not name'}: that"
            " is no zoo name"
        )
    stack_adapters(base, [(folder, 1.0)], name)
    return f"adapter of {count}; fits its base {name}, which has the hash that it was trained on"


def _card(folder: Path, is_there: bool) -> str:
    if not is_there:
        return f"card: none ({CARD_FILE} is written by an export; a push requires it)"
    import yaml

    text = (folder / CARD_FILE).read_text("utf-8")
    check_card(text, str(folder / CARD_FILE))
    header = yaml.safe_load(text.split("---\n")[1])
    licence = str(header.get("license_name") or header.get("license"))
    wanted = licence_of(folder)
    if wanted and licence.lower() != wanted.lower():
        raise UserError(
            f"{folder / CARD_FILE} says license {licence}, but this model must keep {wanted};"
            " correct the card"
        )
    return f"card: valid, license {licence}"
