"""Pickled checkpoints: weights and numpy numbers load, calls do not; one module reads them."""

from __future__ import annotations

import ast
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.importers.pickles import load_pickle_weights

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


class Calls:
    """An object whose pickle calls ``function(*arguments)`` when it is read."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
def test_weights_load_bitwise(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"state_dict": WEIGHTS, "epoch": 3},
        tmp_path / "x.pt",
        _use_new_zipfile_serialization=zipped,
    )
    loaded = load_pickle_weights(tmp_path / "x.pt")
    assert loaded["epoch"] == 3
    assert all(torch.equal(loaded["state_dict"][name], tensor) for name, tensor in WEIGHTS.items())


NUMBERS = [
    np.float64(0.1),
    np.float32(0.1),
    np.int64(-3),
    np.uint8(7),
    np.bool_(True),
    np.str_("ä"),
    np.complex64(1j),
]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_numpy_numbers_load(tmp_path: Path, number: np.generic) -> None:
    torch.save({"state_dict": WEIGHTS, "optimizer": {"lr": number}}, tmp_path / "x.pt")
    with pytest.raises(Exception, match="numpy"):  # torch's own reader refuses them
        torch.load(tmp_path / "x.pt", weights_only=True)
    found = load_pickle_weights(tmp_path / "x.pt")["optimizer"]["lr"]
    assert type(found) is type(number)
    assert found == number


def test_names_of_numpy_2_are_known(tmp_path: Path) -> None:
    torch.save({"lr": np.float64(0.25)}, tmp_path / "one.pt")
    with (
        zipfile.ZipFile(tmp_path / "one.pt") as read,
        zipfile.ZipFile(tmp_path / "two.pt", "w") as write,
    ):
        for name in read.namelist():
            write.writestr(
                name, read.read(name).replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
            )
    assert b"numpy._core" in (tmp_path / "two.pt").read_bytes()
    assert load_pickle_weights(tmp_path / "two.pt") == {"lr": 0.25}


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "eval"),
        (os.mkdir, "posix.mkdir"),
        (torch.load, "torch.serialization.load"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_is_refused_and_not_executed(
    tmp_path: Path, function, name: str, zipped: bool
) -> None:
    sentinel = tmp_path / "was_here"
    argument = {"eval": f"open({str(sentinel)!r}, 'w')", "posix.system": f"touch {sentinel}"}.get(
        name, str(sentinel)
    )
    torch.save(
        {**WEIGHTS, "c": Calls(function, argument)},
        tmp_path / "x.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match=rf"asks for {name}, which is code"):
        load_pickle_weights(tmp_path / "x.pt")
    assert not sentinel.exists()


def test_the_sentinel_would_see_it(tmp_path: Path) -> None:
    """The same file without the guard does make the call."""
    torch.save({"c": Calls(os.mkdir, str(tmp_path / "was_here"))}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "was_here").exists()


def test_numpy_arrays_of_objects_and_whole_modules_are_refused(tmp_path: Path) -> None:
    for content in ({"a": np.array([1, "x"], dtype=object)}, torch.nn.Linear(2, 2)):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(ValueError, match="is code and not weights"):
            load_pickle_weights(tmp_path / "x.pt")


def test_the_guard_is_closed_again(tmp_path: Path) -> None:
    torch.save({"lr": np.float64(0.25)}, tmp_path / "x.pt")
    before = set(
        torch.serialization.get_safe_globals()
    )  # torch keeps a set and lists it in any order
    load_pickle_weights(tmp_path / "x.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_damaged_empty_and_other_files(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(1000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for name, content in {
        "cut": whole[:2000],
        "empty": b"",
        "text": b"hello world",
        "html": b"<html>404</html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{name} cannot be read as a checkpoint .*fetch it again$"
        ):
            load_pickle_weights(tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_pickle_weights(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_pickle_weights(tmp_path / "gone.pt")


def test_an_archive_that_unpacks_too_large_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as read,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as write,
    ):
        for name in read.namelist():
            write.writestr(name, read.read(name))
    assert (tmp_path / "y.pt").stat().st_size < 2**16
    with pytest.raises(ValueError, match="claims .* unpacked"):
        load_pickle_weights(tmp_path / "y.pt")


def readers_of_pickles(source: str) -> list[str]:
    """Every mention of torch.load, and every import of it or of the reader above."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "torch.load",
            "torch.serialization.load",
        ):
            found.append("torch.load")
        if isinstance(node, ast.ImportFrom):
            if node.module in ("torch", "torch.serialization") and any(
                alias.name == "load" for alias in node.names
            ):
                found.append("torch.load")
            if f"{node.module}.".startswith("zoo.importers.pickles.") or (
                node.module == "zoo.importers"
                and any(alias.name == "pickles" for alias in node.names)
            ):
                found.append("pickles")
        if isinstance(node, ast.Import) and any(
            alias.name.startswith("zoo.importers.pickles") for alias in node.names
        ):
            found.append("pickles")
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.load(p, weights_only=True)", ["torch.load"]),
        ("f = torch.serialization.load", ["torch.load"]),
        ("from torch import load", ["torch.load"]),
        ("from zoo.importers.pickles import load_pickle_weights", ["pickles"]),
        ("def f():\n    from zoo.importers import pickles", ["pickles"]),
        ("import zoo.importers.pickles", ["pickles"]),
        ("zoo.load('embedded/music')\njson.load(f)", []),
    ],
)
def test_a_reader_of_pickles_is_seen(source: str, found: list[str]) -> None:
    assert readers_of_pickles(source) == found


def test_only_importers_read_pickles() -> None:
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for path in (ROOT / "zoo").rglob("*.py")
    }
    readers = {path: readers_of_pickles(source) for path, source in files.items()}
    assert readers["zoo/importers/pickles.py"] == ["torch.load"]
    # checkpoints of the user's own runs, as plain data; nothing that was downloaded comes here
    own_runs = "zoo/hub/runs.py"
    assert (
        readers[own_runs] == ["torch.load"]
        and 'torch.load(path, map_location="cpu", weights_only=True)' in files[own_runs]
    )
    others = {
        path: found
        for path, found in readers.items()
        if found and path not in ("zoo/importers/pickles.py", own_runs)
    }
    assert [
        path
        for path, found in others.items()
        if "torch.load" in found or not path.startswith("zoo/importers/")
    ] == []
