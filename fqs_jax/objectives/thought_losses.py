"""Losses and rewards of thoughts, given the scores of their predictions.

Formulas: Quiet-STaR (arXiv 2403.09629), Fast Quiet-STaR (arXiv 2505.17746), as their released code
computes them; where code and paper differ the code is followed and the difference is a config field.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fqs_jax.objectives.batch import masked_mean, target_counts
from fqs_jax.runtime.axes import check_axes
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
      reward: log-probability of the text minus that of the plain prediction, under the `mixed`
        prediction (as released) or the `post_thought` one, which is the thought's own, unmixed.
      post_thought_weight: weight of the post-thought prediction's loss, which is added (released: 0).
      position_fraction: share of a row's positions that have thoughts, chosen anew at every step; the
        loss is then an unbiased estimate of the loss at all positions. 1 = all (published).
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
    def reads_thought_only(self) -> bool:
        """True if the predictions that thoughts make unmixed are needed."""
        return self.reward == "post_thought" or self.post_thought_weight != 0

    def num_positions(self, length: int) -> int:
        """P for a row of `length` tokens."""
        return max(1, round(self.position_fraction * length))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockLosses:
    """Parts of the objective that come from thoughts at P positions.

    Attributes:
      talk: mean over s = 0..A-1 of the mean mixed-prediction loss at step s.
      thought_only: the same of the post-thought prediction, 0 where it does not count.
      policy: REINFORCE loss, before its weight.
      reward_BxRxP, advantage_BxRxP: without gradient.
      rewarded_BxP: whether a position has them.
      gain_BxRxP: how much likelier the thought made the next token, nats.
    """

    talk: jax.Array
    thought_only: jax.Array
    policy: jax.Array
    reward_BxRxP: jax.Array
    advantage_BxRxP: jax.Array
    rewarded_BxP: jax.Array
    gain_BxRxP: jax.Array

    def total(self, config: QuietStarConfig) -> jax.Array:
        """The thoughts' part of the loss."""
        nll = (1 - config.base_weight) * self.talk
        nll = nll + config.post_thought_weight * self.thought_only
        return nll + config.policy_weight * self.policy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ThoughtLosses:
    """All parts of the thinking objective; `base` is the mean of the plain next-token loss."""

    base: jax.Array
    blocks: BlockLosses

    def total(self, config: QuietStarConfig) -> jax.Array:
        """The loss."""
        return config.base_weight * self.base + self.blocks.total(config)


def thought_losses(
    scores: Scores,
    target_BxAxU: jax.Array,
    config: QuietStarConfig,
    counts_A: jax.Array | None = None,
    positions: Positions | None = None,
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

    and a_s instead of l_s in R for `post_thought` rewards. Means of l, l_s and a_s are over real
    targets; the mean of the policy loss counts padding as zeros, as published. Means over rows weigh
    all rationales of a sequence alike.

    Args:
      target_BxAxU: `talk_targets`.
      counts_A: how many targets the means are over; None = those of `target_BxAxU`.
      positions: the P positions of the thoughts, with their weights in the sums; None = all T.
    """
    counts_A = target_counts(target_BxAxU) if counts_A is None else counts_A
    positions = positions or positions_lib.everywhere(*scores.base_BxT.shape)
    return ThoughtLosses(
        base=base_loss(scores.base_BxT, target_BxAxU, counts_A),
        blocks=block_losses(
            scores.blocks, scores.base_BxT, target_BxAxU, counts_A, positions, config
        ),
    )


def base_loss(base_BxT: jax.Array, target_BxAxU: jax.Array, counts_A: jax.Array) -> jax.Array:
    """Mean of the plain next-token loss over real targets."""
    return -masked_mean(base_BxT[:, :-1], target_BxAxU[:, 0], counts_A[0])


def block_losses(
    scores: BlockScores,
    base_BxT: jax.Array,
    target_BxAxU: jax.Array,
    counts_A: jax.Array,
    positions: Positions,
    config: QuietStarConfig,
) -> BlockLosses:
    """The part of `thought_losses` that thoughts at some positions add."""
    check_axes(
        **scores._asdict(),
        base_BxT=base_BxT,
        target_BxAxU=target_BxAxU,
        counts_A=counts_A,
        **positions._asdict(),
        U=base_BxT.shape[1] - 1,
    )
    T = base_BxT.shape[1]
    B, _, R, A = scores.talk_BxPxRxA.shape
    weight_Bx1xP = positions.weight_BxP[:, None]
    target_BxAxP = targets_at(target_BxAxU, positions.index_BxP)

    def mean_over_steps(nll_BxRxAxP: jax.Array) -> jax.Array:
        means = [
            masked_mean(
                nll_BxRxAxP[:, :, s], target_BxAxP[:, s, None] * weight_Bx1xP, R * counts_A[s]
            )
            for s in range(A)
        ]
        return jnp.mean(jnp.stack(means))

    talk_nll = only_nll = -jnp.moveaxis(scores.talk_BxPxRxA, 1, -1)  # [B, R, A, P]
    talk, thought_only = mean_over_steps(talk_nll), jnp.zeros(())
    if config.reads_thought_only:
        assert scores.thought_only_BxPxRxA is not None
        only_nll = -jnp.moveaxis(scores.thought_only_BxPxRxA, 1, -1)
        thought_only = mean_over_steps(only_nll)
    base_at_target = -jnp.moveaxis(ahead(base_BxT, positions.index_BxP, A), 1, 2)  # [B, A, P]
    gain = (base_at_target[:, None] - talk_nll) * target_BxAxP[:, None]
    judged = gain
    if config.reward == "post_thought":
        judged = (base_at_target[:, None] - only_nll) * target_BxAxP[:, None]
    rewarded_BxP = positions.index_BxP < T - 1 - A
    reward = jax.lax.stop_gradient(jnp.sum(judged, axis=2)) * rewarded_BxP[:, None]  # [B, R, P]
    centred = reward - jnp.mean(reward, axis=1, keepdims=True)
    if config.advantage == "clipped":
        # A single rationale has no other baseline than the plain prediction, already in the reward.
        advantage = jnp.maximum(centred if R > 1 else reward, 0.0)
    else:
        advantage = centred * (R / (R - 1)) if R > 1 else reward
    log_pi = jnp.moveaxis(scores.thought_BxPxRxK, 1, 2)  # [B, R, P, K]
    num_draws = B * R * (T - 1 - A) * log_pi.shape[-1]
    policy = -jnp.sum((advantage * weight_Bx1xP)[..., None] * log_pi) / num_draws
    return BlockLosses(
        talk=talk,
        thought_only=thought_only,
        policy=policy,
        reward_BxRxP=reward,
        advantage_BxRxP=advantage,
        rewarded_BxP=rewarded_BxP,
        gain_BxRxP=gain[:, :, 0],
    )


def targets_at(target_BxAxU: jax.Array, index_BxP: jax.Array) -> jax.Array:
    """`talk_targets` of chosen positions, bool [B, A, P]; nothing is predicted at the last one."""
    padded = jnp.pad(target_BxAxU, ((0, 0), (0, 0), (0, 1)))
    return jnp.take_along_axis(padded, index_BxP[:, None], axis=2)
