"""The thinking objective: think, score the thoughts, and add up their gains (thought_losses.py)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder, placement, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import accumulation
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives.batch import Batch, counts, masked_mean, segments, talk_targets
from fqs_jax.objectives.metrics import Metrics
from fqs_jax.objectives.thought_losses import (
    QuietStarConfig,
    ThoughtLosses,
    base_loss,
    block_losses,
    blocks_loss,
    targets_at,
)
from fqs_jax.runtime import sharding
from fqs_jax.thinking import positions, thoughts
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.thinking.positions import Positions
from fqs_jax.thinking.scoring import Text, score_blocks
from fqs_jax.thinking.thoughts import Choose, Thinking

MAX_SPANS = 8  # programs of attention over text, of keys up to 1/8, 2/8, ... of it
_POSITIONS = 2**32 - 2  # in the place of a row's number, for the key that positions are chosen with


def quiet_star_loss(
    params: Params,
    batch: Batch,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    config: QuietStarConfig,
    split_rationales: bool = False,
) -> tuple[jax.Array, Metrics]:
    """Think, then score the thoughts: see `thought_losses` for the formula.

    Args:
      split_rationales: see `thoughts.sample_and_score`.
    """
    target_BxAxT = talk_targets(batch, thought.n_ahead_talk)
    counts_A = counts(batch, target_BxAxT)
    row_B = batch.get("row")
    choose = None
    if config.position_fraction < 1:
        choose = _chooser(params, target_BxAxT, key, model, config, row_B)
    thinking, where = thoughts.read_and_think(
        params,
        batch["tokens"],
        key,
        model,
        thought,
        segments(batch),
        row_B,
        split_rationales,
        choose,
    )
    where = where or positions.everywhere(*batch["tokens"].shape)
    losses, mixing_weight_BxRxAxP, blocks_loss = _score(
        params, thinking, where, target_BxAxT, counts_A, model, thought, config
    )
    entropy_BxPxRxK = thoughts.together(thinking.entropy_BxPxRxK, thought.rationales)
    metrics = _metrics(
        losses, mixing_weight_BxRxAxP, entropy_BxPxRxK, where, batch["mask"], target_BxAxT, counts_A
    )
    return config.base_weight * losses.base + blocks_loss, metrics


def _metrics(
    losses: ThoughtLosses,
    mixing_weight_BxRxAxP: jax.Array,
    entropy_BxPxRxK: jax.Array,
    where: Positions,
    mask_BxT: jax.Array,
    target_BxAxT: jax.Array,
    counts_A: jax.Array,
) -> Metrics:
    R, weight_Bx1xP = losses.reward.shape[1], where.weight_BxP[:, None]
    target_BxAxP = targets_at(target_BxAxT, where.index_BxP)
    # Positions whose next token is predicted; padding has no reward and would dilute the means.
    rewarded_Bx1xP = losses.rewarded_BxP[:, None] * target_BxAxP[:, :1] * weight_Bx1xP
    seen_BxP = jnp.take_along_axis(mask_BxT, where.index_BxP, axis=1) * where.weight_BxP
    mixing_weight = masked_mean(
        mixing_weight_BxRxAxP, (target_BxAxP * weight_Bx1xP)[:, None], R * jnp.sum(counts_A)
    )
    gain = masked_mean(losses.gain_BxRxP, target_BxAxP[:, :1] * weight_Bx1xP, R * counts_A[0])
    return {
        "nll_base": metrics_lib.scalar(losses.base),
        "nll_mixed": metrics_lib.scalar(losses.talk),
        "policy_loss": metrics_lib.scalar(losses.policy),
        **metrics_lib.of_rewards(losses.reward, rewarded_Bx1xP),
        "advantage_mean": metrics_lib.mean(losses.advantage, rewarded_Bx1xP),
        "thought_entropy": metrics_lib.mean(entropy_BxPxRxK, seen_BxP[..., None, None]),
        "mixing_weight_mean": metrics_lib.scalar(mixing_weight),
        "nll_with_minus_without": metrics_lib.scalar(-gain),
    }


def _chooser(
    params: Params,
    target_BxAxT: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    config: QuietStarConfig,
    row_B: jax.Array | None,
) -> Choose:
    """Hidden states of the text -> where to think."""
    num_positions = config.num_positions(target_BxAxT.shape[-1] + 1)
    # A position without a target at any talk step has nothing to be judged by.
    worth_BxT = jnp.pad(jnp.any(target_BxAxT, axis=1), ((0, 0), (0, 1))).astype(jnp.float32)

    def choose(hidden_BxTxD: jax.Array) -> Positions:
        score_BxT = worth_BxT
        if config.positions == "high_entropy":
            lm = jax.lax.stop_gradient(params["lm"])
            entropy_BxT = vocab.entropies(
                hidden_BxTxD, decoder.head_kernel(lm), chunk=model.vocab_chunk
            )
            # A tenth of the mean at least: what is chosen rarely counts much, and is noise.
            # Rows of padding have none.
            count_Bx1 = jnp.maximum(jnp.sum(worth_BxT, axis=1, keepdims=True), 1.0)
            mean_Bx1 = jnp.sum(worth_BxT * entropy_BxT, axis=1, keepdims=True) / count_Bx1
            score_BxT = worth_BxT * (entropy_BxT + 0.1 * mean_Bx1)
        return positions.choose(
            jax.random.fold_in(key, _POSITIONS), score_BxT, num_positions, row_B
        )

    return choose


def _score(
    params: Params,
    thinking: Thinking,
    where: Positions,
    target_BxAxT: jax.Array,
    counts_A: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    config: QuietStarConfig,
) -> tuple[ThoughtLosses, jax.Array, jax.Array]:
    """Phase two and its losses, `model.position_chunk` positions at a time.

    Returns:
      The losses, of which only `base` has a gradient; mixing weights [B, R, A, P]; and the weighted sum
      of the blocks' losses, which has theirs.
    """
    (B, P), T = where.index_BxP.shape, thinking.tokens_BxT.shape[1]
    chunks = -(-P // model.position_chunk) if model.position_chunk else 1
    size = -(-P // chunks)
    by_position: Any = (where, thinking.index_BxP, thinking.thought_BxPxRxK)
    if chunks > 1:
        index_BxP = jnp.repeat(where.index_BxP, len(thinking.tokens_BxT) // B, axis=0)
        index_BxP = sharding.constrain(index_BxP, "B .")
        by_position = _padded((where, index_BxP, thinking.thought_BxPxRxK), chunks * size, T - 1)

    def score_chunk(shared: Any, constant: Any, number: jax.Array) -> Any:
        params, text = shared
        by_position, tokens, segment, base_BxT, target_BxAxT, counts_A = constant
        if chunks > 1:
            by_position = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, number * size, size, axis=1), by_position
            )
        where, index, drawn = by_position
        scores = score_blocks(
            params,
            text,
            tokens,
            drawn,
            model,
            thought,
            segment,
            index,
            min(chunks, MAX_SPANS),
            config.reads_alone,
        )
        scores = jax.tree.map(lambda x: thoughts.together(x, thought.rationales), scores)
        parts = block_losses(scores, base_BxT, target_BxAxT, counts_A, where, config)
        loss = blocks_loss(parts, config)
        weights_BxRxAxP = jnp.moveaxis(scores.mixing_weight_BxPxRxA, 1, -1)
        return loss, jax.lax.stop_gradient((parts, weights_BxRxAxP))

    base_BxT = thinking.text.log_prob_BxT.reshape(B, -1, T)[:, 0]
    shared = params, thinking.text
    constant = (
        by_position,
        thinking.tokens_BxT,
        thinking.segment_BxT,
        jax.lax.stop_gradient(base_BxT),
        target_BxAxT,
        counts_A,
    )
    if chunks == 1:
        loss, (parts, weights_BxRxAxP) = score_chunk(shared, constant, jnp.array(0))
    else:
        loss, found = accumulation.summed(
            score_chunk, shared, constant, jnp.arange(chunks), _placed
        )
        parts, weights_BxRxAxP = jax.tree.map(lambda x: _joined(x, P), found)
    return (
        ThoughtLosses(base=base_loss(base_BxT, target_BxAxT, counts_A), **vars(parts)),
        weights_BxRxAxP,
        loss,
    )


def _padded(by_position: Any, length: int, last: int) -> Any:
    """More positions, which count nothing."""
    where, index_BxP, thought_BxPxRxK = by_position
    more = ((0, 0), (0, length - index_BxP.shape[1]))
    where = Positions(
        jnp.pad(where.index_BxP, more, constant_values=last), jnp.pad(where.weight_BxP, more)
    )
    index_BxP = jnp.pad(index_BxP, more, constant_values=last)
    return where, index_BxP, jnp.pad(thought_BxPxRxK, (*more, (0, 0), (0, 0)))


def _joined(x: jax.Array, length: int) -> jax.Array:
    """Of chunks: sums of numbers; arrays [chunks, ..., positions of a chunk] -> [..., P]."""
    if x.ndim == 1:
        return jnp.sum(x)
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)[..., :length]


def _placed(gradients: tuple[Params, Text]) -> tuple[Params, Text]:
    """Gradients where their arrays are, so that sums over chunks are not kept whole by every device."""
    params, text = gradients
    axes = "B . .", "L B . G H", "L B . G H", "B ."
    return placement.constrain_parameters(params), Text(*map(sharding.constrain, text, axes))
