"""Readings, and scores of continuations, against thinking at one position at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.data import tokenizer_training
from fqs_jax.inference import continuations, readings
from fqs_jax.inference import loaded as loaded_lib
from fqs_jax.inference.continuations import Request
from fqs_jax.inference.readings import Row
from fqs_jax.model import decoder
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.keys import thought_keys
from fqs_jax.thinking.prediction import think
from tests.tiny_models import MASKED_IDS, VOCAB, model_config, random_params
from tests.tiny_runs import sentences

THOUGHT = ThoughtConfig(n_ahead=4, rationales=1, masked_ids=MASKED_IDS)
LONGEST, SEED = 16, 3
# Lengths of contexts and continuations on both sides of every bucket: of the text, of the powers of
# two and of the positions that are read at once. One continuation is empty.
LENGTHS = [(7, 2), (5, 0), (10, 7), (5, 2), (5, 5)]


@pytest.fixture(scope="module", autouse=True)
def small_buckets():
    """Buckets for short texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readings, "_LENGTH", 8)
        patch.setattr(readings, "_POSITIONS", 1)
        patch.setattr(readings, "_AT_ONCE", 8)  # 4 positions in batches of 2
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return tokenizer_training.train_sentencepiece(sentences(200), folder, 300)


def loaded(tokenizer, tmp_path, thought, **changes):
    model = model_config(max_seq_len=100, **changes)
    return loaded_lib.Loaded(random_params(model), model, tokenizer, thought, tmp_path, "tiny")


def requests(lengths):
    rng = np.random.default_rng(0)
    return [
        Request(rng.integers(0, VOCAB, a).tolist(), rng.integers(0, VOCAB, b).tolist())
        for a, b in lengths
    ]


def directly(model, number, request):
    """Log-probabilities [C, V] where the continuation is predicted, of one row alone.

    The row is filled up behind its end, so that one program serves all; it has one position at a
    time thought about.
    """
    row = request.context + request.continuation
    tokens = jnp.array([row + [0] * (LONGEST + 1 - len(row))])
    mask = jnp.arange(LONGEST + 1)[None] < len(row)
    found = [
        _at(model.params, tokens, mask, jnp.array([[t]]), number, model.model, model.thought)
        for t in range(len(request.context) - 1, len(row) - 1)
    ]
    return np.array(found)


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _at(params, tokens, mask, index, number, model, thought):
    if thought is None:
        logits = decoder.logits(params["lm"], tokens, model, mask)
        return jax.nn.log_softmax(logits[0, index[0, 0]])
    keys = thought_keys(jax.random.key(SEED), index, thought.rationales, number[None])
    following, _ = think(params, tokens, keys, Thinker(model, thought), mask, index)
    return jax.nn.logsumexp(following.log_prob_BxPxRxV[0, 0], axis=0) - jnp.log(thought.rationales)


@pytest.mark.parametrize("thinks, window", [(True, 9), (False, 9), (False, None)])
def test_scores_are_those_of_each_text_alone(tokenizer, tmp_path, thinks, window):
    model = loaded(tokenizer, tmp_path, THOUGHT if thinks else None, sliding_window=window)
    asked = requests(LENGTHS)
    scores, cropped = continuations.score(model, asked, batch_size=2, seed=SEED)
    assert cropped == 0 and len(scores) == len(asked)
    for number, (request, score) in enumerate(zip(asked, scores, strict=True)):
        if not request.continuation:
            assert score == (0.0, True)
            continue
        log_probs = directly(model, number, request)
        right = log_probs[np.arange(len(log_probs)), request.continuation]
        assert score.log_prob == pytest.approx(right.sum(), abs=1e-4)
        assert score.greedy == (log_probs.argmax(-1) == request.continuation).all()


@pytest.mark.parametrize("thinks", [True, False])
def test_the_likeliest_continuation_is_greedy(tokenizer, tmp_path, thinks):
    model = loaded(tokenizer, tmp_path, THOUGHT if thinks else None)
    context = [3, 1, 4]
    best = int(directly(model, 0, Request(context, [0]))[0].argmax())
    scores, _ = continuations.score(model, [Request(context, [best])], seed=SEED)
    assert scores[0].greedy
    scores, _ = continuations.score(model, [Request(context, [(best + 1) % VOCAB])], seed=SEED)
    assert not scores[0].greedy


def test_scores_that_are_not_finite_are_refused(tokenizer, tmp_path):
    model = loaded(tokenizer, tmp_path, None)
    broken = dataclasses.replace(
        model, params=jax.tree.map(lambda leaf: leaf * np.nan, model.params)
    )
    asked = [Request([3], []), Request([3, 1], [4])]  # an empty continuation is not read
    with pytest.raises(UserError, match="loss of tiny is not finite, first in item 2: the model"):
        continuations.score(broken, asked, batch_size=2)


def test_batches_do_not_matter_and_seeds_do(tokenizer, tmp_path):
    model = loaded(tokenizer, tmp_path, THOUGHT)
    asked = requests([(3, 1), (8, 1), (5, 1)])

    def log_probs(batch_size, seed):
        scores, _ = continuations.score(model, asked, batch_size, seed)
        return np.array([score.log_prob for score in scores])

    np.testing.assert_allclose(log_probs(1, 0), log_probs(2, 0), atol=1e-4)
    assert (log_probs(2, 0) != log_probs(2, 1)).all()


def test_several_thoughts_are_averaged_as_probabilities(tokenizer, tmp_path):
    model = loaded(tokenizer, tmp_path, dataclasses.replace(THOUGHT, rationales=3))
    [request] = requests([(10, 7)])
    scores, _ = continuations.score(model, [request], batch_size=1, seed=SEED)
    right = directly(model, 0, request)[np.arange(7), request.continuation]
    assert scores[0].log_prob == pytest.approx(right.sum(), abs=1e-4)


def test_readings_with_and_without_thoughts(tokenizer, tmp_path):
    """Several ids at positions of two rows that share thoughts, and of a row with its own."""
    model = loaded(tokenizer, tmp_path, dataclasses.replace(THOUGHT, rationales=3))
    [(tokens, _)] = requests([(LONGEST, 0)])
    rows = [
        Row(tokens, {2: (5, 1), 9: (7,)}, number=4),
        Row(tokens[:5], {2: (1, 5), 4: (0, 2, 3)}, number=4),
        Row(tokens[:3], {2: (5, 1)}, number=6),
    ]
    done = []
    found = readings.read(model, rows, 2, SEED, lambda *counts: done.append(counts))
    assert done == [(1, 3), (3, 3)]
    plain_model = dataclasses.replace(model, thought=None)
    for row, reading in zip(rows, found, strict=True):
        for p, (position, ids) in enumerate(row.reads.items()):
            request = Request(row.tokens[: position + 1], [0])
            [plain_V] = directly(plain_model, row.number, request)
            [mean_V] = directly(model, row.number, request)
            columns = list(ids)
            np.testing.assert_allclose(
                reading.plain_PxA[p, : len(ids)], plain_V[columns], atol=1e-4
            )
            thinking_RxA = reading.thinking_RxPxA[:, p, : len(ids)]
            assert len(thinking_RxA) == 3
            mean_A = np.log(np.exp(thinking_RxA).mean(axis=0))
            np.testing.assert_allclose(mean_A, mean_V[columns], atol=1e-4)
            assert reading.likeliest_P[p] == mean_V.argmax()
    first, second, other = (reading.thinking_RxPxA[:, 0] for reading in found)
    np.testing.assert_allclose(first[:, [1, 0]], second[:, :2], atol=1e-4)
    assert np.abs(first - other).max() > 1e-2


def test_few_shapes_are_compiled(monkeypatch):
    """Rows of 3 to 700 tokens that are read at 1 to 9 positions: powers of two, or the most needed."""
    monkeypatch.setattr(readings, "_LENGTH", 64)
    monkeypatch.setattr(readings, "_POSITIONS", 4)
    monkeypatch.setattr(readings, "_AT_ONCE", 512)
    rng = np.random.default_rng(0)
    rows = [
        Row([1] * int(n), dict.fromkeys(range(int(m)), (1,)))
        for n, m in zip(rng.integers(3, 700, 500), rng.integers(1, 10, 500), strict=True)
    ]
    numbers, shapes = [], set()
    for chosen, arrays in readings._row_batches(rows, 32, thoughts=1):
        (_, length), (_, positions) = arrays["tokens"].shape, arrays["index"].shape
        numbers += chosen
        shapes.add((positions, length))
        assert all(len(rows[i].tokens) <= length for i in chosen)
        assert all(len(rows[i].reads) <= positions <= 9 for i in chosen)
    assert sorted(numbers) == list(range(500)) and len(shapes) <= 3 * 5
    few = [Row([1] * n, {0: (1,)}) for n in (5, 70, 40, 130)]
    [(chosen, arrays)] = readings._row_batches(few, 4, thoughts=1)
    assert chosen == [3, 1, 2, 0] and arrays["tokens"].shape == (4, 160)


def test_what_is_too_long_loses_its_beginning(tokenizer, tmp_path):
    model = loaded(tokenizer, tmp_path, None)
    rng = np.random.default_rng(0)
    long = rng.integers(0, VOCAB, 120).tolist()
    long_request, short_request = Request(long, [1]), Request(long[-100:], [1])
    (score, same), cropped = continuations.score(model, [long_request, short_request])
    assert cropped == 1 and score == same
    with pytest.raises(UserError, match="101 tokens is longer than the 100"):
        continuations.score(model, [Request([1], long[:101])])


def test_encoding_cuts_the_tokens_of_the_whole_text(tokenizer):
    plain = dataclasses.replace(tokenizer, add_bos=False)
    for context, continuation in [("the cat", " sat on"), ("the cat ", "sat on")]:
        request = continuations.encode(plain, context, continuation)
        assert request.context == plain.encode("the cat")
        assert request.context + request.continuation == plain.encode("the cat sat on")
    with_bos = dataclasses.replace(tokenizer, bos_id=1, add_bos=True)
    assert continuations.encode(with_bos, "the", " cat").context == [1, *plain.encode("the")]


def test_an_empty_context_is_the_begin_or_the_end_of_text(tokenizer):
    ids = tokenizer.encode("the cat")
    for add_bos in (True, False):
        begins = dataclasses.replace(tokenizer, bos_id=1, add_bos=add_bos)
        assert continuations.encode(begins, "", "the cat") == ([1], ids)
    ends = dataclasses.replace(tokenizer, bos_id=None, eos_id=2, add_bos=False)
    assert continuations.encode(ends, "", "the cat") == ([2], ids)
    with pytest.raises(UserError, match="needs a tokenizer with a BOS"):
        continuations.encode(dataclasses.replace(ends, eos_id=None), "", "the cat")
