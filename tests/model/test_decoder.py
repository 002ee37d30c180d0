"""The decoder against the slow one, its rotary embeddings, and how it is computed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model import config as config_lib
from fqs_jax.model import decoder, rotary
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError
from tests import jaxprs, reference
from tests.tiny_models import LLAMA3_ROPE, VOCAB, flat, model_config, random_params, texts

logits = jax.jit(decoder.logits, static_argnames="config")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "qkv_bias": True,
            "tied_embeddings": True,
            "num_kv_heads": 1,
            "rope_scaling": LLAMA3_ROPE,
            "norm_eps": 0.1,
        },
    ],
    ids=["plain", "biases, tied, one kv head, scaled rope"],
)
def test_logits_equal_the_slow_decoder(changes: dict[str, Any]) -> None:
    config = model_config(**changes)
    params = random_params(config)["lm"]
    tokens, mask = texts((9, 6), 9)
    ours = logits(params, tokens, config=config, segment_BxT=mask)
    assert ours.dtype == jnp.float32
    for b in range(2):
        hidden_TxD = reference.text_hidden(params, config, tokens[b], mask[b])
        expected = reference.logits(params, hidden_TxD)
        np.testing.assert_allclose(ours[b], expected, rtol=1e-4, atol=2e-5)


def test_a_window_reaches_one_token_less_than_its_size() -> None:
    """One layer: x_j moves the prediction at i where 0 <= i - j < 3."""
    config = model_config(num_layers=1, sliding_window=3)
    params = random_params(config)["lm"]
    tokens = np.repeat(np.asarray(texts((6,), 6)[0]), 7, axis=0)
    tokens[np.arange(1, 7), np.arange(6)] = (tokens[0] + 1) % VOCAB
    ours = np.asarray(logits(params, tokens, config=config))
    moved = np.abs(ours[1:] - ours[:1]).max(-1) > 1e-4
    distance = np.arange(6)[None] - np.arange(6)[:, None]
    np.testing.assert_array_equal(moved, (distance >= 0) & (distance < 3))


def tables(positions: jax.Array, config: config_lib.ModelConfig) -> rotary.Rope:
    found = rotary.tables(positions, config.period[0], config.head_dim)
    assert found is not None
    return found


@pytest.mark.parametrize("scaling", [None, LLAMA3_ROPE], ids=["plain", "llama3"])
def test_rope_tables(scaling: config_lib.RopeScaling | None) -> None:
    config = model_config(rope_scaling=scaling, head_dim=16)
    positions = jnp.array([[0, 1, 50], [7, 7, 2]])
    frequency = np.array([reference.rope_frequency(pair, config) for pair in range(8)])
    angle = np.asarray(positions)[..., None, None] * frequency
    for table, expected in zip(
        tables(positions, config), (np.cos(angle), np.sin(angle)), strict=True
    ):
        assert table.shape == (2, 3, 1, 8) and table.dtype == jnp.float32
        np.testing.assert_allclose(table, expected, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_distance() -> None:
    config = model_config()
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 8)), jnp.float32) for _ in range(2))

    def rotated(x: jax.Array, position: int) -> np.ndarray:
        rope = tables(jnp.array([position]), config)
        return np.asarray(rotary.rotate(x[None], rope))[0, 0]

    np.testing.assert_allclose(np.linalg.norm(rotated(query, 9)), np.linalg.norm(query), rtol=1e-5)
    near, shifted, far = (
        rotated(query, a) @ rotated(key, b) for a, b in ((9, 4), (25, 20), (9, 3))
    )
    np.testing.assert_allclose(near, shifted, rtol=1e-4)
    assert abs(near - far) > 1e-2
    # Component i turns with component i + half, not with its neighbour.
    turned = rotated(jnp.zeros((1, 8)).at[0, 1].set(1.0), 5)
    assert set(np.flatnonzero(turned)) == {1, 5}


def test_rematerialisation_changes_no_gradient() -> None:
    tokens, mask = texts((6, 4), 6)
    gradients = []
    for remat in ("none", "dots"):  # `full`: see test_thoughts_gradients.py
        config = model_config(remat=remat)

        def loss(params: Any, config: ModelConfig = config) -> jax.Array:
            return jnp.sum(jnp.cos(decoder.logits(params, tokens, config, mask)))

        gradient = jax.jit(jax.grad(loss))
        gradients.append(flat(gradient(random_params(config)["lm"])))
    for path, expected in gradients[0].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradients[1][path], expected, atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_rematerialisation_repeats_what_it_says(remat: str) -> None:
    """`full` recomputes all of a layer, `dots` only what is not a projection, `none` nothing."""
    tokens, _ = texts((4,), 4)

    def gradient(remat: str) -> Any:
        config = model_config(remat=remat)
        return jax.grad(lambda p: jnp.sum(decoder.logits(p, tokens, config)))

    params = random_params(model_config())["lm"]
    names = [e.primitive.name for e, _ in jaxprs.equations(gradient(remat), params)]
    assert names.count("logistic") == (1 if remat == "none" else 2)  # of the gate
    flops, once = (jaxprs.matmul_flops(gradient(r), params) for r in (remat, "none"))
    projections = 4 * 2 * 2 * 12 * 8 * (4 + 2 + 2)  # of 4 tokens in 2 layers to q, k and v
    assert (flops - once > projections) == (remat == "full")
    assert (flops > once) == (remat != "none")  # scores of attention are recomputed by both


def test_bfloat16_compute_keeps_norms_and_softmax_in_float32() -> None:
    config = model_config(dtype="bfloat16")
    params = random_params(config)["lm"]
    tokens, mask = texts((6, 4), 6)
    in_bfloat16 = []
    for equation, _ in jaxprs.equations(lambda p: decoder.logits(p, tokens, config, mask), params):
        dtype = getattr(equation.invars[0].aval, "dtype", None) if equation.invars else None
        if equation.primitive.name in ("rsqrt", "exp", "log", "reduce_max", "square"):
            assert dtype == jnp.float32, equation
        if dtype == jnp.bfloat16:
            in_bfloat16.append(equation.primitive.name)
    assert in_bfloat16.count("dot_general") == 10  # all of them: 7 of a layer, 2 of attention, head

    coarse = logits(params, tokens, config=config, segment_BxT=mask)
    exact = logits(params, tokens, config=model_config(), segment_BxT=mask)
    assert coarse.dtype == jnp.float32
    error = np.asarray(coarse - exact)[np.asarray(mask)]
    assert 0 < np.sqrt(np.mean(error**2)) < 0.03 * np.std(exact)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters(tied: bool, bias: bool) -> None:
    config = model_config(tied_embeddings=tied, qkv_bias=bias, param_dtype="bfloat16")
    params = decoder.abstract_params(config)
    V, D, L, F = VOCAB, 12, 2, 20
    q, kv = (4, 8), (2, 8)
    expected: dict[str, tuple[int, ...]] = {
        "embed/embedding": (V, D),
        "final_norm/scale": (D,),
        "layers/attn_norm/scale": (L, D),
        "layers/mlp_norm/scale": (L, D),
        "layers/q/kernel": (L, D, *q),
        "layers/k/kernel": (L, D, *kv),
        "layers/v/kernel": (L, D, *kv),
        "layers/o/kernel": (L, *q, D),
        "layers/gate/kernel": (L, D, F),
        "layers/up/kernel": (L, D, F),
        "layers/down/kernel": (L, F, D),
    }
    if bias:
        expected |= {f"layers/{n}/bias": (L, *(q if n == "q" else kv)) for n in "qkv"}
    if not tied:
        expected["head/kernel"] = (D, V)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes = {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    assert shapes == expected
    assert all(leaf.dtype == jnp.bfloat16 for _, leaf in leaves)
    count = sum(math.prod(shape) for shape in expected.values())
    assert decoder.num_params(params) == count


def test_fresh_weights_are_small_and_residual_ones_smaller() -> None:
    config = model_config(width=64, mlp_dim=96, num_layers=8)
    tree = jax.jit(decoder.init, static_argnums=0)(config, jax.random.key(1))
    params = flat(tree)
    for path, leaf in params.items():
        if path.endswith("scale"):
            assert (leaf == 1).all()
        else:
            residual = path in ("layers/o/kernel", "layers/down/kernel")
            deviation = 0.02 / np.sqrt(2 * 8) if residual else 0.02
            assert np.std(leaf) == pytest.approx(deviation, rel=0.1), path
    up, q = params["layers/up/kernel"], params["layers/q/kernel"]
    assert not np.array_equal(up[0], up[1])
    assert abs(np.corrcoef(up[0, :, :32].ravel(), q[0].ravel())[0, 1]) < 0.1
    assert decoder.num_params(tree) == sum(leaf.size for leaf in params.values())


def test_the_program_does_not_grow_with_depth() -> None:
    def size(num_layers: int) -> int:
        config = model_config(num_layers=num_layers)
        params = random_params(config)["lm"]
        tokens, _ = texts((4,), 4)
        return len(list(jaxprs.equations(lambda p: decoder.logits(p, tokens, config), params)))

    assert size(2) == size(5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_kv_heads", 3), ("remat", "sometimes"), ("dtype", "int8"), ("param_dtype", "half")),
        *(
            ("qk_norm", "layer"),
            ("norms", "around"),
            ("activation", "relu"),
            ("query_scalar", -1.0),
        ),
        *(("layer_types", ("full", "some")), ("layer_types", ("full",) * 3)),
        *(("layer_types", ("sliding",)), ("layer_types", ["full"]), ("local_rope_theta", 1e4)),
    ],
)
def test_impossible_models(field: str, value: Any) -> None:
    shown = value if isinstance(value, str | int) else ""
    with pytest.raises(UserError, match=f"{field}.*{shown}"):
        dataclasses.replace(model_config(), **{field: value})
