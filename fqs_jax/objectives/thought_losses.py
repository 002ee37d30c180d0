"""What thoughts are trained by: losses and rewards of their predictions, given their scores.

Formulas: Quiet-STaR (arXiv 2403.09629), Fast Quiet-STaR (arXiv 2505.17746), as their released code
computes them; where code and paper differ the code is followed and the difference is a config field.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fqs_jax.objectives.batch import masked_mean, target_counts
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import positions as positions_lib
from fqs_jax.thinking.positions import Positions
from fqs_jax.thinking.scoring import BlockScores, ahead
from fqs_jax.thinking.thoughts import Scores

ADVANTAGES = ("clipped", "leave_one_out")
REWARDS = ("mixed", "post_thought")


@dataclasses.dataclass(frozen=True)
class QuietStarConfig:
    """Weights of the thinking objective; defaults are the published ones.

    Attributes:
      base_weight: share of the plain next-token loss; the rest is the mixed prediction's.
      policy_weight: multiplies the REINFORCE loss (published: 1e6, followed by gradient clipping).
      advantage: `clipped` max(0, reward - mean over rationales) (published), or `leave_one_out`,
        reward minus the mean of the other rationales, both signs.
      reward: what a thought is rewarded for: how much likelier the `mixed` prediction makes the text
        than the plain one does (as released), or the `post_thought` prediction, which the thought
        makes alone.
      post_thought_weight: adds that many times the loss of the post-thought prediction (released: 0).
      position_fraction: share of a row's positions at which is thought, chosen anew at every step; the
        loss is then an estimate of the whole one, right on average. 1 = all (published).
      positions: `uniform`, or `high_entropy`, more often where the plain prediction is less sure.
    """

    base_weight: float = 0.5
    policy_weight: float = 1e6
    advantage: str = "clipped"
    reward: str = "mixed"
    post_thought_weight: float = 0.0
    position_fraction: float = 1.0
    positions: str = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.position_fraction <= 1:
            raise UserError(
                f"position_fraction is {self.position_fraction}; set above 0, at most 1"
            )
        if self.positions not in positions_lib.KINDS:
            raise UserError(
                f"positions {self.positions!r} is none of {', '.join(positions_lib.KINDS)}"
            )
        if self.advantage not in ADVANTAGES:
            raise UserError(f"advantage {self.advantage!r} is none of {', '.join(ADVANTAGES)}")
        if self.reward not in REWARDS:
            raise UserError(f"reward {self.reward!r} is none of {', '.join(REWARDS)}")

    @property
    def reads_alone(self) -> bool:
        """Whether predictions that thoughts make alone are needed."""
        return self.reward == "post_thought" or self.post_thought_weight != 0

    def num_positions(self, length: int) -> int:
        """P of a row of this many tokens."""
        return max(1, round(self.position_fraction * length))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockLosses:
    """What thoughts at P positions add to the objective.

    talk: mean over s = 0..A-1 of the mean mixed-prediction loss at step s; alone: the same of the
    post-thought prediction, 0 where it does not count. policy: REINFORCE loss, before its weight.
    reward, advantage: [B, R, P], without gradient; rewarded_BxP: whether a position has them.
    gain_BxRxP: how much likelier the thought made the next token, nats.
    """

    talk: jax.Array
    alone: jax.Array
    policy: jax.Array
    reward: jax.Array
    advantage: jax.Array
    rewarded_BxP: jax.Array
    gain_BxRxP: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ThoughtLosses(BlockLosses):
    """All parts of the thinking objective. base: mean of the plain next-token loss."""

    base: jax.Array

    def total(self, config: QuietStarConfig) -> jax.Array:
        return config.base_weight * self.base + blocks_loss(self, config)


def blocks_loss(losses: BlockLosses, config: QuietStarConfig) -> jax.Array:
    """The thoughts' part of the loss."""
    nll = (1 - config.base_weight) * losses.talk + config.post_thought_weight * losses.alone
    return nll + config.policy_weight * losses.policy


def thought_losses(
    scores: Scores,
    target_BxAxT: jax.Array,
    config: QuietStarConfig,
    counts_A: jax.Array | None = None,
    where: Positions | None = None,
) -> ThoughtLosses:
    r"""Losses of thoughts, at every text position or at some.

    With l(t) = -log p(x_{t+1}) of the plain prediction at t, l_s(t, r) = -log p(x_{t+1+s}) of the
    mixed prediction after thought r, and a_s(t, r) that of the thought's own one:

        nll    = base_weight * mean l + (1 - base_weight) * (1/A) sum_s mean l_s
                 + post_thought_weight * (1/A) sum_s mean a_s
        R(t,r) = sum_s [ l(t + s) - l_s(t, r) ],   t < T - 1 - A
        A(t,r) = max(0, R(t,r) - mean_r R(t,r)),   no gradient         (`clipped`)
        policy = -(1/K) sum_k mean_{rows, r, t} A(t,r) log pi_k(t,r)
        loss   = nll + policy_weight * policy

    and a_s in the place of l_s in R for `post_thought` rewards. Means of l, l_s and a_s are over real
    targets; the mean of the policy loss counts padding as zeros, as published. Means over rows weigh
    all rationales of a sequence alike.

    Args:
      target_BxAxT: `talk_targets`.
      counts_A: how many targets the means are over; None = those that are here.
      where: of the P positions that were thought at, with what each counts in the sums; None = all T.
    """
    counts_A = target_counts(target_BxAxT) if counts_A is None else counts_A
    where = where or positions_lib.everywhere(*scores.base_BxT.shape)
    blocks = BlockScores(*scores[1:])
    parts = block_losses(blocks, scores.base_BxT, target_BxAxT, counts_A, where, config)
    return ThoughtLosses(base=base_loss(scores.base_BxT, target_BxAxT, counts_A), **vars(parts))


def base_loss(base_BxT: jax.Array, target_BxAxT: jax.Array, counts_A: jax.Array) -> jax.Array:
    return -masked_mean(base_BxT[:, :-1], target_BxAxT[:, 0], counts_A[0])


def block_losses(
    scores: BlockScores,
    base_BxT: jax.Array,
    target_BxAxT: jax.Array,
    counts_A: jax.Array,
    where: Positions,
    config: QuietStarConfig,
) -> BlockLosses:
    """The part of `thought_losses` that thoughts at some positions add."""
    T = base_BxT.shape[1]
    B, _, R, A = scores.talk_BxPxRxA.shape
    weight_Bx1xP = where.weight_BxP[:, None]
    target_BxAxP = targets_at(target_BxAxT, where.index_BxP)

    def mean_over_steps(nll_BxRxAxP: jax.Array) -> jax.Array:
        means = [
            masked_mean(
                nll_BxRxAxP[:, :, s], target_BxAxP[:, s, None] * weight_Bx1xP, R * counts_A[s]
            )
            for s in range(A)
        ]
        return jnp.mean(jnp.stack(means))

    talk_nll = alone_nll = -jnp.moveaxis(scores.talk_BxPxRxA, 1, -1)  # [B, R, A, P]
    talk, alone = mean_over_steps(talk_nll), jnp.zeros(())
    if config.reads_alone:
        assert scores.alone_BxPxRxA is not None
        alone_nll = -jnp.moveaxis(scores.alone_BxPxRxA, 1, -1)
        alone = mean_over_steps(alone_nll)
    base_at_target = -jnp.moveaxis(ahead(base_BxT, where.index_BxP, A), 1, 2)  # [B, A, P]
    gain = (base_at_target[:, None] - talk_nll) * target_BxAxP[:, None]
    judged = gain
    if config.reward == "post_thought":
        judged = (base_at_target[:, None] - alone_nll) * target_BxAxP[:, None]
    rewarded_BxP = where.index_BxP < T - 1 - A
    reward = jax.lax.stop_gradient(jnp.sum(judged, axis=2)) * rewarded_BxP[:, None]  # [B, R, P]
    centred = reward - jnp.mean(reward, axis=1, keepdims=True)
    if config.advantage == "clipped":
        # A single rationale has no baseline but the plain prediction, already in the reward.
        advantage = jnp.maximum(centred if R > 1 else reward, 0.0)
    else:
        advantage = centred * (R / (R - 1)) if R > 1 else reward
    log_pi = jnp.moveaxis(scores.thought_BxPxRxK, 1, 2)  # [B, R, P, K]
    places = B * R * (T - 1 - A) * log_pi.shape[-1]
    policy = -jnp.sum((advantage * weight_Bx1xP)[..., None] * log_pi) / places
    return BlockLosses(
        talk=talk,
        alone=alone,
        policy=policy,
        reward=reward,
        advantage=advantage,
        rewarded_BxP=rewarded_BxP,
        gain_BxRxP=gain[:, :, 0],
    )


def targets_at(target_BxAxT: jax.Array, index_BxP: jax.Array) -> jax.Array:
    """`talk_targets` of chosen positions, bool [B, A, P]; nothing is predicted at the last one."""
    padded = jnp.pad(target_BxAxT, ((0, 0), (0, 0), (0, 1)))
    return jnp.take_along_axis(padded, index_BxP[:, None], axis=2)
