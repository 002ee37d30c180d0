r"""Distillation: a plain model learns the next-token prediction that its teacher makes with thoughts.

At position t let p be the teacher's prediction after thoughts, averaged over several, and q the
student's plain one. The loss is a weighted mean over positions of one of these terms:

    forward_kl   KL(p || q): cover all that the teacher expects; its gradient in the logits is q - p
    reverse_kl   KL(q || p): expect nothing that the teacher does not
    policy       REINFORCE for the latter: draw tokens a from q, reward log p(a) - log q(a), baseline the
                 mean reward of the others drawn there; in expectation the gradient of reverse_kl
    hinge        max(0, log p(x_{t+1}) - log q(x_{t+1})): catch up with the teacher on the true token

The first three count at every real position, also at the last of a document, where no token follows
and the teacher's prediction is the only label; or, by choice, at that one alone: behind questions without
answers. Of conversations and with `data.learn=answers` they count in front of the tokens to learn alone.
(Sequence-level and on-policy relatives: Hinton et al.,
arXiv 1503.02531; Gu et al., MiniLLM, arXiv 2306.08543.)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.model import decoder, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives.batch import (
    Batch,
    counts,
    last_positions,
    masked_mean,
    position_weights,
    read_batch,
    talk_targets,
)
from fqs_jax.objectives.metrics import Metrics
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import keys as keys_lib

FORMS = ("forward_kl", "reverse_kl", "policy", "hinge")
WEIGHTINGS = ("all", "shift")
POSITIONS = ("all", "last")
MOST_BYTES = 4 << 30  # of a teacher's predictions for a stage, in memory and on disk
_LEAST_REST = 1e-7  # probability; 1 minus a sum near 1 has about this error in float32

# A teacher's predictions for one row, by their key in batches: shape and type.
Arrays = dict[str, tuple[tuple[int, ...], type]]


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Settings of distillation.

    Attributes:
      form: `forward_kl`, `reverse_kl`, `policy` or `hinge`, as above.
      label_weight: share of the plain next-token loss in the whole; the term above has the rest.
      weighting: `all` positions alike; or by the `shift` that thoughts make: the total variation
        distance between the teacher's predictions with and without them.
      positions: the student learns at `all` positions, or only at the `last` of each row, behind a
        question without an answer. The teacher thinks there alone, too.
      teacher_thoughts: thoughts over which the teacher's prediction is averaged.
      top_k: number of the teacher's likeliest tokens that are stored at a position. All others are then
        one outcome, for the student too. 0 = the whole vocabulary.
      group: number of tokens that `policy` draws at a position.
    """

    form: str = "forward_kl"
    label_weight: float = 0.0
    weighting: str = "all"
    positions: str = "all"
    teacher_thoughts: int = 4
    top_k: int = 0
    group: int = 4

    def __post_init__(self) -> None:
        texts = {"form": FORMS, "weighting": WEIGHTINGS, "positions": POSITIONS}
        for name, known in texts.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(f"distill.{name} {value!r} is none of {', '.join(known)}")
        if self.positions == "last" and (self.form == "hinge" or self.label_weight):
            field = (
                "form is 'hinge'"
                if self.form == "hinge"
                else f"label_weight is {self.label_weight}"
            )
            raise UserError(
                f"distill.{field}, which learns the token that follows, and none follows the last position: "
                "set distill.positions to all, or distill.form to another one and distill.label_weight to 0"
            )
        if not 0 <= self.label_weight <= 1:
            raise UserError(f"distill.label_weight is {self.label_weight}; set 0 to 1")
        for name, least in (("teacher_thoughts", 1), ("top_k", 0), ("group", 2)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"distill.{name} is {value}; set at least {least}")


def teacher_arrays(config: DistillConfig, length: int, vocab_size: int) -> Arrays:
    """Predictions of the teacher that a row of `length` T needs, by name; P is T, or 1 for the last position:

    teacher_log_prob   [T - 1]  log p(x_{t+1}); not for the last position
    teacher_log_probs  [P, k]   log p of the likeliest tokens, likeliest first; with top_k 0 all V, by id
    teacher_ids        [P, k]   ids of those tokens; not with top_k 0
    teacher_shift      [P]      distance by which thoughts move its prediction; for weighting `shift`

    Raises:
      UserError: top_k is larger than the vocabulary.
    """
    if config.top_k > vocab_size:
        raise UserError(
            f"distill.top_k is {config.top_k}; the vocabulary has {vocab_size}, set 0 for all"
        )
    arrays: Arrays = {}
    positions = 1
    if config.positions == "all":
        arrays["teacher_log_prob"] = ((length - 1,), np.float32)
        positions = length
    if config.form != "hinge":
        arrays["teacher_log_probs"] = ((positions, config.top_k or vocab_size), np.float32)
        if config.top_k:
            arrays["teacher_ids"] = ((positions, config.top_k), np.int32)
    if config.weighting == "shift":
        arrays["teacher_shift"] = ((positions,), np.float32)
    return arrays


def check_size(arrays: Arrays, rows: int, name: str) -> None:
    """Refuse predictions that do not fit in memory.

    Raises:
      UserError: they are larger than MOST_BYTES.
    """
    size = rows * sum(
        math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values()
    )
    if size > MOST_BYTES:
        raise UserError(
            f"{name} would keep {size / 2**30:,.1f} GiB of its teacher's predictions, more than "
            f"{MOST_BYTES >> 30} GiB; set distill.top_k, such as 16, or lower it"
        )


def distill_loss(
    params: Params, batch: Batch, key: jax.Array, model: ModelConfig, config: DistillConfig
) -> tuple[jax.Array, Metrics]:
    """label_weight * next-token loss + (1 - label_weight) * mean of the term over positions.

    Args:
      batch: with `teacher_arrays`.
      key: random key of the tokens that `policy` draws.
    """
    lm = params["lm"]
    hidden_BxTxD = read_batch(lm, batch, model)
    if config.positions == "last":
        index_Bx1 = last_positions(batch)
        hidden_Bx1xD = jnp.take_along_axis(hidden_BxTxD, index_Bx1[..., None], axis=1)
        found = _terms(lm, hidden_Bx1xD, index_Bx1, None, batch, key, model, config)
        terms = _means(found, batch)
        return terms[config.form], _shown(terms, config)

    position_BxT = jnp.broadcast_to(jnp.arange(hidden_BxTxD.shape[1]), hidden_BxTxD.shape[:2])
    following_BxT = jnp.roll(batch["tokens"], -1, axis=1)
    found = _terms(lm, hidden_BxTxD, position_BxT, following_BxT, batch, key, model, config)
    label_BxU = found.pop("label")[:, :-1]
    behind_BxU = batch["teacher_log_prob"] - label_BxU
    found["hinge"] = jnp.pad(jnp.maximum(behind_BxU, 0.0), ((0, 0), (0, 1)))

    target_BxAxU = talk_targets(batch, 1)
    target_BxU, count = target_BxAxU[:, 0], counts(batch, target_BxAxU)[0]
    nll = -masked_mean(label_BxU, target_BxU, count)
    terms = _means(found, batch)
    loss = config.label_weight * nll + (1 - config.label_weight) * terms[config.form]
    metrics: Metrics = {
        "nll_base": metrics_lib.scalar(nll),
        "nll_teacher_minus_student": metrics_lib.mean(-behind_BxU, target_BxU),
        **_shown(terms, config),
    }
    return loss, metrics


def _terms(
    lm: Params,
    hidden_BxPxD: jax.Array,
    position_BxP: jax.Array,
    following_BxP: jax.Array | None,
    batch: Batch,
    key: jax.Array,
    model: ModelConfig,
    config: DistillConfig,
) -> dict[str, jax.Array]:
    """The terms that need the student's distributions, float32 [B, P].

    Args:
      following_BxP: the next tokens, of which log q is returned as `label`; None = they do not matter.
    """
    others: dict[str, Any] = {} if following_BxP is None else {"next": following_BxP}
    if config.form != "hinge":
        others["teacher"] = batch["teacher_log_probs"]
        if config.top_k:
            others["ids"] = batch["teacher_ids"]
    if config.form == "policy":
        others["key"] = keys_lib.thought_keys(key, position_BxP, 1, batch.get("row"))[..., 0]

    def read(logits: jax.Array, others: dict[str, jax.Array]) -> dict[str, jax.Array]:
        log_q = jax.nn.log_softmax(logits)
        found = {}
        if "next" in others:
            is_next = jnp.arange(log_q.shape[-1]) == others["next"][..., None]
            found["label"] = jnp.sum(jnp.where(is_next, log_q, 0.0), -1)
        if "teacher" in others:
            p, q = outcomes(others["teacher"], log_q, others.get("ids"))
            found |= {"forward_kl": forward_kl(p, q), "reverse_kl": reverse_kl(p, q)}
            if "key" in others:
                found["policy"] = policy(p, q, others["key"], config.group)
        return found

    kernel_DxV = decoder.head_kernel(lm)
    return vocab.read(read, hidden_BxPxD, kernel_DxV, others, chunk=model.vocab_chunk)


def _means(found: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """Weighted means of terms [B, P] over the positions of the whole batch."""
    weight_BxP = position_weights(batch)
    total = batch.get("weight", jnp.sum(weight_BxP))
    return {name: masked_mean(term, weight_BxP, total) for name, term in found.items()}


def _shown(terms: dict[str, jax.Array], config: DistillConfig) -> Metrics:
    shown = [name for name in terms if name == config.form or name.endswith("_kl")]
    return {f"distill/{name}": metrics_lib.scalar(terms[name]) for name in shown}


def outcomes(
    teacher: jax.Array, log_q: jax.Array, ids: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of teacher and student on the same outcomes, [..., n].

    Args:
      teacher: [..., k], of the tokens `ids` [..., k]; None = of all V.
      log_q: [..., V].

    Returns:
      With fewer ids than V, the k tokens and, last, all others together.
    """
    if ids is None:
        return teacher, log_q
    student = jnp.take_along_axis(log_q, ids, axis=-1)
    if ids.shape[-1] == log_q.shape[-1]:
        return teacher, student
    rest_p = jnp.log(jnp.maximum(-jnp.expm1(jax.nn.logsumexp(teacher, -1)), _LEAST_REST))
    # The student's is a sum over the others themselves: 1 minus the sum of those k would round to 0.
    others = jnp.put_along_axis(log_q, ids, -jnp.inf, axis=-1, inplace=False)
    rest_q = jax.nn.logsumexp(others, -1)
    return (
        jnp.concatenate([teacher, rest_p[..., None]], -1),
        jnp.concatenate([student, rest_q[..., None]], -1),
    )


def forward_kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p || q) of log-probabilities [..., n]."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def reverse_kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(q || p) of log-probabilities [..., n]."""
    return forward_kl(log_q, log_p)


def policy(log_p: jax.Array, log_q: jax.Array, keys: jax.Array, group: int) -> jax.Array:
    """REINFORCE's surrogate for KL(q || p), with `group` outcomes drawn from q by each key [...]."""

    def draw(key: jax.Array, log_q: jax.Array) -> jax.Array:
        return jax.random.categorical(key, log_q, shape=(group,))

    flat = log_q.reshape(-1, log_q.shape[-1])
    drawn = jax.vmap(draw)(keys.reshape(-1), jax.lax.stop_gradient(flat))
    return surrogate(log_p, log_q, drawn.reshape(*keys.shape, group))


def surrogate(log_p: jax.Array, log_q: jax.Array, drawn: jax.Array) -> jax.Array:
    """-mean over draws of advantage * log q(draw), [...].

    The advantage of a draw is its reward log p - log q minus the mean reward of the others.

    Args:
      log_p, log_q: [..., n]. drawn: int [..., group].
    """
    group = drawn.shape[-1]
    p, q = (jnp.take_along_axis(x, drawn, axis=-1) for x in (log_p, log_q))
    reward = jax.lax.stop_gradient(p - q)
    others = (jnp.sum(reward, -1, keepdims=True) - reward) / (group - 1)
    return -jnp.mean((reward - others) * q, -1)
