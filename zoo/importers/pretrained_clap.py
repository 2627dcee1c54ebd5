"""Pretrained CLAPs from files, in transformers' or LAION's layout; never code.

A name is a folder, a LAION .pt file, a zoo name, or ``owner/name`` on the Hub. What is on this
machine is used as it is; nothing is asked of the Hub while ``HF_HUB_OFFLINE`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.hub.artifact import build_within
from zoo.hub.resolve import Located
from zoo.hub.untrusted import read_json
from zoo.hub.weights import read_state, refuse_wrong_numbers
from zoo.importers import laion_clap
from zoo.importers.pickles import load_pickle_weights
from zoo.rewards.clap_text import NO_TOKENIZER
from zoo.rewards.laion_package import LaionFile
from zoo.rewards.transformers_clap import PretrainedClap, clap_config, known_config

# What the library computes and some releases do not store. It must be what the library computes
# where it is stored.
_COMPUTED = ("position_ids", "token_type_ids", "relative_position_index")
_PICKLED = "pytorch_model.bin"


def with_files(arguments: Mapping[str, Any], towers: str = "transformers") -> dict[str, Any]:
    """The ``arguments`` of a ``ClapReward``'s towers with the files read that they name.

    Args:
        arguments: as the towers take them. ``pretrained`` may be a name (see the module; for
            "laion_clap" a LAION .pt file), ``tokenizer`` a folder or file with a tokenizer.json or
            a repository on the Hub; by default it is the pretrained model's own ("roberta-base"
            for LAION's files).
        towers: a key of ``zoo.rewards.clap.CLAP_TOWERS``.

    Raises: as ``open_clap`` and ``tokenizer_json``.
    """
    found = dict(arguments)
    name, tokenizer = found.get("pretrained"), found.get("tokenizer")
    if isinstance(name, str) and towers == "laion_clap":
        found["pretrained"] = LaionFile(name, laion_clap.laion_tensors(name))
        tokenizer = laion_clap.TOKENIZER if tokenizer is None else tokenizer
    elif isinstance(name, str):
        found["pretrained"], own_tokenizer = open_clap(name)
        tokenizer = own_tokenizer if tokenizer is None else tokenizer
    if isinstance(tokenizer, str) and tokenizer != NO_TOKENIZER:
        tokenizer = tokenizer_json(tokenizer)
    return {**found, "tokenizer": tokenizer} if "tokenizer" in found or tokenizer else found


def open_clap(name: str) -> tuple[PretrainedClap, str]:
    """Opens a CLAP and finds its tokenizer.

    Its files are a folder in transformers' layout, a LAION .pt file, a zoo name or ``owner/name``.

    Raises ``FileNotFoundError`` (nothing there, or not on this machine while offline),
    ``UserError`` (another model, code where weights are expected, tensors without a place), and
    what ``zoo.pull`` raises.
    """
    path = Path(name)
    path = path if path.exists() else _fetched(name)
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.pt"))
        if len(files) != 1:
            raise FileNotFoundError(
                f"{path} has no config.json and {len(files)} .pt files; name a folder in"
                " transformers' layout, or one LAION-CLAP file"
            )
        path = files[0]
    if path.is_file():
        found = laion_clap.read_laion_clap(path)
        return _built(name, found.config, found.state, {}), laion_clap.TOKENIZER
    config = read_json(path / "config.json")
    if config.get("model_type") != "clap":
        raise UserError(
            f"{path / 'config.json'} is of model_type {config.get('model_type')!r}, expected 'clap'"
        )
    pickled = not any(path.glob("*.safetensors*")) and (path / _PICKLED).is_file()
    state = load_pickle_weights(path / _PICKLED) if pickled else read_state(path, variants=True)
    extractor = path / "preprocessor_config.json"
    features = read_json(extractor) if extractor.is_file() else {}
    config = known_config(config, refuse_others=False)
    return _built(name, config, state, features), str(path)


def _built(
    name: str,
    config: dict[str, Any],
    state: Mapping[str, Tensor],
    features: Mapping[str, Any],
) -> PretrainedClap:
    from transformers import ClapModel

    model = build_within(ClapModel, {"config": clap_config(config)}, state, name)
    load_clap_state(model, state, name)
    return PretrainedClap(name, model, config, features)


def open_clap_reward(located: Located) -> nn.Module:
    """The reward of a pulled folder; its name becomes part of its scores' name.

    Raises as ``open_clap`` does.
    """
    from zoo.rewards.clap import ClapReward

    return ClapReward(located.name, "transformers", with_files({"pretrained": str(located.folder)}))


def _fetched(name: str) -> Path:
    from zoo.hub.pull import pull
    from zoo.hub.registry import looks_remote
    from zoo.hub.store import newest
    from zoo.hub.table import ENTRIES

    entry = ENTRIES.get(name)
    if entry is None and not looks_remote(name):
        raise FileNotFoundError(
            f"there is no CLAP {name!r}: expected a folder in transformers' layout, a LAION .pt"
            " file, a name of the zoo (such as clap-htsat-unfused) or owner/name on the Hub"
        )
    if entry is not None and entry.architecture != "clap":
        raise UserError(
            f"{name} has the architecture {entry.architecture!r}, expected 'clap' (without feature"
            " fusion)"
        )
    return newest(name, None if entry is None else entry.revision) or pull(name)


def load_clap_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads all tensors of ``state`` into a ``ClapModel``; the library computes some others.

    Raises ``UserError`` that names what is missing, left over, of another shape or kind of number,
    not finite, or computed differently.
    """
    own = model.state_dict()
    computed = {name for name in own if name.rpartition(".")[2] in _COMPUTED}
    wrong = {
        "missing": own.keys() - state.keys() - computed,
        "left over": state.keys() - own.keys(),
        "of another shape": {
            name for name in own.keys() & state.keys() if own[name].shape != state[name].shape
        },
    }
    shared = {
        name: state[name] for name in own if name in state and name not in wrong["of another shape"]
    }
    wrong["not as computed here"] = {
        name for name in computed & shared.keys() if not shared[name].equal(own[name])
    }
    faults = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:6])}{' ...' if len(names) > 6 else ''}"
        for what, names in wrong.items()
        if names
    ]
    if faults:
        raise UserError(
            f"the tensors of {where} do not fit transformers' CLAP of these sizes;"
            f" {'; '.join(faults)}"
        )
    refuse_wrong_numbers(shared, own, where)
    model.load_state_dict({**{name: own[name] for name in computed}, **shared}, strict=True)


def tokenizer_json(source: str) -> bytes:
    """The tokenizer.json of a folder, a file or a repository ("roberta-base"), local if possible.

    Raises ``FileNotFoundError`` with what to do when it is nowhere, and ``OSError`` when the Hub
    cannot be reached.
    """
    path = Path(source)
    if path.exists():
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.parent} has no tokenizer.json; write one there with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...), or name another tokenizer"
            )
        return path.read_bytes()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from zoo.hub.client import connected, offline

    missing = f"the tokenizer {source!r} is not on this machine"
    advice = (
        "name a folder or file with its tokenizer.json (tokenizer=...), or tokenizer='none' to"
        " embed audio only"
    )
    try:
        return Path(hf_hub_download(source, "tokenizer.json", local_files_only=True)).read_bytes()
    except HFValidationError as error:
        raise FileNotFoundError(f"there is no tokenizer {source!r}; {advice}") from error
    except LocalEntryNotFoundError as error:
        if offline():
            raise FileNotFoundError(f"{missing} and HF_HUB_OFFLINE is set; {advice}") from error
    try:
        with connected(source, None, None):
            return Path(hf_hub_download(source, "tokenizer.json")).read_bytes()
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{missing} and the Hub was not reached; {advice}") from error
