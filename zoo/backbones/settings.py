"""Configurations of networks from libraries: which settings there are, and that no others reach the
libraries.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from zoo.errors import UserError, did_you_mean

# keys of every configuration of transformers; no network depends on them
_COMMON = {
    "dtype",
    "architectures",
    "id2label",
    "label2id",
    "transformers_version",
    "model_type",
    "problem_type",
}


def settings_of(kind: type) -> tuple[str, ...]:
    """What the configuration of a part may say: a diffusers network's arguments, or the keys of a
    transformers configuration.
    """
    if hasattr(kind, "to_dict"):
        return tuple(
            key for key in kind().to_dict() if not key.startswith("_") and key not in _COMMON
        )
    return tuple(key for key in inspect.signature(kind.__init__).parameters if key != "self")


def only_known(given: Mapping[str, Any], known: Collection[str], what: str) -> dict[str, Any]:
    """``given`` as a dictionary.

    Raises ``UserError`` for a key that is not among ``known``: libraries act on some others
    (attention kernels that are downloaded), and a configuration from somebody else must not reach
    them.
    """
    for key in given:
        if key not in known:
            raise UserError(f"{what} has no setting {key!r}; {did_you_mean(str(key), known)}")
    return dict(given)


def checked(kind: type, given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``given`` as a dictionary, all of it ``settings_of(kind)``. Raises as ``only_known``."""
    return only_known(given, settings_of(kind), what)
