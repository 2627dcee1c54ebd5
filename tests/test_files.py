"""Atomic writing: names in errors, and leftovers after errors and kills."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from toy_disk import no_file_above

from zoo.errors import describe
from zoo.files import (
    clear_after_killed,
    files_written_together,
    folder_written_beside,
    written_beside,
)

DEAD = 999_999_999  # above what the system gives


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("size", [0, 100])
def test_a_full_disk_names_the_final_file(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(OSError) as caught,
        no_file_above(size),
        written_beside(tmp_path / "a.txt") as part,
    ):
        part.write_bytes(bytes(1000))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "a.txt")
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_names_the_file_in_the_final_folder(tmp_path: Path) -> None:
    for writer in (folder_written_beside, files_written_together):
        with (
            pytest.raises(OSError) as caught,
            no_file_above(100),
            writer(tmp_path / "model") as part,
        ):
            with written_beside(part / "deep" / "weights.bin") as file:
                file.write_bytes(bytes(1000))
        assert caught.value.filename == str(tmp_path / "model/deep/weights.bin")
        with pytest.raises(OSError) as caught, writer(tmp_path / "model") as part:
            raise OSError(errno.ENOSPC, "No space left on device")  # as a library's buffer says it
        assert (
            describe(caught.value)
            == f"No space left on device: {tmp_path / 'model'}; free some space and start again"
        )
    assert names(tmp_path) in ([], ["model"])


def test_errors_that_are_not_of_writing_keep_their_names(tmp_path: Path) -> None:
    for error in (
        ConnectionError("the Hub cannot be reached"),
        FileNotFoundError(errno.ENOENT, "absent", "other.wav"),
    ):
        with pytest.raises(type(error)) as caught, folder_written_beside(tmp_path / "model"):
            raise error
        assert caught.value.filename in (None, "other.wav")


def test_files_take_their_places_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("a", "b", "kept"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError), files_written_together(tmp_path) as part:
        (part / "a").write_text("new")
        _ = 1 / 0
    (tmp_path / "c").mkdir()
    with pytest.raises(IsADirectoryError) as caught, files_written_together(tmp_path) as part:
        for name in ("a", "b", "c"):
            (part / name).write_text("new")
    assert caught.value.filename == str(tmp_path / "c")
    assert {name: (tmp_path / name).read_text() for name in ("a", "b", "kept")} == dict.fromkeys(
        ("a", "b", "kept"), "old"
    )
    with files_written_together(tmp_path) as part:
        (part / "a").write_text("new")
        (part / "d").write_text("new")
    assert names(tmp_path) == ["a", "b", "c", "d", "kept"]
    assert [(tmp_path / name).read_text() for name in ("a", "b", "d", "kept")] == [
        "new",
        "old",
        "new",
        "old",
    ]


def test_leftovers_of_killed_processes_are_removed_and_active_files_stay(tmp_path: Path) -> None:
    alive = os.getppid()
    gone = [f".one.{DEAD}.part.wav", f".two.{DEAD}.part", f"..attune.{DEAD}.part.json"]
    folders = [f".model.{DEAD}.part", f"..model.{DEAD}.part.{DEAD}.part", f".there.{DEAD}.old"]
    kept = [
        f".one.{alive}.part.wav",
        ".one.part.wav",
        ".x.99999999999999999999.part",
        ".one.12.party",
        "visible.1.part",
    ]
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    for name in (*folders, f".back.{DEAD}.old", f".model.{alive}.part", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    clear_after_killed(tmp_path, "nothing*")
    assert {path.name for path in tmp_path.iterdir()} >= {*gone, *folders}
    clear_after_killed(tmp_path, "*.wav")
    assert not (tmp_path / gone[0]).exists() and (tmp_path / gone[1]).exists()
    clear_after_killed(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *kept,
        "back",
        f".model.{alive}.part",
        "there",
    }
    assert (tmp_path / "back/config.json").read_text() == f".back.{DEAD}.old"
    assert (tmp_path / "there/config.json").read_text() == "there"
    clear_after_killed(tmp_path / "no such folder")


def test_an_earlier_process_with_the_same_number_is_another_one(tmp_path: Path) -> None:
    """As in a container, where the process always has number 1."""
    old, new = (tmp_path / f".{name}.{os.getpid()}.part.wav" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (1e9, 1e9))
    clear_after_killed(tmp_path)
    assert not old.exists() and new.exists()


def test_a_folder_removes_nested_leftovers_of_a_killed_writer(tmp_path: Path) -> None:
    """As in an export, whose adapter is itself a folder written beside its place."""
    for name in (f".model.{DEAD}.part", f"..model.{DEAD}.part.{DEAD}.part", f".model2.{DEAD}.part"):
        (tmp_path / name).mkdir()
    with folder_written_beside(tmp_path / "model") as part:
        (part / "x").touch()
    assert names(tmp_path) == [f".model2.{DEAD}.part", "model", "model/x"]
