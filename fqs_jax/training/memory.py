"""The memory of a training step, estimated from shapes.

The estimate needs no compiler. It adds up the large arrays that are alive together in each phase of the
step, and the largest phase counts. docs/scale.md compares it with what the compiler reports.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from jax.sharding import Mesh

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.model import lora as lora_lib
from fqs_jax.model import placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.lora import Lora
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.runtime import device_memory
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.training import step as step_lib

_FLOAT32 = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory of one device in a training step, in bytes.

    Attributes:
      parameters, optimizer: the state, exactly.
      gradients: with the float32 sums over microbatches and over chunks of positions.
      text: what the text pass keeps for its backward pass, with its keys and values.
      thoughts: keys and values of the sampled thoughts.
      sampling, scoring, update: everything else that is alive in these phases.
    """

    parameters: int
    optimizer: int
    gradients: int
    text: int
    thoughts: int
    sampling: int
    scoring: int
    update: int

    @property
    def state(self) -> int:
        return self.parameters + self.optimizer

    @property
    def peak(self) -> int:
        """The state, the gradients, and the largest phase."""
        phases = self.text + self.thoughts + self.sampling, self.text + self.scoring, self.update
        return self.state + self.gradients + max(phases)


@dataclasses.dataclass(frozen=True)
class _Share:
    """One device's share of a step: rows of a microbatch, and the cuts of mesh.tensor.

    Attributes:
      text: tokens of text. thoughts: thoughts. chunk: thoughts that are scored at once.
      queries, kv, heads, mlp, vocabulary: the cut axes, N * H, G * H, N, F and V.
      item: bytes of a number in an activation.
    """

    text: int
    thoughts: int
    chunk: int
    queries: int
    heads: int
    kv: int
    mlp: int
    vocabulary: int
    item: int


def estimate(recipe: Recipe, mesh: Mesh) -> Estimate:
    """The memory that a training step needs of each device.

    Raises:
      UserError: the mesh divides neither the model nor the rows.
    """
    model, thought = recipe.model, recipe.thought
    # Without the settings that do not change them, so that variants share the count.
    plain = dataclasses.replace(
        model, dtype="float32", remat="none", vocab_chunk=0, position_chunk=0
    )
    parameters, trained, numbers = _parameters(plain, thought, recipe.lora, mesh)
    float32 = _FLOAT32 * numbers
    share = _share(recipe, mesh)
    head = _head(model, share)
    keys_values = 2 * model.num_layers * share.kv * share.item  # of a token
    kept = model.num_layers * _kept(model, share, model.remat)  # of a token
    text = share.text * (kept + keys_values)
    # The head's part of the backward pass is over before the layers' begins.
    # A student of last positions reads the head once in a row.
    reads = share.text
    if objective.teacher_positions(recipe) == "last":
        reads //= recipe.seq_len
    scoring = max(_layer(model, share, share.text, recipe.seq_len), _read(model, share, reads))
    own = _item(model.param_dtype if recipe.lora is None else "float32", mesh) * numbers
    gradients = own + (float32 if recipe.microbatches > 1 else 0)
    thoughts = sampling = 0
    if thought is not None:
        K, A, M = thought.num_tokens, thought.n_ahead_talk, thought.num_slots
        slots = share.chunk * M
        text += _logits(model, share, share.text) * (not model.vocab_chunk)
        thoughts = 2 * share.thoughts * K * keys_values  # the scan has the old and the new ones
        sampling = 2 * _logits(model, share, share.thoughts)  # with the noise
        scoring = slots * kept + max(
            _layer(model, share, slots, recipe.seq_len),
            _read(model, share, share.chunk * (K + A)),
        )
        if share.chunk < share.thoughts:  # the sum over chunks, and the gradient of one
            gradients += float32 + own
    return Estimate(
        parameters=parameters,
        optimizer=2 * trained,
        gradients=gradients,
        text=text,
        thoughts=thoughts,
        sampling=head + sampling,
        scoring=head + scoring,
        update=own,
    )


@functools.lru_cache(maxsize=64)
def _parameters(
    model: ModelConfig, thought: ThoughtConfig | None, lora: Lora | None, mesh: Mesh
) -> tuple[int, int, int]:
    """Bytes of the parameters of one device, of those that are trained, and the number of the latter."""
    shapes = objective.abstract_params(model, thought, lora)
    trained, frozen = lora_lib.split(shapes)
    size = device_memory.of_arrays(placement.placed(trained, mesh))
    item = jnp.dtype("float32" if lora else model.param_dtype).itemsize
    return size + device_memory.of_arrays(placement.placed(frozen, mesh)), size, size // item


def _share(recipe: Recipe, mesh: Mesh) -> _Share:
    model, thought = recipe.model, recipe.thought
    split, groups = step_lib.split_rows(recipe, mesh)
    rows = recipe.batch_size // recipe.microbatches
    R = thought.rationales if thought else 0
    text = rows * recipe.seq_len * (R if split else 1)
    positions = chunk = recipe.seq_len
    if isinstance(recipe.objective, QuietStarConfig):
        positions = recipe.objective.num_positions(recipe.seq_len)
        chunk = min(model.position_chunk or positions, positions)
    cuts = mesh.shape["tensor"]

    def cut(size: int) -> int:
        return size if size % cuts else size // cuts

    return _Share(
        text=-(-text // groups),
        thoughts=-(-rows * positions * R // groups),
        chunk=-(-rows * chunk * R // groups),
        queries=cut(model.num_heads) * model.head_dim,
        kv=cut(model.num_kv_heads) * model.head_dim,
        heads=cut(model.num_heads),
        mlp=cut(model.mlp_dim),
        vocabulary=cut(model.vocab_size),
        item=_item(model.dtype, mesh),
    )


def _item(dtype: str, mesh: Mesh) -> int:
    """Bytes of a number that a step computes; CPUs compute half precision in float32."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return _FLOAT32 if on_cpu else jnp.dtype(dtype).itemsize


def _kept(model: ModelConfig, share: _Share, remat: str) -> int:
    """Bytes of one token that the backward pass of a layer keeps: see REMAT_POLICIES."""
    D, N, G, F = model.width, share.queries, share.kv, share.mlp
    products = N + 2 * G + D + 2 * F + D  # q, k, v, o, gate, up, down
    attended = 2 * N + G  # rotated queries and keys, and what they see
    values = {
        "full": D,
        "dots": D + products,
        "elementwise": D + products + attended,
        "none": D + products + attended + 4 * D + 4 * F + 2 * N,
    }[remat]
    return values * share.item


def _layer(model: ModelConfig, share: _Share, tokens: int, length: int) -> int:
    """Bytes of one layer's backward pass over some tokens: what it recomputes, and its gradients."""
    D, N, G, F = model.width, share.queries, share.kv, share.mlp
    gradients = (4 * D + 4 * F + 4 * N + 2 * G) * share.item
    recomputed = _kept(model, share, "elementwise") - _kept(model, share, model.remat)
    scores = 2 * share.heads * length * _FLOAT32
    return tokens * (gradients + max(0, recomputed) + scores)


def _head(model: ModelConfig, share: _Share) -> int:
    """Bytes of the output head, which is gathered and cast."""
    return model.width * share.vocabulary * share.item


def _read(model: ModelConfig, share: _Share, tokens: int) -> int:
    """Bytes of the head's backward pass; with chunks it has logits again, and a sum of gradients."""
    logits = _logits(model, share, tokens)
    return 2 * logits + _head(model, share) if model.vocab_chunk else logits


def _logits(model: ModelConfig, share: _Share, tokens: int) -> int:
    """Bytes of the logits that exist at once."""
    at_once = min(model.vocab_chunk or tokens, tokens)
    return at_once * share.vocabulary * _FLOAT32
