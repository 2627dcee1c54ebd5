"""Trust on first use: what the lock file stores and refuses."""

from __future__ import annotations

import json

import pytest

from zoo.hub.lock import LockedFile, Pin, check_file, check_revision, read_lock, write_pin

ONE, TWO = "1" * 40, "2" * 40
HASH = "a" * 64


def of_file(name: str, **file: object) -> dict[str, object]:
    return {"version": 1, "repos": {"o/n": {"revision": ONE, "files": {name: file}}}}


A, B = LockedFile("a" * 64, 3), LockedFile("b" * 64, 4)


def test_the_first_pull_is_kept_and_a_later_one_of_the_same_commit_adds(tmp_path) -> None:
    path = tmp_path / "attune.lock.json"
    assert read_lock(path) == {}
    write_pin("o/n", Pin(ONE, {"x": A}), path)
    assert read_lock(path) == {"o/n": Pin(ONE, {"x": A})}
    write_pin("o/n", Pin(ONE, {"sub/y": B}), path)
    write_pin("o/m", Pin(TWO, {"x": B}), path)
    assert read_lock(path) == {"o/m": Pin(TWO, {"x": B}), "o/n": Pin(ONE, {"sub/y": B, "x": A})}
    text = path.read_text()
    write_pin("o/n", Pin(ONE, {"x": A}), path)
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def test_differences_are_refused_and_the_file_stays(tmp_path) -> None:
    path = tmp_path / "lock.json"
    write_pin("o/n", Pin(ONE, {"x": A}), path)
    text = path.read_text()
    pin = read_lock(path)["o/n"]
    with pytest.raises(ValueError, match=f"lock.json pins o/n at {ONE}, but {TWO}"):
        write_pin("o/n", Pin(TWO, {"x": A}), path)
    with pytest.raises(
        ValueError, match=f"x of o/n has sha256 {'b' * 64}, but .*lock.json pins {'a' * 64}"
    ):
        write_pin("o/n", Pin(ONE, {"x": B}), path)
    assert path.read_text() == text
    check_revision(pin, "o/n", ONE)
    check_revision(None, "o/n", TWO)
    check_file(pin, "o/n", "x", A.sha256)
    check_file(pin, "o/n", "another", B.sha256)
    check_file(None, "o/n", "x", B.sha256)
    with pytest.raises(ValueError, match="it is not the file that was first pulled"):
        check_file(pin, "o/n", "x", A.sha256[:-1] + "b")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("{", "not valid JSON"),
        ([], "must hold an object"),
        ({"version": 2, "repos": {}}, "has version 2, this Attune writes 1"),
        ({"version": 1}, "is damaged .*remove it to trust the next pull afresh"),
        ({"version": 1, "repos": []}, "is damaged"),
        (
            {"version": 1, "repos": {"nobody": {"revision": ONE, "files": {}}}},
            "'nobody' is not owner/name",
        ),
        (
            {"version": 1, "repos": {"o/n": {"revision": "main", "files": {}}}},
            "40 hex digits, got 'main'",
        ),
        (of_file("../x", sha256=HASH, size_bytes=1), "leaves its folder"),
        (of_file("x", sha256="a", size_bytes=1), "64 hex digits, got 'a'"),
        (of_file("x", sha256=HASH, size_bytes=-1), "must be a count"),
        (of_file("x", size_bytes=1), "damaged .'sha256'"),
    ],
)
def test_a_damaged_lock_file(tmp_path, node, message) -> None:
    path = tmp_path / "lock.json"
    path.write_text(node if isinstance(node, str) else json.dumps(node))
    with pytest.raises(ValueError, match=message):
        read_lock(path)
