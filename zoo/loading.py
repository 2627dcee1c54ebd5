"""From names and folders to models."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.devices import usable_device
from zoo.errors import UserError, did_you_mean
from zoo.hub.artifact import CONFIG_FILE, load_artifact, read_config
from zoo.hub.registry import ENTRIES, find, looks_remote
from zoo.hub.run_models import code_named_by, is_run, of_run, refuse_downloaded
from zoo.hub.untrusted import read_json
from zoo.importers import IMPORTERS, PIPELINES
from zoo.instantiate import locate
from zoo.types import Backbone, lacking


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    adapters: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
) -> Any:
    """The model of a zoo name, a folder or an ``owner/name`` on the Hub: frozen, in eval mode.

    A folder is a model (our own layout, or diffusers') or a run, whose backbone is given with its
    adapter (one that is built by other code than ``zoo.load`` is opened with ``zoo.open_model``: no
    code of a folder is run here). The name of an adapter gives the base that it was trained on,
    with it. What is on the Hub and not on this machine is pulled first (``zoo.pull``; a licence
    that needs consent must have been accepted there).

    Args:
        name: a zoo name ("embedded/music"), a folder, or "owner/name".
        device: such as "cpu" or "cuda".
        dtype: such as "float16"; by default what the architecture computes in.
        adapters: names or folders of adapters, or (name, strength) pairs, that are put on a
            backbone one over the other; strength 0 is the base, 1 (the default) as trained.

    Raises: ``UserError`` for unknown names, a device that is not here, entries that cannot be
    loaded yet and adapters of another base, and what ``zoo.pull`` raises.
    """
    device, dtype, folder = usable_device(device), as_dtype(dtype), find_or_pull(name)
    stack = _stack(adapters)
    foreign = _importer(name, folder)
    if foreign is None and is_run(folder):
        if not (folder / "model" / CONFIG_FILE).is_file():
            return _loaded_run(folder, stack).to(device=device, dtype=dtype)
        name = folder = folder / "model"
    if (
        foreign is None
        and (folder / CONFIG_FILE).is_file()
        and read_config(folder)["kind"] == "adapter"
    ):
        name, stack = _base_of(folder), [(folder, 1.0), *stack]
        folder = find_or_pull(name)
        foreign = _importer(name, folder)
    if foreign is None:
        model = load_artifact(folder, device, dtype)
    else:
        model = (
            locate(foreign, str(name))(str(name), folder)
            .eval()
            .requires_grad_(False)
            .to(device=device, dtype=dtype)
        )
    return _adapted(model, stack, str(name))


def _stack(adapters: Any) -> list[tuple[Path, float]]:
    """(folder, strength) pairs of what ``load`` takes as ``adapters``.

    Raises ``UserError`` for anything else.
    """
    pairs = []
    for item in adapters if isinstance(adapters, (list, tuple)) else [adapters]:
        name, strength = item if isinstance(item, (list, tuple)) and len(item) == 2 else (item, 1.0)
        is_number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not isinstance(name, (str, Path)) or not is_number:
            raise UserError(
                'adapters: expected names or (name, strength) pairs such as ("my_adapter", 0.7), '
                f"got {item!r}"
            )
        pairs.append((_adapter_folder(name), strength))
    return pairs


def _adapted(model: Any, stack: Sequence[tuple[Path, float]], name: str) -> Any:
    """``model`` with the adapters on it.

    Raises ``UserError`` for adapters on what is no backbone.
    """
    if stack:
        from zoo.hub.adapters import stack_adapters

        if lacking(model, Backbone):
            raise UserError(
                f"{name} is a {type(model).__name__}, which takes no adapter; name a backbone"
            )
        stack_adapters(model, stack, name)
    return model


def _importer(name: str | Path, folder: Path) -> str | None:
    """What opens ``folder`` where its files are in their authors' layout; else None.

    That is the layout of a zoo entry, or diffusers'.
    """
    entry, index = ENTRIES.get(str(name)), folder / "model_index.json"
    if entry is not None:
        key = (entry.architecture, entry.layout)
    else:
        pipeline = str(read_json(index).get("_class_name")) if index.is_file() else None
        if pipeline is not None and pipeline not in PIPELINES:
            raise UserError(
                f"{folder} holds a diffusers {pipeline}; {did_you_mean(pipeline, PIPELINES)}"
            )
        key = (PIPELINES.get(pipeline), "diffusers")
    place = IMPORTERS.get(key)
    return place and place.replace(":", ".")


def _loaded_run(folder: Path, stack: Sequence[tuple[Path, float]]) -> Any:
    """A run's backbone with its adapter and ``stack`` on it.

    Raises ``UserError`` for one that names code, which is not run.
    """
    refuse_downloaded(folder)
    code = code_named_by(folder)
    if code is not None:
        raise UserError(
            f"{folder} is a run, and {code} builds its backbone; if the run is your own, "
            f"open it with zoo.open_model({str(folder)!r})"
        )
    model, own = of_run(folder)
    if stack or not own:
        _adapted(model, [*own, *stack] if stack else [], str(folder))
    else:
        from zoo.backbones.lora import load_adapter

        load_adapter(model, *own[0])
    return model.eval().requires_grad_(False)


def _adapter_folder(name: str | Path) -> Path:
    return find_or_pull(name) if str(name) in ENTRIES or looks_remote(str(name)) else Path(name)


def _base_of(folder: Path) -> str:
    """The zoo name or ``owner/name`` of the base that an adapter names.

    Raises ``UserError`` for anything else.
    """
    base = read_config(folder).get("base")
    name = base.get("name") if isinstance(base, dict) else None
    if not isinstance(name, str) or not (name in ENTRIES or looks_remote(name)):
        raise UserError(
            f"the adapter in {folder} names {name!r} as its base, which is no zoo name or "
            "owner/name; "
            f"load it as zoo.load(BASE, adapters=[({str(folder)!r}, 1.0)])"
        )
    return name


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating-point dtype by its name. Raises ``UserError``."""
    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if (
        wanted is not None
        and not (isinstance(wanted, torch.dtype) and wanted.is_floating_point)
        or (wanted is None and dtype)
    ):
        raise UserError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype!r}")
    return wanted


def find_or_pull(name: str | Path) -> Path:
    """The folder of a name, a path or an ``owner/name``.

    Pulled when it is on the Hub only. Raises as ``load``.
    """
    try:
        return find(name)
    except FileNotFoundError:
        entry = ENTRIES.get(str(name))
        if entry is not None and entry.path is not None:
            raise
    near = difflib.get_close_matches(
        str(name).lower(), [own for own in ENTRIES if "/" in own], n=1, cutoff=0.85
    )
    if entry is None and near:  # a typing error, most likely, and no question to the network
        raise UserError(
            f"there is no model {str(name)!r} on this machine; did you mean {near[0]!r}? "
            f"If it is on the Hub, fetch it first: python tools/zoo.py pull {name}"
        )
    from zoo.hub.pull import pull

    return pull(str(name))


def open_model(
    source: str,
    adapter: str | Path | None = None,
    strength: float = 1.0,
    device: torch.device | str = "cpu",
) -> Any:
    """A backbone from a zoo name, a model's folder or a run folder, with an adapter on it.

    A run folder gives its exported ``model/``, or else the backbone of its config.yaml (other than
    ``load``, also one that other code builds) with what the run trained: all of its weights, or its
    ``adapter/``. An exported adapter gives its base, with it.

    Args:
        source: as ``load`` takes it.
        adapter: a folder that takes the place of the run's own adapter.
        strength: of ``adapter``, or else of the adapter that is opened: 0 is the base model.
        device: such as "cpu" or "cuda".

    Raises: ``UserError``, ``FileNotFoundError``.
    """
    device, folder = usable_device(device), find_or_pull(source)
    foreign = _importer(source, folder)
    is_ours = foreign is None and (folder / CONFIG_FILE).is_file()
    if is_ours and adapter is None and read_config(folder)["kind"] == "adapter":
        backbone = load(_base_of(folder), device, adapters=[(folder, strength)])
    elif source in ENTRIES or foreign or (folder / CONFIG_FILE).is_file():
        backbone = load(source, device, adapters=[] if adapter is None else [(adapter, strength)])
        adapter = None
    elif (folder / "model" / CONFIG_FILE).is_file():
        backbone = load(str(folder / "model"), device)
    elif is_run(folder):
        backbone, stack = of_run(folder, adapter)
        backbone, adapter = backbone.to(device), stack[0][0] if stack else None
    else:
        raise UserError(
            f"{folder} is neither a model ({CONFIG_FILE}, or model_index.json of diffusers) nor a "
            "run (config.yaml)"
        )
    if lacking(backbone, Backbone):
        raise UserError(
            f"{source} is a {type(backbone).__name__}, which generates nothing; name a backbone"
        )
    if adapter is not None:
        from zoo.backbones.lora import load_adapter

        load_adapter(backbone, adapter, strength)
    return backbone.eval()
