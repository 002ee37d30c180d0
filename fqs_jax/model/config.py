"""The shape and numerics of a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from fqs_jax.runtime.errors import UserError

BACKENDS = ("auto", "xla", "splash", "cudnn")


DTYPES = ("float32", "bfloat16", "float16")


# Arrays that the backward pass stores instead of recomputing, by the name of the policy.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "elementwise": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attended"),
    ),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling: low frequencies are divided by `factor`, high ones unchanged."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of a decoder, and how to compute it.

    Attributes:
      sliding_window: a query at position p sees keys q with 0 <= p - q < sliding_window; None = all.
      tied_embeddings: the output head is the transposed embedding table.
      dtype: type of activations; norms, softmax and log-probabilities are float32 always.
      param_dtype: type in which parameters are stored and updated.
      remat: what the backward pass keeps of a layer, a key of REMAT_POLICIES.
      vocab_chunk: tokens whose logits are held at once (model/vocab.py); 0 = all of them, stored for
        the backward pass.
      position_chunk: text positions whose thoughts go through the training step's scoring pass,
        forward and backward, at once; 0 = all of them.
      attention: back end, one of BACKENDS; "auto" chooses by the device (model/attention.py).
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_seq_len: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tied_embeddings: bool = False
    sliding_window: int | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "full"
    vocab_chunk: int = 2048
    position_chunk: int = 0
    attention: str = "auto"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}"
            )
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise UserError(f"{name} {getattr(self, name)!r} is none of {', '.join(DTYPES)}")
        if self.vocab_chunk < 0 or self.position_chunk < 0:
            raise UserError("vocab_chunk and position_chunk must be 0 (all at once) or more")
        if self.attention not in BACKENDS:
            backends = ", ".join(BACKENDS)
            raise UserError(f"attention {self.attention!r} is none of {backends}")
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"remat {self.remat!r} is none of {', '.join(REMAT_POLICIES)}")
