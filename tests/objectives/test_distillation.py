"""Distillation against numpy in float64, against the slow rollout, and as a stage of a run."""

from __future__ import annotations

import functools
import io
import itertools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.stage import row
from fqs_jax.objectives import distillation
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives import plain as plain_lib
from fqs_jax.objectives.batch import Batch
from fqs_jax.objectives.distillation import FORMS, DistillConfig
from fqs_jax.reporting import page
from fqs_jax.runs import folders, metrics_file
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupted
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.training import teacher, teacher_scores
from tests import reference
from tests.objectives.test_losses import student_logits
from tests.tiny_models import MASKED_IDS, VOCAB, model_config, random_params, texts
from tests.tiny_runs import clock_config, save_stage
from tests.training.test_loop import BEFORE, SignalAt, assert_same_stage, train_stage

MODEL = model_config()
KEY = jax.random.key(4)
LENGTHS = (7, 4)


def random_log_probs(*shape: int, seed: int = 0) -> np.ndarray:
    """Distributions over the last axis, none of them flat."""
    return reference.log_softmax(np.random.default_rng(seed).normal(0, 2, shape))


def batch(top_k: int = 0, shift: bool = False, hinge: bool = False) -> Batch:
    """Padded rows; a token that is seen is nobody's target; and a made-up teacher."""
    tokens, mask = texts(LENGTHS, max(LENGTHS), seed=5)
    log_p = random_log_probs(*tokens.shape, VOCAB, seed=3)
    label = np.take_along_axis(log_p[:, :-1], np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    made = {
        "tokens": tokens,
        "mask": mask,
        "target": mask.at[:, 2].set(False),
        "teacher_log_prob": label,
    }
    if not hinge:
        ids = np.argsort(-log_p, axis=-1)[..., :top_k] if top_k else np.arange(VOCAB)
        ids = np.broadcast_to(ids, (*tokens.shape, ids.shape[-1]))
        made["teacher_log_probs"] = np.take_along_axis(log_p, ids, -1)
        if top_k:
            made["teacher_ids"] = ids.astype(np.int32)
    if shift:
        made["teacher_shift"] = np.random.default_rng(6).uniform(0, 1, tokens.shape)
    return {
        name: jnp.asarray(x, jnp.float32 if np.asarray(x).dtype == np.float64 else None)
        for name, x in made.items()
    }


@functools.partial(jax.jit, static_argnames="config")
def distill_loss(params: Any, data: Any, key: Any, config: DistillConfig) -> Any:
    return distillation.distill_loss(params, data, key, MODEL, config)


def slow_outcomes(data: Batch, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of teacher and student; what is left over is one outcome."""
    p, q = np.exp(np.asarray(data["teacher_log_probs"], np.float64)), np.exp(log_q)
    if "teacher_ids" in data:
        q = np.take_along_axis(q, np.asarray(data["teacher_ids"]), -1)
        p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p, q))
    return p, q


# The loss --------------------


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("form", ["forward_kl", "reverse_kl", "hinge"])
def test_the_loss_is_its_formula(form: str, top_k: int, shift: bool) -> None:
    """Every real position counts, also the last of a row: 11 of 14; with targets those before one: 7."""
    data, params = batch(top_k, shift, form == "hinge"), random_params(MODEL)
    if form == "forward_kl":
        del data["target"]
    weighting = "shift" if shift else "all"
    config = DistillConfig(form, 0.3, weighting, top_k=top_k)
    loss, metrics = distill_loss(params, data, KEY, config)
    metrics = metrics_lib.values(metrics)

    log_q = reference.log_softmax(student_logits(params, data))
    tokens, mask = np.asarray(data["tokens"]), np.asarray(data["mask"])
    target = np.asarray(data.get("target", mask))
    label = np.take_along_axis(log_q[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    weight = np.asarray(data["teacher_shift"], np.float64) if shift else np.ones(mask.shape)
    if form == "hinge":
        assert target[:, 1:].sum() == 7
        weight = weight[:, :-1] * target[:, 1:]
        term = np.maximum(0, np.asarray(data["teacher_log_prob"], np.float64) - label)
    else:
        counted = mask if form == "forward_kl" else np.pad(target[:, 1:], ((0, 0), (0, 1)))
        assert counted.sum() == (11 if form == "forward_kl" else 7) and mask[0, -1]
        weight = weight * counted
        p, q = slow_outcomes(data, log_q)
        p, q = (p, q) if form == "forward_kl" else (q, p)
        term = np.sum(p * np.log(p / q), -1)
    expected = np.sum(term * weight) / np.sum(weight)
    nll = -np.mean(label[target[:, 1:]])
    behind = np.mean((np.asarray(data["teacher_log_prob"]) - label)[target[:, 1:]])
    np.testing.assert_allclose(metrics[f"distill/{form}"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["nll_base"], nll, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll_teacher_minus_student"], -behind, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.3 * nll + 0.7 * expected, rtol=1e-4)
    drawn = {metric for *_, curves in page.CURVES for metric, *_ in curves}
    assert {name for name in metrics if name.startswith("distill/")} <= drawn


def test_the_whole_vocabulary_as_tokens_and_fewer_as_a_lower_bound() -> None:
    params = random_params(MODEL)

    def kl(top_k: int, form: str) -> float:
        config = DistillConfig(form, top_k=top_k)
        return float(distill_loss(params, batch(top_k), KEY, config)[0])

    for form in ("forward_kl", "reverse_kl"):
        whole = kl(0, form)
        assert kl(VOCAB, form) == pytest.approx(whole, rel=1e-5)
        bounds = [kl(top_k, form) for top_k in (1, 4, 12)]
        assert bounds == sorted(bounds) and 0 < bounds[0] and bounds[-1] < whole


@pytest.mark.parametrize("form", FORMS)
def test_labels_alone_are_next_token_training(form: str) -> None:
    params, data = random_params(MODEL), batch(hinge=form == "hinge")
    config = DistillConfig(form, label_weight=1.0)
    ours = jax.value_and_grad(lambda p: distill_loss(p, data, KEY, config)[0])(params)
    plain = jax.value_and_grad(lambda p: plain_lib.next_token_loss(p, data, KEY, MODEL)[0])(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_last_position_teaches_though_no_token_follows() -> None:
    """A change of the teacher changes the loss, except at padding."""
    params, data = random_params(MODEL), batch()
    del data["target"]
    before = distill_loss(params, data, KEY, DistillConfig())[0]
    other = jnp.asarray(random_log_probs(VOCAB, seed=9), jnp.float32)
    for place, counts in {(0, 6): True, (1, 3): True, (1, 4): False}.items():
        changed = data | {"teacher_log_probs": data["teacher_log_probs"].at[place].set(other)}
        after = distill_loss(params, changed, KEY, DistillConfig())[0]
        assert (abs(after - before) > 1e-3) == counts


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("form", "top_k"), [("forward_kl", 0), ("reverse_kl", 5), ("policy", 5)])
def test_the_last_positions_alone(form: str, top_k: int, shift: bool) -> None:
    """Loss and gradient are those of all positions when no other has a weight, also in microbatches."""
    params, data = random_params(MODEL), batch(top_k, shift)
    del data["target"]
    index = np.asarray(data["mask"]).sum(1, keepdims=True) - 1
    is_last = np.arange(max(LENGTHS)) == index
    everywhere = data | {"teacher_shift": data.get("teacher_shift", 1.0) * jnp.float32(is_last)}
    alone = {name: data[name] for name in ("tokens", "mask")}
    for name in {"teacher_log_probs", "teacher_ids", "teacher_shift"} & set(data):
        rows = np.asarray(data[name])
        alone[name] = jnp.asarray(np.stack([row[i] for row, i in zip(rows, index, strict=True)]))

    def gradient(data: Batch, **config: Any) -> Any:
        settings = DistillConfig(form, top_k=top_k, **config)
        return jax.value_and_grad(lambda p: distill_loss(p, data, KEY, settings)[0])(params)

    own = {"weighting": "shift" if shift else "all", "positions": "last"}
    whole = gradient(everywhere, weighting="shift")
    total = jnp.sum(everywhere["teacher_shift"]) / 2
    halves = [
        gradient(
            {k: v[n : n + 1] for k, v in alone.items()} | {"weight": total, "row": jnp.array([n])},
            **own,
        )
        for n in range(2)
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    for found in (gradient(alone, **own), mean):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert np.any(jax.tree.leaves(whole)[0])


def test_who_is_ahead_of_the_teacher_learns_nothing_from_the_hinge() -> None:
    params, data = random_params(MODEL), batch(hinge=True)
    data |= {"teacher_log_prob": jnp.full_like(data["teacher_log_prob"], -1e3)}
    gradient = jax.grad(lambda p: distill_loss(p, data, KEY, DistillConfig("hinge"))[0])(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("form", FORMS)
def test_logits_in_chunks(form: str) -> None:
    """Chunks of 5 tokens a row, and of one; the keys of draws are cut like the tokens."""
    params, data = random_params(MODEL), batch(5, shift=True, hinge=form == "hinge")
    config = DistillConfig(form, 0.2, "shift", top_k=5)

    def of(chunk: int) -> Any:
        model = model_config(vocab_chunk=chunk)
        return jax.jit(
            jax.value_and_grad(lambda p: distillation.distill_loss(p, data, KEY, model, config)[0])
        )(params)

    for chunk in (1, 5):
        for a, b in zip(jax.tree.leaves(of(chunk)), jax.tree.leaves(of(0)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Gradients in the logits --------------------


def in_logits(term: Any, log_p: np.ndarray, logits: np.ndarray) -> np.ndarray:
    p = jnp.asarray(log_p, jnp.float32)
    return np.asarray(jax.grad(lambda z: term(p, jax.nn.log_softmax(z)))(jnp.float32(logits)))


def test_gradients_are_those_of_the_formulas() -> None:
    """q - p; and q (log q - log p - KL)."""
    log_p, logits = random_log_probs(6), 2 * random_log_probs(6, seed=1)
    log_q = reference.log_softmax(logits)
    p, q = np.exp(log_p), np.exp(log_q)
    forward = in_logits(distillation.forward_kl, log_p, logits)
    np.testing.assert_allclose(forward, q - p, atol=1e-6)
    ratio = log_q - log_p
    reverse = in_logits(distillation.reverse_kl, log_p, logits)
    np.testing.assert_allclose(reverse, q * (ratio - np.sum(q * ratio)), atol=1e-6)


@pytest.mark.parametrize("group", [2, 3])
def test_the_policy_gradient_is_that_of_reverse_kl_on_average(group: int) -> None:
    """Over all draws there are, each as often as it comes."""
    log_p, logits = random_log_probs(4), random_log_probs(4, seed=1)
    q = np.exp(reference.log_softmax(logits))
    expected = np.zeros(4)
    for drawn in itertools.product(range(4), repeat=group):
        term = functools.partial(distillation.surrogate, drawn=jnp.array(drawn))
        expected += np.prod(q[list(drawn)]) * in_logits(term, log_p, logits)
    reverse = in_logits(distillation.reverse_kl, log_p, logits)
    np.testing.assert_allclose(expected, reverse, atol=1e-6)


def test_what_is_drawn_comes_from_the_student() -> None:
    """The mean gradient of 4,000 keys, within 5 standard errors."""
    log_p, logits = random_log_probs(4), random_log_probs(4, seed=1)
    p = jnp.asarray(log_p, jnp.float32)

    def term(z: jax.Array, key: jax.Array) -> jax.Array:
        log_q = jax.nn.log_softmax(z)
        return distillation.policy(p[None], log_q[None], key[None], 4)[0]

    keys = jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(jax.grad(term), (None, 0)))(jnp.float32(logits), keys)
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    reverse = in_logits(distillation.reverse_kl, log_p, logits)
    assert np.all(np.abs(np.mean(drawn, axis=0) - reverse) < 5 * error)


def test_tails_keep_their_numbers() -> None:
    """The rest may be far smaller than the precision of float32 at 1: values and gradients are finite."""
    log_p = jnp.log(jnp.array([1.0, 1e-12]))
    logits = jnp.array([40.0, 2.0, 0.0, -1.0])
    ids = jnp.array([0, 2])

    def term(logits: jax.Array, kl: Any) -> jax.Array:
        return kl(*distillation.outcomes(log_p, jax.nn.log_softmax(logits), ids))

    for kl in (distillation.forward_kl, distillation.reverse_kl):
        value, gradient = jax.value_and_grad(term)(logits, kl)
        assert abs(value) < 1e-5 and np.all(np.isfinite(gradient))
    _, log_q = distillation.outcomes(log_p, jax.nn.log_softmax(logits), ids)
    assert log_q[-1] == pytest.approx(np.log(np.exp(2.0) + np.exp(-1.0)) - 40, rel=1e-5)


# The teacher --------------------


@pytest.mark.parametrize("mixing", ["linear", "probability"])
def test_what_the_teacher_says_is_the_slow_rollout_s(mixing: str) -> None:
    """The mean of the distributions after 2 thoughts at every position, and what is read off it."""
    params = random_params(MODEL)
    thought = ThoughtConfig(
        n_ahead=4, rationales=2, mixing=mixing, mixing_bias=-0.5, masked_ids=MASKED_IDS
    )
    tokens, mask = texts((5, 3), 5, seed=5)
    data = {"tokens": tokens, "mask": mask, "row": jnp.arange(2)}

    def say(model: Any, **config: Any) -> dict[str, np.ndarray]:
        arrays = distillation.teacher_arrays(DistillConfig(**config), 5, VOCAB)
        hinge = list(arrays) == ["teacher_log_prob"]
        how = teacher.label_log_probs if hinge else teacher.predictions
        if config.get("positions") == "last":
            how = teacher.predictions_at_last
        said = jax.jit(lambda p: how(p, data, KEY, Thinker(model, thought), arrays))(params)
        assert {name: (x.shape[1:], x.dtype) for name, x in said.items()} == arrays
        return {name: np.asarray(x) for name, x in said.items()}

    drawn = reference.sample(params, MODEL, tokens, mask, KEY, 1, 2, 1.0, masked_ids=MASKED_IDS)
    p, plain = np.zeros((2, 2, 5, VOCAB))
    floats = reference.float64(params)
    for b, t in np.ndindex(2, 5):
        given = (floats, MODEL, np.asarray(tokens[b]), np.asarray(mask[b]))
        for thought_K in drawn[b, t]:
            bias = 0.0 if mixing == "linear" else -0.5
            out = reference.rollout(*given, t, thought_K, 1, mixing, bias, masked_ids=MASKED_IDS)
            p[b, t] += np.exp(reference.log_softmax(out.mixed_logits_AxV[0])) / 2
        hidden = reference.text_hidden(floats["lm"], *given[1:])
        plain[b, t] = np.exp(reference.log_softmax(reference.logits(floats["lm"], hidden[t])))
    real = np.asarray(mask)
    label = np.take_along_axis(np.log(p)[:, :-1], np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)

    whole = say(MODEL, weighting="shift")
    close(np.exp(whole["teacher_log_probs"][real]), p[real])
    close(whole["teacher_shift"][real], np.abs(p - plain).sum(-1)[real] / 2)
    close(whole["teacher_log_prob"][real[:, 1:]], label[real[:, 1:]])
    few = say(model_config(vocab_chunk=4), top_k=3)  # one position at a time
    ids = np.argsort(-p, -1)[..., :3]
    np.testing.assert_array_equal(few["teacher_ids"][real], ids[real])
    close(np.exp(few["teacher_log_probs"])[real], np.take_along_axis(p, ids, -1)[real])
    close(say(MODEL, form="hinge")["teacher_log_prob"][real[:, 1:]], label[real[:, 1:]])

    # The same thoughts, at the last position of each row alone.
    index = real.sum(1) - 1
    for size, chunk in itertools.product((0, 3), (0, 4)):
        asked = {"weighting": "shift", "positions": "last", "top_k": size}
        at_end = say(model_config(vocab_chunk=chunk), **asked)
        wanted = p[[0, 1], index]
        if size:
            ids = np.argsort(-wanted, -1)[..., :size]
            np.testing.assert_array_equal(at_end["teacher_ids"][:, 0], ids)
            wanted = np.take_along_axis(wanted, ids, -1)
        close(np.exp(at_end["teacher_log_probs"])[:, 0], wanted)
        close(at_end["teacher_shift"][:, 0], whole["teacher_shift"][[0, 1], index])


# The stage --------------------

QUESTIONS = {
    "data.clock.worked": 0.0,
    "data.clock.direct": 0.0,
    "data.clock.chatter": 0.0,
    "data.clock.unanswered": 1.0,
}


def stage_config(**changes: Any) -> Any:
    c = clock_config()
    c.stage_4 = row("taught", "distill", start=2, teacher=2, learning_rate=1e-2, steps=4)
    c.checkpoint_every = 2
    c.update_from_flattened_dict({"distill.teacher_thoughts": 2, "stage_2.steps": 4} | changes)
    return c


@pytest.mark.exhaustive
@pytest.mark.usefixtures("steps_made_once")
def test_a_stage_goes_on_as_if_it_had_not_been_stopped(tmp_path, monkeypatch) -> None:
    """Stopped between pieces of the teacher's, and between steps; it starts from its teacher."""
    monkeypatch.setattr(teacher_scores, "PIECE", 2)
    config = stage_config(
        **{"distill.form": "policy", "distill.top_k": 5, "distill.weighting": "shift"}
    )
    root, whole = tmp_path / "W", tmp_path / "whole"
    save_stage(root, config, 2)
    shutil.copytree(root, whole)
    train_stage(whole, config, 4)
    with pytest.raises(Interrupted, match="teacher scores saved up to batch 2 of 4"):
        train_stage(root, config, 4, SignalAt(1))
    with pytest.raises(Interrupted, match="saved at step 3 of 4"):
        train_stage(root, config, 4, SignalAt(1 + BEFORE + 3))
    train_stage(root, config, 4)
    assert_same_stage(root, whole, config, 4)
    piece = np.load(root / "stage_4" / "teacher" / "batches_0000002_0000004.npy")
    assert piece.shape == (2 * 2,) and piece["teacher_ids"].shape == (4, 16, 5)
    # Another number of thoughts is another teacher.
    shutil.rmtree(root / "stage_4" / "checkpoints")
    config.distill.teacher_thoughts = 3
    train_stage(root, config, 4)
    again = np.load(root / "stage_4" / "teacher" / "batches_0000002_0000004.npy")
    assert not np.array_equal(again["teacher_log_probs"], piece["teacher_log_probs"])
    assert folders.latest_step(folders.stage_folder(root, 4) / "checkpoints") == 4


@pytest.mark.usefixtures("steps_made_once")
def test_students_on_the_same_rows_ask_their_teacher_once(tmp_path) -> None:
    config = stage_config()
    taught = {"teacher": 2, "learning_rate": 1e-2, "rows_of": 4}
    config.stage_5 = row("short", "distill", start=0, steps=2, **taught)
    own = ("distill.weighting=shift", "distill.form=reverse_kl")
    config.stage_6 = row("more", "distill", steps=4, settings=own, **taught)
    config.stage_7 = row("released", "ntp", steps=4, **taught | {"teacher": 2})
    config.distill.teacher_thoughts = 1
    root = tmp_path / "W"
    save_stage(root, config, 0)
    save_stage(root, config, 2)
    pieces = lambda: {p.name: p.read_bytes() for p in (root / "stage_4/teacher").glob("*.npy")}  # noqa: E731
    train_stage(root, config, 4)
    first = pieces()
    train_stage(root, config, 5)
    assert first.items() <= pieces().items()
    train_stage(root, config, 6)  # needs more said, of the same thoughts
    more = np.load(root / "stage_4" / "teacher" / "batches_0000000_0000004.npy")
    before = np.load(io.BytesIO(first["batches_0000000_0000004.npy"]))
    assert set(more.dtype.names) == {*before.dtype.names, "teacher_shift"}
    np.testing.assert_array_equal(more["teacher_log_probs"], before["teacher_log_probs"])
    kept = pieces()
    train_stage(root, config, 7)
    train_stage(root, config, 4)
    assert pieces() == kept
    assert not any((root / f"stage_{n}" / "teacher").exists() for n in (5, 6, 7))


@pytest.mark.usefixtures("steps_made_once")
def test_a_stage_that_learns_at_last_positions(tmp_path) -> None:
    """Its scores are of one position a row, in a folder beside those of all positions; it has no labels."""
    config = stage_config(**QUESTIONS, **{"distill.top_k": 5, "microbatches": 2})
    own = ("distill.positions=last", "distill.weighting=shift", "data.seq_len=8")
    config.stage_5 = row(
        "asked", "distill", start=0, teacher=2, learning_rate=1e-2, steps=8, settings=own
    )
    root = tmp_path / "W"
    save_stage(root, config, 0)
    save_stage(root, config, 2)
    train_stage(root, config, 5)
    piece = np.load(root / "stage_5" / "teacher_last" / "batches_0000000_0000008.npy")
    assert piece["teacher_ids"].shape == (8 * 2, 1, 5) and piece["teacher_shift"].shape == (16, 1)
    assert "teacher_log_prob" not in piece.dtype.names
    lines = metrics_file.steps_of(metrics_file.read_lines(root / "stage_5" / "metrics.jsonl"))
    assert all(line["distill/forward_kl"] > 0 and "nll_base" not in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.form": "kl"}, "distill.form 'kl' is none of forward_kl, reverse_kl, policy"),
        ({"distill.weighting": "some"}, "distill.weighting 'some' is none of all, shift"),
        ({"distill.label_weight": 1.5}, "distill.label_weight is 1.5; set 0 to 1"),
        ({"distill.positions": "first"}, "distill.positions 'first' is none of all, last"),
        (
            {"distill.positions": "last", "distill.form": "hinge"},
            "distill.form is 'hinge', .* none follows .* set distill.positions to all, or",
        ),
        (
            {"distill.positions": "last", "distill.label_weight": 0.1},
            "distill.label_weight is 0.1, .* set distill.positions to all, or",
        ),
        (
            {"distill.positions": "last", "data.rows": "pack"},
            "distill.positions is 'last', .* data.rows is 'pack': set it to 'crop', or",
        ),
        (
            {"distill.positions": "last", "data.learn": "answers"},
            "distill.positions is 'last', .* data.learn is 'answers': set it to 'all', or",
        ),
        (
            {"distill.positions": "last", "data.messages_key": "messages"},
            "distill.positions is 'last', .* data.messages_key is 'messages': set it to '', or",
        ),
        (
            {"distill.positions": "last", **QUESTIONS, "data.clock.chatter": 0.5},
            "distill.positions is 'last', .* data.clock.chatter is 0.5: set it to 0.0, or",
        ),
        ({"distill.teacher_thoughts": 0}, "distill.teacher_thoughts is 0; set at least 1"),
        ({"distill.group": 1}, "distill.group is 1; set at least 2"),
        ({"distill.top_k": 33}, "distill.top_k is 33; the vocabulary has 32, set 0 for all"),
        ({"stage_4.teacher": 0}, "stage_4.teacher must be the number of a thinking stage"),
        (
            {"stage_4.steps": 4_000_000},
            "would keep 15.7 GiB .* than 4 GiB; set distill.top_k",
        ),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    model = model_config(vocab_size=32)
    with pytest.raises(UserError, match=message) as refused:
        resolve.recipes(stage_config(**changes), model)
    assert "\n" not in str(refused.value)
