"""What a reader of a model's card wants to know about the run that made it, as plain values for
config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.hub.entry import UNKNOWN
from zoo.hub.run_results import Checkpoint, held_out_numbers
from zoo.sampling_settings import run_sampling
from zoo.secrets import masked

# Of a run's data and module: what describes the task, in the words of its configuration; paths and
# machine settings stay out.
_DATA = (
    "template",
    "words",
    "instruments",
    "held_out",
    "negative",
    "seconds",
    "classes",
    "relations",
    "prompts_per_round",
    "repeats",
    "val_prompts",
    "val_repeats",
    "sources",
    "licences",
)
_MODULE = (
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "learning_rate",
    "sample_steps",
    "guidance_scale",
    "eta",
    "rule",
    "train_steps",
    "clip_range",
    "advantage",
    "kl_weight",
    "ema_decay",
    "total_steps",
    "weight_decay",
)


def facts_of(
    run: Path,
    settings: Mapping[str, Any],
    result: Path | Checkpoint,
    card: str | None,
    licence: str | None = None,
) -> dict[str, Any]:
    """``base``, ``licence``, ``training``, ``sampling``, ``metrics``, ``card`` of a run.

    Raises ``UserError`` for an unknown card, or for a ``licence`` other than the one that the
    model inherits from its base.
    """
    module, data = settings.get("module") or {}, settings.get("data") or {}
    module, data = dict(module), dict(data if isinstance(data, Mapping) else {})
    if isinstance(data.get("source"), Mapping):  # latents cached from another data module
        data = {**data["source"], **data}
    name = source_name(module.get("backbone")) or source_name(
        module.get("reward") if "backbone" not in module else None
    )
    inherited = licence_of_name(name)
    if name is not None and licence not in (None, inherited):
        raise UserError(
            f"this model is derived from {name} and inherits its licence, {inherited}; it cannot be"
            f" {licence}"
        )
    steps: int | None = None
    if isinstance(result, Path):
        taken_from = result.name
    else:
        steps = result.step
        taken_from = f"checkpoints/{result.path.name}"
    training = {
        "algorithm": str(module.get("_target_", "")).rpartition(".")[2],
        "reward": source_name(module.get("reward")) if "backbone" in module else None,
        "data": str(data.get("_target_", "")).rpartition(".")[2] or None,
        "seed": settings.get("seed"),
        "finished": steps is None,
        "optimiser_steps": steps,
        "taken_from": taken_from,
        "knobs": {key: module[key] for key in _MODULE if module.get(key) is not None},
        "prompts": {key: data[key] for key in _DATA if data.get(key) is not None},
        "started_from": _last_parts(module.get("start_adapter")),
    }
    facts: dict[str, Any] = {
        **(
            {"licence": inherited if name is not None else licence}
            if name is not None or licence
            else {}
        ),
        "training": {key: value for key, value in training.items() if value is not None},
        "sampling": run_sampling({"module": module, "data": data}, evaluation=True),
        "metrics": held_out_numbers(run, steps),
        "card": _card_name(run, card),
    }
    base = {"name": name, "licence": inherited, "files": _files_of(name)} if name else {}
    return masked({**({"base": base} if base else {}), **facts})


def _last_parts(path: str | None) -> str | None:
    """The last two names of a path, such as ``one/adapter``: cards hold no whole local path."""
    return None if path is None else "/".join(Path(path).parts[-2:])


def source_name(node: Any) -> str | None:
    """The name, repository or folder from which a ``_target_`` node loads its model; None when it
    builds a new one.
    """
    if not isinstance(node, Mapping):
        return None
    return next(
        (node[key] for key in ("name", "repo_id", "source") if isinstance(node.get(key), str)), None
    )


def licence_of_name(name: str | None) -> str:
    """The licence of a zoo name or model folder, "unknown" where none is known."""
    from zoo.hub.table import ENTRIES

    if name in ENTRIES:
        return ENTRIES[name].licence
    return UNKNOWN if name is None else str(_config_of(name).get("licence") or UNKNOWN)


def _config_of(name: str) -> dict[str, Any]:
    from zoo.hub.artifact import read_config
    from zoo.hub.registry import find

    try:
        return read_config(find(name))
    except (ValueError, OSError):  # not here, or not in our layout: nothing more is known
        return {}


def _files_of(name: str) -> dict[str, str]:
    return dict(_config_of(name).get("sha256") or {})


def _card_name(run: Path, card: str | None) -> str:
    from zoo.errors import did_you_mean
    from zoo.hub.cards import TEMPLATE, body_path

    if card is None:
        card = run.resolve().name if body_path(run.resolve().name).is_file() else TEMPLATE
    elif not body_path(card).is_file():
        choices = [path.stem for path in body_path(card).parent.glob("*.md")]
        raise UserError(f"there is no card {body_path(card)}; {did_you_mean(card, choices)}")
    return card
