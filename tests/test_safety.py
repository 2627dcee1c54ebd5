"""Names, folders, headers and indexes that zoo.hub.untrusted accepts and refuses."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo.errors import UserError
from zoo.hub import untrusted

TENSORS = {
    "a": torch.ones(2, 3),
    "b": torch.zeros(0, 4, dtype=torch.bfloat16),
    "c": torch.ones(5, dtype=torch.bool),
}


def with_header(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "unet/model-00001-of-00002.safetensors", "..weights", "a..b", "ä.json"],
)
def test_plain_names_stay_as_they_are(name: str) -> None:
    assert str(untrusted.safe_relative_path(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        ".",
        "./x",
        "a//b",
        "a/",
        "a\\b",
        "..\\x",
        "C:x",
        "c:/x",
        "a\0b",
        "a\nb",
        3,
    ],
)
def test_names_that_leave_the_folder_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="name"):
        untrusted.safe_relative_path(name)  # type: ignore[arg-type]


def test_a_folder_lists_its_regular_files(tmp_path: Path) -> None:
    for name in ("config.json", "unet/model.safetensors", ".hidden/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in untrusted.check_folder(tmp_path)] == [
        ".hidden/x",
        "config.json",
        "unet/model.safetensors",
    ]


def test_links_and_special_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (folder / "config.json").symlink_to(tmp_path / "secret")
    (folder / "weights").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(folder / "sub/pipe")
    with pytest.raises(
        ValueError, match=r"links: config.json -> .*secret, weights -> .*; special files: sub/pipe"
    ):
        untrusted.check_folder(folder)
    with pytest.raises(ValueError, match="config.json is a link"):
        untrusted.file_inside(folder, "config.json")
    with pytest.raises(ValueError, match="weights is a link"):
        untrusted.file_inside(folder, "weights/secret")
    with pytest.raises(ValueError, match="not a regular file"):
        untrusted.file_inside(folder, "sub/pipe")


def test_a_socket_is_special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        with pytest.raises(ValueError, match="special files: s;"):
            untrusted.check_folder(tmp_path)


def test_links_into_the_cache_are_files(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir(), snapshot.mkdir(parents=True)
    (blobs / "1234").write_text("x")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    assert untrusted.check_folder(snapshot, links_into=blobs) == (snapshot / "config.json",)
    assert (
        untrusted.file_inside(snapshot, "config.json", links_into=blobs) == snapshot / "config.json"
    )
    beside = tmp_path / "blobs-of-another" / "1234"
    beside.parent.mkdir()
    beside.write_text("y")
    (snapshot / "near").symlink_to(beside)
    with pytest.raises(ValueError, match="near ->"):
        untrusted.check_folder(snapshot, links_into=blobs)
    (snapshot / "near").unlink()
    (snapshot / "outside").symlink_to(__file__)
    with pytest.raises(ValueError, match="outside -> "):
        untrusted.check_folder(snapshot, links_into=blobs)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        untrusted.file_inside(tmp_path, "model.safetensors")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        untrusted.check_folder(tmp_path / "nowhere")


def test_a_true_header_passes(tmp_path: Path) -> None:
    save_file(TENSORS, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    assert untrusted.check_safetensors_header(tmp_path / "model.safetensors") == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (0, 4)),
        "c": ("BOOL", (5,)),
    }


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"", ""),
        ({"a": entry(shape=[2**31 + 4], offsets=[0, 4 * (2**31 + 4)])}, bytes(8), ""),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "`[ab]`"),  # overlaps
        ({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20), "`[ab]`"),  # leaves a gap
        ({"a": entry()}, bytes(9), ""),
        ({"a": entry(dtype="PICKLE")}, bytes(8), "PICKLE"),
        ({"a": entry(dtype=["F32"])}, bytes(8), ""),
        ({"a": entry(shape=[3])}, bytes(8), "shape"),
        ({"a": entry(shape=[-2])}, bytes(8), "-2"),
        ({"a": entry(shape=[True, 2])}, bytes(8), "true"),
        ({"a": entry(shape=[2**62, 2**62])}, bytes(8), "overflow"),
        ({"a": entry(shape=[2**63, 0], offsets=[0, 0])}, b"", "9223372036854775808"),
        ({"a": entry(shape=[2] + [1] * 64)}, bytes(8), "at most 64"),
        ({"a": entry(offsets=[8, 0])}, bytes(8), ""),
        ({"a": entry(offsets=8)}, bytes(8), ""),
        ({"a": [1]}, b"", ""),
        ({"__metadata__": {"format": {}}}, b"", "string"),
        ([], b"", ""),
        (b"\xff\xfe", b"", ""),
        (b'{"a":' * 100_000, b"", ""),
        (b'{"a":' + b"[" * 50 + b"]" * 50 + b"}", b"", ""),
    ],
)
def test_a_false_header_is_refused(
    tmp_path: Path, header: object, data: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=rf"x\.safetensors.*{message}"):
        untrusted.check_safetensors_header(with_header(tmp_path / "x.safetensors", header, data))


def test_an_overlong_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a cannot be read"):
        untrusted.check_safetensors_header(with_header(tmp_path / "a", {}, length=10_000_000_000))
    (tmp_path / "b").write_bytes(b"\1\0")
    with pytest.raises(UserError, match=r"b cannot be read"):
        untrusted.check_safetensors_header(tmp_path / "b")
    with (tmp_path / "c").open("wb") as file:
        file.write((50 * 2**20).to_bytes(8, "little"))
        file.truncate(60 * 2**20)
    with pytest.raises(UserError, match=f"c: .*52428800.*{untrusted.HEADER_BYTES}"):
        untrusted.check_safetensors_header(tmp_path / "c")


def test_json_has_a_size_and_a_depth(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, {"b": null}]}')
    assert untrusted.read_json(path) == {"a": [1, {"b": None}]}
    path.write_text('{"a": "' + "x" * untrusted.JSON_BYTES + '"}')
    with pytest.raises(ValueError, match="is not read"):
        untrusted.read_json(path)
    path.write_text('{"a":' * 40 + "1" + "}" * 40)
    with pytest.raises(ValueError, match="nested more than 32"):
        untrusted.read_json(path)


def test_an_index_names_shards_inside_the_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, str(tmp_path / "model-1.safetensors"))
    save_file({"b": torch.ones(2), "c": torch.ones(1)}, str(tmp_path / "model-2.safetensors"))
    index = {
        "weight_map": {
            "a": "model-1.safetensors",
            "b": "model-2.safetensors",
            "c": "model-2.safetensors",
        }
    }
    expected = {
        tmp_path / "model-1.safetensors": ("a",),
        tmp_path / "model-2.safetensors": ("b", "c"),
    }
    assert untrusted.check_index(index, tmp_path) == expected
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert untrusted.check_index(tmp_path / "model.safetensors.index.json", tmp_path) == expected


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        (
            {"a": "../model.safetensors"},
            ValueError,
            "a: the file name '../model.safetensors' leaves",
        ),
        ({"a": "/model.safetensors"}, ValueError, "is absolute"),
        ({"a": 3}, ValueError, "non-empty text"),
        ({"a": "model.bin"}, ValueError, "not a safetensors file"),
        ({"a": "gone.safetensors"}, FileNotFoundError, "has no gone.safetensors"),
        ({"a": "link.safetensors"}, ValueError, "is a link"),
        ({"a": "here.safetensors", "z": "here.safetensors"}, ValueError, "differ in z"),
        ({}, ValueError, "weight_map"),
        (["here.safetensors"], ValueError, "weight_map"),
    ],
)
def test_a_hostile_index_is_refused(
    tmp_path: Path, weight_map: object, error: type[Exception], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, str(tmp_path / "model.safetensors"))
    save_file({"a": torch.ones(2)}, str(folder / "here.safetensors"))
    (folder / "link.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(error, match=message):
        untrusted.check_index({"weight_map": weight_map}, folder)
