"""Parameters of a thought: the marks and the talk head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import talk_head
from fqs_jax.thinking.config import ThoughtConfig


def mark(params: Params, name: str, model: ModelConfig, thought: ThoughtConfig) -> jax.Array:
    """The "start", "end" or "pause" embedding [D] as the network sees it, in the compute dtype."""
    return (params["thought"][name] * thought.embedding_scale).astype(model.dtype)


def init(
    model: ModelConfig,
    thought: ThoughtConfig,
    lm: Params,
    key: jax.Array,
    start_id: int,
    end_id: int,
) -> Params:
    """Fresh marks and talk head, as the published code makes them.

    The marks begin as the embeddings of two vocabulary ids (published: the first sub-token of "---"
    for both) divided by `embedding_scale`; the talk head's last layer is zero, so a `linear`
    thought has no influence at first. A learned pause begins as the start mark does.
    """
    embedding_VxD = lm["embed"]["embedding"].astype(jnp.float32)
    params = {
        "start": embedding_VxD[start_id] / thought.embedding_scale,
        "end": embedding_VxD[end_id] / thought.embedding_scale,
        "talk_head": talk_head.init(model.width, key),
    }
    if thought.tokens == "pause":
        params["pause"] = params["start"]
    return jax.tree.map(lambda x: x.astype(model.param_dtype), params)
