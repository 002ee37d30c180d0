"""The losses against their slow definitions, their gradients against what the formulas promise."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives import plain, quiet_star
from fqs_jax.objectives.batch import Batch, masked_mean, talk_targets
from fqs_jax.objectives.plain import NTPConfig
from fqs_jax.objectives.thought_losses import QuietStarConfig, thought_losses
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.positions import Positions, choose
from fqs_jax.thinking.scoring import BlockScores
from fqs_jax.thinking.thoughts import Scores
from tests import jaxprs, reference
from tests.parity import thinking_step
from tests.tiny_models import MASKED_IDS, VOCAB, flat, model_config, random_params, texts

MODEL = model_config()
THOUGHT = ThoughtConfig(n_ahead=5, n_ahead_talk=2, masked_ids=MASKED_IDS)


def batch(lengths: tuple[int, ...] = (7, 4), unpredicted: int | None = 2) -> Batch:
    """Padded rows; the token at position `unpredicted` is seen but is nobody's target."""
    tokens, mask = texts(lengths, max(lengths), seed=5)
    made = {"tokens": tokens, "mask": mask}
    return made if unpredicted is None else made | {"target": mask.at[:, unpredicted].set(False)}


def targets(data: Batch) -> np.ndarray:
    return np.asarray(data.get("target", data["mask"]))


# The thinking objective --------------------


def random_scores(B: int, T: int, R: int, K: int, A: int) -> Scores:
    rng = np.random.default_rng(0)
    shapes = ((B, T), (B, T, R, K), (B, T, R, A))
    base, drawn, talk = (jnp.asarray(-rng.exponential(2.0, s), jnp.float32) for s in shapes)
    return Scores(base, BlockScores(drawn, talk, mixing_weight_BxPxRxA=jnp.zeros((B, T, R, A))))


def losses_of(scores: Scores, target: jax.Array, config: QuietStarConfig) -> Any:
    """Rows that are one document each, of which `target` is predicted."""
    data = {"target": target, "mask": jnp.ones_like(target)}
    talk_steps = scores.blocks.talk_BxPxRxA.shape[-1]
    return thought_losses(scores, talk_targets(data, talk_steps), config)


def slow_scores(scores: Scores) -> dict[str, Any]:
    return {
        "base_log_prob_BxT": np.asarray(scores.base_BxT),
        "thought_log_prob_BxTxRxK": np.asarray(scores.blocks.thought_BxPxRxK),
        "talk_log_prob_BxTxRxA": np.asarray(scores.blocks.talk_BxPxRxA),
    }


@pytest.mark.parametrize("advantage", ["clipped", "leave_one_out"])
@pytest.mark.parametrize(("R", "A"), [(1, 1), (2, 3), (3, 2)])
def test_thought_losses_equal_their_slow_definition(R: int, A: int, advantage: str) -> None:
    config = QuietStarConfig(base_weight=0.3, policy_weight=7.0, advantage=advantage)
    data = batch((9, 5), unpredicted=3)
    target = data["target"]
    scores = random_scores(2, 9, R, 4, A)
    ours = losses_of(scores, target, config)

    clip = advantage == "clipped"
    slow = reference.losses(slow_scores(scores), data["tokens"], target, 7.0, 0.3, clip)
    # Against the mean of the others, not of all: R / (R - 1) times the distance.
    stretch = 1.0 if clip or R == 1 else R / (R - 1)
    nll, policy = slow["nll"], slow["policy"] * stretch
    np.testing.assert_allclose(ours.base, slow["base"], rtol=1e-5)
    np.testing.assert_allclose(ours.blocks.talk, np.mean(slow["talk"]), rtol=1e-5)
    np.testing.assert_allclose(
        ours.total(dataclasses.replace(config, policy_weight=0.0)), nll, rtol=1e-5
    )
    np.testing.assert_allclose(ours.blocks.policy, policy, rtol=1e-5)
    np.testing.assert_allclose(ours.total(config), nll + 7.0 * policy, rtol=1e-5)
    rewarded = np.asarray(ours.blocks.rewarded_BxP[0])
    assert rewarded.tolist() == [True] * (9 - 1 - A) + [False] * (1 + A)
    reward, gained = (
        np.asarray(x)[..., rewarded]
        for x in (ours.blocks.reward_BxRxP, ours.blocks.advantage_BxRxP)
    )
    np.testing.assert_allclose(reward, slow["reward_BxRxT"], rtol=1e-5, atol=1e-6)
    advantages = stretch * slow["advantage_BxRxT"]
    np.testing.assert_allclose(gained, advantages, rtol=1e-5, atol=1e-5)
    assert (advantages == 0).any() and (advantages > 0).any()


def test_leave_one_out_is_the_distance_to_the_others() -> None:
    config = QuietStarConfig(advantage="leave_one_out")
    mask = jnp.ones((2, 6), bool)
    ours = losses_of(random_scores(2, 6, 4, 1, 2), mask, config).blocks
    for r in range(4):
        others = np.mean(np.delete(ours.reward_BxRxP, r, axis=1), axis=1)
        np.testing.assert_allclose(
            ours.advantage_BxRxP[:, r], ours.reward_BxRxP[:, r] - others, atol=1e-5
        )


@pytest.mark.parametrize("advantage", ["clipped", "leave_one_out"])
def test_only_drawn_tokens_learn_from_the_policy_loss(advantage: str) -> None:
    """Its gradient is the advantage at each draw, and nothing for what the reward is made of."""
    config = QuietStarConfig(advantage=advantage)
    B, T, R, K, A = 2, 7, 3, 2, 2
    scores, target = random_scores(B, T, R, K, A), batch()["target"]
    gradient = jax.grad(lambda s: losses_of(s, target, config).blocks.policy)(scores)
    advantages = np.asarray(losses_of(scores, target, config).blocks.advantage_BxRxP)[
        ..., : T - 1 - A
    ]
    expected = np.zeros((B, T, R, K))
    expected[:, : T - 1 - A] = -np.moveaxis(advantages, 1, 2)[..., None] / advantages.size / K
    np.testing.assert_allclose(gradient.blocks.thought_BxPxRxK, expected, rtol=1e-5)
    assert not gradient.base_BxT.any() and not gradient.blocks.talk_BxPxRxA.any()


@pytest.mark.parametrize("advantage", ["clipped", "leave_one_out"])
def test_a_constant_for_all_rationales_changes_no_advantage(advantage: str) -> None:
    config = QuietStarConfig(advantage=advantage)
    scores, target = random_scores(2, 7, 2, 2, 2), jnp.ones((2, 7), bool)
    shifted = scores._replace(base_BxT=scores.base_BxT - jnp.arange(14.0).reshape(2, 7))
    before, after = (losses_of(s, target, config) for s in (scores, shifted))
    moved = np.abs(after.blocks.reward_BxRxP - before.blocks.reward_BxRxP)[..., : 7 - 1 - 2]
    assert np.min(moved) > 0.5
    np.testing.assert_allclose(
        before.blocks.advantage_BxRxP, after.blocks.advantage_BxRxP, atol=1e-5
    )
    np.testing.assert_allclose(before.blocks.policy, after.blocks.policy, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_text_too_short_to_predict_loses_nothing(length: int) -> None:
    """Real texts of a token or two: no target, or none with a reward."""
    mask = jnp.arange(7)[None] < length
    losses = losses_of(random_scores(1, 7, 2, 2, 3), mask, QuietStarConfig())
    assert np.isfinite(losses.total(QuietStarConfig()))
    if length == 1:
        assert losses.base == losses.blocks.talk == losses.blocks.policy == 0


@functools.partial(jax.jit, static_argnames="config")
def quiet_star_loss(params: Any, data: Any, key: Any, config: QuietStarConfig) -> Any:
    return quiet_star.quiet_star_loss(params, data, key, Thinker(MODEL, THOUGHT), config)


def test_quiet_star_loss_and_metrics() -> None:
    """Drawing and scoring together, on padded rows with a token that is not predicted."""
    params, data, key = random_params(MODEL), batch(), jax.random.key(3)
    config = QuietStarConfig(policy_weight=10.0)
    loss, sums = quiet_star_loss(params, data, key, config)
    metrics = metrics_lib.values(sums)

    tokens, mask, target = (np.asarray(data[name]) for name in ("tokens", "mask", "target"))
    drawn = reference.sample(
        params, MODEL, tokens, mask, key, THOUGHT.num_tokens, 2, 1.0, masked_ids=MASKED_IDS
    )
    scores = reference.score(params, MODEL, tokens, mask, drawn, 2, masked_ids=MASKED_IDS)
    slow = reference.losses(scores, tokens, target, policy_weight=10.0)
    entropy = []
    for b, t, r in np.ndindex(drawn.shape[:3]):
        if mask[b, t]:
            given = (tokens[b], mask[b], t, drawn[b, t, r], 2)
            logits = reference.rollout(params, MODEL, *given, masked_ids=MASKED_IDS)
            log_p = reference.log_softmax(logits.thought_logits_KxV)
            entropy.append(-np.sum(np.exp(log_p) * log_p, axis=-1))
    base, talk = scores["base_log_prob_BxT"], scores["talk_log_prob_BxTxRxA"][..., 0]
    gain = (talk - base[..., None])[:, :-1][target[:, 1:]]
    # Where something is predicted next: [B, R, T'] -> the real ones of all rationales.
    real = target[:, 1 : 1 + slow["reward_BxRxT"].shape[-1]]
    reward, advantage = (
        np.moveaxis(slow[name], 1, -1)[real] for name in ("reward_BxRxT", "advantage_BxRxT")
    )
    np.testing.assert_allclose(loss, slow["total"], rtol=1e-4)
    judged = np.stack(  # has talk step s at t a target
        [np.pad(targets(data)[:, 1 + s :], ((0, 0), (0, 1 + s))) for s in range(2)], axis=-1
    )
    weights = np.moveaxis(scores["mixing_weight_BxTxRxA"], 2, 3)[judged]
    expected = {
        "nll_base": slow["base"],
        "nll_mixed": np.mean(slow["talk"]),
        "policy_loss": slow["policy"],
        "reward_mean": np.mean(reward),
        "reward_std": np.std(reward),
        "reward_positive": np.mean(reward > 0),
        "advantage_mean": np.mean(advantage),
        "thought_entropy": np.mean(entropy),
        "mixing_weight_mean": np.mean(weights),
        "nll_with_minus_without": -np.mean(gain),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def parts_and_gradients(params: Any) -> tuple[Any, Scores, dict[str, Any], dict[str, Any]]:
    """Losses and scores of given thoughts, the gradients of the NLL and of the policy loss."""
    data = batch(unpredicted=2)
    drawn = np.random.default_rng(0).integers(5, 17, (2, 7, 2, THOUGHT.num_tokens))
    out = thinking_step(
        params, data, jnp.asarray(drawn), thinker=Thinker(MODEL, THOUGHT), config=QuietStarConfig()
    )
    return out[0], out[1], flat(out[2]), flat(out[3])


def test_policy_gradient_reaches_nothing_behind_the_last_draw() -> None:
    """The end mark and the talk head come after the drawn tokens: NLL alone trains them."""
    _, _, nll, policy = parts_and_gradients(random_params(MODEL))
    for path, gradient in policy.items():
        after = path == "thought/end" or path.startswith("thought/talk_head")
        assert gradient.any() != after, path
    assert all(gradient.any() for gradient in nll.values())


def test_a_fresh_talk_head_predicts_as_without_thoughts() -> None:
    """Weight 0 everywhere: shifted plain losses, no reward, and nothing to learn for the marks."""
    params = random_params(MODEL)
    out = params["thought"]["talk_head"]["out"]
    out["kernel"] = jnp.zeros_like(out["kernel"])
    losses, scores, nll, policy = parts_and_gradients(params)
    for s in range(THOUGHT.n_ahead_talk):
        base = np.roll(scores.base_BxT, -s, axis=1)[..., None]
        np.testing.assert_allclose(
            scores.blocks.talk_BxPxRxA[..., s], base.repeat(2, -1), atol=1e-5
        )
    np.testing.assert_allclose(losses.blocks.reward_BxRxP, 0, atol=1e-5)
    assert abs(losses.blocks.policy) < 1e-6
    assert max(np.abs(gradient).max() for gradient in policy.values()) < 1e-6
    for path, gradient in nll.items():
        idle = path.startswith("thought/") and path != "thought/talk_head/out/kernel"
        assert gradient.any() != idle, path


# The thought-free objectives --------------------


def student_logits(params: Any, data: Batch) -> Any:
    rows = [
        reference.text_hidden(params["lm"], MODEL, tokens, mask)
        for tokens, mask in zip(data["tokens"], data["mask"], strict=True)
    ]
    return reference.logits(params["lm"], np.stack(rows))


def with_teacher(data: Batch) -> Batch:
    B, T = data["tokens"].shape
    teacher = -np.random.default_rng(2).exponential(3.0, (B, T - 1))
    return data | {"teacher_log_prob": jnp.asarray(teacher, jnp.float32)}


@functools.partial(jax.jit, static_argnames="config")
def ntp_loss(params: Any, data: Any, key: Any, config: NTPConfig) -> Any:
    return plain.ntp_loss(params, data, key, MODEL, config)


@pytest.mark.parametrize(
    ("config", "unpredicted"),
    [
        (NTPConfig(policy_weight=5.0), None),
        (NTPConfig("expected", temperature=2.0, policy_weight=5.0, clip=False), 2),
        (NTPConfig("label", policy_weight=5.0), 2),
    ],
    ids=lambda value: getattr(value, "action", ""),
)
def test_ntp_loss_and_metrics(config: NTPConfig, unpredicted: int | None) -> None:
    params, key = random_params(MODEL), jax.random.key(4)
    data = with_teacher(batch(unpredicted=unpredicted))
    loss, sums = ntp_loss(params, data, key, config)
    metrics = metrics_lib.values(sums)

    tokens, target = np.asarray(data["tokens"]), targets(data)
    logits, teacher = student_logits(params, data), np.asarray(data["teacher_log_prob"])
    sampled = np.zeros(teacher.shape, int)
    for b, t in np.ndindex(sampled.shape):
        noise = reference.gumbel_noise(key, (b, t, 0), VOCAB)
        sampled[b, t] = np.argmax(logits[b, t] + noise)
    how = (config.action, sampled, config.temperature, config.clip, config.policy_weight)
    slow = reference.ntp_loss(logits, teacher, tokens, target, *how)
    label = np.take_along_axis(reference.log_softmax(logits)[:, :-1], tokens[:, 1:, None], -1)
    label, real = label[..., 0][target[:, 1:]], target[:, 1:]
    np.testing.assert_allclose(loss, slow["total"], rtol=1e-4)
    expected = {
        "nll_base": -np.mean(label),
        "policy_loss": slow["policy"],
        "reward_mean": np.mean(slow["reward_BxS"][real]),
        "reward_std": np.std(slow["reward_BxS"][real]),
        "reward_positive": np.mean(slow["reward_BxS"][real] > 0),
        "nll_teacher_minus_student": np.mean(label - teacher[real]),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("vocab_chunk", [0, 4])
def test_actions_are_drawn_once(vocab_chunk: int) -> None:
    """Noise for one id of the vocabulary at every predicted token, also where logits are recomputed."""
    model = dataclasses.replace(MODEL, vocab_chunk=vocab_chunk)
    data = with_teacher(batch(unpredicted=None))
    gradient = jax.grad(lambda p: plain.ntp_loss(p, data, jax.random.key(0), model, NTPConfig())[0])
    drawn = sum(
        times * math.prod(equation.outvars[0].aval.shape)
        for equation, times in jaxprs.equations(gradient, random_params(model))
        if equation.primitive.name == "random_bits"
    )
    B, T = data["tokens"].shape
    assert drawn == B * (T - 1) * VOCAB


def test_the_expected_action_is_the_mean_of_sampled_ones() -> None:
    """Over 4,000 draws, for all gradients of the last norm and the head; at temperature 1, zero."""
    params, data = random_params(MODEL), with_teacher(batch((5, 4), unpredicted=None))
    parts = ("final_norm", "head")

    def gradient(key: jax.Array, config: NTPConfig) -> jax.Array:
        def loss(trained: Any) -> jax.Array:
            lm = params["lm"] | trained
            return plain.ntp_loss({"lm": lm}, data, key, MODEL, config)[0]

        grads = jax.grad(loss)({name: params["lm"][name] for name in parts})
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])

    @jax.jit
    def all_gradients(keys: jax.Array) -> Any:
        sampled = jax.vmap(lambda key: gradient(key, NTPConfig(policy_weight=1.0)))(keys)
        expected = NTPConfig("expected", policy_weight=1.0)
        cold = NTPConfig("expected", policy_weight=1.0, temperature=1.0)
        return sampled, gradient(keys[0], expected), gradient(keys[0], cold)

    sampled, expected, cold = map(
        np.asarray, all_gradients(jax.random.split(jax.random.key(0), 4000))
    )
    error = np.std(sampled, axis=0) / np.sqrt(len(sampled))
    assert np.max(np.abs(sampled.mean(0) - expected) / (error + 1e-7)) < 4.5
    assert np.linalg.norm(expected) > 20 * np.linalg.norm(error)  # the test can tell
    assert np.linalg.norm(cold) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("unpredicted", [None, 2])
def test_next_token_loss(unpredicted: int | None) -> None:
    params, data = random_params(MODEL), batch(unpredicted=unpredicted)
    loss, sums = plain.next_token_loss(params, data, jax.random.key(0), MODEL)
    metrics = metrics_lib.values(sums)
    log_p = reference.log_softmax(student_logits(params, data))[:, :-1]
    label = np.take_along_axis(log_p, np.asarray(data["tokens"])[:, 1:, None], -1)[..., 0]
    assert loss == metrics["nll_base"]
    real = targets(data)[:, 1:]
    np.testing.assert_allclose(loss, -np.mean(label[real]), rtol=1e-5)


# Thinking at some positions --------------------


@pytest.mark.parametrize("positions", ["uniform", "high_entropy"])
def test_some_positions_estimate_the_loss_and_gradient_of_all(positions: str) -> None:
    """Greedy thoughts, so that choosing is all that is random; over 600 choices."""
    thought = dataclasses.replace(THOUGHT, temperature=0.0)
    params, data = random_params(MODEL), batch((9, 6), unpredicted=3)
    whole = QuietStarConfig(policy_weight=2.0, advantage="leave_one_out")
    some = dataclasses.replace(whole, position_fraction=0.34, positions=positions)

    def values(key: jax.Array, config: QuietStarConfig) -> jax.Array:
        def loss(p: Any) -> Any:
            return quiet_star.quiet_star_loss(p, data, key, Thinker(MODEL, thought), config)

        (total, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        metrics = metrics_lib.values(metrics)
        few = [metrics["nll_mixed"], metrics["policy_loss"], metrics["nll_with_minus_without"]]
        parts = [
            grads["lm"]["layers"]["q"]["kernel"],
            grads["thought"]["talk_head"]["hidden_1"]["kernel"],
        ]
        return jnp.concatenate([jnp.stack([total, *few]), *(part.ravel() for part in parts)])

    keys = jax.random.split(jax.random.key(0), 600)
    found = np.asarray(jax.jit(lambda k: jax.lax.map(lambda key: values(key, some), k))(keys))
    expected = np.asarray(jax.jit(lambda key: values(key, whole))(keys[0]))
    error = found.std(0) / np.sqrt(len(found))
    assert np.max(np.abs(found.mean(0) - expected) / (error + 1e-5)) < 5
    assert np.linalg.norm(expected[4:]) > 5 * np.linalg.norm(error[4:])  # the test can tell
    assert (found.std(0)[:2] > 1e-3).all()


@pytest.mark.parametrize("advantage", ["clipped", "leave_one_out"])
def test_some_positions_estimate_every_part_of_the_loss(advantage: str) -> None:
    """The policy loss too, for given scores, over 4,000 choices."""
    config = QuietStarConfig(advantage=advantage)
    scores, data = random_scores(2, 9, 3, 2, 2), batch((9, 6), unpredicted=3)
    target = talk_targets(data, 2)
    worth = jnp.pad(jnp.any(target, axis=1), ((0, 0), (0, 1))).astype(jnp.float32)

    def parts(where: Any) -> jax.Array:
        def at(x: jax.Array) -> jax.Array:
            index = where.index_BxP.reshape(*where.index_BxP.shape, 1, 1)
            return jnp.take_along_axis(x, index, axis=1)

        some = Scores(scores.base_BxT, jax.tree.map(at, scores.blocks))
        losses = thought_losses(some, target, config, None, where)
        return jnp.stack([losses.base, losses.blocks.talk, losses.blocks.policy])

    everywhere = Positions(jnp.broadcast_to(jnp.arange(9), (2, 9)), jnp.ones((2, 9)))
    whole = thought_losses(scores, target, config)
    expected = np.array([whole.base, whole.blocks.talk, whole.blocks.policy])
    np.testing.assert_allclose(parts(everywhere), expected, rtol=1e-5)
    keys = jax.random.split(jax.random.key(1), 4000)
    choices = jax.jit(jax.vmap(lambda key: parts(choose(key, worth, 3))))
    found = np.asarray(choices(keys), np.float64)
    error = found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - expected) < 4.5 * error + 1e-5).all()
    assert (error[1:] < 0.25 * np.abs(expected[1:])).all() and (error[1:] > 0).all()


def test_positions_do_not_depend_on_how_rows_are_dealt_out() -> None:
    config = QuietStarConfig(position_fraction=0.5, positions="high_entropy", policy_weight=1.0)
    params, data, key = random_params(MODEL), batch((9, 6), unpredicted=None), jax.random.key(2)

    @functools.partial(jax.jit, static_argnames="split")
    def metrics(split: bool) -> Any:
        thinker = Thinker(MODEL, THOUGHT)
        loss, sums = quiet_star.quiet_star_loss(params, data, key, thinker, config, split)
        return loss, metrics_lib.values(sums)

    together, apart = metrics(False), metrics(True)
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-5)
    for name, value in together[1].items():
        np.testing.assert_allclose(value, apart[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_row_of_padding_has_nothing_to_think_at() -> None:
    data = {
        "tokens": jnp.zeros((2, 8), jnp.int32),
        "mask": jnp.array([[True], [False]]).repeat(8, 1),
    }
    config = QuietStarConfig(position_fraction=0.5, positions="high_entropy")
    choose = quiet_star._chooser(
        random_params(MODEL), talk_targets(data, 2), jax.random.key(0), MODEL, config, None
    )
    hidden = jax.random.normal(jax.random.key(1), (2, 8, MODEL.width))
    with jax.debug_nans(True):
        weight = choose(hidden).weight_BxP
    assert (weight[0] > 0).all() and (weight[1] == 0).all()


# Parts --------------------


def test_masked_mean() -> None:
    x = jnp.array([[1.0, 2.0, jnp.nan], [5.0, jnp.inf, 4.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask) == pytest.approx(8 / 3)
    assert masked_mean(x, jnp.zeros((2, 3), bool)) == 0
    broadcast = masked_mean(jnp.arange(6.0).reshape(2, 3), jnp.array([[True], [False]]))
    assert broadcast == 1


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda v: QuietStarConfig(advantage=v), "best"),
        (lambda v: QuietStarConfig(positions=v), "first"),
        (lambda v: NTPConfig(action=v), "teacher"),
    ],
)
def test_unknown_names(make: Any, value: str) -> None:
    with pytest.raises(UserError, match=f"'{value}' is none of"):
        make(value)
