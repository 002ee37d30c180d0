"""What training minimises. Pure functions (params, batch, key, ...) -> (loss, metrics).

A batch is {"tokens": int32 [B, T], "mask": bool [B, T]}, mask False at padding, which nobody attends
to and nobody predicts. More keys it may have:

    segment           int32 [B, T]: documents of the row by number, 0 at padding; nobody attends to or
                      predicts a token of another document
    target            bool [B, T]: which tokens are predicted, instead of the mask
    teacher_log_prob  float32 [B, T - 1], for NTP: the teacher's log p(x_{t+1}) at position t
    row, counts       of a part of a batch (step.py): the number of each row in the whole, int32 [B], and
                      the whole's `target_counts` over the number of parts; means over all parts are then
                      means over the whole

Formulas: Quiet-STaR (arXiv 2403.09629), Fast Quiet-STaR (arXiv 2505.17746), as their released code
computes them; where code and paper differ the code is followed and the difference is a config field.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fqs_jax import model as model_lib
from fqs_jax import rollout, thoughts, vocab
from fqs_jax.errors import UserError
from fqs_jax.model import ModelConfig, Params
from fqs_jax.thoughts import Scores, ThoughtConfig

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

ADVANTAGES = ("clipped", "leave_one_out")
NTP_ACTIONS = ("sampled", "expected", "label")


@dataclasses.dataclass(frozen=True)
class QuietStarConfig:
    """Weights of the thinking objective; defaults are the published ones.

    Attributes:
      base_weight: share of the plain next-token loss; the rest is the mixed prediction's.
      policy_weight: multiplies the REINFORCE loss (published: 1e6, followed by gradient clipping).
      advantage: `clipped` max(0, reward - mean over rationales) (published), or `leave_one_out`,
        reward minus the mean of the other rationales, both signs.
    """

    base_weight: float = 0.5
    policy_weight: float = 1e6
    advantage: str = "clipped"

    def __post_init__(self) -> None:
        if self.advantage not in ADVANTAGES:
            raise UserError(f"advantage {self.advantage!r} is none of {', '.join(ADVANTAGES)}")


@dataclasses.dataclass(frozen=True)
class NTPConfig:
    """The thought-free fine-tune; defaults are as released.

    Attributes:
      action: whose log-probability the reward multiplies: a token `sampled` from the student (as
        released), its `expected` zero-variance form, or the `label`.
      temperature: at which that log-probability is taken.
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
    hidden_BxTxD, _ = model_lib.text_forward(params["lm"], batch["tokens"], model, segments(batch))
    log_prob = label_log_probs(params["lm"], hidden_BxTxD, batch["tokens"], model)
    target_BxAxT = talk_targets(batch, 1)
    loss = -masked_mean(log_prob, target_BxAxT[:, 0], counts(batch, target_BxAxT)[0])
    return loss, {"nll_base": loss}


def quiet_star_loss(
    params: Params,
    batch: Batch,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    config: QuietStarConfig,
    split_rationales: bool = False,
) -> tuple[jax.Array, Metrics]:
    """Think at every position, then score the thoughts: see `thought_losses` for the formula.

    Args:
      split_rationales: see `thoughts.sample_and_score`.
    """
    tokens_BxT, mask_BxT = batch["tokens"], batch["mask"]
    scores, entropy = thoughts.sample_and_score(
        params, tokens_BxT, key, model, thought, segments(batch), batch.get("row"), split_rationales
    )
    target_BxAxT = talk_targets(batch, thought.n_ahead_talk)
    counts_A = counts(batch, target_BxAxT)
    losses = thought_losses(scores, target_BxAxT, config, counts_A)
    # Positions whose next token is predicted; padding has no reward and would dilute the means.
    next_BxT = target_BxAxT[:, 0]
    rewarded_BxT = next_BxT[:, : losses.reward.shape[-1]]
    thought_gain = losses.base_nll[:, None] - losses.talk_nll[:, :, 0]
    metrics = {
        "nll_base": losses.base,
        "nll_mixed": losses.talk,
        "policy_loss": losses.policy,
        **reward_metrics(losses.reward, rewarded_BxT[:, None]),
        "advantage_mean": masked_mean(losses.advantage, rewarded_BxT[:, None]),
        "thought_entropy": masked_mean(entropy, mask_BxT[:, :, None, None]),
        "mixing_weight_mean": masked_mean(
            jnp.moveaxis(scores.mixing_weight_BxPxRxA[:, :-1], 1, -1),
            target_BxAxT[:, None],
            thought.rationales * jnp.sum(counts_A),
        ),
        "nll_with_minus_without": -masked_mean(
            thought_gain, next_BxT[:, None], thought.rationales * counts_A[0]
        ),
    }
    return losses.total(config), metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ThoughtLosses:
    """Parts of the thinking objective.

    Attributes:
      base: mean of the plain next-token loss.
      talk: mean over s = 0..A-1 of the mean mixed-prediction loss at step s.
      policy: REINFORCE loss, before its weight.
      reward, advantage: [B, R, T - 1 - A], without gradient.
      base_nll: [B, T - 1], of x_{t+1} at t. talk_nll: [B, R, A, T - 1], of x_{t+1+s} at t.
    """

    base: jax.Array
    talk: jax.Array
    policy: jax.Array
    reward: jax.Array
    advantage: jax.Array
    base_nll: jax.Array
    talk_nll: jax.Array

    def nll(self, config: QuietStarConfig) -> jax.Array:
        return config.base_weight * self.base + (1 - config.base_weight) * self.talk

    def total(self, config: QuietStarConfig) -> jax.Array:
        return self.nll(config) + config.policy_weight * self.policy


def thought_losses(
    scores: Scores,
    target_BxAxT: jax.Array,
    config: QuietStarConfig,
    counts_A: jax.Array | None = None,
) -> ThoughtLosses:
    r"""Losses of thoughts at every text position (P = T).

    With l(t) = -log p(x_{t+1}) of the plain prediction at t, and l_s(t, r) = -log p(x_{t+1+s}) of the
    mixed prediction after thought r:

        nll    = base_weight * mean l + (1 - base_weight) * (1/A) sum_s mean l_s
        R(t,r) = sum_s [ l(t + s) - l_s(t, r) ],   t < T - 1 - A
        A(t,r) = max(0, R(t,r) - mean_r R(t,r)),   no gradient         (`clipped`)
        policy = -(1/K) sum_k mean_{rows, r, t} A(t,r) log pi_k(t,r)
        loss   = nll + policy_weight * policy

    Means of l and l_s are over real targets; the mean of the policy loss counts padding as zeros, as
    published. Means over rows weigh all rationales of a sequence alike.

    Args:
      target_BxAxT: `talk_targets`.
      counts_A: how many targets the means are over; None = those that are here.
    """
    T = scores.base_BxT.shape[1]
    A, R = scores.talk_BxPxRxA.shape[-1], scores.talk_BxPxRxA.shape[2]
    if counts_A is None:
        counts_A = target_counts(target_BxAxT)

    base_nll = -scores.base_BxT[:, : T - 1]
    talk_nll = -jnp.moveaxis(scores.talk_BxPxRxA[:, : T - 1], 1, -1)  # [B, R, A, T - 1]
    talk = jnp.mean(
        jnp.stack(
            [
                masked_mean(talk_nll[:, :, s], target_BxAxT[:, None, s], R * counts_A[s])
                for s in range(A)
            ]
        )
    )

    rewarded = T - 1 - A
    base_at_target = jnp.stack(
        [base_nll[:, s : s + rewarded] for s in range(A)], axis=1
    )  # [B, A, T-1-A]
    gain = (base_at_target[:, None] - talk_nll[..., :rewarded]) * target_BxAxT[
        :, None, :, :rewarded
    ]
    reward = jax.lax.stop_gradient(jnp.sum(gain, axis=2))  # [B, R, T-1-A]
    centred = reward - jnp.mean(reward, axis=1, keepdims=True)
    if config.advantage == "clipped":
        # A single rationale has no baseline but the plain prediction, already in the reward.
        advantage = jnp.maximum(centred if R > 1 else reward, 0.0)
    else:
        advantage = centred * (R / (R - 1)) if R > 1 else reward
    log_pi = jnp.moveaxis(scores.thought_BxPxRxK[:, :rewarded], 1, 2)  # [B, R, T-1-A, K]
    policy = -jnp.mean(advantage[..., None] * log_pi)
    return ThoughtLosses(
        base=masked_mean(base_nll, target_BxAxT[:, 0], counts_A[0]),
        talk=talk,
        policy=policy,
        reward=reward,
        advantage=advantage,
        base_nll=base_nll,
        talk_nll=talk_nll,
    )


def ntp_loss(
    params: Params, batch: Batch, key: jax.Array, model: ModelConfig, config: NTPConfig
) -> tuple[jax.Array, Metrics]:
    """The thought-free fine-tune: see `ntp_losses` for the formula. Draws the action if `sampled`."""
    tokens_BxT, target_BxAxT = batch["tokens"], talk_targets(batch, 1)
    target_BxT = target_BxAxT[:, 0]
    action_BxT = tokens_BxT[:, 1:]
    if config.action == "sampled":
        lm = jax.lax.stop_gradient(params["lm"])
        hidden_BxTxD, _ = model_lib.text_forward(lm, tokens_BxT, model, segments(batch))
        where_BxT = jnp.broadcast_to(jnp.arange(action_BxT.shape[1]), action_BxT.shape)
        keys_BxT = rollout.thought_keys(key, where_BxT, 1, batch.get("row"))[..., 0]
        kernel_DxV = model_lib.head_kernel(lm)
        action_BxT, _ = vocab.sample(
            hidden_BxTxD[:, :-1], kernel_DxV, keys_BxT, chunk=model.vocab_chunk
        )
    loss, parts = ntp_losses(params, batch, batch["teacher_log_prob"], action_BxT, model, config)
    metrics = {
        "nll_base": -masked_mean(parts.label_log_prob, target_BxT, counts(batch, target_BxAxT)[0]),
        "policy_loss": parts.policy,
        **reward_metrics(parts.reward, target_BxT),
        "nll_teacher_minus_student": masked_mean(
            parts.label_log_prob - batch["teacher_log_prob"], target_BxT
        ),
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
    teacher_log_prob_BxT: jax.Array,
    action_BxT: jax.Array,
    model: ModelConfig,
    config: NTPConfig,
) -> tuple[jax.Array, NTPLosses]:
    r"""The thought-free objective for given actions (ignored by the `expected` form).

        r(t) = log q(x_{t+1}) - log p_teacher(x_{t+1}), clipped at 0 from below, no gradient
        loss = -policy_weight * mean_t r(t) log softmax(z_t / temperature)[a_t]

    where q = softmax(z) is the student and a_t the action. With `sampled` and `expected` actions the
    reward does not depend on the action, so in expectation this sharpens the student where it already
    beats the teacher; at temperature 1 it does nothing. The mean counts padding as zeros, as released.

    Args:
      teacher_log_prob_BxT: [B, T - 1]. action_BxT: int32 [B, T - 1].
    """
    lm = params["lm"]
    hidden_BxTxD, _ = model_lib.text_forward(lm, batch["tokens"], model, segments(batch))
    label = label_log_probs(lm, hidden_BxTxD, batch["tokens"], model)
    reward = jax.lax.stop_gradient(label) - teacher_log_prob_BxT
    reward = jnp.maximum(reward, 0.0) if config.clip else reward
    reward = reward * talk_targets(batch, 1)[:, 0]

    read_BxTxD, kernel_DxV = hidden_BxTxD[:, :-1], model_lib.head_kernel(lm)
    how: dict[str, Any] = {"chunk": model.vocab_chunk, "temperature": config.temperature}
    if config.action == "expected":
        log_pi = vocab.expected_log_probs(read_BxTxD, kernel_DxV, **how)
    else:
        log_pi = vocab.log_probs(read_BxTxD, kernel_DxV, action_BxT, **how)
    policy = -jnp.mean(reward * log_pi)
    parts = NTPLosses(policy=policy, reward=reward, log_pi=log_pi, label_log_prob=label)
    return config.policy_weight * policy, parts


def reward_metrics(reward: jax.Array, mask: jax.Array) -> Metrics:
    """Mean, standard deviation and fraction positive of the rewards where mask holds."""
    mean = masked_mean(reward, mask)
    return {
        "reward_mean": mean,
        "reward_std": jnp.sqrt(masked_mean(jnp.square(reward - mean), mask)),
        "reward_positive": masked_mean(reward > 0, mask),
    }


def segments(batch: Batch) -> jax.Array:
    """Which document each token is of, [B, T]: numbers, or bool where a row is one document."""
    return batch["segment"] if "segment" in batch else batch["mask"]


def talk_targets(batch: Batch, talk_steps: int) -> jax.Array:
    """Whether talk step s at t has something to predict, bool [B, A, T - 1].

    Its target x_{t+1+s} must be predicted at all, be of the document of x_t, and lie within the row.
    Step 0 is plain next-token prediction.
    """
    target_BxT = batch["target"] if "target" in batch else batch["mask"]
    segment_BxT = segments(batch)
    length = target_BxT.shape[1]

    def step(s: int) -> jax.Array:
        same = segment_BxT[:, 1 + s :] == segment_BxT[:, : length - 1 - s]
        return jnp.pad(target_BxT[:, 1 + s :] & same, ((0, 0), (0, s)))

    return jnp.stack([step(s) for s in range(talk_steps)], axis=1)


def target_counts(target_BxAxT: jax.Array) -> jax.Array:
    """How many targets each talk step has, float32 [A]."""
    return jnp.sum(target_BxAxT, axis=(0, 2), dtype=jnp.float32)


def counts(batch: Batch, target_BxAxT: jax.Array) -> jax.Array:
    """What means over targets are divided by: the batch's own counts, or those it is given."""
    return batch["counts"] if "counts" in batch else target_counts(target_BxAxT)


def label_log_probs(
    lm: Params, hidden_BxTxD: jax.Array, tokens_BxT: jax.Array, model: ModelConfig
) -> jax.Array:
    """log p(x_{t+1}) at every t but the last, float32 [B, T - 1]."""
    return vocab.log_probs(
        hidden_BxTxD[:, :-1], model_lib.head_kernel(lm), tokens_BxT[:, 1:], chunk=model.vocab_chunk
    )


def masked_mean(x: jax.Array, mask: jax.Array, count: jax.Array | None = None) -> jax.Array:
    """Mean of x where mask (broadcast to x) holds; 0 where nothing is left.

    Args:
      count: divides the sum in place of the number of places where mask holds.
    """
    mask = jnp.broadcast_to(mask, x.shape)
    if count is None:
        count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.where(count > 0, count, 1)
