"""Whole evaluations, against the slow rollout. With real files and models: test_tasks_transformers.py."""

import dataclasses

import jax
import numpy as np
import pytest

from fqs_jax.data import tokenizer_training
from fqs_jax.evaluation.tasks import asking, commonsense_qa, gsm8k, items, piqa, social_iqa
from fqs_jax.evaluation.tasks.asking import Settings, evaluate
from fqs_jax.evaluation.tasks.items import Item
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import placement
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import prediction
from fqs_jax.thinking.config import ThoughtConfig
from tests import benchmark_files, reference, tiny_models
from tests.tiny_runs import sentences

THOUGHT = ThoughtConfig(n_ahead=5, rationales=1, masked_ids=(4,))
SIQA = social_iqa.task()
# Choices that have several tokens each and are begun by others.
TEXTS = [
    Item("the cat", " sat on", (" sat on", " saw nobody", " sat on the mat"), "text"),
    Item("one old king saw", " Tom", (" Tom", " her friend Tom"), "text"),
]


@pytest.fixture(scope="module")
def thinking(tmp_path_factory) -> Loaded:
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [*sentences(200), "Q: A B C D E (A) (B) (C) (D) (E) 0 1 2 3 4 5 6 7 8 9"]
    tokenizer = tokenizer_training.train_sentencepiece(lines, folder, 330)
    model = tiny_models.model_config(vocab_size=tokenizer.vocab_size, max_seq_len=256)
    params = tiny_models.random_params(model)
    return Loaded(params, model, tokenizer, THOUGHT, folder, "thinking")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    files = benchmark_files.write_all(tmp_path_factory.mktemp("files"))
    tasks = {"csqa": commonsense_qa.TASK, "piqa": piqa.TASK, "siqa": SIQA, "gsm8k": gsm8k.TASK}
    return {name: items.read(tasks[name], str(files[name])) for name in tasks} | {"text": TEXTS}


# Against the slow rollout, one context at a time --------------------


def next_log_probs(loaded, context, seed=None, number=0):
    """After a thought of an item, by the slow rollout: [V]; the likeliest one without a seed."""
    params, config, last = loaded.params, loaded.model, len(context) - 1
    text = (np.array(context), np.ones(len(context), bool))
    drawn = []
    for k in range(2):
        opening = reference.start_and_thought(params, drawn, 100.0)
        hidden = reference.block_hidden(params, config, *text, last, opening)
        logits = reference.thought_logits(params["lm"], hidden[-1], (4,))
        if seed is not None:
            indices = (number, last, 0, k)
            logits = logits + reference.gumbel_noise(jax.random.key(seed), indices, len(logits))
        drawn.append(int(np.argmax(logits)))
    out = reference.rollout(params, config, *text, last, drawn, 1, masked_ids=(4,))
    return reference.log_softmax(out.mixed_logits_AxV[0])


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", ["csqa", "gsm8k"])
def test_the_walk_after_thoughts(thinking, asked, name, seed):
    """The thought at a place depends on seed, item and place."""
    item, number = asked[name][1], 1
    settings = Settings(thought_seeds=2, seed=seed or 0, greedy=seed is None)
    result = evaluate(thinking, asked[name], settings)
    ids = thinking.tokenizer.opening + thinking.tokenizer.encode(item.prompt + item.answer + "\n")
    allowed = [*(item.choices or map(str, range(10)))]
    allowed = [thinking.tokenizer.encode(f"A:{' '[: s[0] != ' ']}{s}")[-1] for s in allowed]
    allowed.append(ids[-1])
    start = len(thinking.tokenizer.opening + thinking.tokenizer.encode(item.prompt))
    expected = 0.0
    for t in range(start, len(ids)):
        if ids[t] in allowed:
            log_probs = next_log_probs(thinking, ids[:t], seed, number)
            expected += log_probs[ids[t]] - np.logaddexp.reduce(log_probs[allowed])
    assert result.thinking is not None
    found = result.thinking.published.right_log_prob()[number, 0]
    assert found == pytest.approx(expected, abs=1e-4)
    assert abs(found - result.plain.published.right_log_prob()[number, 0]) > 1e-3


def test_choices_of_text_after_thoughts(thinking):
    result = evaluate(thinking, TEXTS, Settings(greedy=True))
    assert result.thinking is not None
    for n, item in enumerate(TEXTS):
        totals = []
        encode = thinking.tokenizer.encode
        wholes = [encode(item.prompt + choice) for choice in item.choices]
        common = min(
            next((i for i, (a, b) in enumerate(zip(w, v, strict=False)) if a != b), len(v))
            for w in wholes
            for v in [*wholes, encode(item.prompt)]
            if w != v
        )
        for whole in wholes:
            ids = thinking.tokenizer.opening + whole
            first = len(thinking.tokenizer.opening) + common
            parts = [next_log_probs(thinking, ids[:t])[ids[t]] for t in range(first, len(ids))]
            totals.append(sum(parts))
        found = result.thinking.choices.log_probs_NxRxDxA[n, 0, 0, : len(totals)]
        np.testing.assert_allclose(found - found[0], np.array(totals) - totals[0], atol=2e-4)


@pytest.mark.exhaustive
def test_another_choice_moves_no_other_score(thinking):
    """Longer or shorter than the others, so that it is read before or after them."""
    settings, few = Settings(thought_seeds=2, seed=4), TEXTS[1]
    before = evaluate(thinking, [TEXTS[0], few], settings).thinking
    assert before is not None
    expected = before.choices.log_probs_NxRxDxA[1, :, 0, : len(few.choices)]
    for added in (" his hat", " her friend and one old king and a small dog"):
        more = dataclasses.replace(few, choices=(*few.choices, added))
        after = evaluate(thinking, [TEXTS[0], more], settings).thinking
        assert after is not None
        found = after.choices.log_probs_NxRxDxA[1, :, 0, : len(few.choices)]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    other = evaluate(thinking, [few, few], settings).thinking
    assert other is not None  # a different item: different thoughts
    first, second = other.choices.log_probs_NxRxDxA[:, :, 0, : len(few.choices)]
    np.testing.assert_allclose(second, expected, atol=1e-4)
    assert np.abs(first - second).max() > 1e-3


# How it is computed changes nothing --------------------


def test_batches_and_mesh_change_nothing(thinking, asked):
    whole = evaluate(thinking, asked["csqa"], Settings(thought_seeds=2, seed=1))
    mesh = sharding.local_mesh(fsdp=2, tensor=1)
    where = placement.of_parameters(thinking.params, mesh)
    spread = dataclasses.replace(thinking, params=jax.device_put(thinking.params, where), mesh=mesh)
    done = []
    for loaded, batch_size, count in ((thinking, 1, 2), (spread, 32, 3)):
        settings = Settings(thought_seeds=2, seed=1, batch_size=batch_size)
        some = asked["csqa"][:count]
        other = evaluate(loaded, some, settings, lambda *counts: done.append(counts))
        for ours, theirs in zip(whole[:2], other[:2], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                expected = a.right_log_prob()[:count]
                np.testing.assert_allclose(b.right_log_prob(), expected, atol=1e-4)
    assert done[-1][0] == done[-1][1]


def test_thoughts_are_computed_only_where_something_is_read(thinking, asked, monkeypatch):
    """Behind the colon and behind the letter: positions of the compiled program, against its length."""
    shapes, real = [], prediction.rollout

    def rollout(params, cache, keys_BxPxR, *rest):
        shapes.append((cache[0].shape[2], *keys_BxPxR.shape[1:]))
        return real(params, cache, keys_BxPxR, *rest)

    monkeypatch.setattr(prediction, "rollout", rollout)
    readings._log_probs.clear_cache()  # another test may have compiled this shape
    evaluate(thinking, asked["csqa"], Settings(thought_seeds=2, batch_size=5))
    assert [(positions, thoughts) for _, positions, thoughts in shapes] == [(2, 2)]
    assert shapes[0][0] > 50


def test_seeds_and_greedy(thinking, asked):
    sampled = evaluate(thinking, asked["csqa"], Settings(thought_seeds=2))
    assert sampled.thinking is not None
    probs = sampled.thinking.published.right_log_prob()
    assert probs.shape == (3, 2) and len(np.unique(probs.round(6))) == 6
    first, second = (
        evaluate(thinking, asked["csqa"], Settings(greedy=True, seed=seed)) for seed in (9, 10)
    )
    assert first.thinking is not None and second.thinking is not None
    np.testing.assert_array_equal(
        first.thinking.published.right_log_prob(), second.thinking.published.right_log_prob()
    )
    plain = evaluate(dataclasses.replace(thinking, thought=None), asked["csqa"], Settings())
    assert plain.thinking is None
    np.testing.assert_allclose(
        plain.plain.published.right_log_prob(), first.plain.published.right_log_prob(), atol=1e-5
    )


def test_too_long_items_are_left_out_and_counted(thinking, asked):
    lengths = sorted(q.length for q in asking.prepare(asked["gsm8k"], thinking.tokenizer))
    result = evaluate(thinking, asked["gsm8k"], Settings(seq_len=lengths[1], greedy=True))
    assert (len(result.answered), result.too_long) == (2, 1)
    assert len(result.plain.published.target_NxD) == 2
    with pytest.raises(UserError, match=f"no item fits in 5 tokens, the shortest has {lengths[0]}"):
        evaluate(thinking, asked["gsm8k"], Settings(seq_len=5))
