"""Metrics of a stage as an event file of TensorBoard, written without TensorFlow.

A file of records (TFRecord): length, checksum of the length, content, checksum of the content. Each
content is a message `Event` of TensorFlow's event.proto, of which a few fields are used.
"""

from __future__ import annotations

import functools
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


class EventFile:
    """A new event file in a folder; TensorBoard draws all of a folder as one curve.

    Raises:
      OSError: the disk refuses.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.fqs"
        self._file = (folder / name).open("ab")
        # Field 3, file_version.
        self._write(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))

    def step(self, row: Mapping[str, Any]) -> None:
        """Append the numbers of a row of metrics.jsonl; those that were not finite are left out."""
        numbers = {key: value for key, value in row.items() if key not in ("step", "time")}
        numbers |= {f"time/{key}": value for key, value in row.get("time", {}).items()}
        values = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value))
            for name, value in numbers.items()
            if value is not None
        )
        step = b"\x10" + _varint(row["step"])
        self._write(_double(1, time.time()) + step + _bytes(5, values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        self._file.write(record(event))
        self._file.flush()


def record(content: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(content))
    return length + _masked(length) + content + _masked(content)


def crc32c(content: bytes) -> int:
    """The checksum CRC-32C (RFC 3720, appendix B.4)."""
    crc, table = 0xFFFFFFFF, _table()
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    entries = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        entries.append(crc)
    return tuple(entries)


def _masked(content: bytes) -> bytes:
    """The checksum as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


# Parts of messages, as protocol buffers encode them: number and kind of the field, then the value.
def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
