"""Compares the settings of a resumed run with those of its start, and says which may change.

A module lists in ``MAY_CHANGE_ON_RESUME`` its settings that may change: those that do not affect
the numbers (up to rounding), and those that may have to be fixed before the run can continue, such
as a reward that gave NaN. Trainer, loggers and callbacks may always change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError
from zoo.instantiate import locate
from zoo.moved_names import with_current_names
from zoo.signatures import plain_defaults

_ABSENT = object()
_NEVER_COMPARED = ("out_dir", "resume", "provenance")
_FIXED = ("module", "data", "seed")  # must not change, except what the module releases
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Change:
    """A setting at the dotted ``key`` that was ``old`` and is now ``new``."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} ({_shown(self.old)} -> {_shown(self.new)})"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The settings that differ between two configurations, by key.

    A setting that only one of them writes, with its default value, does not differ, nor does a
    class under its name before it moved. A list counts as one setting, and so does a node whose
    ``_target_`` changed.
    """
    compared = [{k: v for k, v in side.items() if k not in _NEVER_COMPARED} for side in (old, new)]
    return _changes("", *map(with_current_names, compared))


def may_change(key: str, released: Collection[str]) -> bool:
    """Whether a resumed run may have another value at ``key``.

    ``released``: keys below ``module`` that the module allows to change, with everything below.
    """
    if key.split(".")[0] not in _FIXED:
        return True
    return any(f"{key}.".startswith(f"module.{free}.") for free in released)


def released_by(module: Mapping[str, Any]) -> frozenset[str]:
    """``MAY_CHANGE_ON_RESUME`` of the class of a ``_target_`` node; empty if it has none."""
    try:
        return frozenset(getattr(locate(module["_target_"]), "MAY_CHANGE_ON_RESUME", ()))
    except (UserError, KeyError):  # an invalid node is reported when it is built
        return frozenset()


def translated(node: Mapping[str, Any], moved: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a module with those that have moved at their new places.

    ``moved``: old key -> new dotted key (``MOVED_SETTINGS`` of the module's class).
    """
    new: dict[str, Any] = {}
    for key, value in node.items():
        if key in moved and not isinstance(value, Mapping):
            part, _, name = moved[key].partition(".")
            new.setdefault(part, {})[name] = value
        elif isinstance(value, Mapping) and isinstance(new.get(key), Mapping):
            new[key] = {**new[key], **value}
        else:
            new[key] = value
    return new


def _changes(key: str, old: Any, new: Any) -> list[Change]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        target = new.get("_target_")
        if old.get("_target_") != target:
            return [Change(key, old, new)]
        if target is not None:
            old = translated(old, _moved(target))
        defaults = {} if target is None else _defaults(target)
        found = []
        for name in dict.fromkeys([*old, *new]):
            sides = [_with_defaults(side, name, defaults) for side in (old, new)]
            found += _changes(f"{key}.{name}" if key else str(name), *sides)
        return found
    if _is_list(old) and _is_list(new) and len(old) == len(new):
        pairs = list(zip(old, new, strict=True))
        if any(isinstance(side, Mapping) for pair in pairs for side in pair):
            return [c for i, pair in enumerate(pairs) for c in _changes(f"{key}.{i}", *pair)]
        return [Change(key, old, new)] if any(_changes(key, *pair) for pair in pairs) else []
    return [] if old == new else [Change(key, old, new)]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _with_defaults(side: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Any:
    """The value at ``name``; of a node of settings also what it leaves at its default."""
    default = defaults.get(name, _ABSENT)
    value = side.get(name, default)
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        return {**default, **value}
    return value


def _moved(target: str) -> Mapping[str, str]:
    try:
        return getattr(locate(target), "MOVED_SETTINGS", {})
    except ValueError:
        return {}


def _defaults(target: str) -> dict[str, Any]:
    try:
        return plain_defaults(locate(target))
    except (ValueError, TypeError):
        return {}


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not set"
    if isinstance(value, Mapping):
        value = value.get("_target_", "other settings")
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
