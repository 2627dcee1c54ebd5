"""What the config.json of an exported model records of its run, for the readers of its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.hub.entry import UNKNOWN
from zoo.hub.run_facts import RunFacts
from zoo.hub.runs import Checkpoint, held_out_numbers
from zoo.secrets import masked


def export_record(
    run: Path,
    settings: Mapping[str, Any],
    facts: RunFacts,
    result: Path | Checkpoint,
    card: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """What the config.json of an exported model says about its run.

    Args:
        run: its folder.
        settings: its configuration.
        facts: what it states about itself.
        result: what is exported, a finished result or a checkpoint.
        card: name of the written body of the card; None: the one named like the run, if any.
        licence: of a model that is derived from no other one.

    Returns:
        ``base``, ``licence``, ``training``, ``sampling``, ``metrics`` and ``card``.

    Raises:
        UserError: for an unknown card, or for a ``licence`` other than the one that the model
            inherits from its base.
    """
    module = settings.get("module") or {}
    trains_backbone = "backbone" in module
    name = source_name(module.get("backbone" if trains_backbone else "reward"))
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
        "algorithm": facts.algorithm,
        "reward": source_name(module.get("reward")) if trains_backbone else None,
        "data": facts.data,
        "seed": settings.get("seed"),
        "finished": steps is None,
        "optimiser_steps": steps,
        "taken_from": taken_from,
        "knobs": dict(facts.settings),
        "prompts": dict(facts.prompts),
        "started_from": _last_parts(facts.started_from),
    }
    record: dict[str, Any] = {
        "training": {key: value for key, value in training.items() if value is not None},
        "sampling": facts.evaluation.stated(),
        "metrics": held_out_numbers(run, steps),
        "card": _card_name(run, card),
    }
    if name is not None:
        record["base"] = {"name": name, "licence": inherited, "files": _files_of(name)}
    if name is not None or licence:
        record["licence"] = licence if name is None else inherited
    return masked(record)


def _last_parts(path: str | None) -> str | None:
    """The last two names of a path, such as ``one/adapter``: cards hold no whole local path."""
    return None if path is None else "/".join(Path(path).parts[-2:])


def source_name(node: Any) -> str | None:
    """The name, repository or folder that a ``_target_`` node loads; None for a new model."""
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
    except (UserError, OSError):  # not here, or not in our layout: nothing more is known
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
