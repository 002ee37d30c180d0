"""The thinking objective: think, score the thoughts, and add up their gains (thought_losses.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder, lora, placement, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import accumulation
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives.batch import (
    Batch,
    check_batch,
    counts,
    masked_mean,
    segments,
    talk_targets,
)
from fqs_jax.objectives.metrics import Metrics
from fqs_jax.objectives.thought_losses import (
    BlockLosses,
    QuietStarConfig,
    ThoughtLosses,
    base_loss,
    block_losses,
    targets_at,
)
from fqs_jax.runtime import sharding
from fqs_jax.thinking import positions as positions_lib
from fqs_jax.thinking import thoughts
from fqs_jax.thinking.config import Thinker
from fqs_jax.thinking.positions import Positions
from fqs_jax.thinking.scoring import Text, score_blocks
from fqs_jax.thinking.thoughts import Choose, Thinking

MAX_SPANS = 8  # programs of attention over text, of keys up to 1/8, 2/8, ... of it
_POSITIONS = 2**32 - 2  # takes the place of a row's number in the key that chooses positions


def quiet_star_loss(
    params: Params,
    batch: Batch,
    key: jax.Array,
    thinker: Thinker,
    config: QuietStarConfig,
    split_rationales: bool = False,
) -> tuple[jax.Array, Metrics]:
    """Think, then score the thoughts: see `thought_losses` for the formula.

    Args:
      split_rationales: see `thoughts.read_and_think`.
    """
    check_batch(batch)
    target_BxAxU = talk_targets(batch, thinker.thought.n_ahead_talk)
    counts_A = counts(batch, target_BxAxU)
    row_B = batch.get("row")
    choose = None
    if config.position_fraction < 1:
        choose = _chooser(params, target_BxAxU, key, thinker.model, config, row_B)
    thinking, positions = thoughts.read_and_think(
        params,
        batch["tokens"],
        key,
        thinker,
        segments(batch),
        row_B,
        split_rationales,
        choose,
        packed="segment" in batch,
    )
    positions = positions or positions_lib.everywhere(*batch["tokens"].shape)
    B, T = batch["tokens"].shape
    base_BxT = thinking.text.log_prob_BxT.reshape(B, -1, T)[:, 0]
    blocks_loss, parts, mixing_weight_BxRxAxP = _blocks_loss(
        params, thinking, positions, base_BxT, target_BxAxU, counts_A, thinker, config
    )
    losses = ThoughtLosses(base=base_loss(base_BxT, target_BxAxU, counts_A), blocks=parts)
    entropy_BxPxRxK = thoughts.together(
        thinking.thoughts.entropy_BxPxRxK, thinker.thought.rationales
    )
    metrics = _metrics(
        losses,
        mixing_weight_BxRxAxP,
        entropy_BxPxRxK,
        positions,
        batch["mask"],
        target_BxAxU,
        counts_A,
    )
    return config.base_weight * losses.base + blocks_loss, metrics


def _metrics(
    losses: ThoughtLosses,
    mixing_weight_BxRxAxP: jax.Array,
    entropy_BxPxRxK: jax.Array,
    positions: Positions,
    mask_BxT: jax.Array,
    target_BxAxU: jax.Array,
    counts_A: jax.Array,
) -> Metrics:
    blocks, weight_Bx1xP = losses.blocks, positions.weight_BxP[:, None]
    R = blocks.reward_BxRxP.shape[1]
    target_BxAxP = targets_at(target_BxAxU, positions.index_BxP)
    # Positions whose next token is predicted; padding has no reward and would dilute the means.
    rewarded_Bx1xP = blocks.rewarded_BxP[:, None] * target_BxAxP[:, :1] * weight_Bx1xP
    seen_BxP = jnp.take_along_axis(mask_BxT, positions.index_BxP, axis=1) * positions.weight_BxP
    mixing_weight = masked_mean(
        mixing_weight_BxRxAxP, (target_BxAxP * weight_Bx1xP)[:, None], R * jnp.sum(counts_A)
    )
    gain = masked_mean(blocks.gain_BxRxP, target_BxAxP[:, :1] * weight_Bx1xP, R * counts_A[0])
    return {
        "nll_base": metrics_lib.scalar(losses.base),
        "nll_mixed": metrics_lib.scalar(blocks.talk),
        "policy_loss": metrics_lib.scalar(blocks.policy),
        **metrics_lib.of_rewards(blocks.reward_BxRxP, rewarded_Bx1xP),
        "advantage_mean": metrics_lib.mean(blocks.advantage_BxRxP, rewarded_Bx1xP),
        "thought_entropy": metrics_lib.mean(entropy_BxPxRxK, seen_BxP[..., None, None]),
        "mixing_weight_mean": metrics_lib.scalar(mixing_weight),
        "nll_with_minus_without": metrics_lib.scalar(-gain),
    }


def _chooser(
    params: Params,
    target_BxAxU: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    config: QuietStarConfig,
    row_B: jax.Array | None,
) -> Choose:
    """A function that chooses positions by the hidden states of the text."""
    num_positions = config.num_positions(target_BxAxU.shape[-1] + 1)
    # A position without a target at any talk step has no loss and no reward.
    worth_BxT = jnp.pad(jnp.any(target_BxAxU, axis=1), ((0, 0), (0, 1))).astype(jnp.float32)

    def choose(hidden_BxTxD: jax.Array) -> Positions:
        score_BxT = worth_BxT
        if config.positions == "high_entropy":
            lm = jax.lax.stop_gradient(params["lm"])
            entropy_BxT = vocab.entropies(
                hidden_BxTxD, decoder.head_kernel(lm), chunk=model.vocab_chunk
            )
            # Keep every score at least a tenth of the row's mean: a position with a tiny probability
            # p would get the huge weight 1/p. Rows of padding have no entropy at all.
            count_Bx1 = jnp.maximum(jnp.sum(worth_BxT, axis=1, keepdims=True), 1.0)
            mean_Bx1 = jnp.sum(worth_BxT * entropy_BxT, axis=1, keepdims=True) / count_Bx1
            score_BxT = worth_BxT * (entropy_BxT + 0.1 * mean_Bx1)
        return positions_lib.choose(
            jax.random.fold_in(key, _POSITIONS), score_BxT, num_positions, row_B
        )

    return choose


class Chunk(NamedTuple):
    """Some text positions of each sequence, and the thoughts there.

    Attributes:
      index_BxP: the positions again, for rows that may be single rationales; None = all in order.
      thought_BxPxRxK: tokens of thoughts, of the same rows.
    """

    positions: Positions
    index_BxP: jax.Array | None
    thought_BxPxRxK: jax.Array


def chunked(whole: Chunk, chunks: int, length: int) -> Chunk:
    """Cut P positions into chunks of equal size, on a new leading axis.

    The last chunk is padded with positions at the end of the text (`length` T) that have weight 0.
    """
    B, P = whole.positions.index_BxP.shape
    padding = -P % chunks

    def cut(x_BxPx: jax.Array, fill: int = 0) -> jax.Array:
        widths = [(0, 0), (0, padding)] + [(0, 0)] * (x_BxPx.ndim - 2)
        padded = jnp.pad(x_BxPx, widths, constant_values=fill)
        return jnp.moveaxis(padded.reshape(len(padded), chunks, -1, *padded.shape[2:]), 1, 0)

    positions = whole.positions
    index_BxP = jnp.repeat(positions.index_BxP, len(whole.thought_BxPxRxK) // B, axis=0)
    return Chunk(
        Positions(cut(positions.index_BxP, length - 1), cut(positions.weight_BxP)),
        cut(sharding.constrain(index_BxP, "B ."), length - 1),
        cut(whole.thought_BxPxRxK),
    )


def _blocks_loss(
    params: Params,
    thinking: Thinking,
    positions: Positions,
    base_BxT: jax.Array,
    target_BxAxU: jax.Array,
    counts_A: jax.Array,
    thinker: Thinker,
    config: QuietStarConfig,
) -> tuple[jax.Array, BlockLosses, jax.Array]:
    """Phase two and its loss, `model.position_chunk` positions at a time.

    Returns:
      The thoughts' part of the loss; and without gradient its parts and the mixing weights
      [B, R, A, P].
    """
    text, P = thinking.text, positions.index_BxP.shape[1]
    size = thinker.model.position_chunk or P
    chunks = -(-P // size)
    whole = Chunk(positions, thinking.index_BxP, thinking.thoughts.tokens_BxPxRxK)
    # What is frozen is constant: the sum over chunks has gradients of `shared` alone.
    trained, frozen = lora.split(params)
    shared = trained, text.differentiable()
    constant = (
        frozen,
        (text.tokens_BxT, text.segment_BxT),
        (jax.lax.stop_gradient(base_BxT), target_BxAxU, counts_A),
    )

    def chunk_loss(shared: Any, constant: Any, chunk: Chunk) -> Any:
        trained, computed = shared
        frozen, (tokens_BxT, segment_BxT), (base_BxT, target_BxAxU, counts_A) = constant
        params = lora.joined(trained, frozen)
        text = Text(tokens_BxT=tokens_BxT, segment_BxT=segment_BxT, **computed)
        spans = min(chunks, MAX_SPANS)
        return _chunk_loss(
            params, text, chunk, base_BxT, target_BxAxU, counts_A, thinker, config, spans
        )

    if chunks == 1:
        loss, (parts, weights_BxRxAxP) = chunk_loss(shared, constant, whole)
    else:
        pieces = chunked(whole, chunks, text.tokens_BxT.shape[1])
        loss, found = accumulation.summed(chunk_loss, shared, constant, pieces, _placed)
        parts, weights_BxRxAxP = jax.tree.map(lambda x: _joined(x, P), found)
    return loss, parts, weights_BxRxAxP


def _chunk_loss(
    params: Params,
    text: Text,
    chunk: Chunk,
    base_BxT: jax.Array,
    target_BxAxU: jax.Array,
    counts_A: jax.Array,
    thinker: Thinker,
    config: QuietStarConfig,
    spans: int,
) -> tuple[jax.Array, tuple[BlockLosses, jax.Array]]:
    """The thoughts' part of the loss at some positions; its parts and the mixing weights [B, R, A, P]."""
    scores = score_blocks(
        params,
        text,
        chunk.thought_BxPxRxK,
        thinker,
        chunk.index_BxP,
        spans,
        config.reads_thought_only,
        config.reads_correct,
    )
    scores = jax.tree.map(lambda x: thoughts.together(x, thinker.thought.rationales), scores)
    parts = block_losses(scores, base_BxT, target_BxAxU, counts_A, chunk.positions, config)
    weights_BxRxAxP = jnp.moveaxis(scores.mixing_weight_BxPxRxA, 1, -1)
    return parts.total(config), jax.lax.stop_gradient((parts, weights_BxRxAxP))


def _joined(x: jax.Array, length: int) -> jax.Array:
    """Join the chunks' results: sums of numbers; arrays [chunks, ..., positions of a chunk] -> [..., P]."""
    if x.ndim == 1:
        return jnp.sum(x)
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)[..., :length]


def _placed(gradients: tuple[Params, dict[str, jax.Array]]) -> Any:
    """Shard gradients like their arrays, so that no device holds the whole sum over chunks."""
    params, text = gradients
    axes = {
        "hidden_BxTxD": "B . .",
        "key_LxBxTxGxH": "L B . G H",
        "value_LxBxTxGxH": "L B . G H",
        "log_prob_BxT": "B .",
    }
    text = {name: sharding.constrain(gradient, axes[name]) for name, gradient in text.items()}
    return placement.constrain_parameters(params), text
