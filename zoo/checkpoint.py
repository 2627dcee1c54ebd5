"""A model on disk: a folder with config.json and model.safetensors, and nothing of the trainer.

config.json names a key of a literal table (``BACKBONES``, ``REWARDS``) and plain constructor arguments. It can never name code,
so a downloaded artefact runs nothing but this project.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.backbones import BACKBONES
from zoo.errors import did_you_mean
from zoo.files import written_beside
from zoo.rewards import REWARDS
from zoo.targets import bind, locate

TABLES: dict[str, dict[str, str]] = {"backbone": BACKBONES, "reward": REWARDS}
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_VERSIONED = ("attune", "torch", "diffusers", "transformers")


def architecture_class(kind: str, architecture: str, where: str) -> type[nn.Module]:
    """The class of a table's row. Raises ``ValueError`` for names that no table holds."""
    if kind not in TABLES:
        raise ValueError(f"{where}: unknown kind {kind!r}; {did_you_mean(str(kind), TABLES)}")
    if architecture not in TABLES[kind]:
        raise ValueError(f"{where}: unknown architecture {architecture!r}; {did_you_mean(str(architecture), TABLES[kind])}")
    return locate(TABLES[kind][architecture].replace(":", "."), where)


def save_weights(state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype | None = None) -> None:
    """A safetensors file, floating-point tensors as ``dtype`` if given. Raises ``ValueError`` when a tensor is not finite."""
    tensors = {}
    for name, tensor in state.items():
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.detach().to("cpu", wanted, copy=True).contiguous()
        if tensor.is_floating_point() and not torch.isfinite(tensors[name]).all():
            cause = "" if not torch.isfinite(tensor).all() else f" as {wanted} (it was finite; export at more precision)"
            raise ValueError(f"{name} holds NaN or infinity{cause}; {path} was not written")
    with written_beside(path) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})


def save_artifact(
    folder: str | Path,
    *,
    kind: str,
    architecture: str,
    arguments: Mapping[str, Any],
    module: nn.Module,
    dtype: torch.dtype | None = None,
    **facts: Any,
) -> None:
    """Writes ``module`` as an artefact that ``load_artifact`` reads. ``facts`` (plain values) are kept in config.json.

    Both files are written beside their places and moved; config.json holds the hash of the weights, so that a pair that does not
    belong together is noticed. Raises ``ValueError`` for an architecture that is not the module's, or arguments it does not take.
    """
    folder = Path(folder)
    found = architecture_class(kind, architecture, f"artefact {folder}")
    if type(module) is not found:
        raise ValueError(f"artefact {folder}: architecture {architecture!r} is {found.__name__}, got {type(module).__name__}")
    bind(found, dict(arguments), f"artefact {folder}: arguments")
    config = {"kind": kind, "architecture": architecture, "arguments": dict(arguments), "versions": _versions(), **facts}
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"artefact {folder}: arguments and facts must be plain JSON values ({error})") from error
    with written_beside(folder / CONFIG_FILE) as temporary:  # config.json appears last
        save_weights(module.state_dict(), folder / WEIGHTS_FILE, dtype)
        text = json.dumps(config | {"sha256": {WEIGHTS_FILE: _sha256(folder / WEIGHTS_FILE)}}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def load_artifact(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The model, frozen and in eval mode. Strict: every tensor is used and none is missing.

    Floating-point weights become ``dtype`` (default: the model's own, whatever the file holds). Leaves torch's random state as it
    was. Raises ``FileNotFoundError`` and ``ValueError`` saying which file, key or tensor is wrong.
    """
    folder = Path(folder)
    config = _read_config(folder)
    where = str(folder / CONFIG_FILE)
    found = architecture_class(config["kind"], config["architecture"], where)
    if not isinstance(config["arguments"], dict):
        raise ValueError(f"{where}: arguments must be an object, got {config['arguments']!r}")
    arguments = bind(found, config["arguments"], f"{where}: arguments")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS_FILE}; fetch or export the model again")
    try:
        state = load_file(str(weights))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} cannot be read ({error}); it may be cut off, fetch or export it again") from error
    promised = (config.get("sha256") or {}).get(WEIGHTS_FILE)
    if promised is not None and promised != _sha256(weights):
        raise ValueError(f"{weights} is not the file that {CONFIG_FILE} describes (sha256 differs); fetch or export it again")
    with torch.random.fork_rng(devices=[]):
        model = found(**arguments)
    _check_state(state, model.state_dict(), weights)
    model.load_state_dict(state, strict=True)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    missing, unused = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [f"{name} is {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
              for name in sorted(wanted.keys() & state.keys()) if state[name].shape != wanted[name].shape]
    wrong = [f"{len(names)} {what}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
             for what, names in (("missing", missing), ("not used", unused), ("of another shape", shapes)) if names]
    if wrong:
        raise ValueError(f"the tensors in {where} do not fit the architecture; {'; '.join(wrong)}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no model: it has no {CONFIG_FILE}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also wrong encoding
        raise ValueError(f"{path} is not valid JSON ({error}); fetch or export the model again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object")
    if _holds_target(config):
        raise ValueError(f"{path} holds a _target_: a model artefact names no code, only a known architecture")
    missing = [key for key in ("kind", "architecture", "arguments") if key not in config]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return config


def _holds_target(node: Any) -> bool:
    if isinstance(node, dict):
        return "_target_" in node or any(map(_holds_target, node.values()))
    return isinstance(node, list) and any(map(_holds_target, node))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    installed = {}
    for package in _VERSIONED:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed as a package"
    return installed
