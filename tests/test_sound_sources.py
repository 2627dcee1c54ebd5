"""Containers of recorded sounds, licences of their packages, and the command that fetches them."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from toy_sounds import RAW, ZLIB, ZSTD, catalogue, qt_bundle, riff

from datamodules.sounds import fetch
from datamodules.sounds.licences import allows, credit_licence, parse_copyright, spdx, stanza_for
from datamodules.sounds.sources import FULL_SET, original_recording, read_cat, read_rcc


@pytest.mark.parametrize("version", [1, 3])
def test_a_qt_bundle_gives_raw_and_zlib_files(tmp_path: Path, version: int) -> None:
    squeezed = struct.pack(">I", 500) + zlib.compress(b"b" * 500)
    (tmp_path / "a.rcc").write_bytes(
        qt_bundle({"one.ogg": (RAW, b"aaa"), "two.ogg": (ZLIB, squeezed)}, version)
    )
    assert {name: read() for name, read in read_rcc(tmp_path / "a.rcc")} == {
        "/gcompris/one.ogg": b"aaa",
        "/gcompris/two.ogg": b"b" * 500,
    }


def test_a_qt_bundle_gives_zstandard_files(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="pip install zstandard")
    (tmp_path / "a.rcc").write_bytes(
        qt_bundle({"one.ogg": (ZSTD, zstandard.ZstdCompressor().compress(b"c" * 900))})
    )
    assert [read() for _, read in read_rcc(tmp_path / "a.rcc")] == [b"c" * 900]


def test_a_damaged_qt_bundle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.rcc"
    path.write_bytes(b"RIFF....")
    with pytest.raises(ValueError, match=r"a\.rcc"):
        list(read_rcc(path))
    whole = qt_bundle({"one.ogg": (RAW, b"aaa")})
    path.write_bytes(whole[:40])
    with pytest.raises(ValueError, match="a.rcc is damaged"):
        list(read_rcc(path))
    looping = bytearray(whole)
    struct.pack_into(">I", looping, 24 + 22 + 10, 0)  # the folder's first child is the root
    path.write_bytes(bytes(looping))
    with pytest.raises(ValueError, match="has a cycle"):
        list(read_rcc(path))
    path.write_bytes(qt_bundle({"one.ogg": (ZLIB, b"\0\0\0\3" + zlib.compress(b"abc" * 99)[:-6])}))
    [(_, read)] = read_rcc(path)
    with pytest.raises(ValueError, match="one.ogg is cut off"):
        read()


def test_a_catalogue_gives_sounds_with_their_credits(tmp_path: Path) -> None:
    path = tmp_path / "a.cat"
    path.write_bytes(
        catalogue([('"Cow". License: X.', riff(b"moo!")), ('"Hen".', riff(b"cluck?"))])
    )
    found = [(index, credit, bytes(wav)) for index, credit, wav in read_cat(path)]
    assert found == [(0, '"Cow". License: X.', riff(b"moo!")), (1, '"Hen".', riff(b"cluck?"))]
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"a\.cat"):
        list(read_cat(path))


@pytest.mark.parametrize(
    ("credit", "licence"),
    [
        ('"Cow". Edited by "W". License: Creative Commons Zero 1.0.', "CC0-1.0"),
        (
            "By J. License: Creative Commons Attribution 3.0 Unported. Original is Public Domain.",
            "CC-BY-3.0",
        ),
        ("License: Creative Commons Attribution-ShareAlike 3.0 Unported.", "CC-BY-SA-3.0"),
        ("License: Creative Commons Attribution-NonCommercial 3.0.", "CC-BY-NC-3.0"),
        ("License: Creative Commons Attribution-Something 3.0.", "unknown"),
        ("License: ask me.", "unknown"),
        ('"Creative Commons Zero", a song. By J.', "unknown"),
    ],
)
def test_a_credit_sentence_names_its_licence(credit: str, licence: str) -> None:
    assert credit_licence(credit) == licence


def test_two_edits_of_one_original_are_one_recording() -> None:
    first = original_recording(
        '"Steam train". Original "horn 01.wav" by "eli". Edited by "W". License: Y.'
    )
    assert first == original_recording(
        '"Engine in tunnel". Original "horn 01.wav" by "eli". Edited by "W". License: Y.'
    )
    assert first == '"horn 01.wav" by "eli"'
    assert original_recording('"Beep". By J. License: Y.') == ""


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-3", "GPL-3.0-only"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("CC0", "CC0-1.0"),
        ("Expat", "MIT"),
        ("CC-BY-SA-3.0", "CC-BY-SA-3.0"),
        ("CC0-1.0 and CC-BY-3.0", "CC0-1.0 AND CC-BY-3.0"),
        ("GPL-2+ or CDDL", "GPL-2.0-or-later OR CDDL"),
        (
            "GPL-2 or Artistic, and BSD-3-clause",
            "GPL-2.0-only AND BSD-3-Clause OR Artistic AND BSD-3-Clause",
        ),
        ("free-art", "free-art"),
        ("", "unknown"),
    ],
)
def test_short_names_become_expressions(name: str, expression: str) -> None:
    assert spdx(name) == expression


def test_an_expression_is_allowed_when_one_way_through_it_is() -> None:
    assert allows("CC0-1.0 AND CC-BY-3.0", {"CC0-1.0", "CC-BY-3.0"})
    assert not allows("CC0-1.0 AND CC-BY-3.0", {"CC0-1.0"})
    assert allows("GPL-2.0-only OR MIT", {"MIT"})
    assert not allows("unknown", {"MIT"})


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: sounds

Files: *
Copyright: 2010 Everybody
License: GPL-3+

Files: data/horn?.wav
       data/deep/*
Copyright: 2001 Ann
           2002 Bob
License: CC-BY-3.0
Comment: https://example.org/horn, cut

Files: data/deep/own.wav
Copyright: 2003 Cy
License: public-domain
 Given to everybody.
 .
 Really.

License: GPL-3+
 The text.
"""


def test_the_last_matching_paragraph_of_a_copyright_file_counts() -> None:
    stanzas = parse_copyright(COPYRIGHT)
    assert [
        stanza_for(path, stanzas).licence
        for path in ("data/x.wav", "data/horn1.wav", "data/deep/a/b.wav")
    ] == [
        "GPL-3.0-or-later",
        "CC-BY-3.0",
        "CC-BY-3.0",
    ]
    own = stanza_for("data/deep/own.wav", stanzas)
    assert (own.licence, own.credit) == ("public-domain", "2003 Cy")
    horn = stanza_for("data/horn1.wav", stanzas)
    assert horn.credit == "2001 Ann; 2002 Bob; https://example.org/horn" and horn.links == (
        "https://example.org/horn",
    )
    assert (
        parse_copyright("This package was debianized by hand.\n\nFiles: none\nLicense: MIT\n") == ()
    )


class Shell:
    """A stand-in for apt-get and dpkg-deb; ``broken`` programs fail."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.broken: dict[str, str] = {}

    def __call__(self, command, cwd, **_):
        self.commands.append(list(command))
        key = " ".join(command[:2])
        if key in self.broken:
            return subprocess.CompletedProcess(command, 100, "", self.broken[key])
        if command[0] == "apt-get" and "download" in command:
            (Path(cwd) / f"{command[-1]}_1.0_all.deb").write_bytes(b"deb")
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    fake = Shell()
    monkeypatch.setattr(fetch.subprocess, "run", fake)
    monkeypatch.setattr(fetch.shutil, "which", lambda program: f"/usr/bin/{program}")
    return fake


def test_fetch_unpacks_missing_packages_and_resumes(tmp_path: Path, shell: Shell) -> None:
    shell.broken = {"dpkg-deb -x": "dpkg-deb: error: no space left"}
    with pytest.raises(OSError, match="no space left"):
        fetch.fetch(tmp_path, FULL_SET[:1], say=[].append)
    assert (tmp_path / f".packages/{FULL_SET[0]}.unpacking").exists()
    shell.broken = {}
    printed = []
    assert fetch.fetch(tmp_path, FULL_SET[:2], say=printed.append) == list(FULL_SET[:2])
    assert sorted(p.name for p in (tmp_path / ".packages").iterdir()) == sorted(
        f"{name}.unpacked" for name in FULL_SET[:2]
    )
    count = len(shell.commands)
    assert (
        fetch.fetch(tmp_path, FULL_SET[:2], say=printed.append) == []
        and len(shell.commands) == count
    )
    assert printed[-1] == f"{FULL_SET[1]} is already unpacked"


def test_fetch_reads_package_lists_of_its_own_where_the_machine_has_none(
    tmp_path: Path, shell: Shell
) -> None:
    shell.broken = {"apt-get download": "E: Unable to locate package"}
    fetch.fetch(tmp_path, FULL_SET[:1], say=[].append)
    assert [command[-1] for command in shell.commands] == [
        FULL_SET[0],
        "update",
        FULL_SET[0],
        str(tmp_path.resolve()),
    ]
    shell.broken["apt-get -o"] = "E: no network"
    with pytest.raises(
        OSError, match="Unable to locate package.*no network.*choose with --packages"
    ):
        fetch.fetch(tmp_path, FULL_SET[1:2], say=[].append)


def test_fetch_refuses_other_packages_the_root_and_a_machine_without_apt(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="did you mean 'alsa-utils'"):
        fetch.fetch(tmp_path, ["alsa-util"])
    with pytest.raises(ValueError, match="choose a separate folder"):
        fetch.fetch("/", FULL_SET[:1])
    monkeypatch.setattr(fetch.shutil, "which", lambda program: None)
    with pytest.raises(OSError, match="apt-get and dpkg-deb not found"):
        fetch.fetch(tmp_path, FULL_SET[:1])
    assert shell.commands == []
