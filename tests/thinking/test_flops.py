"""FLOPs counted from shapes against those of the traced programs.

The two agree exactly but for what is named in each test: the programs compute all slots of a block's
own keys and mask some, of which the count leaves out the masked ones; and the backward pass of attention
recomputes its scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fqs_jax.inference import decoding
from fqs_jax.model import attention_xla, decoder, lora
from fqs_jax.model import config as config_lib
from fqs_jax.model.lora import Lora
from fqs_jax.objectives import distillation, plain, quiet_star
from fqs_jax.objectives.distillation import DistillConfig
from fqs_jax.objectives.plain import NTPConfig
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.thinking import flops, thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.training import teacher
from tests.jaxprs import matmul_flops
from tests.tiny_models import model_config, random_params, texts

B, T = 2, 6
MODELS = [model_config(), model_config(tied_embeddings=True, num_kv_heads=4, qkv_bias=True)]
THOUGHTS = [
    ThoughtConfig(n_ahead=6, n_ahead_talk=3),
    ThoughtConfig(n_ahead=4, rationales=3, mixing="probability"),
]
UNSAMPLED = [ThoughtConfig(n_ahead=9, tokens=tokens) for tokens in ("random", "pause")]
KEY = jax.random.key(0)
TOKENS, MASK = texts((T,) * B, T)
BATCH = {"tokens": TOKENS, "mask": MASK, "teacher_log_prob": jnp.zeros((B, T - 1))}

models = pytest.mark.parametrize(
    "model",
    [MODELS[0], pytest.param(MODELS[1], marks=pytest.mark.exhaustive)],
    ids=["grouped", "tied"],
)
kinds = pytest.mark.parametrize("thought", THOUGHTS, ids=["talk ahead", "probability"])


@pytest.fixture(autouse=True)
def exactly_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one query a chunk, attention over text computes the visible half and nothing else."""
    monkeypatch.setattr(attention_xla, "QUERY_CHUNK", 1)


def masked_slots(model: Any, slots: int) -> int:
    """One query's scores and values of a block's later slots, on average, computed in vain."""
    return flops.attend(model, slots) - flops.attend(model, (slots + 1) / 2)


def scores_again(model: Any, keys: float) -> int:
    """One query's scores, half of its attention: the backward pass recomputes them."""
    return flops.attend(model, keys) // 2


def with_pause(params: Any) -> Any:
    return params | {"thought": params["thought"] | {"pause": params["thought"]["start"]}}


def gradient(loss: Any) -> Any:
    """The program of a training step: the loss and its gradients."""
    return jax.value_and_grad(loss, has_aux=True)


@models
def test_by_hand(model: config_lib.ModelConfig) -> None:
    """Every weight of a layer is one multiply-add a token; so is a row of the head a logit."""
    params = random_params(model)["lm"]
    kernels = [leaf["kernel"] for leaf in params["layers"].values() if "kernel" in leaf]
    assert flops.dense(model) == 2 * sum(kernel.size for kernel in kernels)
    assert flops.vocabulary(model) == 2 * 12 * 19
    assert flops.attend(model, 10) == 2 * 2 * (2 * 4 * 8 * 10)  # scores and values, two layers


@models
def test_text(model: config_lib.ModelConfig) -> None:
    params = random_params(model)["lm"]
    counted = B * flops.text_forward(model, T)
    assert matmul_flops(lambda p: decoder.text_forward(p, TOKENS, model, MASK), params) == counted


def test_a_chunk_of_queries_computes_what_it_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys beyond a chunk of queries are skipped, those inside it masked."""
    monkeypatch.setattr(attention_xla, "QUERY_CHUNK", 4)
    model = MODELS[0]
    params = random_params(model)["lm"]
    traced = matmul_flops(lambda p: decoder.text_forward(p, TOKENS, model), params)
    in_vain = (3 + 2 + 1 + 0) + (1 + 0)  # keys of queries 0-3 and of 4-5
    assert traced == B * (flops.text_forward(model, T) + flops.attend(model, in_vain))


def test_windows_are_counted_layer_by_layer() -> None:
    """Three layers in a period of two; the program computes no key outside of a window of the text."""
    model = model_config(
        num_layers=3, sliding_window=2, layer_types=("sliding", "full"), local_rope_theta=10.0
    )
    params = random_params(model)["lm"]
    counted = B * flops.text_forward(model, T)
    assert matmul_flops(lambda p: decoder.text_forward(p, TOKENS, model, MASK), params) == counted

    per_key = 4 * 4 * 8  # scores and values, 4 heads of 8
    text = 2 * (1 + 2 * (T - 1)) + T * (T + 1) // 2
    assert flops.text_forward(model, T) == T * flops.dense(model) + per_key * text
    # Slots 1 and 2 see 1 and 0 text keys through the window, and 1 and 2 of their own.
    step = flops.sampling(model, THOUGHTS[0], T, 1, 2, 0) - flops.text_forward(model, T)
    keys = 2 * ((1 + 1) + (0 + 2)) + 2 * (T + 1) / 2 + (1 + 2)
    assert step == THOUGHTS[0].rationales * (2 * flops.dense(model) + per_key * keys)
    plain = flops.decode(model, 100) - flops.dense(model) - flops.vocabulary(model)
    assert plain == per_key * (2 + 100 + 2)


@kinds
@pytest.mark.parametrize("positions", [None, 2])
def test_sampling(thought: ThoughtConfig, positions: int | None) -> None:
    model = MODELS[0]
    K, R, P = thought.num_tokens, thought.rationales, positions or T
    index = None if positions is None else jnp.zeros((B, P), jnp.int32)
    traced = matmul_flops(
        lambda p: thoughts.sample_thoughts(p, TOKENS, KEY, Thinker(model, thought), MASK, index),
        random_params(model),
    )
    in_vain = masked_slots(model, K)
    if index is not None:  # chosen positions look at all of the text
        in_vain += flops.attend(model, T) - flops.attend(model, (T + 1) / 2)
    counted = flops.sampling(model, thought, T, P, K, K) + R * P * K * in_vain
    assert traced == B * counted


@models
@kinds
def test_scoring(model: config_lib.ModelConfig, thought: ThoughtConfig) -> None:
    R, K, M = thought.rationales, thought.num_tokens, thought.num_slots
    drawn = jnp.zeros((B, T, R, K), jnp.int32)
    traced = matmul_flops(
        lambda p: thoughts.score_thoughts(p, TOKENS, drawn, Thinker(model, thought), MASK),
        random_params(model),
    )
    in_vain = R * T * M * masked_slots(model, M)
    assert traced == B * (flops.scoring(model, thought, T) + in_vain)


@models
@kinds
@pytest.mark.parametrize("reward", ["mixed", "post_thought", "correct"])
def test_a_thinking_step(
    model: config_lib.ModelConfig, thought: ThoughtConfig, reward: str
) -> None:
    R, K, M = thought.rationales, thought.num_tokens, thought.num_slots
    config = QuietStarConfig(reward=reward, post_thought_weight=float(reward == "post_thought"))
    traced = matmul_flops(
        gradient(
            lambda p: quiet_star.quiet_star_loss(p, BATCH, KEY, Thinker(model, thought), config)
        ),
        random_params(model),
    )
    in_vain = K * masked_slots(model, K) + flops.TRAIN * M * masked_slots(model, M)
    again = M * (scores_again(model, (T + 1) / 2) + scores_again(model, M))
    in_vain = R * (in_vain + again) + scores_again(model, (T + 1) / 2)
    only, correct = config.reads_thought_only, config.reads_correct
    counted = flops.quiet_star_step(model, thought, B, T, thought_only=only, correct=correct)
    assert traced == counted + B * T * in_vain


@pytest.mark.parametrize("thought", UNSAMPLED)
def test_thoughts_that_are_not_sampled_cost_their_scoring_alone(thought: ThoughtConfig) -> None:
    model, params = MODELS[0], with_pause(random_params(MODELS[0]))
    M = thought.num_slots
    config = QuietStarConfig(policy_weight=0.0)
    traced = matmul_flops(
        gradient(
            lambda p: quiet_star.quiet_star_loss(p, BATCH, KEY, Thinker(model, thought), config)
        ),
        params,
    )
    in_vain = flops.TRAIN * masked_slots(model, M)
    again = scores_again(model, (T + 1) / 2) + scores_again(model, M)
    in_vain = thought.rationales * M * (in_vain + again) + scores_again(model, (T + 1) / 2)
    assert traced == flops.quiet_star_step(model, thought, B, T) + B * T * in_vain


@pytest.mark.parametrize("positions", ["uniform", "high_entropy"])
def test_a_thinking_step_at_some_positions(positions: str) -> None:
    model, thought = MODELS[0], THOUGHTS[0]
    R, K, M = thought.rationales, thought.num_tokens, thought.num_slots
    config = QuietStarConfig(position_fraction=0.5, positions=positions)
    P = config.num_positions(T)
    traced = matmul_flops(
        gradient(
            lambda p: quiet_star.quiet_star_loss(p, BATCH, KEY, Thinker(model, thought), config)
        ),
        random_params(model),
    )
    # Chosen positions look at all of the text, later keys masked.
    text = flops.attend(model, T) - flops.attend(model, (T + 1) / 2)
    in_vain = K * (masked_slots(model, K) + text)
    in_vain += flops.TRAIN * M * (masked_slots(model, M) + text)
    again = M * (scores_again(model, T) + scores_again(model, M))
    in_vain = R * P * (in_vain + again) + T * scores_again(model, (T + 1) / 2)
    choosing = positions == "high_entropy"
    counted = flops.quiet_star_step(model, thought, B, T, P, choosing)
    assert traced == counted + B * in_vain


@models
@pytest.mark.parametrize("thought", [*THOUGHTS, *UNSAMPLED])
@pytest.mark.parametrize("last", [False, True])
def test_asking_a_teacher(
    model: config_lib.ModelConfig, thought: ThoughtConfig, last: bool
) -> None:
    """The count equals the traced program of a teacher, without the work that program discards."""
    model = dataclasses.replace(model, vocab_size=300)  # a head that counts
    said = {"teacher_log_prob": (T - 1,), "teacher_log_probs": (T, model.vocab_size)}
    arrays: Any = {name: (shape, jnp.float32) for name, shape in said.items()}
    batch = BATCH | {"row": jnp.arange(B)}
    how = teacher.predictions_at_last if last else teacher.predictions
    traced = matmul_flops(
        lambda p: how(p, batch, KEY, Thinker(model, thought), arrays),
        with_pause(random_params(model)),
    )
    slots, positions = thought.num_tokens + 2, 1 if last else T
    traced -= B * positions * thought.rationales * slots * masked_slots(model, slots)
    counted = flops.asking(model, thought, B, T, 1 if last else None)
    assert traced == pytest.approx(counted, rel=0.15)


@models
def test_a_plain_step(model: config_lib.ModelConfig) -> None:
    """The count has a prediction at a row's last token, which nothing reads."""
    traced = matmul_flops(
        gradient(lambda p: plain.next_token_loss(p, BATCH, KEY, model)), random_params(model)
    )
    unread = B * flops.TRAIN * flops.vocabulary(model)
    again = B * T * scores_again(model, (T + 1) / 2)
    assert traced == flops.next_token_step(model, B, T) - unread + again


@pytest.mark.parametrize("action", ["sampled", "label"])
def test_a_thought_free_step(action: str) -> None:
    """One pass and one reading of the head serve the reward, the draw of the action and the loss."""
    model = MODELS[0]
    config = NTPConfig(action=action)
    traced = matmul_flops(
        gradient(lambda p: plain.ntp_loss(p, BATCH, KEY, model, config)), random_params(model)
    )
    unread = B * flops.TRAIN * flops.vocabulary(model)
    again = B * T * scores_again(model, (T + 1) / 2)
    assert traced == flops.next_token_step(model, B, T) - unread + again


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_student_s_step(positions: str) -> None:
    """A student of last positions reads the head there alone."""
    model = MODELS[0]
    config = DistillConfig(weighting="shift", positions=positions)
    arrays = distillation.teacher_arrays(config, T, model.vocab_size)
    batch = {name: jnp.zeros((B, *shape), dtype) for name, (shape, dtype) in arrays.items()}
    batch |= {"tokens": TOKENS, "mask": MASK}
    traced = matmul_flops(
        gradient(lambda p: distillation.distill_loss(p, batch, KEY, model, config)),
        random_params(model),
    )
    again = B * T * scores_again(model, (T + 1) / 2)
    reads = 1 if positions == "last" else T
    assert traced == flops.next_token_step(model, B, T, reads=reads) + again


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "gate", "up", "down")])
def test_a_thinking_step_with_adapters(targets: tuple[str, ...]) -> None:
    """No gradient of a frozen kernel is computed, nor of the head, and no product of A and B."""
    model, thought = MODELS[0], THOUGHTS[0]
    adapters = Lora(3, 6.0, targets)
    R, K, M = thought.rationales, thought.num_tokens, thought.num_slots
    trained, frozen = adapted(model, adapters)
    traced = matmul_flops(
        gradient(
            lambda p, f: quiet_star.quiet_star_loss(
                lora.joined(p, f), BATCH, KEY, Thinker(model, thought), QuietStarConfig()
            )
        ),
        trained,
        frozen,
    )
    in_vain = K * masked_slots(model, K) + flops.TRAIN * M * masked_slots(model, M)
    again = M * (scores_again(model, (T + 1) / 2) + scores_again(model, M))
    in_vain = R * (in_vain + again) + scores_again(model, (T + 1) / 2)
    assert traced == flops.quiet_star_step(model, thought, B, T, lora=adapters) + B * T * in_vain


@pytest.mark.parametrize("action", [None, "sampled"])
def test_a_plain_step_with_adapters(action: str | None) -> None:
    model, adapters = MODELS[0], Lora(3, 6.0, ("k", "o", "down"))

    def loss(p: Any, f: Any) -> Any:
        whole = lora.joined(p, f)
        if action is None:
            return plain.next_token_loss(whole, BATCH, KEY, model)
        return plain.ntp_loss(whole, BATCH, KEY, model, NTPConfig(action=action))

    traced = matmul_flops(gradient(loss), *adapted(model, adapters))
    again = B * T * scores_again(model, (T + 1) / 2)
    unread = B * 2 * flops.vocabulary(model)  # forward, and the gradient of its input
    assert traced == flops.next_token_step(model, B, T, adapters) - unread + again


def adapted(model: config_lib.ModelConfig, adapters: Lora) -> tuple[Any, Any]:
    """The trained and the frozen part of a tree with adapters."""
    params = random_params(model)
    layers = lora.fresh(adapters, params["lm"]["layers"], KEY)
    return lora.split(params | {"lm": lora.joined(layers, params["lm"])})


@pytest.mark.parametrize("thought", [None, *THOUGHTS, *UNSAMPLED])
def test_decoding(thought: ThoughtConfig | None) -> None:
    """A thinking token costs n_ahead cached steps; keys of its own slots are not counted."""
    model = MODELS[0]
    if thought is not None:
        thought = dataclasses.replace(thought, n_ahead_talk=1, rationales=1)
    params = with_pause(random_params(model))
    empty = jnp.zeros((2, B, T, model.num_kv_heads, model.head_dim))
    cursor = decoding.Cursor(empty, empty, jnp.full(B, T - 1), jnp.zeros((B, model.width)))

    def one_token(params: Any) -> Any:
        extended = decoding.extend(params, cursor, jnp.zeros(B, jnp.int32), model)
        return decoding.next_log_probs(params, extended, KEY, model, thought)

    traced = matmul_flops(one_token, params)
    itself = flops.attend(model, 1)  # beside what is cached
    if thought is None:
        assert traced == B * (flops.decode(model, T) + itself)
        return
    slots = thought.num_tokens + 2
    own = slots * flops.attend(model, slots) + itself
    assert traced == B * (flops.decode(model, T, thought) + own)
