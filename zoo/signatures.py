"""Checks arguments against signatures: names, plain types, and dataclasses of settings."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.errors import UserError, did_you_mean, nearest
from zoo.types import lacking

_PLAIN = (bool, int, float, str, list, dict, tuple)


class Unbuilt:
    """Stands for a value that is yet to be built, whose type cannot be checked before."""


def bind_types(target: Any, arguments: Mapping[str, Any]) -> None:
    """Checks plain values against the annotations of ``target``.

    Raises ``UserError`` that names the argument.
    """
    parameters = inspect.signature(target).parameters
    for key, value in arguments.items():
        annotation = _annotation(target, parameters[key])
        if not _fits(value, annotation):
            raise UserError(
                f"{key}: {target.__name__} expects {_spelled(annotation)}, got {value!r}"
            )


def bind(target: Any, arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``arguments`` as ``target`` takes them, with names and plain values checked.

    A list becomes a tuple where only a tuple is declared, also inside another list, tuple or
    dictionary; a dictionary becomes settings where a dataclass is declared. Raises ``UserError``
    that names ``where.key`` and the nearest right key for an unknown key, a missing key or a value
    of the wrong type.
    """
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some builtins have none
        return dict(arguments)
    name = getattr(target, "__qualname__", str(target))
    parameters = {
        key: p
        for key, p in signature.parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    _refuse_moved(target, arguments, where)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise UserError(_unknown(target, key, where))
    missing = [
        key for key, p in parameters.items() if p.default is p.empty and key not in arguments
    ]
    if missing:
        raise UserError(
            f"{where}: {name} needs {', '.join(_key(where, key) for key in missing)}, which is not"
            " given"
        )
    signature.bind(**arguments)
    bound = {}
    for key, value in arguments.items():
        parameter = parameters.get(key)
        annotation = Any if parameter is None else _annotation(target, parameter)
        settings = _settings_kind(annotation)
        if settings is not None and isinstance(value, dict):
            default = None if parameter is None else parameter.default
            places = _places(target, where)
            value = _settings(settings, value, _key(where, key), places, default)
        elif not _fits(value, annotation):
            value = _with_tuples(value, annotation)
        same_as_default = parameter is not None and value is None and parameter.default is None
        if not same_as_default and not _fits(value, annotation):
            raise UserError(
                f"{_key(where, key)}: {name} expects {_spelled(annotation)}, "
                f"got {_shown(value)}{_hint(value, annotation)}"
            )
        bound[key] = value
    return bound


def _key(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def plain_defaults(target: Any) -> dict[str, Any]:
    """Defaults of ``target``'s optional arguments, as in a configuration.

    Those of settings (dataclasses) are nested dictionaries.
    """
    return {
        key: dataclasses.asdict(p.default) if dataclasses.is_dataclass(p.default) else p.default
        for key, p in inspect.signature(target).parameters.items()
        if p.default is not p.empty
    }


def argument_names(target: Any) -> list[str]:
    """Names of the arguments of ``target``; those of settings (dataclasses) dotted, by field."""
    names = []
    for key, parameter in inspect.signature(target).parameters.items():
        annotation = _annotation(target, parameter)
        settings = _settings_kind(annotation)
        fields = () if settings is None else dataclasses.fields(settings)
        names += [f"{key}.{field.name}" for field in fields] or [key]
    return names


def _settings_kind(annotation: Any) -> type | None:
    """The dataclass of settings that an argument takes, perhaps instead of None; or None."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    kind = kinds[0] if len(kinds) == 1 and type(None) in typing.get_args(annotation) else annotation
    return kind if inspect.isclass(kind) and dataclasses.is_dataclass(kind) else None


def _settings(
    kind: type, node: dict[str, Any], where: str, near: Mapping[str, list[str]], default: Any
) -> Any:
    """The dataclass ``kind`` from the plain values of ``node``.

    ``near``: last part of a name -> places in the owner of the settings, for hints. ``default``:
    that of the argument; what ``node`` leaves out is as in it, if it is a ``kind``.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    for key in node:
        if key not in names:
            own = [f"{where}.{name}" for name in nearest(key, names)]
            raise UserError(
                f"{where}.{key}: {kind.__name__} has no {key!r};"
                f" {_meant(near.get(key) or own, names)}"
            )
    values = bind(kind, node, where)
    if any(isinstance(value, Unbuilt) for value in values.values()):
        raise UserError(f"{where}: {kind.__name__} takes plain values, not _target_ nodes")
    try:
        if isinstance(default, kind):
            return dataclasses.replace(default, **values)
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _places(target: Any, where: str) -> dict[str, list[str]]:
    """Last part of a name -> the arguments (whole dotted keys) of ``target`` that it may mean.

    Names that have moved count with their new places.
    """
    named = [(name.rpartition(".")[2], name) for name in argument_names(target)]
    places: dict[str, list[str]] = {}
    for end, name in [*named, *getattr(target, "MOVED_SETTINGS", {}).items()]:
        if _key(where, name) not in places.setdefault(end, []):
            places[end].append(_key(where, name))
    return places


def _meant(places: Sequence[str], choices: Iterable[str]) -> str:
    if places:
        return f"did you mean {' or '.join(places)}?"
    return f"choose from {', '.join(choices)}"


def _unknown(target: Any, key: str, where: str) -> str:
    """The message about a key that ``target`` does not take."""
    name = getattr(target, "__qualname__", str(target))
    parameters = inspect.signature(target).parameters
    if any(_settings_kind(_annotation(target, p)) for p in parameters.values()):
        places = _places(target, where)
        meant = [place for end in nearest(key, places) for place in places[end]]
        hint = _meant(meant, parameters)
    else:
        hint = did_you_mean(key, parameters)
    return f"{_key(where, key)}: {name} takes no {key!r}; {hint}"


def _refuse_moved(target: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Raises ``UserError`` that names the new place of every setting that has moved."""
    moved: Mapping[str, str] = getattr(target, "MOVED_SETTINGS", {})
    gone = [
        key
        for key, value in arguments.items()
        if key in moved and not (isinstance(value, dict) or dataclasses.is_dataclass(value))
    ]
    if gone:
        moves = "; ".join(f"{_key(where, key)} is now {_key(where, moved[key])}" for key in gone)
        raise UserError(f"{moves}. Please write the new name{'s' if len(gone) > 1 else ''}")


def _annotation(target: Any, parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return Any
    if isinstance(annotation, str):
        function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
        try:
            # an annotation of installed code
            return eval(annotation, dict(getattr(function, "__globals__", {})))
        except (NameError, AttributeError, TypeError):
            return Any  # a name under TYPE_CHECKING only: nothing to check against
    return annotation


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value or an object fits ``annotation``.

    Unbuilt nodes, unknown annotations, and objects for classes of other libraries pass.
    """
    if (
        annotation is Any
        or isinstance(annotation, (str, typing.TypeVar))
        or isinstance(value, Unbuilt)
    ):
        return True
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is typing.Literal:
        return any(
            value == choice and isinstance(value, bool) == isinstance(choice, bool)
            for choice in inner
        )
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if value is None:
        return annotation in (None, type(None), object)
    kind = origin or annotation
    if not inspect.isclass(kind):
        return True
    if _is_role(kind):  # issubclass does not take one
        return not getattr(kind, "_is_runtime_protocol", False) or not lacking(value, kind)
    if not isinstance(value, _PLAIN):
        return not _is_known(kind) or isinstance(value, kind)
    return _fits_plain(value, kind, inner)


def _fits_plain(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether a plain value that is not None may stand for ``kind[inner]``, a class."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in (bool, int, str):
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is collections.abc.Callable:
        return False
    if isinstance(value, str):
        if issubclass(str, kind) and kind is not str:  # a sequence, of letters
            return not inner or _fits(value, inner[0])
        return (
            issubclass(str, kind)
            or issubclass(kind, (os.PathLike, enum.Enum))
            or kind.__name__ in ("device", "dtype")
        )
    if isinstance(value, (list, tuple)):
        if not issubclass(type(value), kind):
            return False
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            return len(inner) == len(value) and all(
                _fits(*pair) for pair in zip(value, inner, strict=True)
            )
        return not inner or all(_fits(item, inner[0]) for item in value)
    if isinstance(value, dict):
        return issubclass(dict, kind) and (
            len(inner) != 2 or all(_fits(item, inner[1]) for item in value.values())
        )
    return kind is object or isinstance(value, kind)


def _with_tuples(value: Any, annotation: Any) -> Any:
    """``value`` with tuples for lists where ``annotation`` declares them, as YAML has none."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if not isinstance(value, (list, tuple, dict)) or not inner:
        return tuple(value) if isinstance(value, list) and annotation is tuple else value
    if origin in (typing.Union, types.UnionType):
        changed = ((choice, _with_tuples(value, choice)) for choice in inner)
        return next((new for choice, new in changed if _fits(new, choice)), value)
    if origin is typing.Annotated:
        return _with_tuples(value, inner[0])
    if isinstance(value, dict):
        return {key: _with_tuples(item, inner[-1]) for key, item in value.items()}
    if origin is tuple and inner[-1] is not Ellipsis:
        kinds = inner if len(inner) == len(value) else [Any] * len(value)
    else:
        kinds = [inner[0]] * len(value)
    items = [_with_tuples(item, kind) for item, kind in zip(value, kinds, strict=True)]
    return tuple(items) if origin is tuple or isinstance(value, tuple) else items


def _is_role(annotation: Any) -> bool:
    """Whether this is a Protocol, or one of the choices is."""
    return any(
        getattr(kind, "_is_protocol", False) for kind in (annotation, *typing.get_args(annotation))
    )


def _is_known(kind: type) -> bool:
    """Whether an object must be of this class: a plain one or one of the project.

    Other libraries often take more than they declare.
    """
    return kind in (*_PLAIN, type(None)) or is_ours(kind)


def is_ours(target: Any) -> bool:
    return target.__module__.partition(".")[0] in ("zoo", "datamodules", "lightning_modules")


def _shown(value: Any) -> str:
    """A plain value as it is written, an object by the name of its type."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_shown(item)}' for key, item in value.items())}}}"
    return repr(value) if isinstance(value, (*_PLAIN, type(None))) else type(value).__name__


def _hint(value: Any, annotation: Any) -> str:
    if not _is_role(annotation):
        return ""
    if isinstance(value, (*_PLAIN, type(None))):
        return "; an object is built by a node such as {_target_: package.Class, ...}"
    role = next(kind for kind in (*typing.get_args(annotation), annotation) if _is_role(kind))
    return f", which has no {', '.join(lacking(value, role))}"


def _spelled(annotation: Any) -> str:
    plain_class = inspect.isclass(annotation) and not typing.get_args(annotation)
    return annotation.__name__ if plain_class else str(annotation).replace("typing.", "")
