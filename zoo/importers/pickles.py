"""Reads pickled checkpoints (.bin, .ckpt, .pt, .pth, .npy) as data: nothing in them is called.

What torch's restricted reader allows (tensors and plain containers), and numpy's scalars, which
some authors left beside their weights (LAION's CLAP checkpoints keep numpy numbers in the
optimizer's part); of ``.npy`` files a dictionary of arrays. Only ``zoo.importers`` reads pickles.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - subclassed by the reader that refuses everything but arrays
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.errors import UserError

_NUMPY_SCALARS = (
    "Bool",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "Float16",
    "Float32",
    "Float64",
    "Complex64",
    "Complex128",
    "Str",
    "Bytes",
)
# Lightning before 1.5 kept the state of its callbacks under their classes, so the checkpoint names
# them.
LIGHTNING_CALLBACKS = tuple(
    f"pytorch_lightning.callbacks.{name}"
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
)


def load_pickle_weights(path: str | Path, blanks: Sequence[str] = ()) -> dict[str, Any]:
    """The dictionary in a file of ``torch.save``, on the CPU; often a state dict.

    The state dict may be under a key ``state_dict``. Raises as ``load_pickle``, and ``UserError``
    when the file holds no dictionary.
    """
    content = load_pickle(path, blanks)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of weights"
        )
    return content


def load_pickle(path: str | Path, blanks: Sequence[str] = ()) -> Any:
    """What a file of ``torch.save`` holds, on the CPU.

    ``blanks``: names of classes that the file may hold; each is read as an empty class that keeps
    and does nothing. Raises ``FileNotFoundError``, and ``UserError`` when the file names anything
    else than data (the error gives the name; nothing was run), is damaged, or unpacks to more than
    it weighs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([*_numpy_rebuilders(), *map(_blank, blanks)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        named = re.search(
            r"(?:GLOBAL|unrecognized function|but got) (<?[\w.' ]+?>?)(?: was | whose |$|\. )",
            str(error),
            re.M,
        )
        if named is not None:
            what = f"{path} asks for {named[1]}, which is code and not weights"
            raise UserError(
                f"{what}; nothing of it was run. Get the weights as safetensors, or from their"
                " authors"
            ) from error
        message = str(error).partition("WeightsUnpickler error: ")[2].strip() or str(error)
        message = (
            re.split(r"\n|\. ", message)[0]
            if message and not message.isdigit()
            else type(error).__name__
        )
        raise UserError(
            f"{path} cannot be read as a checkpoint ({message}); it may be cut off, fetch it again"
        ) from error


def load_array_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary in an ``.npy`` file that ``numpy.save`` wrote from one, with its arrays.

    ``numpy.load(allow_pickle=True)`` would run whatever the file asks for; this reader rebuilds
    arrays and refuses every other name. Raises ``FileNotFoundError``, and ``UserError`` when the
    file names anything else (nothing was run), is damaged or holds no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of arrays {path}")
    with path.open("rb") as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not the first version of the format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if shape != () or dtype != np.dtype(object):
                raise ValueError(f"an array {shape} of {dtype}, not one object")
            content = _ArrayUnpickler(file, encoding="latin1").load().item()
        except (OSError, UserError):
            raise
        except Exception as error:  # numpy and pickle raise ValueError, EOFError, TypeError ...
            raise UserError(
                f"{path} cannot be read as a dictionary of arrays ({error}); it may be cut off,"
                " fetch it again"
            ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a dictionary of arrays")
    return content


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the names that numpy needs to rebuild arrays, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name == "ndarray":
            return np.ndarray
        if module == "numpy" and name == "dtype":
            return np.dtype
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",  # numpy 1 wrote the first, numpy 2 writes the second
            "numpy._core.multiarray",
        ):
            return _empty_array
        raise UserError(
            f"the file asks for {module}.{name}, which is code and not weights; nothing of it was"
            " run"
        )


def _empty_array(*_: Any) -> np.ndarray:
    """What numpy builds first; shape, type and numbers come with the array's state."""
    return np.empty(0, np.int8)


def _blank(name: str) -> tuple[type, str]:
    """A class without content, and the name in the file that it stands for."""
    nothing = {
        "__slots__": (),
        "__new__": lambda cls, *_: object.__new__(cls),
        "__init__": lambda self, *_: None,
        "__setstate__": lambda self, state: None,
    }
    return type(name.rpartition(".")[2], (), nothing), name


def _numpy_rebuilders() -> list[Any]:
    """The functions that rebuild numpy numbers, under their names in numpy 1 and 2."""
    import numpy

    scalar = (
        numpy.core.multiarray.scalar
        if numpy.__version__.startswith("1.")
        else numpy._core.multiarray.scalar
    )
    places = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [
        *places,
        numpy.dtype,
        *(getattr(numpy.dtypes, f"{name}DType") for name in _NUMPY_SCALARS),
    ]


def _check_archive(path: Path) -> None:
    """Refuses an archive that unpacks to more than its size, as torch stores them uncompressed."""
    if not zipfile.is_zipfile(path):
        return  # the layout before torch 1.6
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({error}); it may be cut off, fetch it again"
        ) from error
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes but claims {unpacked} unpacked; torch writes"
            " no such file"
        )
