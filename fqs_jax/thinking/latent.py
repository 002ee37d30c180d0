"""Latent thoughts: each slot reads, in place of a token's embedding, the final hidden state before it.

Nothing is sampled: the state of the start mark is the input of the next slot, that of this slot the input
of the one after, and so on K times (Coconut, arXiv 2412.06769; PonderLM-2, arXiv 2509.23184). The input
is the final-norm hidden state as it comes: it is neither scaled nor projected, and the factor that some
models put on embeddings of tokens does not apply to it.

In PonderLM-2 later text sees the latents before it, so that exact latents are a loop over the text;
Jacobi passes over all of it approximate them. A thought here is private to its position: K steps, each
one slot of every position at once, are exact, and they and the rest of the block cost the FLOPs of one
pass over M slots. Their attention is plain XLA on every device: kernels take whole blocks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fqs_jax.model import attention_xla, decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import KeysValues, Params


def block_hidden(
    lm: Params,
    cache: KeysValues,
    given_BxPxRxUxD: jax.Array,
    num_latent: int,
    position_BxP: jax.Array,
    model: ModelConfig,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
    spans: int = 1,
) -> jax.Array:
    """Final-norm hidden states [B, P, R, M, D] of blocks with latent thoughts, differentiable.

    The steps are unrolled: a scan would store the keys and values of all slots for each of them.

    Args:
      cache: keys and values of the text.
      given_BxPxRxUxD: input embeddings of the U = M - K slots that have one: the start mark, the end
        mark and the forced tokens.
      num_latent: K.
      position_BxP: text positions of the blocks. index_BxP: the same; None = all in order.
      segment_BxT, spans: see `attention_xla.indexed_text`.
    """
    B, P, R, _, D = given_BxPxRxUxD.shape

    def read(inputs_BxPxRxSxD: jax.Array, before: list[KeysValues]) -> tuple[jax.Array, KeysValues]:
        """The slots behind those of `before`: hidden states, and keys and values [L, B, P, R * S, G, H]."""
        first, S = len(before), inputs_BxPxRxSxD.shape[3]
        slot_RS = jnp.tile(jnp.arange(first + 1, first + S + 1), R)

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, layer: Any, window: int | None
        ) -> tuple[jax.Array, KeysValues]:
            (text_k, text_v), before = layer

            def blocks(*x: jax.Array) -> jax.Array:  # each [B, P, R * slots, heads, H]
                parts = [part.reshape(B * P * R, -1, *part.shape[3:]) for part in x]
                return jnp.concatenate(parts, axis=1)

            visible_SxM = attention_xla.causal_slots(first + S, window)[first:]
            output, lse = attention_xla.own_slots(
                blocks(q),
                blocks(*(k for k, _ in before), k),
                blocks(*(v for _, v in before), v),
                visible_SxM,
            )
            if index_BxP is None:
                over_text = attention_xla.aligned_text(
                    q, text_k, text_v, slot_RS, segment_BxT, window
                )
            else:
                over_text = attention_xla.indexed_text(
                    q, text_k, text_v, index_BxP, slot_RS, segment_BxT, window, spans
                )
            own = output.reshape(q.shape), lse.reshape(q.shape[:-1])
            return attention_xla.merge(over_text, own), (k, v)

        hidden, keys_values = decoder.run_layers(
            lm,
            inputs_BxPxRxSxD.reshape(B, P, R * S, D),
            position_BxP[..., None] + slot_RS,
            attend,
            model,
            (cache, before),
        )
        return hidden.reshape(inputs_BxPxRxSxD.shape), keys_values

    state_BxPxRx1xD, rest = given_BxPxRxUxD[..., :1, :], given_BxPxRxUxD[..., 1:, :]
    found: list[jax.Array] = []
    before: list[KeysValues] = []
    for _ in range(num_latent):
        state_BxPxRx1xD, keys_values = read(state_BxPxRx1xD, before)
        found.append(state_BxPxRx1xD)
        before.append(keys_values)
    last, _ = read(jnp.concatenate([state_BxPxRx1xD, rest], axis=3), before)
    return jnp.concatenate([*found, last], axis=3)
