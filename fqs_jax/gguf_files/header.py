"""The header of a GGUF file: its metadata, and the places of its tensors.

The reader of the library `gguf` believes the counts of a file: it would read an array of 10^12 entries one by
one, beyond the end of the file too. So the header is read here, and every count is compared with the bytes
that are left before anything of that size is made. The types of tensors come from the library.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

MOST_BYTES = 1 << 27  # of a header; one with 256,000 tokens has about 10 MB
_VERSIONS = (2, 3)
_LEAST_ENTRY, _LEAST_TENSOR = 13, 24  # bytes of the shortest entries
# Entries of metadata, tensors, and texts of a list: objects of Python, which take far more memory than bytes.
_MOST_ENTRIES, _MOST_TENSORS, _MOST_TEXTS = 1 << 16, 1 << 16, 1 << 22
_MOST_DIMENSIONS = 4
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}
# Beginnings of other files that bear the name of a GGUF file, and what they are.
_OTHER_FILES = {
    inputs.LFS_POINTER: "a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"PK\x03\x04": "pickled weights of PyTorch; convert them with transformers",
    b"<": "a web page; download the file itself",
    **dict.fromkeys(
        (b"lmgg", b"fmgg", b"tjgg", b"algg"),
        "a file of llama.cpp from before GGUF; fetch a newer one",
    ),
}


class Tensor(NamedTuple):
    """The place of a tensor.

    Attributes:
      kind: how its values are stored.
      shape: rows first, as in numpy and PyTorch; the file has the reverse.
      start: its first byte in the file.
      num_bytes: its length.
    """

    file: Path
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def place(self) -> str:
        """File and name, as errors show them."""
        return f"{inputs.name(self.file)}: tensor {printable(self.name, 120)}"


class Header(NamedTuple):
    """The header of a GGUF file.

    Attributes:
      metadata: values by key. Arrays of numbers are numpy arrays, and arrays of texts are lists. A number
        of type float32 is the shortest decimal with the same float32: 1e-05, not 9.999999747e-06.
      tensors: places by name, in the order of the file.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: Path) -> Header:
    """The header of a file, with every tensor inside the file and none over another.

    Raises:
      UserError: no regular file, another format or version, or any number, text or type that cannot be.
    """
    with inputs.open_file(path) as file:
        cursor = _Cursor(file, path)
        _check_start(cursor)
        num_tensors, num_entries = cursor.number("Q"), cursor.number("Q")
        cursor.check_count(num_tensors, _LEAST_TENSOR, "tensors", _MOST_TENSORS)
        cursor.check_count(num_entries, _LEAST_ENTRY, "entries of metadata", _MOST_ENTRIES)
        metadata: dict[str, Any] = {}
        for i in range(num_entries):
            cursor.where = f"entry {i} of its metadata"
            key = cursor.text()
            cursor.where = printable(key, 120)
            if key in metadata:
                raise cursor.error("occurs twice")
            metadata[key] = _value(cursor)
        found = []
        for i in range(num_tensors):
            cursor.where = f"tensor {i}"
            found.append(_tensor(cursor))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise UserError(f"{inputs.name(path)}: general.alignment is no number of bytes")
        start = -(-cursor.position // alignment) * alignment
        return Header(path, metadata, _placed(found, start, cursor.size))


class _Cursor:
    """A file that is read forwards, within its bytes and within those that a header may have.

    Attributes:
      position: bytes that were read.
      size: bytes of the file.
      where: what is being read, for errors.
    """

    def __init__(self, file: BinaryIO, path: Path):
        self.path, self.position, self.where = path, 0, "the start"
        self.size = os.fstat(file.fileno()).st_size
        self._file = file

    def error(self, problem: str) -> UserError:
        return UserError(f"{inputs.name(self.path)}: {self.where} {problem}")

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
          UserError: the file ends before, or the header is too long.
        """
        end = self.position + count
        if end > self.size:
            raise self.error(
                f"needs {count} bytes, and the file ends after {self.size - self.position}; it is "
                "damaged or incomplete, fetch it again"
            )
        if end > MOST_BYTES:
            raise self.error(f"goes beyond {MOST_BYTES >> 20} MiB, the most that a header may have")
        data = self._file.read(count)
        if len(data) < count:
            raise self.error("cannot be read: the file has become shorter")
        self.position = end
        return data

    def number(self, code: str) -> Any:
        """The next number, by its code of the module `struct`."""
        [value] = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))
        return value

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise self.error("has a text that is not UTF-8; the file is damaged") from error

    def check_count(self, count: int, least: int, what: str, most: int) -> None:
        """Refuse a count of more than `most` things, or of more than the file has room for.

        Args:
          least: bytes that each takes at least.
        """
        if count * least > self.size - self.position:
            raise self.error(
                f"claims {count} {what}, more than the file can hold; it is damaged, fetch it again"
            )
        if count > most:
            raise self.error(f"claims {count} {what}, and no model has more than {most}")


def _check_start(cursor: _Cursor) -> None:
    """Read magic and version.

    Raises:
      UserError: names the format of a file that is something else.
    """
    if cursor.size == 0:
        raise UserError(f"{inputs.name(cursor.path)} is empty; fetch it again")
    if cursor.take(min(cursor.size, 4)) != b"GGUF":
        with inputs.open_file(cursor.path) as file:
            start = file.read(64)
        kinds = [what for begin, what in _OTHER_FILES.items() if start.startswith(begin)]
        if start[8:10] == b'{"':
            kinds = ["a safetensors file; programs take the folder that it belongs to"]
        looks = f" but {kinds[0]}" if kinds else "; fetch it again"
        raise UserError(f"{inputs.name(cursor.path)} is no GGUF file{looks}")
    version = cursor.number("I")
    if version & 0xFFFF == 0 and version:
        raise UserError(
            f"{inputs.name(cursor.path)} is a big-endian GGUF file; convert it with "
            "gguf-convert-endian FILE little, or fetch the usual one"
        )
    if version not in _VERSIONS:
        raise UserError(
            f"{inputs.name(cursor.path)} has GGUF version {version}, and only "
            f"{' and '.join(map(str, _VERSIONS))} are read; fetch a newer file"
        )


def _value(cursor: _Cursor) -> Any:
    kind = _value_kind(cursor)
    if kind == GGUFValueType.STRING:
        return cursor.text()
    if kind in _SCALARS:
        value = cursor.number(_SCALARS[kind])
        return float(str(np.float32(value))) if kind == GGUFValueType.FLOAT32 else value
    kind, count = _value_kind(cursor), cursor.number("Q")
    if kind == GGUFValueType.STRING:
        cursor.check_count(count, 8, "texts", _MOST_TEXTS)
        return [cursor.text() for _ in range(count)]
    if kind in _SCALARS:
        dtype = np.dtype(f"<{_SCALARS[kind]}")
        cursor.check_count(count, dtype.itemsize, "numbers", MOST_BYTES)
        return np.frombuffer(cursor.take(count * dtype.itemsize), dtype)
    raise cursor.error("is an array of arrays, which no model needs")


def _value_kind(cursor: _Cursor) -> GGUFValueType:
    number = cursor.number("I")
    try:
        return GGUFValueType(number)
    except ValueError as error:
        raise cursor.error(f"has the unknown type {number}; the file is damaged") from error


def _tensor(cursor: _Cursor) -> Tensor:
    """The description of one tensor; its start counts from the first tensor's."""
    name = cursor.text()
    cursor.where = f"tensor {printable(name, 120)}"
    if not 1 <= (dimensions := cursor.number("I")) <= _MOST_DIMENSIONS:
        raise cursor.error(f"has {dimensions} dimensions; the file is damaged")
    sizes = [cursor.number("Q") for _ in range(dimensions)]
    number, start = cursor.number("I"), cursor.number("Q")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise cursor.error(
            f"has the type {number}, which is not known; fetch another quantisation of the model"
        ) from error
    if not _is_read(kind):
        raise cursor.error(
            f"has the type {kind.name}, which is not read; fetch another quantisation of the model"
        )
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if 0 in sizes or sizes[0] % block:
        raise cursor.error(f"has the shape {sizes[::-1]}, which type {kind.name} cannot have")
    num_bytes = math.prod(sizes) // block * block_bytes
    return Tensor(cursor.path, name, kind, tuple(sizes[::-1]), start, num_bytes)


@functools.cache
def _is_read(kind: GGMLQuantizationType) -> bool:
    """True if the library can turn values of this type into float32."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _placed(found: list[Tensor], start: int, size: int) -> dict[str, Tensor]:
    """Tensors by name, at their places in the file.

    Raises:
      UserError: two have one name, one lies beyond the end, or two overlap. Without the last, a small
        file could claim any number of large tensors.
    """
    tensors = {tensor.name: tensor._replace(start=start + tensor.start) for tensor in found}
    if len(tensors) < len(found):
        names = [tensor.name for tensor in found]
        twice = next(tensor for tensor in found if names.count(tensor.name) > 1)
        raise UserError(f"{twice.place} occurs twice; the file is damaged")
    end, last = start, None
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start < end and last is not None:
            raise UserError(f"{tensor.place} lies over {printable(last.name, 120)}")
        end, last = tensor.start + tensor.num_bytes, tensor
        if end > size:
            raise UserError(
                f"{tensor.place} ends at byte {end}, and the file at {size}; it is incomplete, fetch it "
                "again"
            )
    return tensors
