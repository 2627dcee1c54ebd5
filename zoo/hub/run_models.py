"""What a run folder says of itself, and the model that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError
from zoo.hub.artifact import CONFIG_FILE, read_config
from zoo.hub.sampling_settings import PartialSampling
from zoo.hub.untrusted import check_safetensors_header
from zoo.moved_names import with_current_names


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it has a config.yaml, and is no model itself."""
    return (folder / "config.yaml").is_file() and not (folder / CONFIG_FILE).is_file()


def code_named_by(folder: Path) -> str | None:
    """The first ``_target_`` below a run's module.backbone that is not ``zoo.load``, or None."""
    node = _module_of(run_settings(folder)).get("backbone")
    return next(
        (str(target) for target in _targets(node) if target != "zoo.load"),
        None,
    )


def _module_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    module = settings.get("module")
    return module if isinstance(module, dict) else {}


def _targets(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from [node["_target_"]] if "_target_" in node else []
    for value in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from _targets(value)


def refuse_downloaded(folder: Path) -> None:
    """Raises ``UserError`` for a run that was downloaded: its configuration may name code."""
    from zoo.hub.store import is_downloaded

    if is_downloaded(folder):
        raise UserError(
            f"{folder} was downloaded and has a config.yaml, which may name code; only runs of "
            "your own are opened"
        )


def of_run(folder: Path, adapter: str | Path | None = None) -> tuple[Any, list[tuple[Path, float]]]:
    """The backbone of a run without an exported model, and (folder, strength) of its adapter.

    ``adapter`` takes the place of the run's own; a run that trained all weights has none.
    Raises ``UserError`` where the run has left nothing.
    """
    whole, denoiser, own = (
        folder / "backbone.safetensors",
        folder / "denoiser.safetensors",
        folder / "adapter",
    )
    if adapter is None and not own.is_dir() and not whole.is_file() and not denoiser.is_file():
        raise UserError(
            f"the run in {folder} has left neither adapter/ nor model/; has it finished? "
            "(resume=true goes on)"
        )
    model = built_from(run_settings(folder), "backbone", folder)
    if whole.is_file():
        load_weights(model, whole)
    elif denoiser.is_file():
        load_weights(model.denoiser, denoiser)
    if adapter is None and not own.is_dir():
        return model, []
    return model, [(Path(own if adapter is None else adapter), 1.0)]


def run_settings(folder: str | Path) -> dict[str, Any]:
    """The configuration of a run folder as plain values, ``{}`` where there is no config.yaml."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        return {}
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # YAML errors of several kinds
        raise UserError(f"{path} cannot be read: {error}") from error
    return with_current_names(config) if isinstance(config, dict) else {}


def recorded_sampling(folder: str | Path) -> PartialSampling:
    """How the run sampled that a model folder was exported from; it states nothing for others."""
    path = Path(folder) / CONFIG_FILE
    sampling = read_config(folder).get("sampling") if path.is_file() else None
    if not isinstance(sampling, dict):
        return PartialSampling()
    return PartialSampling.read(sampling, str(path))


def built_from(settings: Mapping[str, Any], role: str, folder: Path) -> Any:
    """The ``backbone`` or ``reward`` of a run's configuration, built as the run built it.

    Raises ``UserError``.
    """
    from zoo.instantiate import check, instantiate

    refuse_downloaded(folder)
    node = _module_of(settings).get(role)
    if node is None:
        what = "generator" if role == "backbone" else role
        raise UserError(
            f"{folder / 'config.yaml'} has no module.{role}: this run trained no {what}"
        )
    check(node, f"module.{role}")
    return instantiate(node, f"module.{role}")


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Every tensor of the file into ``module``, none left over. Raises ``UserError``."""
    from safetensors.torch import load_file

    from zoo.hub.weights import refuse_wrong_numbers

    check_safetensors_header(path)
    state = load_file(str(path))
    refuse_wrong_numbers(state, module.state_dict(), str(path))
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"the tensors in {path} do not fit the backbone of config.yaml: {error}"
        ) from error
