"""What a folder or a file from somebody else claims, checked before anything acts on it.

Nothing here builds a tensor or follows a link: sizes are compared with the file on the disk first,
so that a lie in a header costs a read of the header and no memory. Format:
https://huggingface.co/docs/safetensors (8 bytes of length, JSON, data).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import UserError, for_screen
from zoo.files import parsed_json

JSON_BYTES = 4 * 2**20  # config.json and cards are kilobytes, an index of 20 000 tensors is 2 MB
JSON_DEPTH = 32
PATH_PARTS = 32
PATH_BYTES = 1024
HEADER_BYTES = 16 * 2**20  # 100 bytes a tensor: some 160 000 tensors
RANK = 64  # dimensions of a tensor
LARGEST_COUNT = 2**63 - 1  # torch counts in 64 bits


def shown(text: object, characters: int = 200) -> str:
    """Text from outside for a screen or log: without control characters, and cut."""
    return for_screen(" ".join(str(text)[: characters + 1].splitlines()), characters)


def safe_relative_path(name: str) -> PurePosixPath:
    """A path from a repository, an index or a config, checked to stay below its folder.

    Raises ``UserError`` for an absolute path, ``..``, ``.``, an empty part, a backslash, a drive,
    a control or direction character, git's own folder, and for more than ``PATH_PARTS`` parts, 255
    bytes in one of them or ``PATH_BYTES`` in all.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"a file name must be a non-empty text, got {shown(repr(name))}")
    if not name.isprintable():  # also what is no character at all, which has no bytes on a disk
        raise UserError(f"the file name {shown(ascii(name))} holds a control character")
    parts = name.split("/")
    longest = max(len(part.encode()) for part in parts)
    if len(parts) > PATH_PARTS or len(name.encode()) > PATH_BYTES or longest > 255:
        raise UserError(
            f"the file name {shown(name, 60)!r} is too long: at most {PATH_PARTS} parts, "
            f"{PATH_BYTES} bytes, and 255 bytes in each part"
        )
    if any(part.rstrip(". ").casefold() == ".git" for part in parts):
        raise UserError(
            f"the file name {shown(name)!r} is in git's own folder, where files can run commands"
        )
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"the file name {shown(name)!r} is absolute or not of this system; names are "
            "relative, folders end in '/'"
        )
    if any(part in ("", ".", "..") for part in parts):
        raise UserError(
            f"the file name {shown(name)!r} leaves its folder or is not plain ('..', '.' or an"
            " empty part)"
        )
    return PurePosixPath(name)


def check_folder(folder: str | Path, links_into: str | Path | None = None) -> tuple[Path, ...]:
    """All regular files below ``folder``, sorted; no link is followed.

    ``links_into``: links to regular files below this folder count as files (the Hub's cache links
    snapshots to blobs).
    Raises ``UserError`` naming every link or special file (pipe, socket, device),
    ``NotADirectoryError`` when it is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    files, links, special = [], [], []
    for parent, subfolders, names in os.walk(folder, followlinks=False, onerror=_raise):
        for name in [*subfolders, *names]:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) and not _links_to_a_file_in(path, links_into):
                links.append(f"{path.relative_to(folder)} -> {os.readlink(path)}")
            elif stat.S_ISLNK(mode) or stat.S_ISREG(mode):
                files.append(path)
            elif not stat.S_ISDIR(mode):
                special.append(str(path.relative_to(folder)))
    wrong = [
        f"{what}: {', '.join(sorted(names)[:4])}{' ...' if len(names) > 4 else ''}"
        for what, names in (("links", links), ("special files", special))
        if names
    ]
    if wrong:
        raise UserError(
            f"{folder} must hold regular files only, but has {'; '.join(wrong)}; copy the contents"
            " instead"
        )
    return tuple(sorted(files))


def file_inside(folder: str | Path, name: str, links_into: str | Path | None = None) -> Path:
    """The regular file that ``name`` (of a config or an index) means, below ``folder``.

    Raises ``UserError`` for an unsafe name or a link on the way (but see ``links_into`` of
    ``check_folder``), and ``FileNotFoundError`` when there is no such file.
    """
    folder = Path(folder)
    relative = safe_relative_path(name)
    path = folder
    for part in relative.parts:
        path = path / part
        if path.is_symlink() and not _links_to_a_file_in(path, links_into):
            raise UserError(
                f"{path} is a link to {os.readlink(path)}; a model folder holds regular files only"
            )
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} has no {name}; it may be half-downloaded, fetch or export it again"
        )
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    return path


def read_json(path: str | Path, limit_bytes: int = JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file of at most ``limit_bytes`` bytes and ``JSON_DEPTH`` levels.

    Raises ``UserError`` for a file that is larger, deeper, no JSON or no object, and
    ``FileNotFoundError``.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > limit_bytes:
        raise UserError(
            f"{path} is {size} bytes long; such a file has at most {limit_bytes}, so it is not read"
        )
    return _parse_object(path.read_bytes(), str(path))


def parse_json(content: bytes, where: str) -> Any:
    """What JSON of bounded length holds. ``where``: what it is, for the message.

    Raises ``UserError`` for what is not JSON in UTF-8, is deeper than ``JSON_DEPTH`` or has a key
    twice in one object.
    """
    try:
        return parsed_json(content.decode("utf-8"), JSON_DEPTH)
    except ValueError as error:  # also wrong encoding
        raise UserError(f"{where} is not valid JSON: {shown(error)}") from error


def check_safetensors_header(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Compares the header of a safetensors file with the file, without reading a tensor.

    The safetensors library holds dtypes, shapes and ranges against each other and against the
    file's length. This bounds what the library does not: the header's length and each shape.

    Returns:
        name -> (dtype as safetensors writes it, shape) of every tensor.

    Raises:
        UserError: naming the file, for a header that is damaged, untrue or out of bounds.
        FileNotFoundError: when the file is missing.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if HEADER_BYTES < length <= path.stat().st_size:
        raise UserError(f"{path}: a header of {length} bytes is not read (at most {HEADER_BYTES})")
    try:
        with safe_open(path, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            found = {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
            }
    except SafetensorError as error:
        reason = shown(str(error).removeprefix("Error while deserializing header: "))
        raise UserError(
            f"{path} cannot be read: {reason}; it is cut off, was changed or is no"
            " safetensors file: fetch or export it again"
        ) from error
    for name, (_, shape) in found.items():
        if len(shape) > RANK or max(shape, default=0) > LARGEST_COUNT:
            raise UserError(
                f"{path}: the shape of {name} must be at most {RANK} counts up to"
                f" {LARGEST_COUNT}, got {str(shape)[:80]}"
            )
    return found


def check_index(
    index: Mapping[str, Any] | str | Path, folder: str | Path, links_into: str | Path | None = None
) -> dict[Path, tuple[str, ...]]:
    """The shards that an index names -> the tensors in each.

    The index is ``{"weight_map": {tensor: file}}`` or the path of its JSON.

    Every shard must be a regular safetensors file inside ``folder`` (links: see ``check_folder``)
    that holds just the tensors that the index puts there. Raises ``UserError`` and
    ``FileNotFoundError``.
    """
    folder = Path(folder)
    where = f"the index in {folder}" if isinstance(index, Mapping) else str(index)
    weight_map = (index if isinstance(index, Mapping) else read_json(index)).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise UserError(
            f"{where}: weight_map must be an object of tensor: file, got"
            f" {type(weight_map).__name__}"
        )
    promised: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        try:
            safe_relative_path(name)
        except UserError as error:
            raise UserError(f"{where}: {tensor}: {error}") from error
        promised.setdefault(name, []).append(tensor)
    shards = {}
    for name, tensors in promised.items():
        if not name.endswith(".safetensors"):
            raise UserError(
                f"{where}: {name} is not a safetensors file; shards are .safetensors only"
            )
        path = file_inside(folder, name, links_into)
        differs = sorted(set(tensors) ^ check_safetensors_header(path).keys())
        if differs:
            raise UserError(
                f"{where} and {path} do not hold the same tensors; they differ in"
                f" {', '.join(differs[:4])}{' ...' if len(differs) > 4 else ''}"
            )
        shards[path] = tuple(tensors)
    return shards


def _raise(error: OSError) -> None:
    raise error


def _links_to_a_file_in(path: Path, folder: str | Path | None) -> bool:
    if folder is None:
        return False
    target = path.resolve()
    return target.is_file() and target.is_relative_to(Path(folder).resolve())


def _parse_object(content: bytes, where: str) -> dict[str, Any]:
    try:
        node = parse_json(content, where)
    except UserError as error:
        raise UserError(f"{error}; fetch or export the model again") from error
    if not isinstance(node, dict):
        raise UserError(f"{where} must hold an object, got {type(node).__name__}")
    return node
