"""Tensors on disk: one safetensors file, or several with an index when they are large.

The layout is that of the Hugging Face libraries: ``model.safetensors``, or
``model-00001-of-00003.safetensors`` ... and ``model.safetensors.index.json`` (``{"metadata":
{"total_size": bytes}, "weight_map": {tensor: file}}``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.errors import UserError
from zoo.files import sha256_of, written_beside
from zoo.hub.untrusted import check_index, check_safetensors_header, file_inside

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of one file; what the Hub's tools take by default


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating-point type by its name; None stays None. Raises ``UserError`` for others."""
    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if wanted is None and not dtype:
        return None
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
        raise UserError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype!r}")
    return wanted


def save_weights(
    state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """A safetensors file, floating-point tensors as ``dtype`` if given.

    Raises ``UserError`` when a tensor is not finite, ``OSError`` when the file cannot be written.
    """
    path = Path(path)
    tensors = {}
    for name, tensor in state.items():
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.detach().to("cpu", wanted, copy=True).contiguous()
        if tensor.is_floating_point() and not torch.isfinite(tensors[name]).all():
            cause = (
                ""
                if not torch.isfinite(tensor).all()
                else f" as {wanted} (it was finite; export at more precision)"
            )
            raise UserError(f"{name} holds NaN or infinity{cause}; {path.name} was not written")
    with written_beside(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata={"format": "pt"})
        except SafetensorError as error:  # the library hides the system's error in its text
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        mask = os.umask(0)  # the library's file is for its owner alone
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)


def save_state(
    state: Mapping[str, Tensor],
    folder: str | Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[str, ...]:
    """Writes ``state`` into ``folder`` and returns the file names, with an index if several.

    ``shard_bytes``: size in bytes above which another file is begun (a single larger tensor has a
    file of its own).
    Raises as ``save_weights`` does, and ``UserError`` for a ``shard_bytes`` below 1.
    """
    folder = Path(folder)
    if shard_bytes < 1:
        raise UserError(f"shard_bytes must be at least 1, got {shard_bytes}")
    shards: list[list[str]] = [[]]
    total = filled = 0
    for name, tensor in state.items():
        width = (
            dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        ).itemsize
        size = tensor.numel() * width
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        total, filled = total + size, filled + size
    if len(shards) == 1:
        save_weights(state, folder / WEIGHTS_FILE, dtype)
        return (WEIGHTS_FILE,)
    stem = WEIGHTS_FILE.removesuffix(".safetensors")
    files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        save_weights({name: state[name] for name in names}, folder / file, dtype)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    with written_beside(folder / INDEX_FILE) as temporary:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        temporary.write_text(json.dumps(index, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return (*files, INDEX_FILE)


def read_state(
    folder: str | Path, sha256: Mapping[str, str] | None = None, variants: bool = False
) -> dict[str, Tensor]:
    """All tensors of ``folder``, from its one file or from the shards of its index.

    ``sha256``: file name -> hash, compared where it names a file. ``variants``: as ``weight_files``
    has it. Raises
    ``FileNotFoundError`` and ``UserError``.
    """
    folder = Path(folder)
    files = weight_files(folder, variants)
    state: dict[str, Tensor] = {}
    for path in files:
        promised = (sha256 or {}).get(path.name)
        if promised is not None and promised != sha256_of(path):
            raise UserError(
                f"{path} is not the file that config.json describes (sha256 differs); fetch or"
                " export it again"
            )
        if path.suffix != ".safetensors":
            continue
        try:
            state |= load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); it may be cut off, fetch or export it again"
            ) from error
    return state


def weight_files(folder: str | Path, variants: bool = False) -> tuple[Path, ...]:
    """The files with the tensors of ``folder`` (an index first), with checked headers.

    ``variants``: where there is nothing else, the one ``model.VARIANT.safetensors`` (such as fp16)
    is taken. Raises ``FileNotFoundError`` when there are none, ``UserError`` for an index that
    names a file outside the folder, tensors that are not where it says, or both layouts at once.
    """
    folder = Path(folder)
    links_into = blobs_of(folder)
    single = (folder / WEIGHTS_FILE).exists()
    index = (folder / INDEX_FILE).exists()
    if single and index:
        raise UserError(
            f"{folder} holds both {WEIGHTS_FILE} and {INDEX_FILE}; fetch or export it again"
        )
    if index:
        path = file_inside(folder, INDEX_FILE, links_into)
        return (path, *check_index(path, folder, links_into))
    name = WEIGHTS_FILE
    if not single:
        others = sorted(
            path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin")
        )
        found = [other for other in others if re.fullmatch(r"model\.\w+\.safetensors", other)]
        if not (variants and len(found) == 1):
            beside = f" (there is {', '.join(others[:4])})" if others else ""
            raise FileNotFoundError(
                f"{folder} has no {WEIGHTS_FILE}{beside}; fetch or export the model again"
            )
        (name,) = found
    path = file_inside(folder, name, links_into)
    check_safetensors_header(path)
    return (path,)


def wrong_numbers(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor] | None = None
) -> dict[str, list[str]]:
    """What is wrong -> the tensors of ``state`` that it is wrong with, nothing where all is well.

    A tensor must hold floating-point numbers of 16 bits or more exactly where that of ``wanted``
    with the same name does (without ``wanted``: always), and all of them finite. Copying into a
    model would turn integers, booleans and complex numbers into others without a word.
    """
    kinds, infinite = [], []
    for name, tensor in sorted(state.items()):
        if wanted is not None and name not in wanted:
            continue
        is_real = (
            tensor.is_floating_point() and tensor.element_size() > 1
        )  # float8 is a quantised weight
        if is_real != (wanted is None or wanted[name].is_floating_point()) or tensor.is_complex():
            expected = (
                "floating point"
                if wanted is None
                else str(wanted[name].dtype).removeprefix("torch.")
            )
            kinds.append(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected {expected}"
            )
        elif is_real and not tensor.isfinite().all():
            infinite.append(name)
    found = {"of another kind of number": kinds, "with NaN or infinity": infinite}
    return {what: names for what, names in found.items() if names}


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], prefix: str = "") -> str:
    """What ``state`` lacks, has too much or has in another shape; "" when it fits ``wanted``.

    ``prefix`` stands before every name in the message.
    """
    found = {
        "missing": [prefix + name for name in sorted(wanted.keys() - state.keys())],
        "unknown": [prefix + name for name in sorted(state.keys() - wanted.keys())],
        "of another shape": [
            f"{prefix}{name} has shape {tuple(state[name].shape)}, expected {tuple(own.shape)}"
            for name, own in sorted(wanted.items())
            if name in state and state[name].shape != own.shape
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:4])}{' ...' if names[4:] else ''}"
        for what, names in found.items()
        if names
    )


def refuse_wrong_numbers(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor] | None, where: str
) -> None:
    """Raises ``UserError`` naming the tensors of ``where`` that ``wrong_numbers`` finds."""
    faults = [
        f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if names[3:] else ''}"
        for what, names in wrong_numbers(state, wanted).items()
    ]
    if faults:
        raise UserError(
            f"the weights in {where} are damaged: {'; '.join(faults)}; fetch or export them again"
        )


def blobs_of(folder: str | Path) -> Path | None:
    """The target folder of links in the Hub's cache; None for any other folder.

    Such a folder is ``models--x--y/snapshots/REVISION``.
    """
    folder = Path(folder).absolute()
    return folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else None
