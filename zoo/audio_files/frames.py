"""Compares the total length of flac and mp3 frames with what the file's header says.

``data`` is the whole file, as bytes or memory-mapped.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

Data = bytes | mmap.mmap
_MAX_GUESSES = 16  # flac frame headers to try, from the end of a file
_MAX_SYNCS = 100_000  # places where two bytes could begin one
_MAX_FRAME = 2**24  # bytes
_MP3_KBIT_S = {  # by (version is 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES_HZ = {
    3: (44100, 48000, 32000),
    2: (22050, 24000, 16000),
    0: (11025, 12000, 8000),
}  # by the version's bits


@dataclass(frozen=True)
class Examined:
    """The result of examining a file.

    - ``problem``: why the file is not whole, as text to follow its name; "" if it looks whole.
    - ``corrected``: the bytes with the true length in the header, where the header has none or one
      that is too small; else None.
    """

    problem: str = ""
    corrected: bytes | None = None


def cut_off(missing: int, promised: int) -> Examined:
    return Examined(
        f"is cut off: {missing} of {promised} bytes of sound are missing; copy or render it again"
    )


def patched(data: Data, place: int, value: bytes) -> bytes:
    return b"".join((data[:place], value, data[place + len(value) :]))


def examined_flac(data: Data, start: int) -> Examined:
    """Compares the sample count of the last flac frame with that of the header."""
    if start + 42 > len(data):
        return Examined("is cut off within its header; copy or render it again")
    # the low 4 bits of this byte and 4 more bytes: the total of samples, 0 for unknown
    place = start + 21
    promised = int.from_bytes(data[place : place + 5], "big") & (2**36 - 1)
    there = _flac_samples(data, start, promised)
    if there is None:
        is_lost = (
            "is cut off: its header does not say how long it is, and its last frame is not whole; "
            "copy or render it again"
        )
        return Examined("" if promised else is_lost)
    if there < promised:
        return Examined(
            f"is cut off: {there} of {promised} samples are there; copy or render it again"
        )
    if there == promised:
        return Examined()
    count = bytes([data[place] & 0xF0 | there >> 32]) + (there % 2**32).to_bytes(4, "big")
    return Examined(corrected=patched(data, place, count))


def _flac_samples(data: Data, start: int, promised: int) -> int | None:
    """Samples up to the end of the last frame; None where no frame ends with the file.

    A frame whose header agrees with ``promised`` is accepted without its checksum, which is slow
    here.
    """
    end = len(data) - (128 if data[-128:-125] == b"TAG" else 0)
    # samples per frame (but the last), needed where headers count frames instead of samples
    block = int.from_bytes(data[start + 10 : start + 12], "big")
    position = end
    guesses = 0
    for _ in range(_MAX_SYNCS):
        position = max(
            data.rfind(sync, start + 42, position) for sync in (b"\xff\xf8", b"\xff\xf9")
        )
        if position < 0:
            return None
        samples = _flac_frame_end(data[position : position + 16], block)
        if samples is None:
            continue
        if samples == promised or _crc(data[position:end], _CRC16, 16) == 0:
            return samples
        guesses += 1
        if guesses == _MAX_GUESSES or end - position > _MAX_FRAME:
            break
    return None


def _flac_frame_end(head: bytes, block: int) -> int | None:
    """Samples up to the end of the frame with this header; None if it is not a frame header."""
    if (
        len(head) < 6
        or head[3] & 1
        or head[2] & 0x0F == 15
        or head[2] >> 4 == 0
        or head[3] >> 4 > 10
    ):
        return None
    ones = f"{head[4]:08b}".index("0") if head[4] != 255 else 8
    if ones in (1, 8) or len(head) < 5 + ones + 5:
        return None
    number = head[4] & (0x7F >> ones) if ones else head[4]
    position = 4 + max(1, ones)
    for byte in head[5:position]:
        if byte >> 6 != 2:
            return None
        number = number << 6 | byte & 0x3F
    size = head[2] >> 4
    rate = head[2] & 0x0F
    if size in (6, 7):
        size_bytes = size - 5
        samples = int.from_bytes(head[position : position + size_bytes], "big") + 1
        position += size_bytes
    elif size == 1:
        samples = 192
    elif size < 6:
        samples = 576 << (size - 2)
    else:
        samples = 256 << (size - 8)
    position += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if _crc(head[: position + 1], _CRC8, 8):
        return None
    return number * (1 if head[1] & 1 else block) + samples


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) & 1 else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return tuple(table)


_CRC8, _CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)


def _crc(data: bytes, table: tuple[int, ...], bits: int) -> int:
    """The checksum of ``data``: 0 where ``data`` ends with its own checksum."""
    value = 0
    top = bits - 8
    mask = (1 << bits) - 1
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> top ^ byte]
    return value


def _mp3_frame(data: Data, position: int) -> tuple[int, int, int] | None:
    """(bytes, samples, bytes of side information) of the frame at ``position``, else None."""
    head = data[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version = head[1] >> 3 & 3
    is_version_1 = version == 3
    layer = 4 - (head[1] >> 1 & 3)
    rate = head[2] >> 2 & 3
    speed = head[2] >> 4
    is_padded = head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or speed in (0, 15):
        return None
    bit_s = 1000 * _MP3_KBIT_S[is_version_1, layer][speed - 1]
    rate_hz = _MP3_RATES_HZ[version][rate]
    if layer == 1:
        samples = 384
        size = (12 * bit_s // rate_hz + is_padded) * 4
    else:
        samples = 1152 if layer == 2 or is_version_1 else 576
        size = samples // 8 * bit_s // rate_hz + is_padded
    is_mono = head[3] >> 6 == 3
    if is_version_1:
        side = 17 if is_mono else 32
    else:
        side = 9 if is_mono else 17
    return size, samples, side


def examined_mp3(data: Data, start: int) -> Examined:
    """Follows the frames to the end and compares their count with that of the "Xing" frame.

    A VBR stream without a "Xing" frame gets one, because its length would be a guess.
    """
    first = _mp3_frame(data, start)
    if first is None:
        return Examined()
    size, _, side = first
    tag = start + 4 + side
    has_count = data[tag : tag + 4] in (b"Xing", b"Info")
    position = start
    frames = 0
    sizes = set()
    while (frame := _mp3_frame(data, position)) is not None:
        position += frame[0]
        frames += 1
        sizes.add(data[position - frame[0] + 2] >> 4)
    if position > len(data):
        return Examined(
            f"is cut off: {position - len(data)} bytes of its last frame are missing; "
            "copy or render it again"
        )
    if has_count:
        flags = int.from_bytes(data[tag + 4 : tag + 8], "big")
        field = tag + 8 + (4 if flags & 1 else 0)
        promised = int.from_bytes(data[field : field + 4], "big") if flags & 2 else 0
        missing = start + promised - len(data)
        if missing > 2 * size:
            return cut_off(missing, promised)
        count = int.from_bytes(data[tag + 8 : tag + 12], "big") if flags & 1 else 0
        if count > frames:
            return Examined(corrected=patched(data, tag + 8, struct.pack(">I", frames - 1)))
        return Examined()
    if len(sizes) < 2 or frames < 2:
        return Examined()
    counting = _counting_frame(data[start : start + 4], side, frames, position - start)
    return Examined(corrected=b"".join((data[:start], counting, data[start:])))


def _counting_frame(head: bytes, side: int, frames: int, size: int) -> bytes:
    """A silent frame of the same kind that counts the frames and bytes after it."""
    for speed in range(1, 15):
        own = bytes([head[0], head[1] | 1, speed << 4 | head[2] & 0x0D, head[3]])
        found = _mp3_frame(own, 0)
        if found is not None and found[0] >= 4 + side + 16:
            count = b"Xing" + struct.pack(">III", 3, frames, size + found[0])
            return (own + bytes(side) + count).ljust(found[0], b"\0")
    raise AssertionError("every kind of mp3 has a frame of 64 bytes")
