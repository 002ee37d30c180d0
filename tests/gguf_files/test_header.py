"""Headers against llama.cpp's own reader, and files that are broken or something else."""

import os
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax import gguf_files
from fqs_jax.gguf_files import header, parts, weights
from fqs_jax.runtime.errors import UserError
from tests import gguf_models


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A valid file of which tests break copies."""
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    arrays = gguf_models.tensors("llama")
    return gguf_models.write(path, gguf_models.metadata("llama"), arrays, Kind.Q8_0)


def refusal(path: Path) -> str:
    """The one line about a file, after which nothing was written."""
    out = path.parent / "out"
    with pytest.raises(UserError) as caught:
        gguf_files.convert(path, out)
    line = str(caught.value)
    assert "\n" not in line and path.name in line and len(line) < 800
    assert not list(path.parent.glob("*out*"))
    return line


def start(version: int = 3, num_tensors: int = 0, num_entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries) + rest


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def test_a_header_is_that_of_the_library(whole):
    found, theirs = header.read(whole), gguf.GGUFReader(whole)
    own = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(found.metadata) == list(own)
    for key, field in own.items():
        value, expected = found.metadata[key], field.contents()
        if isinstance(value, float):
            assert np.float32(value) == np.float32(expected), key
        else:
            assert list(value) == expected if isinstance(expected, list) else value == expected, key
    assert list(found.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ours = found.tensors[tensor.name]
        assert (ours.start, ours.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert (
            ours.shape == tuple(map(int, reversed(tensor.shape)))
            and ours.kind == tensor.tensor_type
        )
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(weights.read_values(ours), expected)


@pytest.mark.parametrize("kind", [kind for kind in Kind if header._is_read(kind)])
def test_every_type_that_the_library_reads(tmp_path, kind):
    """Two rows of one block each, as the library's own reader takes them."""
    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(tmp_path / "it.gguf", "llama")
    raw = np.random.default_rng(0).integers(0, 60, (2, num_bytes), np.uint8)
    raw = raw.view(np.float32) if kind == Kind.F32 else raw
    raw = raw.view(np.float16) if kind == Kind.F16 else raw
    writer.add_tensor("x", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [tensor] = header.read(tmp_path / "it.gguf").tensors.values()
    values = weights.read_values(tensor)
    assert values.shape == (2, block) and values.dtype == np.float32
    [theirs] = gguf.GGUFReader(tmp_path / "it.gguf").tensors
    np.testing.assert_array_equal(values, gguf.dequantize(theirs.data, kind).reshape(2, block))


ENTRY = entry("general.architecture", 8, text("llama"))
TENSOR = text("x") + struct.pack("<IQ", 1, 32)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "model.gguf is empty"),
        (b"GG", "is no GGUF file"),
        (b"PK\x03\x04" * 9, "is no GGUF file but pickled weights"),
        (b"tjgg" * 9, "is no GGUF file but a file of llama.cpp from before GGUF"),
        (b"<!doctype html>", "is no GGUF file but a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is no GGUF file but a pointer of Git LFS",
        ),
        (struct.pack("<Q", 40) + b'{"a": 1}' * 9, "is no GGUF file but a safetensors file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file; convert it with"),
        (start(version=1), "has GGUF version 1"),
        (start(version=4), "has GGUF version 4"),
        (start(num_tensors=10**9), "claims 1000000000 tensors, more than the file can hold"),
        (start(num_entries=10**18), "entries of metadata, more than the file can hold"),
        (start(num_entries=1, rest=struct.pack("<Q", 2**62) + b"x" * 99), "the file ends after"),
        (
            start(num_entries=1, rest=entry("k", 8, struct.pack("<Q", 10**12))),
            "k needs 1000000000000",
        ),
        (
            start(num_entries=1, rest=entry("k", 9, struct.pack("<IQ", 0, 10**12))),
            "claims .* numbers",
        ),
        (
            start(num_entries=1, rest=entry("k", 9, struct.pack("<IQ", 8, 10**12))),
            "claims .* texts",
        ),
        (start(num_entries=1, rest=entry("k", 9, struct.pack("<IQ", 9, 1))), "array of arrays"),
        (start(num_entries=1, rest=entry("k", 77, b"12345678")), "k has the unknown type 77"),
        (start(num_entries=2, rest=ENTRY * 2), "general.architecture occurs twice"),
        (
            start(num_entries=1, rest=entry("\x1b[2J", 77, b"12345678")),
            r"\\x1b\[2J has the unknown",
        ),
        (start(num_entries=1, rest=struct.pack("<Q", 2) + b"\xff\xff" * 9), "is not UTF-8"),
        (
            start(num_entries=1, rest=entry("general.alignment", 4, bytes(4))),
            "general.alignment is no",
        ),
        (
            start(num_tensors=1, rest=text("x") + struct.pack("<I", 9) + bytes(40)),
            "has 9 dimensions",
        ),
        (start(num_tensors=1, rest=TENSOR + struct.pack("<IQ", 99, 0)), "x has the type 99, which"),
        (
            start(num_tensors=1, rest=TENSOR + struct.pack("<IQ", 28, 0)),
            "x has the type F64, which",
        ),
        (start(num_tensors=1, rest=TENSOR + struct.pack("<IQ", 12, 0)), "type Q4_K cannot have"),
        (start(num_tensors=1, rest=TENSOR + struct.pack("<IQ", 0, 2**63)), "ends at byte"),
        (start(num_tensors=1, rest=TENSOR + struct.pack("<IQ", 0, 0)), "it is incomplete"),
        (
            start(num_tensors=2, rest=2 * (TENSOR + struct.pack("<IQ", 0, 0)) + bytes(999)),
            "x occurs twice",
        ),
        (
            start(
                num_tensors=2,
                rest=TENSOR
                + struct.pack("<IQ", 0, 0)
                + TENSOR.replace(b"x", b"y")
                + struct.pack("<IQ", 0, 64)
                + bytes(999),
            ),
            "tensor y lies over x",
        ),
        (start(), "'general.architecture' is missing"),
    ],
)
def test_broken_headers(tmp_path, content, expected):
    (tmp_path / "model.gguf").write_bytes(content)
    assert re.search(expected, refusal(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (start(num_entries=1, rest=entry("k", 8, struct.pack("<Q", 1 << 30))), "beyond 128 MiB"),
        (start(num_entries=1 << 20), "claims 1048576 entries of metadata, and no model has more"),
        (start(num_tensors=1 << 20), "claims 1048576 tensors, and no model has more than 65536"),
        (start(num_entries=1, rest=entry("k", 9, struct.pack("<IQ", 8, 1 << 25))), "texts, and no"),
    ],
)
def test_headers_of_absurd_length(tmp_path, content, expected):
    """Of sparse files, which have room for all that they claim."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    os.truncate(path, 1 << 31)
    assert expected in refusal(path)


def test_special_files(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nothing")
    kinds = {
        "folder": "a folder",
        "pipe": "a named pipe",
        "zero": "a device",
        "gone": "no such file",
    }
    for name, kind in kinds.items():
        assert kind in refusal(tmp_path / f"{name}.gguf")


def test_a_link_to_a_file_is_that_file(tmp_path, whole):
    (tmp_path / "link.gguf").symlink_to(whole)
    assert (
        parts.read_model(tmp_path / "link.gguf").tensors.keys() == header.read(whole).tensors.keys()
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"general__type": "adapter"}, "it is a LoRA adapter.* llama-export-lora"),
        ({"general__type": "mmproj"}, "reads images"),
        ({"general__architecture": "clip"}, "reads images"),
        ({"general__type": "imatrix"}, "general.type is 'imatrix'"),
        ({"general__type": 3}, "general.type should be a text"),
        ({"split__count": 3, "split__no": 0}, "is part 1 of 3 of a model, but its name"),
        ({"split__count": "many"}, "split.count should be a number"),
    ],
)
def test_files_that_are_no_whole_model(tmp_path, changes, expected):
    values = gguf_models.metadata("llama", **changes)
    path = gguf_models.write(tmp_path / "model.gguf", values, {})
    assert re.search(expected, refusal(path))


@given(data=st.data())
def test_any_change_is_read_or_refused_in_one_line(tmp_path_factory, whole, data):
    """Bytes of the header are overwritten, removed or repeated; no text, memory or time is lost."""
    content = bytearray(whole.read_bytes())
    end = min(tensor.start for tensor in header.read(whole).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, end - 1))
        new = data.draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f"])
        )
        how = data.draw(st.sampled_from(["overwrite", "insert", "delete", "cut"]))
        if how == "cut":
            del content[at:]
        else:
            content[at : at + (0 if how == "insert" else len(new))] = (
                b"" if how == "delete" else new
            )
    folder = tmp_path_factory.mktemp("changed")
    (folder / "model.gguf").write_bytes(content)
    try:
        model = parts.read_model(folder / "model.gguf")
        assert all(t.start + t.num_bytes <= len(content) for t in model.tensors.values())
    except UserError as error:
        assert "\n" not in str(error)


def test_every_truncation_is_refused(tmp_path, whole):
    content, path = whole.read_bytes(), tmp_path / "model.gguf"
    lengths = [*range(0, 400, 7), *np.linspace(400, len(content) - 1, 60).astype(int)]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"model\.gguf"):
            parts.read_model(path)
