"""Losses and rewards of thoughts, given the scores of their predictions.

Formulas: Quiet-STaR (arXiv 2403.09629), Fast Quiet-STaR (arXiv 2505.17746), as their released code
computes them; where code and paper differ the code is followed and the difference is a config field.
Settings also give the gradients of RLP (arXiv 2510.01265), JEPO (arXiv 2503.19618) and RPT
(arXiv 2506.08007), for thoughts of this kind: docs/fidelity.md.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from fqs_jax.objectives.batch import masked_mean, target_counts
from fqs_jax.runtime.axes import check_axes
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import positions as positions_lib
from fqs_jax.thinking import talk_head
from fqs_jax.thinking.positions import Positions
from fqs_jax.thinking.scoring import BlockScores, ahead
from fqs_jax.thinking.thoughts import Scores

ADVANTAGES = ("clipped", "leave_one_out", "bound")
LIKELIHOODS = ("each", "average")
REWARDS = ("mixed", "post_thought", "correct")


@dataclasses.dataclass(frozen=True)
class QuietStarConfig:
    """Weights of the thinking objective; defaults are the published ones.

    Attributes:
      base_weight: share of the plain next-token loss; the rest is the mixed prediction's.
      mixed_scale: factor on the mixed prediction's share; 0 trains thoughts by their policy alone (RLP).
      likelihood: what the mixed prediction's loss is of: `each` thought (published), or the `average`
        of the probabilities after all rationales of a position (`averaged`; JEPO).
      policy_weight: multiplies the REINFORCE loss (published: 1e6, followed by gradient clipping).
      advantage: `clipped` max(0, reward - mean over rationales) (published); `leave_one_out`, reward
        minus the mean of the other rationales, both signs (RLP); or `bound`, what a rationale adds to
        the log of the mean likelihood (JEPO). See `advantages`.
      reward: log-probability of the text minus that of the plain prediction, under the `mixed`
        prediction (as released) or the `post_thought` one, which is the thought's own, unmixed; or
        `correct`, the share of talk steps whose true token is the mixed prediction's likeliest (RPT).
      post_thought_weight: weight of the post-thought prediction's loss, which is added (released: 0).
      position_fraction: share of a row's positions that have thoughts, chosen anew at every step; the
        loss is then an unbiased estimate of the loss at all positions. 1 = all (published).
      positions: `uniform`, or `high_entropy`, more often where the plain prediction is less sure.
    """

    base_weight: float = 0.5
    mixed_scale: float = 1.0
    likelihood: str = "each"
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
        for name, known in (
            ("positions", positions_lib.KINDS),
            ("likelihood", LIKELIHOODS),
            ("advantage", ADVANTAGES),
            ("reward", REWARDS),
        ):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name} {value!r} is none of {', '.join(known)}")
        if self.advantage == "bound" and self.reward == "correct":
            raise UserError(
                "quiet_star.advantage 'bound' compares likelihoods, which the reward 'correct' is not; "
                "set quiet_star.advantage=leave_one_out"
            )

    @property
    def reads_thought_only(self) -> bool:
        """True if the predictions that thoughts make unmixed are needed."""
        return self.reward == "post_thought" or self.post_thought_weight != 0

    @property
    def reads_correct(self) -> bool:
        """True if the likeliest tokens of the mixed predictions are needed."""
        return self.reward == "correct"

    @property
    def mixed_weight(self) -> float:
        """The weight of the mixed prediction's loss."""
        return (1 - self.base_weight) * self.mixed_scale

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
        nll = config.mixed_weight * self.talk
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

        nll    = base_weight * mean l + (1 - base_weight) * mixed_scale * (1/A) sum_s mean l_s
                 + post_thought_weight * (1/A) sum_s mean a_s
        R(t,r) = sum_s [ l(t + s) - l_s(t, r) ],   t < T - 1 - A
        A(t,r) = max(0, R(t,r) - mean_r R(t,r)),   no gradient         (`clipped`)
        policy = -(1/K) sum_k mean_{rows, r, t} A(t,r) log pi_k(t,r)
        loss   = nll + policy_weight * policy

    and a_s instead of l_s in R for `post_thought` rewards. Means of l, l_s and a_s are over real
    targets; the mean of the policy loss counts padding as zeros, as published. Means over rows weigh
    all rationales of a sequence alike.

    For `correct` rewards R(t,r) is instead the mean over the talk steps with a target of 1 where the
    target is the likeliest token. With a single step (A = 1) it is 1 or 0, as in RPT, whose model
    samples the token; with more it stays between them, and a thought that helps one token later is
    not worthless. `averaged` and `advantages` have the other formulas.

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
        rationales = nll_BxRxAxP.shape[1]  # 1 if they are averaged
        means = [
            masked_mean(
                nll_BxRxAxP[:, :, s],
                target_BxAxP[:, s, None] * weight_Bx1xP,
                rationales * counts_A[s],
            )
            for s in range(A)
        ]
        return jnp.mean(jnp.stack(means))

    talk_nll = only_nll = -jnp.moveaxis(scores.talk_BxPxRxA, 1, -1)  # [B, R, A, P]
    likelihood = talk_nll
    if config.likelihood == "average":
        likelihood = -averaged(-talk_nll, target_BxAxP)
    talk, thought_only = mean_over_steps(likelihood), jnp.zeros(())
    if config.reads_thought_only:
        assert scores.thought_only_BxPxRxA is not None
        only_nll = -jnp.moveaxis(scores.thought_only_BxPxRxA, 1, -1)
        thought_only = mean_over_steps(only_nll)
    base_at_target = -jnp.moveaxis(ahead(base_BxT, positions.index_BxP, A), 1, 2)  # [B, A, P]
    gain = (base_at_target[:, None] - talk_nll) * target_BxAxP[:, None]
    judged = gain
    if config.reward == "post_thought":
        judged = (base_at_target[:, None] - only_nll) * target_BxAxP[:, None]
    if config.reads_correct:
        assert scores.correct_BxPxRxA is not None
        correct = jnp.moveaxis(scores.correct_BxPxRxA, 1, -1) & target_BxAxP[:, None]
        judged = correct / jnp.maximum(jnp.sum(target_BxAxP, axis=1)[:, None, None], 1)
    rewarded_BxP = positions.index_BxP < T - 1 - A
    reward = jax.lax.stop_gradient(jnp.sum(judged, axis=2)) * rewarded_BxP[:, None]  # [B, R, P]
    advantage = advantages(reward, config.advantage)
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


def averaged(log_prob_BxRxAxP: jax.Array, target_BxAxP: jax.Array) -> jax.Array:
    r"""Log-probabilities of each talk step's target, averaged over rationales: [B, 1, A, P].

    The multi-sample bound of JEPO (arXiv 2503.19618), for n rationales, is

        L_n(t) = log (1/n) sum_r p(r),   p(r) = prod_s p(x_{t+1+s} | rationale r, x up to t+s)

    with the product over real targets: as for an answer of several tokens, one thought has to explain
    all A of them. Step s gets what its target adds to the log of the mean, so that the steps add up
    to L_n, each can be weighted by its own number of targets, and n = 1 gives the loss of `each`. It
    is the log of step s's mean probability over rationales, weighted by how well they predicted the
    steps before.

    Args:
      log_prob_BxRxAxP: log-probabilities of the targets after each rationale.
      target_BxAxP: where there is a target; what stands elsewhere does not count.
    """
    so_far = jnp.cumsum(jnp.where(target_BxAxP[:, None], log_prob_BxRxAxP, 0.0), axis=2)
    mean_BxAxP = talk_head.mean_log_probs(so_far, 1)
    return jnp.diff(mean_BxAxP, axis=1, prepend=0.0)[:, None]


def advantages(reward_BxRxP: jax.Array, kind: str) -> jax.Array:
    r"""Advantages [B, R, P] of rewards, which have no gradient, by an entry of ADVANTAGES.

    `leave_one_out` is R / (R - 1) times the centred reward, RLP's form (arXiv 2510.01265): what all
    rationales of a position share, such as the log-likelihood of RLP's baseline, cancels. `bound`
    takes rewards as log-likelihoods, up to such a constant: with p(r) = exp(reward of r),

        R * [log (1/R) sum_j p(j) - log (1/(R-1)) sum_{j != r} p(j)]

    The bracket is that of JEPO (arXiv 2503.19618). The gradient of its bound is a sum over rationales,
    the policy loss a mean; hence R. To first order in the differences of rewards it equals `leave_one_out`.
    """
    R = reward_BxRxP.shape[1]
    # A single rationale has no other baseline than the plain prediction, which a gain has in it.
    centred = reward_BxRxP
    if R > 1:
        centred = reward_BxRxP - jnp.mean(reward_BxRxP, axis=1, keepdims=True)
    if kind == "clipped":
        return jnp.maximum(centred, 0.0)
    if R == 1:
        return reward_BxRxP
    if kind == "leave_one_out":
        return centred * (R / (R - 1))
    itself_RxRx1 = jnp.eye(R, dtype=bool)[..., None]
    others = jnp.where(itself_RxRx1, -jnp.inf, reward_BxRxP[:, None])
    control = jax.nn.logsumexp(others, axis=2) - math.log(R - 1)
    return R * (talk_head.mean_log_probs(reward_BxRxP, 1)[:, None] - control)


def targets_at(target_BxAxU: jax.Array, index_BxP: jax.Array) -> jax.Array:
    """`talk_targets` of chosen positions, bool [B, A, P]; nothing is predicted at the last one."""
    padded = jnp.pad(target_BxAxU, ((0, 0), (0, 0), (0, 1)))
    return jnp.take_along_axis(padded, index_BxP[:, None], axis=2)
