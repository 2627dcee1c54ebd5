"""Builds objects from plain values ``{_target_: package.Class, key: value}``, after checks.

Where a parameter is declared as a dataclass (settings), its node needs no ``_target_``: it is
checked against the fields and built. A class whose settings have moved names the new places in
``MOVED_SETTINGS`` (old key -> new dotted key), so that the old ones are refused with the new ones.

Only configurations that the user wrote come here; the config.json of a model artefact never names
code (``zoo/hub/artifact.py``).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError, did_you_mean, named_misfit
from zoo.moved_names import with_current_name, with_current_target
from zoo.secrets import remember_in
from zoo.signatures import Unbuilt, bind, is_ours

_TOP_LEVEL = (
    "zoo",
    "datamodules",
    "lightning_modules",
    "lightning",
    "torch",
    "transformers",
    "diffusers",
)


def locate(path: Any, where: str = "_target_") -> Any:
    """The class or function at a dotted path, also at a former one (with one warning per name).

    Raises ``UserError`` naming the nearest right name.
    """
    path = with_current_name(path)
    if not isinstance(path, str) or "." not in path:
        raise UserError(
            f"{where}: {path!r} is not a dotted path such as lightning_modules.rl.ddpo.DDPO"
        )
    parts = path.split(".")
    found = None
    depth = 0
    for cut in range(1, len(parts)):
        name = ".".join(parts[:cut])
        try:
            with named_misfit():
                found = importlib.import_module(name)
                depth = cut
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                break
            raise UserError(
                f"{where}: {path} needs the package {error.name!r}, which is not installed"
            ) from error
        except ImportError as error:
            raise UserError(f"{where}: {path} cannot be imported: {error}") from error
    if found is None:
        raise UserError(
            f"{where}: there is no package {parts[0]!r} (in {path}); {_way_in(parts[0])}"
        )
    for i, part in enumerate(parts[depth:], start=depth):
        if not hasattr(found, part):
            owner = ".".join(parts[:i])
            raise UserError(
                f"{where}: {owner} has no {part!r}; {did_you_mean(part, _public_names(found))}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{where}: {path} is not a class or function")
    return found


def _way_in(package: str) -> str:
    """How a package that cannot be imported becomes importable, or the name that was meant."""
    here = Path.cwd()
    if (here / f"{package}.py").is_file() or (here / package).is_dir():
        return (
            f"{package} is in the current folder, where Python does not look for it: put "
            "PYTHONPATH=. before the command (PYTHONPATH=. python tools/fit.py ...)"
        )
    return did_you_mean(package, _TOP_LEVEL)


def _public_names(owner: Any) -> list[str]:
    names = {name for name in dir(owner) if not name.startswith("_")}
    if inspect.ismodule(owner):
        names = {name for name in names if not inspect.ismodule(getattr(owner, name))}
        names |= {module.name for module in pkgutil.iter_modules(getattr(owner, "__path__", []))}
    return sorted(names)


def check(node: Any, where: str) -> Any:
    """Checks a whole tree (names, keys, plain types) without building anything.

    Raises ``UserError``.
    """
    if isinstance(node, list):
        return [check(item, f"{where}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        for key in node:
            if (
                isinstance(key, str)
                and key.startswith("_")
                and difflib.SequenceMatcher(None, key, "_target_").ratio() > 0.7
            ):
                raise UserError(f"{where}.{key}: did you mean '_target_'?")
    node = with_current_target(node)
    if "_target_" not in node:
        return {key: check(value, f"{where}.{key}") for key, value in node.items()}
    target = locate(node["_target_"], f"{where}._target_")
    arguments = _arguments(target, node)
    bind(target, {key: check(value, f"{where}.{key}") for key, value in arguments.items()}, where)
    return Unbuilt()


def _arguments(target: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node without its ``_target_``; ``with_nodes`` of a class may replace names by nodes.

    Such as the name of a model by a node of ``zoo.load``.
    """
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    with_nodes = getattr(target, "with_nodes", None)
    return arguments if with_nodes is None else with_nodes(arguments)


def instantiate(node: Any, where: str) -> Any:
    """Builds a tree of ``_target_`` nodes, innermost first.

    Lists and dictionaries without ``_target_`` stay what they are.

    Raises ``UserError`` with the place in the tree, also for an error of the object built: a
    ``UserError``, one of a file or an import, and the ``ValueError`` with which a class of another
    library refuses an argument.
    """
    if isinstance(node, list):
        return [instantiate(item, f"{where}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    remember_in(node)  # what it holds is not for messages
    node = with_current_target(node)
    if "_target_" not in node:
        return {key: instantiate(value, f"{where}.{key}") for key, value in node.items()}
    target = locate(node["_target_"], f"{where}._target_")
    items = _arguments(target, node).items()
    arguments = bind(target, {k: instantiate(v, f"{where}.{k}") for k, v in items}, where)
    try:
        return target(**arguments)
    except (UserError, OSError, ImportError) as error:  # also of a package that it needs
        raise UserError(f"{where} ({node['_target_']}): {error}") from error
    except ValueError as error:
        if is_ours(target):  # we raise UserError: this one, of numpy or torch, is a bug
            raise
        raise UserError(f"{where} ({node['_target_']}): {error}") from error
