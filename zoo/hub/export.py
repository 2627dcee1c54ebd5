"""Turns a run folder into a model folder: weights, config.json and card, without the trainer."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError
from zoo.files import clear_after_killed, folder_written_beside
from zoo.hub.artifact import (
    CARD_FILE,
    identity_of,
    load_artifact,
    read_config,
    refuse_foreign_files,
    save_artifact,
    write_config,
)
from zoo.hub.export_record import export_record
from zoo.hub.run_facts import RunFacts, read_facts
from zoo.hub.runs import Checkpoint, built_from, fill, load_weights, newest_result, run_settings
from zoo.hub.weights import as_dtype, read_state, save_state
from zoo.types import Backbone, lacking


def export_run(
    run_folder: str | Path,
    to: str | Path,
    merge: bool = False,
    dtype: str | torch.dtype | None = None,
    card: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes what a run has learned, finished or not, into the folder ``to``, and returns it.

    A run with an adapter gives a peft folder (``PeftModel.from_pretrained(pipe.unet, to)`` loads
    it) that names its base and the base's hashes. Other runs give the whole model. Of a stopped run
    the newest checkpoint is taken, with averaged weights where it has them. ``to`` is written
    next to its place and moved: an interrupted export leaves nothing.

    Args:
        run_folder: the ``out_dir`` of the run.
        to: the new folder.
        merge: write the whole model with the adapter merged into it.
        dtype: of the weights on disk (default: as they are).
        card: name of the written body in hub_cards/ (default: that of the run folder's name, else
            the template).
        licence: of a model that is derived from no other (none is recorded if not given); a derived
            one inherits its base's.
        overwrite: replace an older export in ``to``.

    Raises: ``UserError`` (nothing to export, base changed since training, ``to`` holds an export or
        other files, ...), ``OSError`` (no such run, read-only, disk full).
    """
    run = Path(run_folder)
    to = Path(to)
    dtype = as_dtype(dtype)
    settings = run_settings(run)
    if not settings:
        raise FileNotFoundError(
            f"{run} is not a run folder: it has no config.yaml (name the out_dir of a run)"
        )
    clear_after_killed(to.parent, glob.escape(to.name))
    refuse_foreign_files(to)
    if not overwrite and to.is_dir() and any(to.iterdir()):
        raise UserError(
            f"{to} exists; give another --to, or --overwrite to replace it (in Python: "
            "overwrite=True)"
        )
    result = newest_result(run)
    with folder_written_beside(to, replace=True) as part:
        saved = result.settings if isinstance(result, Checkpoint) else {}
        facts = read_facts(run, settings, saved)
        record = export_record(run, settings, facts, result, card, licence)
        if isinstance(result, Path) and result.name == "model":
            _copy_model(result, part, dtype, record)
        elif isinstance(result, Checkpoint) and facts.checkpoint == "whole":
            _export_trained(settings, run, result, facts, part, dtype, record)
        elif isinstance(result, Checkpoint) and "backbone" not in settings["module"]:
            _export_reward(settings, run, result, facts, part, dtype, record)
        else:
            _export_learned(settings, run, result, facts, part, merge, dtype, record)
        write_card(part, to.resolve().name)
    return to


def write_card(folder: Path, name: str) -> None:
    """``README.md`` of a model folder; ``name`` is its title."""
    from zoo.hub.cards import card_for

    (folder / CARD_FILE).write_text(card_for(folder, name), encoding="utf-8")


def _copy_model(
    source: Path, part: Path, dtype: torch.dtype | None, record: dict[str, Any]
) -> None:
    load_artifact(source)  # strict: what is copied can be loaded
    config = read_config(source)
    kept = {
        key: value for key, value in config.items() if key not in ("format", "versions", "sha256")
    }
    write_config(part, kept | record, save_state(read_state(source), part, dtype))


def _export_trained(
    settings: Mapping[str, Any],
    run: Path,
    checkpoint: Checkpoint,
    facts: RunFacts,
    part: Path,
    dtype: torch.dtype | None,
    record: dict[str, Any],
) -> None:
    """An unfinished run whose checkpoints hold the whole backbone or reward."""
    role = next(
        (
            role
            for role in ("backbone", "reward")
            if any(name.startswith(role + ".") for name in checkpoint.state)
        ),
        None,
    )
    if role is None:
        raise UserError(
            f"the run in {run} trained neither a backbone nor a reward, so it has no model folder"
        )
    module = built_from(settings, role, run)
    names = [
        name
        for name, _ in module.named_parameters()
        if facts.learned is None or name.split(".")[0] in facts.learned
    ]
    fill(module, checkpoint, role + ".", names, whole=True)
    # half precision, as a finished run's model/
    _save_whole(module, part, dtype or torch.float16, record)


def _export_reward(
    settings: Mapping[str, Any],
    run: Path,
    checkpoint: Checkpoint,
    facts: RunFacts,
    part: Path,
    dtype: torch.dtype | None,
    record: dict[str, Any],
) -> None:
    """An unfinished run whose checkpoints hold the learned parts of a reward."""
    reward = built_from(settings, "reward", run)
    names = [
        name for name, _ in reward.named_parameters() if name.split(".")[0] in (facts.learned or ())
    ]
    fill(reward, checkpoint, "", names, whole=False)
    _save_whole(reward, part, dtype, record)


def _export_learned(
    settings: Mapping[str, Any],
    run: Path,
    result: Path | Checkpoint,
    facts: RunFacts,
    part: Path,
    merge: bool,
    dtype: torch.dtype | None,
    record: dict[str, Any],
) -> None:
    """A run that keeps only what it learned: an adapter, or parts of the backbone's weights."""
    from zoo.hub.adapter_files import base_hashes, write_adapter
    from zoo.hub.adapters import merge_adapters, stack_adapters

    backbone = built_from(settings, "backbone", run)
    if lacking(backbone, Backbone):
        raise UserError(
            f"module.backbone of {run / 'config.yaml'} is a {type(backbone).__name__}, not a"
            " backbone"
        )
    backbone.requires_grad_(False)
    name = (record.get("base") or {}).get("name")
    recorded = base_hashes(backbone.denoiser)
    if isinstance(result, Path) and result.name == "denoiser.safetensors":
        load_weights(backbone.denoiser, result)
    elif isinstance(result, Path):
        stack_adapters(backbone, [(result, 1.0)], name)
    else:
        _fill_learned(backbone, result, facts, run, name)
    if not hasattr(backbone.denoiser, "peft_config"):
        _save_whole(backbone, part, dtype, record)
    elif merge:
        merge_adapters(backbone)
        _save_whole(backbone, part, dtype, record | {"merged": True})
    else:
        base = record.pop("base", None)
        write_adapter(backbone.denoiser, part, recorded=recorded, base=base, dtype=dtype, **record)


def _fill_learned(
    backbone: Any, checkpoint: Checkpoint, facts: RunFacts, run: Path, base: str | None
) -> None:
    """The learned weights of a checkpoint into the frozen ``backbone``."""
    from zoo.backbones.lora import add_lora
    from zoo.hub.adapter_files import check_base

    check_base(
        backbone.denoiser,
        checkpoint.base_sha256,
        f"the run in {run}",
        base,
        f"{base or 'the base'} as it is now",
    )
    own = facts.adapter
    if own is not None:
        add_lora(backbone, own.rank, own.alpha, own.targets, own.init)
    else:
        for part in facts.learned or ():
            getattr(backbone, part).requires_grad_(True)
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    fill(backbone, checkpoint, "backbone.", trained, whole=False)


def _save_whole(
    module: nn.Module, part: Path, dtype: torch.dtype | None, record: dict[str, Any]
) -> None:
    kind, architecture, arguments = identity_of(module)
    save_artifact(
        part,
        kind=kind,
        architecture=architecture,
        arguments=arguments,
        module=module,
        dtype=dtype,
        **record,
    )
