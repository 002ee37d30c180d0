"""Random keys from seeds of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

MAX_SEED = 2**32 - 1  # of flags; a config takes larger ones
_WORD = 2**32  # what a key of JAX takes of a whole number; it drops the rest in silence


def key(seed: int) -> jax.Array:
    """The key of a seed; different seeds have different keys.

    Up to 2**32 - 1 it is `jax.random.key(seed)`. Of a larger seed the higher words are folded in.

    Args:
      seed: a whole number from 0 on.
    """
    import jax  # here, because flags need only the number above

    made = jax.random.key(seed % _WORD)
    seed //= _WORD
    while seed:
        made = jax.random.fold_in(made, seed % _WORD)
        seed //= _WORD
    return made
