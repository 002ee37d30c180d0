"""Continuations that are watched: the tokens of `generate`, and scores that the slow rollout confirms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from fqs_jax.inference import generation, live
from fqs_jax.inference.live import LiveToken
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import loading
from tests import reference
from tests.tiny_runs import clock_config, save_stage

PROMPT, NEW, AGAIN = "3 +1 +1", 3, 2
ANSWERS = tuple("0123456")


@pytest.fixture(scope="module")
def thinks(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    root = tmp_path_factory.mktemp("live") / "W"
    save_stage(root, clock_config(), 1)
    loaded = loading.load(str(root), "1")
    tokenizer = dataclasses.replace(loaded.tokenizer, eos_id=None)
    return dataclasses.replace(loaded, tokenizer=tokenizer)


def expected(
    loaded: Loaded, ids: list[int], drawn: Any, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [V] behind a text after a thought, and without it."""
    assert loaded.thought is not None
    params, thought = reference.float64(loaded.params), loaded.thought
    out = reference.rollout(
        params,
        loaded.model,
        np.array(ids),
        np.ones(len(ids), bool),
        len(ids) - 1,
        drawn,
        1,
        mixing=thought.mixing,
        masked_ids=thought.masked_ids,
    )
    np.testing.assert_allclose(weight, out.mixing_weight_A[0], rtol=1e-4, atol=1e-5)
    hidden_TxD = reference.text_hidden(params["lm"], loaded.model, ids)
    plain_V = reference.log_softmax(reference.logits(params["lm"], hidden_TxD[-1]))
    return reference.log_softmax(out.mixed_logits_AxV[0]), plain_V


def test_tokens_and_scores(thinks: Loaded) -> None:
    """Also of the last tokens of the prompt, which change nothing about the new ones."""
    [result] = generation.generate(thinks, [PROMPT], NEW)
    ids = generation.prompt_ids(thinks, PROMPT)
    steps = list(generation.stream(thinks, PROMPT, NEW, again=AGAIN))
    tokens = list(live.continue_prompt(thinks, PROMPT, NEW, again=AGAIN))
    assert [token.is_given for token in tokens] == [True] * AGAIN + [False] * NEW
    assert "".join(token.text for token in tokens) == f" +1 +1 {result.text}"
    new = steps[AGAIN:]
    assert [int(step.token_B[0]) for step in new] == result.tokens
    assert [step.thought_BxK[0].tolist() for step in new] == result.thoughts
    text = [*ids, *result.tokens]
    for place, (step, token) in enumerate(zip(steps, tokens, strict=True), len(ids) - AGAIN):
        drawn, chosen = step.thought_BxK[0], text[place]
        assert int(step.token_B[0]) == chosen and not token.is_end
        assert token.thought == thinks.tokenizer.decode(drawn.tolist())
        mixed_V, plain_V = expected(thinks, text[:place], drawn, token.weight)
        gain = mixed_V[chosen] - plain_V[chosen]
        np.testing.assert_allclose(token.gain, gain, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(token.probability, math.exp(mixed_V[chosen]), rtol=1e-3)


def test_an_answer_is_the_likeliest_of_the_answers(thinks: Loaded) -> None:
    [token] = live.answer(thinks, "3 +1 =", ANSWERS)
    own = [thinks.tokenizer.encode(f"= {answer}")[-1] for answer in ANSWERS]
    ids = generation.prompt_ids(thinks, "3 +1 =")
    [step] = generation.stream(thinks, "3 +1 =", 1, only=own)
    tables = expected(thinks, ids, step.thought_BxK[0], token.weight)
    mixed_A, plain_A = (reference.log_softmax(table_V[own]) for table_V in tables)
    best = int(np.argmax(mixed_A))
    assert token.text == f" {ANSWERS[best]}"
    np.testing.assert_allclose(token.probability, math.exp(mixed_A[best]), rtol=1e-3)
    np.testing.assert_allclose(token.gain, mixed_A[best] - plain_A[best], rtol=1e-3, atol=1e-4)


def test_a_model_without_thoughts_gains_nothing(thinks: Loaded) -> None:
    plain = dataclasses.replace(thinks, thought=None)
    [result] = generation.generate(plain, [PROMPT], NEW)
    ends = dataclasses.replace(plain.tokenizer, eos_id=result.tokens[2])
    stops = result.tokens.index(result.tokens[2])
    tokens = list(live.continue_prompt(dataclasses.replace(plain, tokenizer=ends), PROMPT, NEW))
    assert [token.is_end for token in tokens] == [False] * stops + [True]
    assert all((token.thought, token.weight, token.gain) == (None, 0, 0) for token in tokens)
    assert live.summary(tokens).tokens == stops


def test_a_summary_is_that_of_new_tokens() -> None:
    token = LiveToken("a", "b", weight=0.5, probability=1.0, gain=2.0, seconds=0.25)
    given = token._replace(seconds=9.0, gain=50.0, is_given=True)
    tokens = [given, token, token._replace(weight=0.25, gain=-1.0, seconds=0.75), token]
    assert live.summary(tokens) == (3, 250.0, 1.25 / 3, 1.0)
    assert live.summary(tokens[1:3]).ms_per_token == 750.0  # the first waits for the prompt
    assert live.summary([])[0] == 0 and all(map(math.isnan, live.summary([])[1:]))
