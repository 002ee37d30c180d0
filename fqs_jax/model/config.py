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


QK_NORMS = ("none", "head", "projection")
NORMS = ("before", "after", "both")
ACTIVATIONS = ("silu", "gelu_tanh")
LAYER_TYPES = ("full", "sliding", "no_rope")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling: low frequencies are divided by `factor`, high ones unchanged."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All frequencies are divided by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): as Llama 3, but the band between is a ramp over components.

    Attributes:
      beta_fast, beta_slow: turns within the original context at the ends of the ramp.
      attention_factor: cosines and sines are multiplied by it.
      truncate: whether the ends of the ramp are rounded outwards to whole components.
    """

    factor: float
    original_max_seq_len: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


AnyScaling = RopeScaling | LinearScaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class Layer:
    """The part of the attention that can differ between layers.

    Attributes:
      window: a query at position p sees keys q with 0 <= p - q < window; None = all.
      rope_theta: base of the rotary embedding; None = queries and keys are not rotated.
    """

    window: int | None
    rope_theta: float | None
    rope_scaling: AnyScaling | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of a decoder, and how to compute it.

    Attributes:
      rope_scaling: scaling of the rotary frequencies.
      qkv_bias, o_bias: whether the q, k and v projections have biases, and the output projection.
      qk_norm: RMS norm of queries and keys before their rotation, one of QK_NORMS: of each `head`
        (Qwen3), or of all heads of a token together (`projection`, OLMo 2).
      norms: RMS norms of a layer, one of NORMS: `before` attention and MLP, `after` them (OLMo 2), or
        `both` (Gemma 3).
      activation: of the gate of the MLP, one of ACTIVATIONS.
      query_scalar: attention scores are divided by its square root; None = head_dim.
      scaled_embeddings: whether embeddings of tokens are multiplied by sqrt(width), as Gemma does.
      stored_norm_offset: Hugging Face folders store the scale of a norm minus this (Gemma: 1).
      sliding_window: a query at position p sees keys q with 0 <= p - q < sliding_window; None = all.
      layer_types: kinds of the layers of a period, from LAYER_TYPES, repeated up to num_layers:
        `full` layers see all keys, `sliding` ones those of the window, and `no_rope` ones see all keys
        and are not rotated. Empty = all layers are alike.
      local_rope_theta: base of the rotary embedding of sliding layers, which is then not scaled; None =
        as in full layers.
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
    rope_scaling: AnyScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: str = "none"
    norms: str = "before"
    activation: str = "silu"
    query_scalar: float | None = None
    scaled_embeddings: bool = False
    stored_norm_offset: float = 0.0
    tied_embeddings: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    local_rope_theta: float | None = None
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
        choices = {
            "dtype": DTYPES,
            "param_dtype": DTYPES,
            "attention": BACKENDS,
            "remat": tuple(REMAT_POLICIES),
            "qk_norm": QK_NORMS,
            "norms": NORMS,
            "activation": ACTIVATIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        if self.vocab_chunk < 0 or self.position_chunk < 0:
            raise UserError("vocab_chunk and position_chunk must be 0 (all at once) or more")
        if self.query_scalar is not None and not self.query_scalar > 0:
            raise UserError(f"query_scalar {self.query_scalar} must be above 0")
        self._check_layers()

    def _check_layers(self) -> None:
        if not isinstance(self.layer_types, tuple):
            raise UserError(f"layer_types {self.layer_types!r} should be a tuple of names")
        for kind in self.layer_types:
            if kind not in LAYER_TYPES:
                raise UserError(f"layer_types {kind!r} is none of {', '.join(LAYER_TYPES)}")
        if len(self.layer_types) > self.num_layers:
            raise UserError(
                f"layer_types has {len(self.layer_types)} entries, the model {self.num_layers} layers"
            )
        sliding = "sliding" in self.layer_types
        if self.layer_types and sliding != (self.sliding_window is not None):
            raise UserError("layer_types has sliding layers if and only if sliding_window is set")
        if self.local_rope_theta is not None and self.sliding_window is None:
            raise UserError("local_rope_theta is for sliding layers; set sliding_window too")

    @property
    def period(self) -> tuple[Layer, ...]:
        """The layers of a period: layer i of the model is entry i modulo their number."""
        kinds = self.layer_types or ("full" if self.sliding_window is None else "sliding",)
        return tuple(self._layer(kind) for kind in kinds)

    def _layer(self, kind: str) -> Layer:
        if kind == "no_rope":
            return Layer(None, None, None)
        if kind == "full":
            return Layer(None, self.rope_theta, self.rope_scaling)
        if self.local_rope_theta is None:
            return Layer(self.sliding_window, self.rope_theta, self.rope_scaling)
        return Layer(self.sliding_window, self.local_rope_theta, None)
