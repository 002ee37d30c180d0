"""Models small enough for the slow rollout, with weights that hide no error.

Every axis has a different size, so that swapped axes cannot fit. Weights are large, so that every part
changes the outputs by much more than rounding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig, RopeScaling
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import parameters
from fqs_jax.thinking.config import Thinker, ThoughtConfig

VOCAB = 19
MASKED_IDS = (17, 4)
# With 8 components at theta 100: one frequency kept, one blended, two slowed.
LLAMA3_ROPE = RopeScaling(
    factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_seq_len=32
)


def model_config(**changes: Any) -> ModelConfig:
    """Grouped-query attention, untied, without rematerialisation, all logits at once."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB,
        "width": 12,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_dim": 20,
        "rope_theta": 100.0,
        "remat": "none",
        "vocab_chunk": 0,
    }
    return ModelConfig(**fields | changes)


def random_params(model: ModelConfig, seed: int = 0) -> Params:
    """A full tree, {lm, thought}, away from zeros and ones."""
    rng = np.random.default_rng(seed)

    def tree() -> Params:
        lm = decoder.init(model, jax.random.key(0))
        thinker = Thinker(model, ThoughtConfig(n_ahead=4))
        thought = parameters.init(thinker, lm, jax.random.key(0), 0, 1)
        return {"lm": lm, "thought": thought}

    def draw(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = path[-1].key
        if name == "scale":
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif name in ("start", "end"):
            values = rng.normal(0, 0.01, leaf.shape)  # used times 100
        else:
            values = rng.normal(0, 1.0 if name == "embedding" else 0.35, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(tree))


def texts(lengths: tuple[int, ...], padded_to: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Random rows of the given lengths, padded on the right: tokens int32 and mask bool, [B, T]."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (len(lengths), padded_to))
    mask = np.arange(padded_to) < np.array(lengths)[:, None]
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)


def flat(tree: Params) -> dict[str, np.ndarray]:
    """Leaves by their path: `lm/layers/q/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}
