"""Units of long benchmarks: what is there is not made again, and failures lose nothing."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

import pytest

from benchmarks.units import Unit, only_one, ready, run_units
from zoo.errors import UserError


def test_a_unit_waits_for_what_it_needs_and_is_not_made_twice(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    units = [
        Unit(c, copyfile, (a, c), (a, b)),
        Unit(a, copyfile, (b, a)),
        Unit(b, copyfile, (a, b)),
    ]
    assert ready(units, []) is units[1]
    assert ready(units, [units[1]]) is units[2]
    a.write_text("old")
    assert ready(units, []) is units[2]
    b.write_text("b")
    assert ready(units, []) is units[0]
    assert ready(units, [units[0]]) is None


@pytest.mark.long
def test_a_stopped_benchmark_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source, a, b, c = (tmp_path / name for name in ("source", "a", "b", "c"))
    source.write_text("new")
    said: list[str] = []
    units = [
        Unit(a, copyfile, (source, a)),
        Unit(b, copyfile, (tmp_path / "lost", b), (a,)),
        Unit(c, copyfile, (b, c), (b,)),
    ]
    with pytest.raises(FileNotFoundError, match="lost"):
        run_units(units, 1, said.append)
    assert a.read_text() == "new"
    assert not c.exists()
    a.write_text("kept")
    units[1] = Unit(b, copyfile, (source, b), (a,))
    run_units(units, 2, said.append)
    assert [path.read_text() for path in (a, b, c)] == ["kept", "new", "new"]
    assert said[0].startswith("0 of 3")
    assert "1 of 3 units are done" in said
    run_units(units, 2, said.append)
    assert said[-1].startswith("3 of 3")


def test_a_file_that_nothing_makes_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with pytest.raises(UserError, match="missing.txt"):
        run_units([Unit(file, copyfile, (file, file), (tmp_path / "missing.txt",))], 1, print)
    assert not file.exists()


def test_two_benchmarks_do_not_share_a_folder(tmp_path: Path) -> None:
    with only_one(tmp_path / "out"):
        with pytest.raises(UserError, match="out"):
            with only_one(tmp_path / "out"):
                pass
    with only_one(tmp_path / "out"):
        pass
