"""The optax chain of a stage: clip, AdamW, warm-up and decay, a learning rate per part."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from fqs_jax.model.decoder import Params

PARTS = ("lm", "talk_head", "marks")  # each has a gradient norm and a learning rate
# apply_if_finite applies bad steps after this many in a row; the training loop stops long before.
_NEVER = 2**31 - 1


def schedule(o: ml_collections.ConfigDict, learning_rate: float, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then linear decay to 0 at `decay_steps` (0 = the stage's last step).

    Args:
      o: the section `optimizer` of a config.
    """
    total = max(o.decay_steps or steps, o.warmup_steps + 1)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, o.warmup_steps),
            optax.linear_schedule(learning_rate, 0.0, total - o.warmup_steps),
        ],
        [o.warmup_steps],
    )


def make(
    o: ml_collections.ConfigDict, learning_rate: float, steps: int
) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, AdamW, per-part learning rates; steps with NaN or inf are skipped.

    Adam is invariant to the scale of a gradient, so a part's learning rate is scaled after it. Norms and
    biases have no weight decay.

    Args:
      o: the section `optimizer` of a config.
    """
    scales = {name: optax.scale(o.lr_scale[name]) for name in PARTS}
    chain = optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.scale_by_adam(o.beta1, o.beta2, o.eps),
        optax.add_decayed_weights(o.weight_decay, mask=_decays),
        optax.partition(scales, part_labels),
        optax.scale_by_learning_rate(schedule(o, learning_rate, steps)),
    )
    return optax.apply_if_finite(chain, max_consecutive_errors=_NEVER)


def part_labels(params: Params) -> Any:
    """A tree like `params` with the name of its part at every leaf."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = [entry.key for entry in path]
        if names[0] == "lm":
            return "lm"
        return "talk_head" if names[1] == "talk_head" else "marks"

    return jax.tree_util.tree_map_with_path(label, params)


def part_norms(grads: Params) -> dict[str, jax.Array]:
    """The gradient norm of each part in the tree, by the name `grad_norm/PART`."""
    leaves: dict[str, list[jax.Array]] = {part: [] for part in PARTS}
    labels = jax.tree.leaves(part_labels(grads))
    for leaf, part in zip(jax.tree.leaves(grads), labels, strict=True):
        leaves[part].append(leaf.astype(jnp.float32))
    return {f"grad_norm/{part}": optax.tree.norm(own) for part, own in leaves.items() if own}


def _decays(params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("scale", "bias"), params
    )
