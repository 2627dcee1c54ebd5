"""Configuration files and the files that they are based on, in the order in which they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from zoo.errors import UserError, did_you_mean, parsing

# the key under which a file names the file (or list of files) that it changes, relative to its own
# folder
BASE = "base"


def read_all(paths: Sequence[str | Path]) -> list[tuple[str, DictConfig]]:
    """(name for messages, content without ``base``) of every file and of those that it is based on,
    in the order of merging.

    A file comes after its bases. A file that is reached twice counts once, at its first place: so
    an overlay that is based on the same file as the run that it is laid over changes only what it
    says itself. Raises ``FileNotFoundError`` naming the missing file and who wanted it,
    ``ValueError`` for what is no configuration, and for files that are each other's bases.
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
    bases = given
    bases = [bases] if isinstance(bases, str) else bases
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
    read[where] = (str(path), content)


def _read(path: Path, wanted_by: str) -> DictConfig:
    if not path.is_file():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.glob("*.yaml")])
            if path.parent.is_dir()
            else "no such folder"
        )
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
    """Empties every node of ``config`` whose ``_target_`` another one in ``other`` replaces: its
    arguments would not fit that.
    """
    for key in other:
        old, new = (node._get_node(key) if key in node else None for node in (config, other))
        if not (_is_tree(old) and _is_tree(new)):
            continue
        if _has_other_target(old, new):
            config[key] = {}
        else:
            drop_replaced(old, new)


def drop_replaced_at(config: DictConfig, key: str, value: Any) -> None:
    """The same for one override, ``value`` at ``key`` (dotted): there a node that names its
    ``_target_`` is the whole node.
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
