"""Compares the length in the header of an audio file with the bytes in the file.

libsndfile does not: it reads half of a wav as a whole, shorter wav. ``data`` is the whole file, as
bytes or memory-mapped.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from zoo.audio_files.frames import Data, Examined, cut_off, examined_flac, examined_mp3, patched

_MAX_CHUNKS = 4096


@dataclass(frozen=True)
class _Payload:
    """The sound in a container.

    - ``start``: its first byte.
    - ``size``: its bytes, as the header says.
    - ``field``: the position of that number in the header.
    - ``code``: how the number is written (``struct``).
    - ``extra``: bytes that the number counts besides the sound.
    """

    start: int
    size: int
    field: int
    code: str
    extra: int = 0


def examined(data: Data) -> Examined:
    """Whether the bytes hold all the sound that their header announces.

    Examines wav, RF64, W64, AIFF, AU, CAF, NIST, flac, ogg and mp3. Other bytes and broken headers
    have no ``problem`` here: the decoder reports them.
    """
    start = _after_id3(data)
    magic = data[start : start + 4]
    if magic == b"fLaC":
        return examined_flac(data, start)
    if magic == b"OggS":
        return _examined_ogg(data, start)
    if data[:8] == b"NIST_1A\n":
        return _examined_nist(data)
    container = _CONTAINERS.get(data[:4])
    if container is not None:
        return _examined_payload(data, container(data))
    return examined_mp3(data, start)


def _examined_payload(data: Data, payload: _Payload | None) -> Examined:
    if payload is None:
        return Examined()
    there = len(data) - payload.start
    if _is_unknown(data, payload, there):
        size = struct.pack(payload.code, there + payload.extra)
        return Examined(corrected=patched(data, payload.field, size))
    return Examined() if payload.size <= there else cut_off(payload.size - there, payload.size)


def _is_unknown(data: Data, payload: _Payload, there: int) -> bool:
    """Whether the size is a placeholder of an encoder that wrote to a pipe and cannot go back."""
    if payload.size == 0:
        return there > 0 and not _is_chain(data, payload.start)
    if struct.calcsize(payload.code) == 8:
        limits = [(2**62, 2**64)]
    else:
        limits = [(2**31 - 2**12, 2**31 + 1), (2**32 - 2**12, 2**32)]
    return payload.size > there and any(low <= payload.size < high for low, high in limits)


def _is_chain(data: Data, position: int) -> bool:
    """Whether named chunks (of four letters) fill the rest of the file, so that it has no sound."""
    for name, start, size in _chunks(data, position, 4, "<I"):
        if not re.fullmatch(rb"[A-Za-z0-9 _]{4}", name):
            return False
        position = start + size
    return len(data) - position <= 1


def _chunks(
    data: Data, position: int, name_bytes: int, code: str, align: int = 2
) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, size) of each chunk.

    In W64 (names of 16 bytes) the size includes the header of the chunk.
    """
    head = name_bytes + struct.calcsize(code)
    for _ in range(_MAX_CHUNKS):
        if position + head > len(data):
            return
        name = data[position : position + name_bytes]
        size = struct.unpack_from(code, data, position + name_bytes)[0]
        if name_bytes == 16:
            size -= head
        yield name, position + head, size
        position += head + max(0, size)
        position += -position % align


def _riff(data: Data) -> _Payload | None:
    code = ">I" if data[:4] == b"RIFX" else "<I"
    large = None
    for name, start, size in _chunks(data, 12, 4, code):
        if name == b"ds64" and start + 16 <= len(data):
            large = start + 8
        if name == b"data":
            if large is not None and size == 2**32 - 1:
                return _Payload(start, struct.unpack_from("<Q", data, large)[0], large, "<Q")
            return _Payload(start, size, start - 4, code)
    return None


def _w64(data: Data) -> _Payload | None:
    for name, start, size in _chunks(data, 40, 16, "<Q", 8):
        if name[:4] == b"data":
            return None if size < 0 else _Payload(start, size, start - 8, "<Q", 24)
    return None


def _iff(data: Data) -> _Payload | None:
    for name, start, size in _chunks(data, 12, 4, ">I"):
        if name == b"SSND":
            return _Payload(start, size, start - 4, ">I")
    return None


def _caf(data: Data) -> _Payload | None:
    for name, start, size in _chunks(data, 8, 4, ">Q", 1):
        if name == b"data":
            return _Payload(start, size, start - 8, ">Q")
    return None


def _au(data: Data) -> _Payload | None:
    code = ">I" if data[:4] == b".snd" else "<I"
    if len(data) < 24:
        return None
    start, size = (struct.unpack_from(code, data, place)[0] for place in (4, 8))
    return _Payload(start, size, 8, code) if start <= len(data) else None


def _examined_nist(data: Data) -> Examined:
    try:
        start = int(data[8:16])
        found = re.findall(rb"^(\S+) -i (\d+)\s*$", data[16:start], re.MULTILINE)
        fields = {name: int(value) for name, value in found}
        size = fields[b"sample_count"] * fields[b"sample_n_bytes"] * fields.get(b"channel_count", 1)
    except (ValueError, KeyError):
        return Examined()
    missing = start + size - len(data)
    return cut_off(missing, size) if missing > 0 else Examined()


_CONTAINERS = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"riff": _w64,
    b"FORM": _iff,
    b"caff": _caf,
    b".snd": _au,
    b"dns.": _au,
}


def _examined_ogg(data: Data, position: int) -> Examined:
    """Follows the pages, which hold their lengths, to the one that is marked as the last."""
    is_ended = False
    while not is_ended and data[position : position + 4] == b"OggS":
        head = data[position : position + 27]
        if len(head) < 27:
            break
        sizes = data[position + 27 : position + 27 + head[26]]
        position += 27 + head[26] + sum(sizes)
        is_ended = bool(head[5] & 4) and position <= len(data)
    if is_ended:
        return Examined()
    return Examined("is cut off: its last page is missing or torn; copy or render it again")


def _after_id3(data: Data) -> int:
    """Where the sound begins, after ID3v2 tags."""
    position = 0
    while data[position : position + 3] == b"ID3" and position + 10 <= len(data):
        sizes = data[position + 6 : position + 10]
        footer = 10 if data[position + 5] & 0x10 else 0
        content = sum((size & 0x7F) << (7 * (3 - i)) for i, size in enumerate(sizes))
        position += 10 + content + footer
    return position
