"""Reads a TensorFlow 2 checkpoint (tensor bundle) without TensorFlow.

``PREFIX.index`` is a table of sorted keys in the format of LevelDB (``table_format.md`` in its
sources); the values are protocol buffers, ``BundleHeaderProto`` for the empty key and
``BundleEntryProto`` for the others (``tensor_bundle.proto`` in TensorFlow's sources). The entries
point into ``PREFIX.data-00000-of-00001`` (one such file a shard). Nothing in it is executed.

Checked: the table's magic number, each block's checksum, each entry's bounds and byte count.
Refused: compressed blocks (bundles have none), big-endian bundles, tensors saved in slices.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import UserError

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES, TRAILER_BYTES = 48, 5  # a block's trailer: one byte of compression, four of checksum
# DataType numbers of TensorFlow's types.proto that have a torch counterpart of the same bytes
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Bundle:
    """``tensors`` by name; ``unread`` maps entries without a numeric type to their type number.

    Such as the object graph.
    """

    tensors: Mapping[str, Tensor]
    unread: Mapping[str, int]


def read_bundle(prefix: str | Path) -> Bundle:
    """Every tensor of the checkpoint that is named by ``prefix`` (the path without ``.index``).

    Raises ``FileNotFoundError`` for a missing file and ``UserError`` for one that is damaged or
    not of this format.
    """
    index_path = Path(f"{prefix}.index")
    index = _read_file(index_path)
    try:
        entries = dict(_table(index))
        header = _message(entries.pop(b""))
        if _number(header, 2):
            raise UserError("it was written on a big-endian machine; save it again on another")
        shard_count = _number(header, 1)
        records = {key.decode(): _message(value) for key, value in entries.items()}
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise UserError(
            f"{index_path} is damaged: it ends or breaks inside a record; copy it again"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{index_path} cannot be read as a TensorFlow checkpoint: {error}"
        ) from error
    shards: dict[int, bytes] = {}
    tensors, unread = {}, {}
    for name, record in records.items():
        kind, shard = _number(record, 1), _number(record, 3)
        if kind not in DTYPES:
            unread[name] = kind
            continue
        if shard >= shard_count:
            raise UserError(
                f"{index_path}: {name!r} is in shard {shard} of {shard_count}; the index is damaged"
            )
        if shard not in shards:
            shards[shard] = _read_file(Path(f"{prefix}.data-{shard:05d}-of-{shard_count:05d}"))
        try:
            tensors[name] = _tensor(record, DTYPES[kind], shards[shard])
        except (ValueError, IndexError, struct.error) as error:
            raise UserError(f"{index_path}: {name!r} cannot be read: {error}") from error
    return Bundle(tensors, unread)


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; a TensorFlow checkpoint is an .index file and its .data files"
            " side by side"
        )
    return path.read_bytes()


def _tensor(record: Mapping[int, list], dtype: torch.dtype, data: bytes) -> Tensor:
    if 7 in record:
        raise UserError("it was saved in slices (a partitioned variable), which is not supported")
    shape = (
        [_number(_message(dimension), 1) for dimension in _message(record[2][0]).get(2, [])]
        if 2 in record
        else []
    )
    offset, size = _number(record, 4), _number(record, 5)
    expected = math.prod(shape) * dtype.itemsize
    if size != expected:
        raise UserError(
            f"shape {tuple(shape)} of {dtype} takes {expected} bytes, the entry has {size}"
        )
    if offset + size > len(data):
        raise UserError(
            f"it ends at byte {offset + size} of a data file of {len(data)}; the file is cut off,"
            " copy it again"
        )
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[offset : offset + size]), dtype=dtype).reshape(shape)


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a LevelDB table; its footer points to an index of data blocks."""
    if len(table) < FOOTER_BYTES or struct.unpack("<Q", table[-8:])[0] != MAGIC:
        raise UserError(
            "it does not end with the table's magic number (it is cut off, or something else)"
        )
    footer = table[-FOOTER_BYTES:]
    place = 0
    for _ in range(2):  # the metaindex block, which bundles leave empty
        _, place = _varint(footer, place)
    for _, handle in _block(table, footer, place):
        yield from _block(table, handle, 0)


def _block(table: bytes, handle: bytes, place: int) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of one block; a key shares its first bytes with the one before.

    The block ends with its restart points.
    """
    offset, place = _varint(handle, place)
    size, _ = _varint(handle, place)
    block = table[offset : offset + size]
    trailer = table[offset + size : offset + size + TRAILER_BYTES]
    compression, checksum = struct.unpack("<BI", trailer)
    if masked_crc32c(block + trailer[:1]) != checksum:
        raise UserError("a block's checksum is wrong; copy the file again")
    if compression:
        raise UserError("its blocks are compressed, which a checkpoint's never are")
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 * (restarts + 1)
    at = 0
    key = b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise UserError("a record reaches past its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _message(raw: bytes) -> dict[int, list]:
    """Fields of a protocol buffer by number, with their values in order: int or bytes."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(raw, at)
        elif kind == BYTES:
            length, at = _varint(raw, at)
            value = raw[at : at + length]
            at = at + length
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
            value = raw[at : at + length]
            at = at + length
        else:
            raise UserError(
                f"wire type {kind} in a record, which no protocol buffer of a checkpoint uses"
            )
        if at > len(raw):
            raise UserError("a field reaches past its record")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: Mapping[int, list], number: int) -> int:
    """A field's integer; 0, as everywhere in protocol buffers, where it is left out."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise UserError(f"field {number} should be a number")
    return value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(value, place after it): seven bits a byte, lowest first.

    Raises ``IndexError`` past the end.
    """
    value = shift = 0
    while shift < 64:
        byte = raw[at]
        value = value | (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
    raise UserError("a number longer than 64 bits")


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reversed
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def masked_crc32c(raw: bytes) -> int:
    """CRC-32C of ``raw``, rotated and offset as in LevelDB.

    So a checksum of checksums is not degenerate.
    """
    crc = 0xFFFFFFFF
    for byte in raw:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
