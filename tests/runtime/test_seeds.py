"""Random keys of seeds of any size."""

import jax
import numpy as np
import pytest

from fqs_jax.runtime import seeds


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
def test_seeds_of_one_word_are_those_of_jax(seed):
    assert (jax.random.key_data(seeds.key(seed)) == jax.random.key_data(jax.random.key(seed))).all()


def test_larger_seeds_differ_from_each_other_and_are_the_same_every_time():
    numbers = [1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64, 2**64 + 2**32, 10**20, 10**400]
    keys = [np.asarray(jax.random.key_data(seeds.key(number))) for number in numbers]
    again = [np.asarray(jax.random.key_data(seeds.key(number))) for number in numbers]
    np.testing.assert_array_equal(keys, again)
    assert len({key.tobytes() for key in keys}) == len(numbers)
