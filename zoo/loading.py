"""From names and folders to models: ``zoo.load`` and ``zoo.open_model``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zoo.conditioners.tokenizer import pack_tokenizer
from zoo.errors import UserError, did_you_mean
from zoo.hub.adapters import load_adapter, stack_adapters
from zoo.hub.artifact import CONFIG_FILE, architecture_class, build_artifact
from zoo.hub.registry import ENTRIES, looks_remote
from zoo.hub.resolve import Located, adapter_in, in_folder, resolve
from zoo.hub.runs import backbone_of_run, code_named_by, refuse_downloaded
from zoo.hub.weights import as_dtype
from zoo.importers import IMPORTERS
from zoo.importers.tango import tokenizer_text
from zoo.instantiate import locate
from zoo.rewards.members import with_rewards
from zoo.signatures import bind
from zoo.types import Backbone, lacking

Stack = Sequence[tuple[Located, float]]


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    adapters: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
    **options: Any,
) -> Any:
    """The model of a zoo name, a folder or an ``owner/name`` on the Hub: frozen, in eval mode.

    A folder is a model (our own layout, diffusers', or that of Tango's and TangoFlux's authors) or
    a run, whose backbone is given with its adapter (one that is built by other code than
    ``zoo.load`` is opened with ``zoo.open_model``: no code of a folder is run here). The name of an
    adapter gives the base that it was trained on, with it. What is on the Hub and not on this
    machine is pulled first (``zoo.pull``; a licence that needs consent must have been accepted
    there).

    Args:
        name: a zoo name ("embedded/music"), a folder, or "owner/name".
        device: such as "cpu" or "cuda".
        dtype: such as "float16"; by default what the architecture computes in.
        adapters: names or folders of adapters, or (name, strength) pairs, that are put on a
            backbone one over the other; strength 0 is the base, 1 (the default) as trained.
        options: settings of this model, by the keywords of the function in ``zoo.importers`` that
            opens its layout: ``checkpoint_activations`` (all around networks of diffusers),
            ``truncate_prompts`` (AudioLDM, AudioLDM 2, Stable Audio), ``tokenizer`` (Tango,
            TangoFlux, and what was saved of them here), ``frame_window`` (Stable Audio,
            TangoFlux), ``seconds_start`` and ``seconds_total`` (Stable Audio).

    Raises: ``UserError`` for unknown names, a device that is not here, an option that the model
        does not take, entries that cannot be loaded yet and adapters of another base, and what
        ``zoo.pull`` raises.
    """
    device = usable_device(device)
    dtype = as_dtype(dtype)
    return build(resolve(name), device, dtype, _stack(adapters), options)


def build(
    located: Located,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    stack: Stack = (),
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The model of files that ``resolve`` found, with adapters on it.

    ``device``, ``dtype``, ``stack`` and ``options``: see ``load``.
    """
    options = options or {}
    if located.layout == "run":
        exported = _exported(located)
        if exported is None:
            _refuse_options(options, (), located.name)
            return _built_run(located, stack).to(device=device, dtype=dtype)
        located = exported
    if located.layout == "peft":
        raise UserError(
            f"{located.folder} holds an adapter that names no base; load it as "
            f"zoo.load(BASE, adapters=[({str(located.folder)!r}, 1.0)])"
        )
    if located.is_adapter:
        stack = [(located, 1.0), *stack]
        located = resolve(_base_of(located))
    if located.layout == "attune":
        model = _own(located, device, dtype, options)
    else:
        model = _foreign(located, options).to(device=device, dtype=dtype)
    return _with_stack(model, stack, located.name)


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
    device = usable_device(device)
    located = resolve(source)
    exported = _exported(located) if located.layout == "run" else None
    if exported is not None:
        backbone = build(exported, device)
    elif located.layout == "run":
        backbone, own = backbone_of_run(located.folder, adapter)
        backbone = backbone.to(device)
        adapter = own[0][0] if own else None
    elif located.is_adapter and adapter is None:
        base = resolve(_base_of(located))
        backbone = build(base, device, stack=[(located, strength)])
    else:
        stack = [] if adapter is None else [(adapter_in(adapter), strength)]
        backbone = build(located, device, stack=stack)
    if lacking(backbone, Backbone):
        raise UserError(
            f"{source} is a {type(backbone).__name__}, which generates nothing; name a backbone"
        )
    if located.layout == "run" and adapter is not None:
        load_adapter(backbone, adapter, strength)
    return backbone.eval()


def usable_device(device: torch.device | str) -> torch.device:
    """``device`` as torch knows it; refused before anything is loaded if it does not exist here.

    Raises ``UserError`` for a name that torch does not know and a device that is not here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # no driver, a torch without it, no such number
        here = ["cpu"]
        if torch.accelerator.is_available():
            here.append(torch.accelerator.current_accelerator().type)
        why = str(error).split("\n")[0].split(". ")[0]
        raise UserError(
            f"the device {str(device)!r} cannot be used ({why}); this machine has"
            f" {' and '.join(here)}"
        ) from error
    return found


def _exported(run: Located) -> Located | None:
    folder = run.folder / "model"
    return in_folder(folder) if (folder / CONFIG_FILE).is_file() else None


def _stack(adapters: Any) -> Stack:
    """Pairs of what ``load`` takes as ``adapters``. Raises ``UserError`` for anything else."""
    pairs = []
    for item in adapters if isinstance(adapters, (list, tuple)) else [adapters]:
        name, strength = item if isinstance(item, (list, tuple)) and len(item) == 2 else (item, 1.0)
        is_number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not isinstance(name, (str, Path)) or not is_number:
            raise UserError(
                'adapters: expected names or (name, strength) pairs such as ("my_adapter", 0.7), '
                f"got {item!r}"
            )
        pairs.append((adapter_in(name), strength))
    return pairs


def _with_stack(model: Any, stack: Stack, name: str) -> Any:
    """``model`` with the adapters on it.

    Raises ``UserError`` for adapters on something other than a backbone.
    """
    if stack:
        if lacking(model, Backbone):
            raise UserError(
                f"{name} is a {type(model).__name__}, which takes no adapter; name a backbone"
            )
        stack_adapters(model, stack, name)
    return model


def _own(
    located: Located,
    device: torch.device | str,
    dtype: torch.dtype | None,
    options: Mapping[str, Any],
) -> Any:
    """A model in our layout, by those options of ``_own_with`` that its class has."""
    kind, architecture = located.config["kind"], located.config["architecture"]
    if kind == "reward" and isinstance(located.config["arguments"], dict):
        arguments = with_rewards(architecture, located.config["arguments"], load)
        located = replace(located, config={**located.config, "arguments": arguments})
    if not options:
        return build_artifact(located.folder, located.config, device, dtype)
    found = architecture_class(kind, architecture, str(located.folder / CONFIG_FILE))
    known = ["checkpoint_activations"] if hasattr(found, "set_checkpointing") else []
    known += ["tokenizer"] if "tokenizer" in inspect.signature(found).parameters else []
    _refuse_options(options, known, located.name)
    return _own_with(
        **bind(_own_with, {"located": located, "device": device, "dtype": dtype, **options}, "")
    )


def _own_with(
    located: Located,
    device: torch.device | str,
    dtype: torch.dtype | None,
    checkpoint_activations: bool = False,
    tokenizer: str | Path | None = None,
) -> Any:
    config = dict(located.config)
    if tokenizer is not None:
        words = pack_tokenizer(tokenizer_text(located.folder, tokenizer))
        config["arguments"] = {**config["arguments"], "tokenizer": words}
    model = build_artifact(located.folder, config, device, dtype)
    if checkpoint_activations:
        model.set_checkpointing()
    return model


def _foreign(located: Located, options: Mapping[str, Any]) -> Any:
    """A model in its authors' layout, by its importer and the options that this takes."""
    importer = locate(
        IMPORTERS[located.architecture, located.layout].replace(":", "."), located.name
    )
    parameters = inspect.signature(importer).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    _refuse_options(options, known, located.name)
    arguments = bind(importer, {"located": located, **options}, "")
    return importer(**arguments).eval().requires_grad_(False)


def _refuse_options(options: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    for key in options:
        if key not in known:
            choices = [*known, "name", "device", "dtype", "adapters"]
            raise UserError(f"{key}: {name} takes no {key!r}; {did_you_mean(key, choices)}")


def _built_run(run: Located, stack: Stack) -> Any:
    """A run's backbone with its adapter and ``stack`` on it.

    Raises ``UserError`` for one that names code, which is not run.
    """
    refuse_downloaded(run.folder)
    code = code_named_by(run.folder)
    if code is not None:
        raise UserError(
            f"{run.folder} is a run, and {code} builds its backbone; if the run is your own, "
            f"open it with zoo.open_model({str(run.folder)!r})"
        )
    model, own = backbone_of_run(run.folder)
    if own and not stack:
        load_adapter(model, *own[0])
    else:
        own = [(adapter_in(folder), strength) for folder, strength in own]
        _with_stack(model, [*own, *stack], run.name)
    return model.eval().requires_grad_(False)


def _base_of(adapter: Located) -> str:
    """The zoo name or ``owner/name`` of the base that an adapter names.

    Raises ``UserError`` for anything else.
    """
    base = adapter.config.get("base")
    name = base.get("name") if isinstance(base, dict) else None
    if not isinstance(name, str) or not (name in ENTRIES or looks_remote(name)):
        raise UserError(
            f"the adapter in {adapter.folder} names {name!r} as its base, which is not a zoo name "
            f"or owner/name; load it as zoo.load(BASE, adapters=[({str(adapter.folder)!r}, 1.0)])"
        )
    return name
