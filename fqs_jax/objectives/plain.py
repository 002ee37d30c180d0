"""The objectives without thoughts: next-token training, and NTP, the thought-free fine-tune.

They are pure functions (params, batch, key, ...) -> (loss, metrics); batch.py describes batches.

Formulas: Quiet-STaR (arXiv 2403.09629), Fast Quiet-STaR (arXiv 2505.17746), as their released code
computes them; where code and paper differ the code is followed and the difference is a config field.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fqs_jax.model import decoder, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params, label_log_probs
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives.batch import Batch, counts, masked_mean, read_batch, talk_targets
from fqs_jax.objectives.metrics import Metrics
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import keys as keys_lib

NTP_ACTIONS = ("sampled", "expected", "label")


@dataclasses.dataclass(frozen=True)
class NTPConfig:
    """Settings of the thought-free fine-tune; defaults are as released.

    Attributes:
      action: the token whose log-probability the reward multiplies: `sampled` from the student (as
        released), its `expected` zero-variance form, or the `label`.
      temperature: temperature of that log-probability.
      policy_weight: multiplies the loss.
      clip: rewards below 0 count as 0 (as released).
    """

    action: str = "sampled"
    temperature: float = 3.0
    policy_weight: float = 1e6
    clip: bool = True

    def __post_init__(self) -> None:
        if self.action not in NTP_ACTIONS:
            raise UserError(f"action {self.action!r} is none of {', '.join(NTP_ACTIONS)}")


def next_token_loss(
    params: Params, batch: Batch, key: jax.Array, model: ModelConfig
) -> tuple[jax.Array, Metrics]:
    """Plain next-token training: the mean over real targets of -log p(x_{t+1} | x_{<=t})."""
    del key
    hidden_BxTxD = read_batch(params["lm"], batch, model)
    log_prob = label_log_probs(params["lm"], hidden_BxTxD, batch["tokens"], model)
    target_BxAxU = talk_targets(batch, 1)
    loss = -masked_mean(log_prob, target_BxAxU[:, 0], counts(batch, target_BxAxU)[0])
    return loss, {"nll_base": metrics_lib.scalar(loss)}


def ntp_loss(
    params: Params, batch: Batch, key: jax.Array, model: ModelConfig, config: NTPConfig
) -> tuple[jax.Array, Metrics]:
    """The thought-free fine-tune: see `ntp_losses` for the formula. Draws the action if `sampled`."""
    tokens_BxT, target_BxU = batch["tokens"], talk_targets(batch, 1)[:, 0]
    action_BxU = tokens_BxT[:, 1:]
    if config.action == "sampled":
        position_BxU = jnp.broadcast_to(jnp.arange(action_BxU.shape[1]), action_BxU.shape)
        action_BxU = keys_lib.thought_keys(key, position_BxU, 1, batch.get("row"))[..., 0]
    loss, parts = ntp_losses(params, batch, batch["teacher_log_prob"], action_BxU, model, config)
    behind_BxU = parts.label_log_prob - batch["teacher_log_prob"]
    metrics = {
        "nll_base": metrics_lib.mean(-parts.label_log_prob, target_BxU),
        "policy_loss": metrics_lib.scalar(parts.policy),
        **metrics_lib.of_rewards(parts.reward, target_BxU),
        "nll_teacher_minus_student": metrics_lib.mean(behind_BxU, target_BxU),
    }
    return loss, metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NTPLosses:
    """Parts of the thought-free objective; arrays are [B, T - 1], for x_{t+1} at t."""

    policy: jax.Array
    reward: jax.Array
    log_pi: jax.Array
    label_log_prob: jax.Array


def ntp_losses(
    params: Params,
    batch: Batch,
    teacher_log_prob_BxU: jax.Array,
    action_BxU: jax.Array,
    model: ModelConfig,
    config: NTPConfig,
) -> tuple[jax.Array, NTPLosses]:
    r"""The thought-free objective for given actions (ignored by the `expected` form).

        r(t) = log q(x_{t+1}) - log p_teacher(x_{t+1}), clipped at 0 from below, no gradient
        loss = -policy_weight * mean_t r(t) log softmax(z_t / temperature)[a_t]

    where q = softmax(z) is the student and a_t the action. With `sampled` and `expected` actions the
    reward does not depend on the action, so in expectation this sharpens the student where it already
    beats the teacher; at temperature 1 it does nothing. The mean counts padding as zeros, as released.

    The published code runs the student a second time to draw its actions. Here they are drawn from the
    logits that the loss reads anyway, which are the same.

    Args:
      teacher_log_prob_BxU: [B, T - 1].
      action_BxU: [B, T - 1], ids, or the typed PRNG keys to draw them with.
    """
    lm = params["lm"]
    hidden_BxTxD = read_batch(lm, batch, model)

    def read(logits: jax.Array, label: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        label_log_prob = vocab.log_probs_of(jax.lax.stop_gradient(logits), label)
        if config.action == "expected":
            return label_log_prob, vocab.expected_log_probs(logits, config.temperature)
        if jnp.issubdtype(action.dtype, jax.dtypes.prng_key):
            action = vocab.drawn(jax.lax.stop_gradient(logits), action)
        action = checkpoint_name(action, "read")  # noise is not drawn again in the backward pass
        return label_log_prob, vocab.log_probs_of(logits / config.temperature, action)

    label, log_pi = vocab.read(
        read,
        hidden_BxTxD[:, :-1],
        decoder.head_kernel(lm),
        batch["tokens"][:, 1:],
        action_BxU,
        chunk=model.vocab_chunk,
    )
    reward = label - teacher_log_prob_BxU
    reward = jnp.maximum(reward, 0.0) if config.clip else reward
    reward = reward * talk_targets(batch, 1)[:, 0]
    policy = -jnp.mean(reward * log_pi)
    parts = NTPLosses(policy=policy, reward=reward, log_pi=log_pi, label_log_prob=label)
    return config.policy_weight * policy, parts
