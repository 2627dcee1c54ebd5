"""Readers of recorded sounds in Debian packages: folders, Qt bundles (.rcc), OpenTTD (.cat).

Each reader lists ``Entry`` records without decoding; only files that match a rule are unpacked.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from zoo.errors import UserError

LARGEST_BYTES = 1 << 28  # the most that a compressed file may unpack to


@dataclass(frozen=True)
class Entry:
    """One recording in a package.

    - ``name``: matched by the globs of rules.
    - ``origin``: the path in the source of the package, which its copyright file uses.
    - ``stamp``: changes when the bytes may have changed.
    - ``read``: returns the bytes.
    - ``credit``: text in the container.
    - ``words``: fills a caption such as ``a person saying: {words}``; None if there are none.
    """

    name: str
    origin: str
    stamp: str
    read: Callable[[], bytes]
    credit: str = ""
    words: str | None = None


@dataclass(frozen=True)
class Source:
    """A package of sounds.

    - ``package``: its name in Debian.
    - ``place``: the path of the sounds below the root.
    - ``entries``: the reader.
    - ``origin``: the prefix of a file's name in the source of the package.
    - ``licence``: read by a person where the copyright file is not machine-readable.
    - ``statement``: (file, text, licence) of a statement beside the sounds, for files that the
      copyright file does not name individually.
    """

    package: str
    place: str
    entries: Callable[[Path, Sequence[str], str], Iterator[Entry]]
    origin: str = ""
    licence: str | None = None
    statement: tuple[str, str, str] | None = None


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}.{status.st_mtime_ns}"


def _wanted(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _files(place: Path, globs: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if _wanted(name, globs) and path.is_file():
            yield name, path


def folder_entries(place: Path, globs: Sequence[str], origin: str) -> Iterator[Entry]:
    """Files below ``place``, except spoken descriptions (``*_desc*``)."""
    for name, path in _files(place, globs):
        if "_desc" not in path.stem:
            words = path.stem.replace("_", " ").lower()
            yield Entry(name, origin + name, _stamp(path), path.read_bytes, words=words)


def spoken_entries(place: Path, globs: Sequence[str], origin: str) -> Iterator[Entry]:
    """Spoken descriptions ``dog_desc.ogg``; their words are the first line of ``dog.txt``."""
    for name, path in _files(place, globs):
        text = path.with_name(path.stem.removesuffix("_desc") + ".txt")
        lines = text.read_text("utf-8", errors="replace").splitlines() if text.is_file() else []
        words = lines[0].strip() if lines and lines[0].strip() else None
        yield Entry(name, origin + name, f"{_stamp(path)}.{words}", path.read_bytes, words=words)


def bundle_entries(place: Path, globs: Sequence[str], origin: str) -> Iterator[Entry]:
    """``BUNDLE__FILE`` for FILE inside ``BUNDLE.rcc``; opens only bundles that a glob names."""
    for path in sorted(place.glob("*.rcc")):
        mine = [glob for glob in globs if glob.partition("__")[0] == path.stem]
        for inside, read in read_rcc(path) if mine else ():
            name = f"{path.stem}__{inside.rpartition('/')[2]}"
            if _wanted(name, mine):
                yield Entry(name, inside.removeprefix(origin), f"{_stamp(path)}.{inside}", read)


def catalogue_entries(place: Path, globs: Sequence[str], origin: str) -> Iterator[Entry]:
    """The sounds of a .cat file, named by their two-digit index, with their credits."""
    for index, credit, wav in read_cat(place):
        name = f"{index:02d}"
        if _wanted(name, globs):
            yield Entry(
                name,
                origin + name,
                f"{_stamp(place)}.{index}",
                functools.partial(bytes, wav),
                credit=credit,
            )


def read_rcc(path: str | Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(path inside, reader) of every file in a Qt resource bundle.

    Files are raw, zlib or Zstandard (needs ``zstandard``). Layout
    (https://doc.qt.io/qt-6/rcc.html): a header, a tree of nodes, names in UTF-16 and data, all
    big-endian. Raises ``UserError`` for a file that is not a bundle or is damaged.
    """
    data = Path(path).read_bytes()
    if data[:4] != b"qres" or len(data) < 20:
        raise UserError(f"{path} is not a Qt resource bundle (it does not start with 'qres')")
    version, tree, blobs, names = struct.unpack_from(">IIII", data, 4)
    node_bytes = 22 if version >= 2 else 14
    seen: set[int] = set()

    def name_of(node: int) -> str:
        at = names + struct.unpack_from(">I", data, tree + node * node_bytes)[0]
        return data[at + 6 : at + 6 + 2 * struct.unpack_from(">H", data, at)[0]].decode("utf-16-be")

    def walk(node: int, folder: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        if node in seen:
            raise UserError(f"{path} is damaged: its tree has a cycle; install its package again")
        seen.add(node)
        at = tree + node * node_bytes
        flags = struct.unpack_from(">H", data, at + 4)[0]
        inside = f"{folder}/{name_of(node)}" if node else ""
        if flags & 2:
            count, child = struct.unpack_from(">II", data, at + 6)
            for k in range(count):
                yield from walk(child + k, inside)
        else:
            start = blobs + struct.unpack_from(">I", data, at + 10)[0]
            size = struct.unpack_from(">I", data, start)[0]
            yield (
                inside,
                functools.partial(
                    _unpacked, data[start + 4 : start + 4 + size], flags, f"{path}: {inside}"
                ),
            )

    try:
        yield from walk(0, "")
    except (struct.error, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; install its package again") from error


def _unpacked(blob: bytes, flags: int, name: str) -> bytes:
    if flags & 1:
        try:
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(blob[4:], LARGEST_BYTES)
        except zlib.error as error:
            raise UserError(f"{name} is damaged ({error})") from error
        if not unpacker.eof:
            raise UserError(f"{name} is cut off or larger than {LARGEST_BYTES} bytes")
        return raw
    if flags & 4:
        try:
            import zstandard
        except ImportError as error:
            raise ImportError(
                "this bundle is compressed with Zstandard: `pip install zstandard` to read it"
            ) from error
        try:
            with zstandard.ZstdDecompressor().stream_reader(blob) as reader:
                raw = reader.read(LARGEST_BYTES + 1)
        except zstandard.ZstdError as error:
            raise UserError(f"{name} is damaged ({error})") from error
        if len(raw) > LARGEST_BYTES:
            raise UserError(f"{name} is larger than {LARGEST_BYTES} bytes")
        return raw
    return blob


def read_cat(path: str | Path) -> Iterator[tuple[int, str, memoryview]]:
    """(index, credit text, WAV bytes) of every sound in an OpenTTD catalogue.

    Layout (https://wiki.openttd.org/en/Development/Sounds): pairs of little-endian offset and size,
    then per sound one byte with the length of the text, the text, and a RIFF chunk. Raises
    ``UserError`` for a file that is not a catalogue or is damaged.
    """
    data = Path(path).read_bytes()
    try:
        count = (struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8
        for index in range(count):
            start = struct.unpack_from("<I", data, 8 * index)[0] & 0x7FFFFFFF
            text = data[start + 1 : start + 1 + data[start]]
            wave = start + 1 + data[start]
            size = struct.unpack_from("<I", data, wave + 4)[0] + 8
            yield (
                index,
                text.split(b"\0")[0].decode("latin-1"),
                memoryview(data)[wave : wave + size],
            )
    except (struct.error, IndexError) as error:
        raise UserError(
            f"{path} is not an OpenTTD sound catalogue or is damaged ({error}); install its"
            " package again"
        ) from error


def original_recording(credit: str) -> str:
    """The original that a credit names, else "": edits of one original are one recording."""
    match = re.search(r"Ori?gi?nal (.+?)(?:\. (?:Edited|Cut|Mixed|License)|$)", credit)
    return match[1] if match else ""


_SONIC_PI = "usr/share/sonic-pi/samples"
_CC0_SENTENCE = ("README.md", "the public domain via the Creative Commons 0 License", "CC0-1.0")
SOURCES: dict[str, Source] = {
    "opensfx": Source(
        "openttd-opensfx", "usr/share/games/openttd/baseset/opensfx/opensfx.cat", catalogue_entries
    ),
    "gcompris": Source(
        "gcompris-qt-data", "usr/share/gcompris-qt/rcc", bundle_entries, "/gcompris/"
    ),
    "sonic-pi": Source(
        "sonic-pi-samples", _SONIC_PI, folder_entries, "etc/samples/", statement=_CC0_SENTENCE
    ),
    "simutrans": Source(
        "simutrans-pak64", "usr/share/games/simutrans/pak/sound", folder_entries, "sound/"
    ),
    "tuxpaint": Source(
        "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", folder_entries, "stamps/"
    ),
    "tuxpaint-speech": Source(
        "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", spoken_entries, "stamps/"
    ),
    "wesnoth": Source(
        "wesnoth-1.16-data",
        "usr/share/games/wesnoth/1.16/data/core",
        folder_entries,
        "data/core/",
        licence="GPL-2.0-or-later",
    ),
    "lincity": Source(
        "lincity-ng-data", "usr/share/games/lincity-ng/sounds", folder_entries, "data/sounds/"
    ),
    "lmms": Source("lmms-common", "usr/share/lmms/samples", folder_entries, "data/samples/"),
    "alsa": Source("alsa-utils", "usr/share/sounds/alsa", folder_entries, "speaker-test/samples/"),
    "asterisk": Source(
        "asterisk-core-sounds-en-wav",
        "usr/share/asterisk/sounds/en_US_f_Allison",
        folder_entries,
        "en-",
    ),
}
"""Name in clip ids and ``rules.tsv`` -> source, with the paths and package names of Debian 12."""

SMALL_SET = ("openttd-opensfx", "gcompris-qt-data", "sonic-pi-samples", "simutrans-pak64")
FULL_SET = tuple(dict.fromkeys(source.package for source in SOURCES.values()))
