"""Shapes against the axes in names, alone and at the borders of the model, thoughts and losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fqs_jax.model import decoder
from fqs_jax.objectives import plain
from fqs_jax.runtime.axes import check_axes
from fqs_jax.thinking import sampling, thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests.tiny_models import model_config, random_params

MODEL = model_config()
THINKER = Thinker(MODEL, ThoughtConfig(n_ahead=5, rationales=2))
TOKENS = jnp.zeros((2, 6), jnp.int32)


def test_axes_that_agree() -> None:
    check_axes(
        D=5,
        tokens_BxT=jnp.zeros((2, 3)),
        hidden_BxTxD=jnp.zeros((2, 3, 5)),
        more_BxTx=jnp.zeros((2, 3, 7, 8)),
        none_BxT=None,
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a_BxT": (2, 3), "b_BxT": (2, 4)}, r"\(2, 4\) but expected \(2, 3\).*b_BxT"),
        ({"a_BxT": (2, 3), "b_TxD": (2, 3)}, r"\(2, 3\) but expected \(3, 3\).*b_TxD"),
        ({"a_BxT": (2, 3), "b_BxTxD": (2, 3)}, r"\(2, 3\) but expected .*b_BxTxD"),
        ({"a_BxT": (2, 3, 4)}, r"\(2, 3, 4\) but expected \(2, 3\).*a_BxT"),
        ({"a_BxTx": (2,)}, r"\(2,\) but expected .*a_BxTx"),
    ],
)
def test_axes_that_disagree(arrays: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_axes(**{name: jnp.zeros(shape) for name, shape in arrays.items()})


def test_a_size_that_disagrees() -> None:
    """Sizes hold for all arrays, also for those before them."""
    for values in ({"D": 4, "a_BxD": jnp.zeros((2, 3))}, {"a_BxD": jnp.zeros((2, 3)), "D": 4}):
        with pytest.raises(AssertionError, match=r"\(2, 3\) but expected \(2, 4\).*a_BxD"):
            check_axes(**values)


def _read(params: Any) -> Any:
    return decoder.text_forward(params["lm"], TOKENS, MODEL, jnp.ones((6, 2), jnp.int32))


def _sample(params: Any) -> Any:
    _, cache = decoder.text_forward(params["lm"], TOKENS, MODEL)
    index_PxB = jnp.zeros((3, 2), jnp.int32)
    return sampling.sample(params, cache, jax.random.key(0), THINKER, index_BxP=index_PxB)


def _score(params: Any) -> Any:
    drawn_BxPxKxR = jnp.zeros((2, 6, 2, 3), jnp.int32)  # K is 2 and not 3
    return thoughts.score_thoughts(params, TOKENS, drawn_BxPxKxR, THINKER)


def _learn(params: Any) -> Any:
    batch = {"tokens": TOKENS, "mask": jnp.ones((2, 5), bool)}
    return plain.next_token_loss(params, batch, jax.random.key(0), MODEL)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (_read, "segment_BxT"),
        (_sample, "index_BxP"),
        (_score, "thought_BxPxRxK"),
        (_learn, "mask_BxT"),
    ],
)
def test_wrong_axes_are_refused_while_tracing(function: Any, name: str) -> None:
    """Nothing is compiled or run; the message names the array."""
    with pytest.raises(AssertionError, match=rf"but expected .*\[{name}\]"):
        jax.eval_shape(function, random_params(MODEL))
