"""Parameters of a thought: the marks and the talk head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import talk_head
from fqs_jax.thinking.config import Thinker


def mark(params: Params, name: str, thinker: Thinker) -> jax.Array:
    """The "start", "end" or "pause" embedding [D] as the network sees it, in the compute dtype."""
    scale = thinker.thought.embedding_scale
    return (params["thought"][name] * scale).astype(thinker.model.dtype)


def marks(lm: Params, model: ModelConfig, start_id: int, end_id: int, scale: float) -> Params:
    """Fresh start and end marks {"start", "end"}, each [D], in the dtype of the embedding table.

    They are the embeddings of two vocabulary ids, as the network sees them, divided by
    `ThoughtConfig.embedding_scale`, in float32. The published code takes the first sub-token of "---"
    for both.
    """
    table_VxD: jax.Array = lm["embed"]["embedding"]
    scale = scale / decoder.embedding_scale(model)
    ids = {"start": start_id, "end": end_id}
    fresh = {name: table_VxD[i].astype(jnp.float32) / scale for name, i in ids.items()}
    return jax.tree.map(lambda x: x.astype(table_VxD.dtype), fresh)


def init(thinker: Thinker, lm: Params, key: jax.Array, start_id: int, end_id: int) -> Params:
    """Fresh marks and talk head, as in the published code, in the dtype of the parameters.

    The talk head's last layer is zero, so a `linear` thought has no influence at first. A learned
    pause begins as the start mark does.
    """
    model, thought = thinker.model, thinker.thought
    params = marks(lm, model, start_id, end_id, thought.embedding_scale)
    params["talk_head"] = talk_head.init(model.width, key)
    if thought.tokens == "pause":
        params["pause"] = params["start"]
    return jax.tree.map(lambda x: x.astype(model.param_dtype), params)
