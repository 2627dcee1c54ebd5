"""The weighted parts of a composed reward: objects, or keys of ``REWARDS`` with arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zoo.errors import UserError, did_you_mean
from zoo.instantiate import locate
from zoo.rewards import REWARDS
from zoo.signatures import bind
from zoo.types import Reward, lacking

RESERVED = ("z", "spread")  # parts of the ensemble itself
GROUPS = ("members", "penalties")  # arguments of an ensemble that hold rewards
PARTS = {"guards": "embedder", "preference": "clap"}  # row -> its argument that is another reward
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
        """Plain values for ``members_of``, without weights; None for a class outside the table."""
        reward = described(self.reward)
        return (
            None
            if reward is None
            else {"reward": reward, "weight": self.weight, "mean": self.mean, "std": self.std}
        )


def reward_of(given: Any, where: str) -> Reward:
    """The reward of ``{"architecture": key of REWARDS, "arguments": {...}}``, or ``given`` itself.

    Raises ``UserError`` beginning with ``where``, also for names (see ``with_rewards``).
    """
    if isinstance(given, str):
        raise UserError(
            f"{where}: {given!r} is a name; give the reward itself: zoo.load({given!r})"
        )
    try:
        if isinstance(given, Mapping):
            unknown = [key for key in given if key not in ("architecture", "arguments")]
            if unknown or "architecture" not in given:
                raise UserError(
                    "a reward is given by architecture and arguments, got"
                    f" {', '.join(map(str, given)) or 'nothing'}"
                )
            architecture = given["architecture"]
            if architecture not in REWARDS:
                raise UserError(
                    f"architecture: unknown architecture {architecture!r}; "
                    f"{did_you_mean(str(architecture), REWARDS)}"
                )
            found = locate(REWARDS[architecture].replace(":", "."), "architecture")
            given = found(**bind(found, dict(given.get("arguments") or {}), "arguments"))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if lacking(given, Reward):
        raise UserError(
            f"{where}: a {type(given).__name__} is not a reward (it needs __call__ and"
            " differentiable)"
        )
    return given


def described(reward: Reward) -> dict[str, Any] | None:
    """Plain values from which ``reward_of`` builds the same class, without its weights.

    None for a class outside the table.
    """
    place = f"{type(reward).__module__}:{type(reward).__name__}"
    architecture = next((key for key, known in REWARDS.items() if known == place), None)
    arguments = getattr(reward, "arguments", None)
    if architecture is None or not isinstance(arguments, dict):
        return None
    return {"architecture": architecture, "arguments": dict(arguments)}


def with_rewards(
    architecture: str, arguments: Mapping[str, Any], opened: Callable[[str], Any]
) -> dict[str, Any]:
    """The arguments of a row of ``REWARDS``, with ``opened(name)`` for names of other rewards.

    Other values stay for the reward to refuse.
    """
    found = dict(arguments)
    for key in GROUPS if architecture == "ensemble" else ():
        if isinstance(found.get(key), Mapping):
            members = found[key].items()
            found[key] = {name: _with_reward(value, opened) for name, value in members}
    part = PARTS.get(architecture)
    if part in found:
        found[part] = _with_reward(found[part], opened)
    return found


def _with_reward(value: Any, opened: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return opened(value)
    if not isinstance(value, Mapping):
        return value
    if "reward" in value:
        return {**value, "reward": _with_reward(value["reward"], opened)}
    if isinstance(value.get("arguments"), Mapping):
        arguments = with_rewards(str(value.get("architecture")), value["arguments"], opened)
        return {**value, "arguments": arguments}
    return value


def reward_node(value: Any) -> Any:
    """The ``_target_`` node for a name or an architecture, also below ``reward:``.

    Other values stay.
    """
    if isinstance(value, str):
        return {"_target_": "zoo.load", "name": value}
    if not isinstance(value, Mapping):
        return value
    if "reward" in value:
        return {**value, "reward": reward_node(value["reward"])}
    arguments = value.get("arguments") or {}
    is_row = set(value) <= {"architecture", "arguments"} and value.get("architecture") in REWARDS
    if is_row and isinstance(arguments, Mapping):
        return {**arguments, "_target_": REWARDS[value["architecture"]].replace(":", ".")}
    return value


def group_nodes(given: Any) -> Any:
    """``reward_node`` of each of ``members`` or ``penalties``."""
    if not isinstance(given, Mapping) or "_target_" in given:
        return given
    return {name: reward_node(value) for name, value in given.items()}


def members_of(given: Mapping[str, Any], kind: str) -> tuple[Member, ...]:
    """One ``Member`` a name.

    A value is a reward as ``reward_of`` takes it, or ``{reward:, weight:, mean:, std:}``.

    Raises ``UserError`` naming the member for bad names, unknown keys, weights that are not
    positive, ``mean`` without ``std``.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{kind} must map names to rewards, got {type(given).__name__}")
    return tuple(_member(name, value, f"{kind}.{name}") for name, value in given.items())


def _member(name: str, value: Any, where: str) -> Member:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in RESERVED:
        raise UserError(
            f"{where}: a name has letters, digits, _ and -, and must not be {', '.join(RESERVED)}"
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
        raise UserError(f"{where} needs a reward: an object, or architecture and arguments")
    weight = _number(settings, "weight", where, 1.0)
    mean = _number(settings, "mean", where)
    std = _number(settings, "std", where)
    if not weight > 0:
        raise UserError(
            f"{where}.weight must be above 0, got {weight}; leave out a member that must not count"
        )
    if (mean is None) != (std is None) or (std is not None and not std > 0):
        raise UserError(f"{where}: mean and a std above 0 belong together, got {mean} and {std}")
    return Member(name, reward_of(settings["reward"], where), weight, mean, std)


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
