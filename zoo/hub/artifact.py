"""A model on disk: a folder with config.json and model.safetensors, and nothing of the trainer.

config.json names a key of a literal table (``BACKBONES``, ``REWARDS``) and plain constructor
arguments. It can never name code, so a downloaded artefact runs nothing but this project. An
adapter's folder has a config.json too (``zoo/hub/adapter_files.py``).
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo import __version__
from zoo.backbones import BACKBONES
from zoo.errors import UserError, did_you_mean
from zoo.files import folder_written_beside, sha256_of
from zoo.hub.untrusted import file_inside, read_json, safe_relative_path
from zoo.hub.weights import (
    INDEX_FILE,
    SHARD_BYTES,
    WEIGHTS_FILE,
    blobs_of,
    misfits,
    read_state,
    refuse_wrong_numbers,
    save_state,
    save_weights,
)
from zoo.instantiate import locate
from zoo.rewards import REWARDS
from zoo.signatures import bind

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "architecture_class",
    "identity_of",
    "load_artifact",
    "read_config",
    "save_artifact",
    "save_weights",
    "write_config",
]

FORMAT = (
    1  # of config.json and the files it describes; a reader of format 1 must not guess at format 2
)
TABLES: dict[str, dict[str, str]] = {"backbone": BACKBONES, "reward": REWARDS}
CONFIG_FILE, CARD_FILE = "config.json", "README.md"
_OWN_FILES = re.compile(
    r"config\.json|README\.md|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
    r"adapter_config\.json|adapter_model\.safetensors|\.gitattributes|\.cache|\.attune-pull\.json"
)
SLACK_BYTES = 256 * 2**20  # windows, filter banks and tables that are computed and not stored
_VERSIONED = ("torch", "diffusers", "transformers", "peft")


def architecture_class(kind: str, architecture: str, where: str) -> type[nn.Module]:
    """The class of a table's row. Raises ``UserError`` for names that no table holds."""
    if kind not in TABLES:
        raise UserError(f"{where}: unknown kind {kind!r}; {did_you_mean(str(kind), TABLES)}")
    if architecture not in TABLES[kind]:
        raise UserError(
            f"{where}: unknown architecture {architecture!r};"
            f" {did_you_mean(str(architecture), TABLES[kind])}"
        )
    return locate(TABLES[kind][architecture].replace(":", "."), where)


def identity_of(module: nn.Module) -> tuple[str, str, dict[str, Any]]:
    """(kind, architecture, arguments) under which ``module`` can be saved.

    Raises ``UserError`` for a class that no table names, or one that does not keep its
    constructor's ``arguments``.
    """
    here = f"{type(module).__module__}:{type(module).__name__}"
    found = next(
        (
            (kind, key)
            for kind, table in TABLES.items()
            for key, place in table.items()
            if place == here
        ),
        None,
    )
    arguments = getattr(module, "arguments", None)
    if found is None or not isinstance(arguments, dict):
        raise UserError(
            f"{here} cannot become an artefact: no table (BACKBONES, REWARDS) names it with"
            " constructor arguments"
        )
    return (*found, dict(arguments))


def save_artifact(
    folder: str | Path,
    *,
    kind: str,
    architecture: str,
    arguments: Mapping[str, Any],
    module: nn.Module,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    **facts: Any,
) -> None:
    """Writes ``module`` as an artefact that ``load_artifact`` reads.

    The folder is written next to its place and moved, so that it is never half there; an older
    artefact is replaced. config.json holds the hash of each file of weights.

    Args:
        folder: where to write.
        kind, architecture: the row of ``TABLES`` that names the module's class.
        arguments: of its constructor, plain values.
        module: the model.
        dtype: of floating-point weights on disk (default: as they are).
        shard_bytes: size above which the weights are split into several files.
        facts: more plain values for config.json.

    Raises: ``UserError`` for an architecture that is not the module's, arguments it does not take,
        a module with a live adapter, or a folder that holds anything but an artefact.
    """
    folder = Path(folder)
    found = architecture_class(kind, architecture, f"artefact {folder}")
    if type(module) is not found:
        raise UserError(
            f"artefact {folder}: architecture {architecture!r} is {found.__name__}, got"
            f" {type(module).__name__}"
        )
    bind(found, dict(arguments), f"artefact {folder}: arguments")
    state = module.state_dict()
    refuse_live_adapter(state, f"artefact {folder}")
    config = {"kind": kind, "architecture": architecture, "arguments": dict(arguments), **facts}
    _plain(config, folder)
    refuse_foreign_files(folder)
    with folder_written_beside(folder, replace=True) as part:
        write_config(part, config, save_state(state, part, dtype, shard_bytes))


def write_config(folder: Path, config: Mapping[str, Any], hashed: Iterable[str]) -> None:
    """Writes ``folder/config.json``: format, versions, ``config``, hashes of ``hashed`` files."""
    _plain(config, folder)
    sha256 = {name: sha256_of(folder / name) for name in hashed}
    content = {"format": FORMAT, **config, "versions": _versions(), "sha256": sha256}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _plain(config: Mapping[str, Any], folder: Path) -> None:
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"artefact {folder}: arguments and facts must be plain JSON values ({error})"
        ) from error


def is_own_file(name: str) -> bool:
    """Whether this name belongs to an artefact or to the tools that pull one."""
    return _OWN_FILES.fullmatch(name.split("/")[0]) is not None


def refuse_foreign_files(folder: Path) -> None:
    """Raises ``UserError`` when ``folder``, which would be replaced, holds foreign files."""
    foreign = (
        sorted(path.name for path in folder.iterdir() if not is_own_file(path.name))
        if folder.is_dir()
        else []
    )
    if foreign:
        more = " ..." if foreign[3:] else ""
        raise UserError(
            f"{folder} holds other files ({', '.join(foreign[:3])}{more}), which would be lost;"
            " name a new folder"
        )


def refuse_live_adapter(state: Mapping[str, Tensor], what: str) -> None:
    """Raises ``UserError`` for weights with names of an injected adapter.

    Such weights would not load again.
    """
    live = [name for name in state if ".base_layer." in f".{name}" or ".lora_" in f".{name}"]
    if live:
        raise UserError(
            f"{what}: the model has a live adapter ({live[0]}, ...), and saved as it is nothing"
            " could load it; save the adapter on its own (zoo.hub.adapters.save_adapter) or"
            " merge it first (zoo.hub.adapters.merge_adapters, or tools/zoo.py export"
            " --merge)"
        )


def load_artifact(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """The model, frozen and in eval mode. Strict: every tensor is used and none is missing.

    Floating-point weights become ``dtype`` (default: the model's own, not the file's).
    Leaves torch's random state as it was. Raises ``FileNotFoundError`` and ``UserError`` saying
    which file, key or tensor is wrong.
    """
    return build_artifact(Path(folder), read_config(folder), device, dtype)


def build_artifact(
    folder: Path,
    config: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """``load_artifact`` of a folder whose config.json has been read (``read_config``)."""
    where = str(folder / CONFIG_FILE)
    if config["kind"] == "adapter":
        raise UserError(
            f"{folder} holds an adapter, not a model; zoo.load({str(folder)!r}) puts it on its base"
        )
    try:
        found = architecture_class(config["kind"], config["architecture"], where)
        if not isinstance(config["arguments"], dict):
            raise UserError(f"{where}: arguments must be an object, got {config['arguments']!r}")
        arguments = bind(found, config["arguments"], f"{where}: arguments")
    except UserError as error:
        written = _writer(config)
        if _numbers(written) <= _numbers(__version__):
            raise
        raise UserError(
            f"{error} (written by attune {written}, this is {__version__}: a newer version may"
            " know it)"
        ) from error
    state = _stored_state(folder, config)
    model = build_within(found, arguments, state, where)
    _check_state(state, model.state_dict(), folder)
    model.load_state_dict(state, strict=True)
    for part in model.modules():
        self_test = getattr(part, "self_test", None)
        if callable(self_test):  # a CLAP whose text tower is lost, also inside an ensemble
            self_test()
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


class _Bounded(TorchFunctionMode):
    """Counts the bytes of new tensors, because large ones take no memory before they are filled."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes
        self.made_bytes = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = (*args, *(kwargs or {}).values())  # initialisers get what they fill by keyword
        if isinstance(made, Tensor) and not any(isinstance(value, Tensor) for value in given):
            self.made_bytes += made.nbytes
            if self.made_bytes > self.limit_bytes:
                raise MemoryError(f"more than {self.limit_bytes / 1e6:,.0f} MB")
        return made


def build_within(
    found: type[nn.Module], arguments: Mapping[str, Any], state: Mapping[str, Tensor], where: str
) -> nn.Module:
    """``found(**arguments)``, stopped when it makes far larger tensors than ``state``.

    The limit is twice its size as float32, and a slack.

    Leaves torch's random state as it was. Raises ``UserError`` when it grows too large or cannot
    be built.
    """
    limit_bytes = SLACK_BYTES + 2 * sum(
        max(4, tensor.element_size()) * tensor.numel() for tensor in state.values()
    )
    try:
        with torch.random.fork_rng(devices=[]), _Bounded(limit_bytes):
            return found(**arguments)
    except MemoryError as error:
        raise UserError(
            f"{where}: {found.__name__} with these arguments is far larger than the weights that"
            f" came with it ({error}); it was not built"
        ) from error
    except (RuntimeError, TypeError, ArithmeticError, AssertionError, LookupError) as error:
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{where}: {found.__name__} cannot be built from these arguments ({message})"
        ) from error


def _stored_state(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of the artefact."""
    return read_state(folder, config.get("sha256"))


def _check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    wrong = misfits(state, wanted)
    if wrong:
        where = folder / (INDEX_FILE if (folder / INDEX_FILE).exists() else WEIGHTS_FILE)
        raise UserError(f"the tensors in {where} do not fit the architecture; {wrong}")
    refuse_wrong_numbers(state, wanted, str(folder))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of an artefact, checked to name no code and to have a known format.

    Raises ``FileNotFoundError`` and ``UserError``.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a model: it has no {CONFIG_FILE}")
    config = read_json(file_inside(folder, CONFIG_FILE, blobs_of(folder)))
    if _holds_target(config):
        raise UserError(
            f"{path} holds a _target_: a model artefact must name a known architecture, not code"
        )
    _refuse_newer(config, path)
    missing = [key for key in ("kind", "architecture", "arguments") if key not in config]
    if missing and (missing != ["arguments"] or config["kind"] != "adapter"):
        raise UserError(f"{path} has no {', '.join(missing)}: not an Attune config.json")
    for key in ("kind", "architecture"):
        if not isinstance(config[key], str):
            raise UserError(f"{path}: {key} must be a name, got {str(config[key])[:80]}")
    sha256 = config.get("sha256", {})
    if not isinstance(sha256, dict) or not all(isinstance(value, str) for value in sha256.values()):
        raise UserError(f"{path}: sha256 must be an object of file: hash, got {str(sha256)[:80]}")
    for name in sha256:
        safe_relative_path(name)
    return config


def _refuse_newer(config: Mapping[str, Any], path: Path) -> None:
    written_format = config.get("format", 1)
    written = _writer(config)
    if (
        not isinstance(written_format, int)
        or isinstance(written_format, bool)
        or written_format < 1
    ):
        raise UserError(
            f"{path}: format must be a whole number of at least 1, got {written_format!r}"
        )
    if written_format > FORMAT or _numbers(written)[:1] > _numbers(__version__)[:1]:
        raise UserError(
            f"{path} was written by a newer version (format {written_format}, attune {written});"
            f" this is attune {__version__}, which reads format {FORMAT}: install a newer attune"
        )


def _writer(config: Mapping[str, Any]) -> str:
    versions = config.get("versions")
    return str(versions.get("attune", "")) if isinstance(versions, dict) else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:3])


def _holds_target(node: Any) -> bool:
    if isinstance(node, dict):
        return "_target_" in node or any(map(_holds_target, node.values()))
    return isinstance(node, list) and any(map(_holds_target, node))


def _versions() -> dict[str, str]:
    installed = {"attune": __version__}
    for package in _VERSIONED:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed as a package"
    return installed
