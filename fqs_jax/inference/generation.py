"""Generation of text: a host loop around the cached steps of inference/decoding.py."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.inference import decoding, layerwise
from fqs_jax.inference.decoding import Choice, Cursor
from fqs_jax.inference.layerwise import Apart, LayerCursor
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.seeds import MAX_SEED


class Generation(NamedTuple):
    """The text generated for one prompt.

    tokens: N ids without the prompt, up to and without an end-of-text token. thoughts: lists of K ids
    drawn before each token: N lists, or N + 1 if generation ended with an end-of-text token, and none
    if the model does not think. weights: the mixing weight of each thought.
    """

    text: str
    tokens: list[int]
    thoughts: list[list[int]]
    weights: list[float]


class Emitted(NamedTuple):
    """One step of generation for B prompts, for streaming.

    token_B: int32, -1 in rows that have ended. thought_BxK: int32, the thought before the token, K = 0
    without thoughts. weight_B: float32, the mixing weight of the thought. seconds: time since the
    previous step. log_prob_B, gain_B: those of `decoding.Choice`, only in `stream`.
    """

    token_B: np.ndarray
    thought_BxK: np.ndarray
    weight_B: np.ndarray
    seconds: float
    log_prob_B: np.ndarray | None = None
    gain_B: np.ndarray | None = None


@functools.partial(
    jax.jit,
    static_argnames=("model", "thought", "temperature", "top_p", "allowed", "scored"),
    donate_argnames="cursor",
)
def _step(params, cursor, key, step, *, model, **settings):  # type: ignore[no-untyped-def]
    """Choose the next token of every row and append it: one program a token."""
    choice = decoding.choose(params, cursor, key, step, model=model, **settings)
    return choice, decoding.extend(params, cursor, choice.token_B, model)


prefill = jax.jit(decoding.prefill, static_argnames=("model", "room"))
_KEPT = ("thought_BxK", "weight_B", "log_prob_B", "gain_B")  # of a choice
# Prompts and caches are padded to multiples of these, so that few programs serve all lengths.
_PROMPT, _CACHE = 32, 128
# Bytes of caches and logits of a batch (a step needs up to four times as many), and the prompts that
# share one however large they are.
_BATCH_BYTES, _LEAST_BATCH = 2**28, 32
_LEAST_SAMPLING = 1e-6  # far above what float32 rounds to zero


def generate(
    loaded: Loaded,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    think: bool = True,
    first_row: int = 0,
    on_step: Callable[[Emitted], None] | None = None,
) -> list[Generation]:
    """Continue each of B prompts, in batches of bounded memory; the longest of a batch sets its size.

    Args:
      loaded: the model, from `loading.load`.
      prompts: B texts of any lengths, or their token ids with the opening; without sampling each is
        continued as it would be alone.
      max_new_tokens: N, the most tokens generated for a prompt.
      temperature: of the text; 0 takes the likeliest token. Thoughts have their own, from the config.
      top_p: probability of the smallest set of tokens that is sampled from.
      seed: of all sampling. Draws depend on the seed, the row and the step.
      think: False turns off the thoughts of a thinking model.
      first_row: number of the first prompt, where these are a part of more prompts with the same seed.
      on_step: called with the output of each of at most N steps. An exception that it raises ends the
        generation and reaches the caller. With it, all prompts are in one batch.

    Returns:
      One Generation a prompt, in order: at most N tokens and N thoughts of K tokens.

    Raises:
      UserError: a prompt is empty or an argument is out of range.
    """
    settings, key = _settings(loaded, max_new_tokens, temperature, top_p, seed, think)
    rows = [prompt_ids(loaded, prompt) for prompt in prompts]
    if not rows:
        return []
    size = len(rows) if on_step else _batch_size(loaded.model, rows, max_new_tokens)
    results: list[Generation] = []
    with jax.set_mesh(loaded.mesh):
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            given = settings | {"first": np.int32(first_row + first)}
            results += _generate(loaded, batch, max_new_tokens, key, given, on_step)
    return results


def stream(
    loaded: Loaded,
    prompt: str | Sequence[int],
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    think: bool = True,
    again: int = 0,
    only: Sequence[int] | None = None,
) -> Iterator[Emitted]:
    """The steps of `generate` for one prompt, each as soon as it is made, with its scores.

    Each step may be taken in another thread. Arguments and errors are those of `generate`.

    Args:
      again: number of the prompt's last tokens that get a step too, ahead of the new ones, as if they had
        been generated; the first token of a prompt never does.
      only: see `decoding.choose`.
    """
    settings, key = _settings(loaded, max_new_tokens, temperature, top_p, seed, think)
    settings |= {"first": np.int32(0), "scored": True}
    if only is not None:
        settings["only"] = np.asarray(only, np.int32)
    ids = prompt_ids(loaded, prompt)
    cut = max(1, len(ids) - again)
    made = _emitted(loaded, [ids[:cut]], max_new_tokens, key, settings, ids[cut:])
    while True:
        with jax.set_mesh(loaded.mesh):  # not while the caller has the step: it belongs to a thread
            emitted = next(made, None)
        if emitted is None:
            return
        yield emitted


def _settings(
    loaded: Loaded, max_new_tokens: int, temperature: float, top_p: float, seed: int, think: bool
) -> tuple[dict[str, Any], jax.Array]:
    """The settings of the steps, and the key of all sampling.

    Raises:
      UserError: one is out of range.
    """
    check_sampling(max_new_tokens, temperature, top_p)
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed must be 0 to {MAX_SEED}, not {seed}")
    settings = {
        "model": loaded.model,
        "thought": loaded.thought if think else None,
        "temperature": temperature,
        "top_p": top_p,
        "allowed": loaded.tokenizer.vocab_size,
    }
    return settings, jax.random.key(seed)


def _batch_size(model: ModelConfig, rows: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """The number of prompts in a batch."""
    length = _up_to(_up_to(max(map(len, rows)), _PROMPT) + max_new_tokens, _CACHE)
    cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * length
    return max(_LEAST_BATCH, _BATCH_BYTES // (4 * (cache + model.vocab_size)))


def _generate(
    loaded: Loaded,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    key: jax.Array,
    settings: dict[str, Any],
    on_step: Callable[[Emitted], None] | None,
) -> list[Generation]:
    """Continue the token ids of one batch of prompts."""
    results: list[Generation] = [Generation("", [], [], []) for _ in rows]
    going_B = np.ones(len(rows), bool)
    for emitted in _emitted(loaded, rows, max_new_tokens, key, settings):
        for i in map(int, np.flatnonzero(going_B)):
            if settings["thought"] is not None:
                results[i].thoughts.append(emitted.thought_BxK[i].tolist())
                results[i].weights.append(float(emitted.weight_B[i]))
            if emitted.token_B[i] >= 0:
                results[i].tokens.append(int(emitted.token_B[i]))
        going_B = emitted.token_B >= 0
        if on_step is not None:
            on_step(emitted)
    return [result._replace(text=loaded.tokenizer.decode(result.tokens)) for result in results]


def _emitted(
    loaded: Loaded,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    key: jax.Array,
    settings: dict[str, Any],
    given: Sequence[int] | None = None,
) -> Iterator[Emitted]:
    """Steps behind the token ids of one batch of prompts, until all rows have ended.

    Args:
      given: see `steps`.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    longest = _up_to(max(map(len, rows)), _PROMPT)
    tokens_BxT = np.full((len(rows), longest), tokenizer.pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens_BxT[i, : len(row)] = row
    length_B = jnp.array([len(row) for row in rows], jnp.int32)

    before = 0 if given is None else len(given)
    room = _up_to(longest + before + max_new_tokens, _CACHE) - longest
    params: Params | Apart = loaded.params
    read: Callable[..., Any] = prefill
    if settings["thought"] is None and (apart := loaded.layers_apart) is not None:
        params, read = apart, layerwise.prefill
    cursor = read(params, tokens_BxT, length_B, model=model, room=room)
    going_B, ends = np.ones(len(rows), bool), list(tokenizer.end_ids)
    clock = time.perf_counter()
    made = steps(params, cursor, key, max_new_tokens, given, **settings)
    for number, choice in enumerate(made, start=-before):
        if number >= 0:
            going_B &= ~np.isin(choice.token_B, ends)
        now = time.perf_counter()
        token_B = np.where(going_B, choice.token_B, -1)
        yield Emitted(
            token_B, seconds=now - clock, **{name: getattr(choice, name) for name in _KEPT}
        )
        clock = now
        if not going_B.any():
            return


def steps(
    params: Params | Apart,
    cursor: Cursor | LayerCursor,
    key: jax.Array,
    count: int,
    given: Sequence[int] | None = None,
    **settings: Any,
) -> Iterator[Choice]:
    """The choices of `count` steps, whose arrays are on the host.

    Args:
      given: ids of tokens for every row, each in a step of its own ahead of the others, which keep their
        numbers and so their draws; None = a program that does not know of such steps.

    Each step is dispatched before the outputs of the previous one are read, so that the device does
    not wait for the host. A generation that is stopped early has computed one step too many.
    """
    pending = None
    take: Callable[..., Any] = layerwise.step if isinstance(params, Apart) else _step
    state: Any = cursor
    before = 0 if given is None else len(given)
    for step in range(-before, count):
        if given is not None:
            settings["forced"] = np.int32(given[step + before] if step < 0 else -1)
        choice, state = take(params, state, key, np.int32(step), **settings)
        if pending is not None:
            yield _read(pending)
        pending = choice
    if pending is not None:
        yield _read(pending)


def _read(choice: Choice) -> Choice:
    return jax.tree.map(np.asarray, choice)


def _up_to(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def check_sampling(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Refuse settings that are out of range.

    Raises:
      UserError: names the setting and its range.
    """
    # Written so that NaN is refused too.
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be 0 or more and finite, not {temperature}")
    if 0 < temperature < _LEAST_SAMPLING:
        raise UserError(
            f"temperature must be at least {_LEAST_SAMPLING:g}, or 0 for the likeliest token, "
            f"not {temperature}"
        )
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, not {top_p}")
    if top_p < _LEAST_SAMPLING:
        raise UserError(f"top_p must be at least {_LEAST_SAMPLING:g}, not {top_p}")


def prompt_ids(loaded: Loaded, prompt: str | Sequence[int]) -> list[int]:
    """Token ids of a prompt, with the tokenizer's opening; a prompt of token ids is left as it is.

    Raises:
      UserError: there is no token.
    """
    tokenizer = loaded.tokenizer
    ids = tokenizer.with_opening(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise UserError("the prompt is empty and this tokenizer has no beginning-of-text token")
    return ids
