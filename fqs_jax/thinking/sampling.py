"""Thoughts, sampled step by step after cached text.

The text's keys and values are shared by all thoughts. A step is one query for each position and
rationale, and nothing is differentiated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.model import attention_xla, decoder, vocab
from fqs_jax.model.decoder import KeysValues, Params
from fqs_jax.runtime import sharding
from fqs_jax.runtime.axes import check_axes
from fqs_jax.thinking.config import Thinker
from fqs_jax.thinking.keys import fold_in_all, thought_keys
from fqs_jax.thinking.parameters import mark


class Thoughts(NamedTuple):
    """The tokens of thoughts (int32) and the entropy (nats, float32) of each draw."""

    tokens_BxPxRxK: jax.Array
    entropy_BxPxRxK: jax.Array


def sample(
    params: Params,
    cache: KeysValues,
    key: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> Thoughts:
    """Draw K tokens of R thoughts at each position behind a text.

    Args:
      cache: keys and values of the text, from `decoder.text_forward`.
      key: one for the batch, or one for each thought [B, P, R] (`thought_keys`).
      segment_BxT: see `attention_xla.aligned_text`.
      index_BxP: text positions at which to think; None = all T.
    """
    blocks = _Blocks.start(cache, thinker, segment_BxT, index_BxP)
    keys_BxPxR = blocks.keys(key)
    if thinker.thought.tokens != "sampled":  # drawn without the network
        return control_tokens(keys_BxPxR, thinker)
    return blocks.sample(params, keys_BxPxR, slots=thinker.thought.num_tokens)[0]


def rollout(
    params: Params,
    cache: KeysValues,
    key: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> tuple[Thoughts, jax.Array]:
    """Draw thoughts as `sample` does, then read their last token and the end mark.

    Returns:
      The thoughts, and the final-norm hidden states [B, P, R, D] of the end mark.
    """
    blocks = _Blocks.start(cache, thinker, segment_BxT, index_BxP)
    keys_BxPxR, K = blocks.keys(key), thinker.thought.num_tokens
    if thinker.thought.tokens != "sampled":
        thoughts = control_tokens(keys_BxPxR, thinker)
        return thoughts, blocks.read(params, thoughts.tokens_BxPxRxK)
    thoughts, last_BxPxRxD, own = blocks.sample(params, keys_BxPxR, slots=K + 2)
    _, own = blocks.step(params, last_BxPxRxD, jnp.array(K), own)
    end_BxPxRxD = blocks.broadcast(mark(params, "end", thinker))
    after_BxPxRxD, _ = blocks.step(params, end_BxPxRxD, jnp.array(K + 1), own)
    return thoughts, after_BxPxRxD


def control_tokens(keys_BxPxR: jax.Array, thinker: Thinker) -> Thoughts:
    """Tokens of thoughts that are not sampled: `random` (uniform over the allowed ids), else id 0."""
    thought = thinker.thought
    keys = fold_in_all(keys_BxPxR[..., None], jnp.arange(thought.num_tokens))
    if not thought.has_words:
        return Thoughts(jnp.zeros(keys.shape, jnp.int32), jnp.zeros(keys.shape))
    ids = np.arange(thinker.model.vocab_size, dtype=np.int32)
    allowed = np.setdiff1d(ids, thought.masked_ids)
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(allowed)))(keys.reshape(-1))
    tokens = jnp.asarray(allowed)[choice].reshape(keys.shape)
    return Thoughts(tokens, jnp.full(keys.shape, np.log(len(allowed)), jnp.float32))


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Blocks of slots behind text positions, which are computed slot by slot.

    `own` below are the keys and values of the slots so far, each [L, B, P, R, G, slots, H].
    """

    cache: KeysValues
    thinker: Thinker
    segment_BxT: jax.Array | None
    index_BxP: jax.Array | None  # None: at every position, for which attention skips later keys
    position_BxP: jax.Array

    @classmethod
    def start(
        cls,
        cache: KeysValues,
        thinker: Thinker,
        segment_BxT: jax.Array | None,
        index_BxP: jax.Array | None,
    ) -> _Blocks:
        key_LxBxTxGxH, value_LxBxTxGxH = cache
        check_axes(
            key_LxBxTxGxH=key_LxBxTxGxH,
            value_LxBxTxGxH=value_LxBxTxGxH,
            segment_BxT=segment_BxT,
            index_BxP=index_BxP,
            H=thinker.model.head_dim,
        )
        _, B, T, _, _ = key_LxBxTxGxH.shape
        everywhere_BxT = jnp.broadcast_to(jnp.arange(T), (B, T))
        position_BxP = everywhere_BxT if index_BxP is None else index_BxP
        return cls(cache, thinker, segment_BxT, index_BxP, position_BxP)

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, P and R."""
        B, P = self.position_BxP.shape
        return B, P, self.thinker.thought.rationales

    def broadcast(self, embedding_D: jax.Array) -> jax.Array:
        """The same input embedding for every block, [B, P, R, D]."""
        return jnp.broadcast_to(embedding_D, (*self.shape, self.thinker.model.width))

    def keys(self, key: jax.Array) -> jax.Array:
        """Random keys [B, P, R], made from one key if need be."""
        if key.ndim == 0:
            return thought_keys(key, self.position_BxP, self.thinker.thought.rationales)
        B, P, R = self.shape
        check_axes(key_BxPxR=key, B=B, P=P, R=R)
        return key

    def empty(self, slots: int) -> KeysValues:
        """`own` before the first slot."""
        L, _, _, G, H = self.cache[0].shape
        zeros = jnp.zeros((L, *self.shape, G, slots, H), self.thinker.model.dtype)
        return (sharding.constrain(zeros, "L B P R G . H"),) * 2

    def step(
        self, params: Params, embedding_BxPxRxD: jax.Array, slot: jax.Array, own: KeysValues
    ) -> tuple[jax.Array, KeysValues]:
        """Compute slot `slot` (from 0) of every block: final-norm hidden states and the longer `own`."""
        model, (B, P, R) = self.thinker.model, self.shape

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, layer: Any, window: int | None
        ) -> tuple[jax.Array, Any]:
            text_k, text_v, own_k, own_v = layer
            own_k = jax.lax.dynamic_update_index_in_dim(own_k, k, slot, axis=4)
            own_v = jax.lax.dynamic_update_index_in_dim(own_v, v, slot, axis=4)
            visible_M = attention_xla.causal_slots(own_k.shape[4], window)[slot]

            def flat(x: jax.Array) -> jax.Array:
                return x.reshape(B * P * R, -1, *x.shape[-2:])

            output, lse = attention_xla.own_slots(
                flat(q),
                own_k.reshape(B * P * R, *own_k.shape[3:]).swapaxes(1, 2),
                own_v.reshape(B * P * R, *own_v.shape[3:]).swapaxes(1, 2),
                visible_M[None],
            )
            own_part = output.reshape(q.shape), lse.reshape(q.shape[:-1])
            slot_R = jnp.full(R, slot + 1)
            if self.index_BxP is None:
                text_part = attention_xla.aligned_text(
                    q, text_k, text_v, slot_R, self.segment_BxT, window
                )
            else:
                text_part = attention_xla.indexed_text(
                    q, text_k, text_v, self.index_BxP, slot_R, self.segment_BxT, window
                )
            return attention_xla.merge(text_part, own_part), (k, v)

        rotary_BxPxR = jnp.broadcast_to(self.position_BxP[..., None] + slot + 1, (B, P, R))
        hidden_BxPxRxD, new = decoder.run_layers(
            params["lm"], embedding_BxPxRxD, rotary_BxPxR, attend, model, (*self.cache, *own)
        )
        own = jax.tree.map(
            lambda o, n: jax.lax.dynamic_update_index_in_dim(o, n, slot, axis=5), own, new
        )
        return hidden_BxPxRxD, own

    def sample(
        self, params: Params, keys_BxPxR: jax.Array, slots: int
    ) -> tuple[Thoughts, jax.Array, KeysValues]:
        """Draw K tokens from the network.

        Args:
          slots: slots for which `own` has room, at least K.

        Returns:
          The thoughts, the input embeddings [B, P, R, D] of their last tokens, and `own` before those.
        """
        model, thought = self.thinker.model, self.thinker.thought
        # Both are gathered once, outside the loop.
        table_VxD = decoder.embedding_table(params["lm"], model)
        kernel_DxV = vocab.gathered_head(decoder.head_kernel(params["lm"]), model.dtype)

        def draw(carry: Any, slot: jax.Array) -> tuple[Any, Any]:
            embedding_BxPxRxD, own = carry
            hidden_BxPxRxD, own = self.step(params, embedding_BxPxRxD, slot, own)
            tokens_BxPxR, entropy_BxPxR = vocab.sample(
                hidden_BxPxRxD,
                kernel_DxV,
                fold_in_all(keys_BxPxR, slot),
                chunk=model.vocab_chunk,
                temperature=thought.temperature,
                masked_ids=thought.masked_ids,
            )
            return (decoder.look_up(table_VxD, tokens_BxPxR, model), own), (
                tokens_BxPxR,
                entropy_BxPxR,
            )

        first = self.broadcast(mark(params, "start", self.thinker)), self.empty(slots)
        (last_BxPxRxD, own), drawn = jax.lax.scan(draw, first, jnp.arange(thought.num_tokens))
        tokens, entropy = (jnp.moveaxis(x, 0, -1) for x in drawn)
        return Thoughts(tokens, entropy), last_BxPxRxD, own

    def read(self, params: Params, tokens_BxPxRxK: jax.Array) -> jax.Array:
        """Read given thoughts, or latent ones: final-norm hidden states [B, P, R, D] of the end mark."""
        start, end = (mark(params, name, self.thinker) for name in ("start", "end"))
        drawn_BxPxRxKxD = decoder.embed(params["lm"], tokens_BxPxRxK, self.thinker.model)
        if self.thinker.thought.tokens == "pause":
            pause_D = mark(params, "pause", self.thinker)
            drawn_BxPxRxKxD = jnp.broadcast_to(pause_D, drawn_BxPxRxKxD.shape)
        drawn = jnp.moveaxis(drawn_BxPxRxKxD, 3, 0)
        inputs = jnp.concatenate([self.broadcast(start)[None], drawn, self.broadcast(end)[None]])

        def step(carry: Any, given: Any) -> tuple[Any, None]:
            embedding_BxPxRxD, slot = given
            if self.thinker.thought.tokens == "latent":
                is_latent = (slot > 0) & (slot <= self.thinker.thought.num_tokens)
                embedding_BxPxRxD = jnp.where(is_latent, carry[0], embedding_BxPxRxD)
            hidden_BxPxRxD, own = self.step(params, embedding_BxPxRxD, slot, carry[1])
            return (hidden_BxPxRxD, own), None

        slots = len(inputs)
        first = jnp.zeros_like(inputs[0]), self.empty(slots)
        (after_BxPxRxD, _), _ = jax.lax.scan(step, first, (inputs, jnp.arange(slots)))
        return after_BxPxRxD
