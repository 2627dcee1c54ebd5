"""Rewards that another reward is made of: by zoo name, by a key of ``REWARDS`` with arguments, or
as objects; with their weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zoo.errors import UserError, did_you_mean
from zoo.hub.artifact import architecture_class, identity_of
from zoo.instantiate import bind
from zoo.loading import load
from zoo.types import Reward, lacking

RESERVED = ("z", "spread")  # parts of the ensemble itself
_KEYS = ("reward", "weight", "mean", "std")


@dataclass(frozen=True)
class Member:
    """``weight`` > 0.

    ``mean`` and ``std``: of its score over generations of the base model, or both None.
    """

    name: str
    reward: Reward
    weight: float
    mean: float | None
    std: float | None

    def described(self) -> dict[str, Any] | None:
        """Plain values that ``members_of`` takes (weights of networks apart), None for a class that
        no table names.
        """
        reward = described(self.reward)
        return (
            None
            if reward is None
            else {"reward": reward, "weight": self.weight, "mean": self.mean, "std": self.std}
        )


def open_reward(given: Any, where: str) -> Reward:
    """The reward of a zoo name or folder, of ``{"architecture": key of REWARDS, "arguments":
    {...}}``, or ``given`` itself.

    Raises ``UserError`` beginning with ``where`` (and ``OSError`` where files are missing or
    unreadable).
    """
    try:
        if isinstance(given, str):
            given = load(given)
        elif isinstance(given, Mapping):
            unknown = [key for key in given if key not in ("architecture", "arguments")]
            if unknown or "architecture" not in given:
                raise UserError(
                    "a reward is given by architecture and arguments, got"
                    f" {', '.join(map(str, given)) or 'nothing'}"
                )
            found = architecture_class("reward", given["architecture"], "architecture")
            given = found(**bind(found, dict(given.get("arguments") or {}), "arguments"))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if lacking(given, Reward):
        raise UserError(
            f"{where}: a {type(given).__name__} is no reward (it needs __call__ and differentiable)"
        )
    return given


def described(reward: Reward) -> dict[str, Any] | None:
    """What ``open_reward`` builds the same class from, without its weights; None where no table
    names it.
    """
    try:
        _, architecture, arguments = identity_of(reward)
    except UserError:
        return None
    return {"architecture": architecture, "arguments": arguments}


def members_of(given: Mapping[str, Any], kind: str) -> tuple[Member, ...]:
    """One ``Member`` a name.

    A value is a reward as ``open_reward`` takes it, or ``{reward:, weight:, mean:, std:}``.

    Raises ``UserError`` naming the member for bad names, unknown keys, weights that are not
    positive, ``mean`` without ``std``.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{kind} must map names to rewards, got {type(given).__name__}")
    return tuple(_member(name, value, f"{kind}.{name}") for name, value in given.items())


def _member(name: str, value: Any, where: str) -> Member:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in RESERVED:
        raise UserError(
            f"{where}: a name has letters, digits, _ and -, and is none of {', '.join(RESERVED)}"
        )
    settings = (
        dict(value)
        if isinstance(value, Mapping) and "architecture" not in value
        else {"reward": value}
    )
    for key in settings:
        if key not in _KEYS:
            raise UserError(f"{where}.{key}: {did_you_mean(str(key), _KEYS)}")
    if settings.get("reward") is None:
        raise UserError(
            f"{where} needs a reward: a zoo name, architecture and arguments, or an object"
        )
    weight, mean, std = (
        _number(settings, "weight", where, 1.0),
        _number(settings, "mean", where),
        _number(settings, "std", where),
    )
    if not weight > 0:
        raise UserError(
            f"{where}.weight must be above 0, got {weight}; leave out a member that is not to count"
        )
    if (mean is None) != (std is None) or (std is not None and not std > 0):
        raise UserError(f"{where}: mean and a std above 0 belong together, got {mean} and {std}")
    return Member(name, open_reward(settings["reward"], where), weight, mean, std)


def _number(
    settings: Mapping[str, Any], key: str, where: str, default: float | None = None
) -> float | None:
    value = settings.get(key, default)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}.{key} must be a finite number, got {value!r}")
    return float(value)


def networks(rewards: tuple[Reward, ...]) -> nn.ModuleList:
    """Those that are modules, so that they move and are saved with their owner."""
    return nn.ModuleList(reward for reward in rewards if isinstance(reward, nn.Module))
