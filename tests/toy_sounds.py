"""Small packages of sounds, written by the tests: containers, copyright files, and tones."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np
import soundfile

RAW, ZLIB, DIRECTORY, ZSTD = 0, 1, 2, 4


def qt_bundle(files: dict[str, tuple[int, bytes]], version: int = 3) -> bytes:
    """A .rcc with ``/gcompris/NAME`` for every name:

    (flags, content). Header, tree, names, data, big-endian.
    """
    names = b""
    blobs = b""
    nodes = []

    def name_at(name: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return at

    tail = b"\0" * 8 if version >= 2 else b""
    nodes.append(struct.pack(">IHII", 0, DIRECTORY, 1, 1) + tail)
    nodes.append(struct.pack(">IHII", name_at("gcompris"), DIRECTORY, len(files), 2) + tail)
    for name, (flags, content) in files.items():
        nodes.append(struct.pack(">IHHHI", name_at(name), flags, 0, 0, len(blobs)) + tail)
        blobs += struct.pack(">I", len(content)) + content
    tree = b"".join(nodes)
    header = 24 if version >= 3 else 20
    offsets = struct.pack(
        ">IIII", version, header, header + len(tree) + len(names), header + len(tree)
    )
    return b"qres" + offsets + (b"\0" * 4 if version >= 3 else b"") + tree + names + blobs


def catalogue(sounds: list[tuple[str, bytes]]) -> bytes:
    """A .cat: offsets and sizes, then per sound the length of its text, the text and RIFF chunk."""
    table, body = b"", b""
    for text, wav in sounds:
        table += struct.pack("<II", 8 * len(sounds) + len(body), len(wav))
        body += bytes([len(text) + 1]) + text.encode("latin-1") + b"\0" + wav
    return table + body


def riff(content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(content)) + content


def tone(
    frequency_hz: float,
    seconds: float = 0.5,
    rate_hz: int = 22_050,
    kind: str = "WAV",
    channels: int = 1,
) -> bytes:
    """A decaying sine of peak 0.5 as a file's bytes."""
    time_N = np.arange(round(seconds * rate_hz)) / rate_hz
    wave_N = 0.5 * np.sin(2 * math.pi * frequency_hz * time_N) * np.exp(-3 * time_N)
    file = io.BytesIO()
    soundfile.write(
        file, np.tile(wave_N[:, None], (1, channels)), rate_hz, format=kind, subtype="PCM_16"
    )
    return file.getvalue()


def _write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


CC0_CREDIT = '"{0}". Original "{0}.wav" by "A". License: Creative Commons Zero 1.0.'
CC_BY_CREDIT = (
    '"{0}". Original "{0}.wav" by "B". License: Creative Commons Attribution 3.0 Unported.'
)
DEP5 = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
GCOMPRIS_PAPERS = (
    DEP5
    + "Files: *\nCopyright: 2010 All\nLicense: GPL-3+\n\nFiles: src/animals/dog.ogg\nCopyright:"
    " 2011 Dee\nLicense: CC-BY-3.0\nComment: https://example.org/dog\n"
)
SONIC_PI_PAPERS = DEP5 + "Files: *\nCopyright: 2016 S\nLicense: MIT\n\n"
SONIC_PI_SENTENCE = (
    "All samples have been placed in\nthe public domain via the Creative Commons 0 License:\n"
)


def write_packages(root: Path, drums: int = 5) -> Path:
    """Writes three packages below ``root``.

    OpenSFX: a cow, a horse and a damaged sheep; its other sounds are empty. GCompris: a dog and a
    cat. Sonic Pi: ``drums`` bass drums, a door and a crow (an exact copy of the first drum).
    """
    cat = [("Unused", riff(b""))] * 39
    cat[36] = (CC0_CREDIT.format("Sheep"), riff(b"WAVE"))
    cat[37] = (CC0_CREDIT.format("Cow"), tone(200))
    cat[38] = (CC_BY_CREDIT.format("Horse"), tone(300, rate_hz=44_100))
    _write(root / "usr/share/games/openttd/baseset/opensfx/opensfx.cat", catalogue(cat))
    animals = {
        f"src/animals/{name}.ogg": (RAW, tone(hz, kind="FLAC"))
        for name, hz in (("dog", 400), ("cat", 500))
    }
    _write(root / "usr/share/gcompris-qt/rcc/explore_farm_animals.rcc", qt_bundle(animals))
    _write(root / "usr/share/doc/gcompris-qt-data/copyright", GCOMPRIS_PAPERS)
    samples = root / "usr/share/sonic-pi/samples"
    papers = SONIC_PI_PAPERS
    for k in range(drums):
        _write(samples / f"bd_{k}.flac", tone(50 + 10 * k, 0.25, kind="FLAC", channels=1 + k % 2))
        papers += (
            f"Files: etc/samples/bd_{k}.flac\nCopyright: 2012 D{k}\nSource:"
            f" http://example.org/{k}\nLicense: CC0\n\n"
        )
    _write(samples / "misc_crow.flac", tone(50, 0.25, kind="FLAC"))
    _write(samples / "perc_door.flac", tone(900, kind="FLAC"))
    _write(samples / "README.md", SONIC_PI_SENTENCE)
    _write(root / "usr/share/doc/sonic-pi-samples/copyright", papers)
    return root
