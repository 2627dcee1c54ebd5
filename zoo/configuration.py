"""Reads configurations: YAML files and their bases, then ``key=value`` overrides, into ``Run``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import yaml
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue

from zoo.command_line import split_override
from zoo.errors import UserError, did_you_mean, for_screen, parser_message, parsing
from zoo.moved_names import with_current_names
from zoo.secrets import masked_command, remember_in, without_secrets

# the key of a file's base: one file or a list of files, relative to the folder of this one
BASE = "base"


@dataclass
class Run:
    """The root of a configuration.

    - ``module``, ``data``: ``_target_`` trees.
    - ``trainer``: arguments of ``lightning.Trainer``; ``logger``, ``callbacks`` and ``plugins`` are
      ``_target_`` trees.
    - ``out_dir``: the run folder.
    - ``seed``: the seed of every random generator.
    - ``resume``: continue from the last checkpoint.
    - ``provenance``: written by a run and ignored here, so that a run's config.yaml is itself a
      configuration.
    """

    module: dict[str, Any] = MISSING
    data: Optional[dict[str, Any]] = None  # noqa: UP045 - read by OmegaConf
    trainer: dict[str, Any] = field(default_factory=dict)
    out_dir: str = MISSING
    seed: int = 0
    resume: bool = False
    provenance: Any = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "provenance"}


def announcement(run: Run, files: Sequence[str]) -> str:
    """One line about what is started, to be printed before the libraries are imported.

    Empty in all but the first of several processes that train together.
    """
    ranks = [os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
    if ranks != ["0", "0", "0"]:
        return ""
    name = str(run.module.get("_target_", "")).rpartition(".")[2] or "module"
    source = f" of {', '.join(files)}" if files else ""
    line = f"starting {name}{source}; the run folder is {run.out_dir}"
    return for_screen(without_secrets(line)) + "\n"


def read_configuration(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Run:
    """Merges YAML files, then ``key=value`` overrides, and resolves interpolations.

    A file comes after the files that its ``base:`` names, and later ones win. A node with another
    ``_target_`` replaces the earlier node completely. Raises ``UserError``, which names the key and
    the nearest valid one, and ``FileNotFoundError``.
    """
    masked_command(overrides)  # remembers their secrets, so that all messages mask them
    config = OmegaConf.structured(Run)
    for where, content in read_all(paths):
        config = _merged(config, content, where)
    for override in overrides:
        key, text = split_override(override)
        try:
            if re.split(r"[.\[]", key)[0] not in {f.name for f in fields(Run)}:
                raise ConfigKeyError(key)
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
            name = key.rpartition(".")[2]
            value = with_current_names({name: value})[name]
            drop_replaced_at(config, key, value)
            OmegaConf.update(config, key, value, merge=True)
        except Exception as error:  # from OmegaConf, its YAML parser, or Python below them
            raise _readable(error, f"override {override!r:.200}", key, config) from error
    try:
        loaded = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        remember_in(loaded)
        return Run(**loaded)
    except MissingMandatoryValue as error:
        example = "" if paths else ", such as --config configs/ddpo/quickstart.yaml"
        key = error.full_key
        message = f"{key} is missing; set it in a --config file{example} or as {key}=..."
        raise UserError(message) from error
    except Exception as error:
        key = getattr(error, "full_key", None) or ""
        raise _readable(error, "configuration", key, config) from error


def _merged(config: DictConfig, other: DictConfig, where: str) -> DictConfig:
    try:
        drop_replaced(config, other)
        return OmegaConf.merge(config, other)
    except Exception as error:
        raise _readable(error, where, getattr(error, "full_key", None) or "", config) from error


def _readable(error: Exception, where: str, key: str, config: DictConfig) -> ValueError:
    if isinstance(error, ConfigKeyError):
        return UserError(f"{where}: unknown key {key!r}; {_nearest_key(key, config)}")
    message = parser_message(error)
    if not isinstance(error, RecursionError) and key and key not in message:
        message = f"{key}: {message}"
    return UserError(f"{where}: {message}")


def _keys(node: Any, prefix: str = "") -> list[str]:
    """The dotted keys of all values below nested dictionaries."""
    if not isinstance(node, dict):
        return [prefix]
    return [
        key for name, value in node.items() for key in _keys(value, f"{prefix}.{name}".lstrip("."))
    ]


def _nearest_key(key: str, config: DictConfig) -> str:
    """Ends a message about an unknown root key: settings of that name, or the nearest root."""
    known = _keys(OmegaConf.to_container(config))
    below = sorted(name for name in known if name.rpartition(".")[2] == key)
    if below:
        return f"did you mean {' or '.join(below[:3])}?"
    names = [f.name for f in fields(Run) if f.name != "provenance"]
    return did_you_mean(key.split(".")[0], names)


def read_all(paths: Sequence[str | Path]) -> list[tuple[str, DictConfig]]:
    """(name for messages, content without ``base``) of all files, in the order of merging.

    A file comes after its bases. A file that is reached twice counts once, at its first place, so
    an overlay with the same base as the run below it changes only its own keys. Raises
    ``FileNotFoundError``, which names the missing file and the file that refers to it, and
    ``UserError`` for a file that is not a configuration and for circular bases.
    """
    read: dict[Path, tuple[str, DictConfig]] = {}
    for path in paths:
        _visit(Path(path), (), read)
    return list(read.values())


def _visit(path: Path, above: tuple[Path, ...], read: dict[Path, tuple[str, DictConfig]]) -> None:
    where = path.resolve()
    if where in {known.resolve() for known in above}:
        chain = " -> ".join(str(known) for known in (*above, path))
        raise UserError(
            f"a configuration cannot be its own base: {chain}; drop one of these base: lines"
        )
    if where in read:
        return
    content = _read(path, f", the base of {above[-1]}" if above else "")
    given = OmegaConf.to_container(content).get(BASE)
    bases = [given] if isinstance(given, str) else given
    if BASE in content and not (
        isinstance(bases, list) and bases and all(isinstance(name, str) and name for name in bases)
    ):
        raise UserError(
            f"{path}: base must be a file, or a list of files, relative to this one's folder; got"
            f" {given!r}"
        )
    for name in bases or ():
        _visit(path.parent / name, (*above, path), read)
    content.pop(BASE, None)
    content = OmegaConf.create(with_current_names(OmegaConf.to_container(content)))
    read[where] = (str(path), content)


def _read(path: Path, wanted_by: str) -> DictConfig:
    if not path.is_file():
        near = "no such folder"
        if path.parent.is_dir():
            near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise FileNotFoundError(f"there is no configuration {path}{wanted_by}; {near}")
    with parsing(path, "YAML"):
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        is_mapping = isinstance(root, yaml.MappingNode)
        content = OmegaConf.create(text) if is_mapping else None
        plain = OmegaConf.to_container(content) if is_mapping else {}
    if all(value is None for value in plain.values()):
        raise UserError(f"{path} must hold keys such as module:, data:, trainer:, out_dir:")
    for key in ("module", "data", "trainer"):
        if isinstance(content._get_node(key), ListConfig):
            raise UserError(
                f"{path}: {key} must hold lines of the form key: value, got the list"
                f" {plain[key]!r:.80}"
            )
    return content


def drop_replaced(config: DictConfig, other: DictConfig) -> None:
    """Empties every node of ``config`` that has another ``_target_`` in ``other``.

    The arguments of the old target do not fit the new one.
    """
    for key in other:
        old = config._get_node(key) if key in config else None
        new = other._get_node(key)
        if not (_is_tree(old) and _is_tree(new)):
            continue
        if _has_other_target(old, new):
            config[key] = {}
        else:
            drop_replaced(old, new)


def drop_replaced_at(config: DictConfig, key: str, value: Any) -> None:
    """``drop_replaced`` for one override: ``value`` at the dotted ``key``.

    An override that names its ``_target_`` replaces the whole node.
    """
    old = OmegaConf.select(config, key) if isinstance(value, dict) else None
    if not isinstance(old, DictConfig):
        return
    new = OmegaConf.create(value)
    if "_target_" in new:
        OmegaConf.update(config, key, {}, merge=False)
    else:
        drop_replaced(old, new)


def _has_other_target(old: DictConfig, new: DictConfig) -> bool:
    return "_target_" in old and "_target_" in new and old["_target_"] != new["_target_"]


def _is_tree(node: Any) -> bool:
    return isinstance(node, DictConfig) and not (
        node._is_none() or node._is_missing() or node._is_interpolation()
    )
