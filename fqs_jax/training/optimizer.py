"""The optax chain of a stage: clip, AdamW, warm-up and decay, a learning rate per part."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from fqs_jax.model.decoder import Params

PARTS = ("lm", "talk_head", "marks")  # each has a gradient norm and a learning rate


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
    """Clip by global norm, AdamW, per-part learning rates; the caller can have a step skipped.

    Adam is invariant to the scale of a gradient, so a part's learning rate is scaled after it. Norms and
    biases have no weight decay.

    Args:
      o: the section `optimizer` of a config.

    Returns:
      A transformation whose `update` takes a bool `finite` beside the gradients; if it is False, nothing
      changes but the counts of such steps.
    """
    scales = {name: optax.scale(o.lr_scale[name]) for name in PARTS}
    chain = optax.chain(
        _clip_by_global_norm(o.clip_norm),
        optax.scale_by_adam(o.beta1, o.beta2, o.eps),
        optax.add_decayed_weights(o.weight_decay, mask=_decays),
        optax.partition(scales, part_labels),
        optax.scale_by_learning_rate(schedule(o, learning_rate, steps)),
    )
    return _skipping(chain)


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm, as a product with one number, and with the norm in float32.

    optax divides every gradient by the norm. XLA does not repeat a division in the two moments that read its
    result, so a copy of all gradients would be written.
    """

    def clip(updates: Params, _: Params | None = None) -> Params:
        norm = optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), updates))
        factor = limit / jnp.maximum(norm, limit)
        return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), updates)

    return optax.stateless(clip)  # type: ignore[arg-type]


def _skipping(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """optax.apply_if_finite, which is told `finite`.

    optax looks at every element of the gradients once more. The step computes their norms anyway, and a
    norm is finite only if every gradient in it is.
    """

    def init(params: Params) -> optax.ApplyIfFiniteState:
        # Arrays of their own: the state is donated.
        in_a_row, total = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        return optax.ApplyIfFiniteState(in_a_row, jnp.array(True), total, inner.init(params))

    def update(
        grads: Params,
        state: optax.ApplyIfFiniteState,
        params: Params | None = None,
        *,
        finite: jax.Array | bool,
        **_: Any,
    ) -> tuple[Params, optax.ApplyIfFiniteState]:
        updates, inner_state = inner.update(grads, state.inner_state, params)
        skipped = jnp.logical_not(finite).astype(jnp.int32)

        def chosen(new: jax.Array, old: jax.Array | float) -> jax.Array:
            return jnp.where(finite, new, old)

        return jax.tree.map(lambda leaf: chosen(leaf, 0), updates), optax.ApplyIfFiniteState(
            notfinite_count=skipped * (state.notfinite_count + 1),
            last_finite=jnp.asarray(finite),
            total_notfinite=state.total_notfinite + skipped,
            inner_state=jax.tree.map(chosen, inner_state, state.inner_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


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
