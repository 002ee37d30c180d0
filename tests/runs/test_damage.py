"""Fingerprints: no change of a single byte goes unnoticed, and a mesh changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.runs import damage
from fqs_jax.runs.damage import fingerprint

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool")
SHAPES = ((), (1,), (7,), (3, 5), (2, 3, 4))


def random_array(shape, dtype, seed=0):
    """Any bits at all, so NaNs, infinities and denormal numbers too."""
    rng = np.random.default_rng(seed)
    dtype = jnp.dtype(dtype)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return raw.view(dtype).reshape(shape)


def value(array):
    return int(fingerprint(array))


def slow(array):
    """The definition, in numpy, one word at a time."""

    def mix(x):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    total = 0
    for index in np.ndindex(array.shape):
        word = int.from_bytes(np.asarray(array[index]).tobytes(), "little")
        mask = sum(mix((i + (a + 1) * 0x9E3779B9) % 2**32) for a, i in enumerate(index)) % 2**32
        total += mix(word ^ mask)
    return total % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_it_is_defined_to_be(shape, dtype):
    array = random_array(shape, dtype)
    result = fingerprint(jnp.asarray(array))
    assert result.dtype == jnp.uint32 and result.shape == ()
    assert int(result) == slow(array)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bool"])
def test_every_flipped_bit_is_noticed(dtype):
    array = random_array((3, 5), dtype)
    before = value(array)
    raw = array.view(np.uint8)
    for place in np.ndindex(raw.shape):
        for bit in range(8):
            raw[place] ^= 1 << bit
            assert value(array) != before
            raw[place] ^= 1 << bit
    assert value(array) == before


@given(st.integers(0, 4 * 60 - 1), st.integers(1, 255), st.integers(0, 2**20))
def test_any_change_of_a_byte_is_noticed(place, flip, seed):
    array = random_array((3, 4, 5), "float32", seed)
    before = value(array)
    array.reshape(-1).view(np.uint8)[place] ^= flip
    assert value(array) != before


def test_every_flipped_truth_is_noticed():
    array = np.zeros((4, 4), bool)
    values = {value(array)}
    for place in np.ndindex(array.shape):
        array[place] = True
        values.add(value(array))
        array[place] = False
    assert len(values) == 17


@pytest.mark.parametrize("dtype", DTYPES)
def test_moved_and_lost_blocks_are_noticed(dtype):
    array = random_array((8, 6, 4), dtype)
    changed = {
        "as it is": array,
        "swapped on axis 0": array[[1, 0, *range(2, 8)]],
        "swapped on axis 1": array[:, [5, *range(1, 5), 0]],
        "swapped on axis 2": array[..., [1, 0, 2, 3]],
        "rolled": np.roll(array, 1, axis=1),
        "reversed": array[::-1],
        "zeroed": np.where(np.arange(8)[:, None, None] == 3, np.zeros_like(array), array),
        "all zeros": np.zeros_like(array),
        "repeated": array[[0, 0, *range(2, 8)]],
    }
    values = {name: value(other) for name, other in changed.items()}
    assert len(set(values.values())) == len(values), values


def test_numbers_that_are_equal_but_not_the_same_are_told_apart():
    assert value(np.float32([0.0])) != value(np.float32([-0.0]))
    nans = np.uint32([0x7FC00000, 0x7FC00001]).view(np.float32)
    assert value(nans[:1]) != value(nans[1:])


def test_words_of_few_bits_are_spread_over_all_of_them():
    """Sums of plain words would have only 16 bits to differ in: bfloat16 numbers in float32."""
    array = np.asarray(random_array((64, 64), "int8"), np.float32)
    values = {value(np.roll(array, n, axis=0)) for n in range(64)}
    assert len(values) == 64 and len({v & 0xFFFF for v in values}) > 32


def test_a_tree_keeps_its_structure():
    tree = {"a": jnp.ones(3), "b": [jnp.zeros((2, 2), jnp.bfloat16), jnp.int32(4)]}
    result = fingerprint(tree)
    assert jax.tree.structure(result) == jax.tree.structure(tree)
    assert damage.describe(tree)["b/1"] == {
        "shape": [],
        "dtype": "int32",
        "fingerprint": value(np.int32(4)),
    }


def test_little_memory_is_needed():
    """Not a copy of the leaf: on the CPU, one layer of a stack; elsewhere sums are fused."""
    leaf = jax.ShapeDtypeStruct((32, 256, 512), jnp.float32)
    memory = damage._leaf.lower(leaf).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= leaf.size * 4 / 16


def test_what_does_not_fit_is_named():
    described = damage.describe({"lm": {"w": jnp.ones((3, 4))}})
    abstract = jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)
    assert damage.misfit(described, {"lm": {"w": abstract}}) is None
    other = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    message = damage.misfit(described, {"lm": {"w": other}})
    assert message == "lm/w has shape (3, 4) in the checkpoint, but (3, 5) is expected"
    assert damage.misfit(described, {"lm": {}}) == "lm/w is in the checkpoint, but not expected"
    assert damage.misfit(described, {"lm": {"w": abstract, "v": abstract}}) == (
        "lm/v is not in the checkpoint"
    )
