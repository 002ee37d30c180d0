"""Compare with the published PyTorch code: `python -m tests.parity DIR`.

DIR holds config.json, weights.safetensors and any of eval_n*.npz, train_n*.npz, ntp*.npz, recorded
from the released Fast Quiet-STaR modeling files run unedited. One line a file; exit 0 iff thought
tokens are equal, logits within 1e-4, losses within 1e-5 relative and every gradient within 1e-4 of
its tensor's largest entry; 1 where something differs; 2, with one line about it, where the folder
cannot be read.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives import plain
from fqs_jax.objectives.plain import NTPConfig
from fqs_jax.objectives.thought_losses import QuietStarConfig, ThoughtLosses, thought_losses
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import prediction, thoughts
from fqs_jax.thinking.config import Thinker
from tests import published
from tests.published import Arrays, Fixture

LOGIT_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-5, 1e-4


@dataclasses.dataclass
class Comparison:
    """Errors of one file, by kind, and whether each is within its tolerance."""

    name: str
    parts: list[str] = dataclasses.field(default_factory=list)
    ok: bool = True

    def tokens(self, ours: Any, theirs: Any) -> None:
        equal = bool(np.array_equal(np.asarray(ours), np.asarray(theirs)))
        self._add("tokens equal" if equal else "tokens DIFFER", equal)

    def error(self, label: str, error: float, tolerance: float) -> None:
        self._add(f"{label} {error:.1e}", bool(error <= tolerance))  # NaN fails

    def logits(self, label: str, ours: Any, theirs: Any, where: Any = True) -> None:
        self.error(label, _largest(np.asarray(ours) - np.asarray(theirs), where), LOGIT_TOLERANCE)

    def loss(self, label: str, ours: Any, theirs: Any) -> None:
        self.error(label, _relative(ours, theirs), LOSS_TOLERANCE)

    def inform(self, label: str, ours: Any, theirs: Any, where: Any = True) -> None:
        """Error relative to the largest entry, shown without a verdict: what matters of these
        values is in the losses and gradients, and where rewards are small rounding is most of them."""
        self.parts.append(f"{label} {_relative(ours, theirs, where):.1e}")

    def gradients(self, label: str, ours: dict[str, np.ndarray], data: Arrays) -> None:
        prefix = f"{label}/"
        names = [name[len(prefix) :] for name in data if name.startswith(prefix)]
        shapes = {name: gradient.shape for name, gradient in ours.items()}
        odd = sorted(name for name in names if shapes.get(name) != data[prefix + name].shape)
        if odd or not names:
            self._add(f"{label} without counterpart: {', '.join(odd) or 'all'}", False)
            return
        errors = {}
        for name in names:
            theirs = data[prefix + name]
            scale = float(np.max(np.abs(theirs)))
            difference = float(np.max(np.abs(ours[name] - theirs)))
            errors[name] = difference / scale if scale else difference
        worst = max(
            errors, key=lambda name: errors[name] if errors[name] == errors[name] else np.inf
        )
        self.error(f"{label} ({worst})", errors[worst], GRADIENT_TOLERANCE)

    def _add(self, text: str, ok: bool) -> None:
        self.parts.append(text if ok else f"{text} (!)")
        self.ok = self.ok and ok

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {', '.join(self.parts)}"


_think = jax.jit(prediction.think, static_argnames="thinker")


def compare_eval(fixture: Fixture, name: str, data: Arrays) -> Comparison:
    """Greedy thoughts at every position through the cached inference path."""
    result = Comparison(name)
    batch = fixture.batch(data)
    thought = fixture.thought(data, rationales=1, temperature=0.0)
    following, base = _think(
        fixture.params,
        batch["tokens"],
        jax.random.key(0),
        thinker=Thinker(fixture.model, thought),
        segment_BxT=batch["mask"],
    )
    real = data["attention_mask"].astype(bool)
    result.tokens(
        np.asarray(following.thought_BxPxRxK)[:, :, 0][real], data["thought_tokens"][real]
    )
    result.logits("base logits", base, data["base_logits"], real[..., None])
    # Log-probabilities are logits up to a constant: compare both as log-probabilities.
    result.logits(
        "mixed logits",
        following.log_prob_BxPxRxV[:, :, 0],
        jax.nn.log_softmax(data["mixed_logits"]),
        real[..., None],
    )
    result.inform("mixing weight", following.weight_BxPxR[:, :, 0], data["mixing_weight"], real)
    return result


def compare_train(fixture: Fixture, name: str, data: Arrays) -> Comparison:
    """The scoring pass on the recorded thoughts: losses, rewards and every gradient."""
    result = Comparison(name)
    batch, thought = fixture.batch(data), fixture.thought(data)
    config = QuietStarConfig(base_weight=fixture.config["original_loss_weight"])
    P, A, T = thought.rationales, thought.n_ahead_talk, batch["tokens"].shape[1]

    def by_row(x: jax.Array) -> jax.Array:  # [B, T, R, ...] -> [B * R, T, ...]
        return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

    recorded = data["thought_tokens"].reshape(-1, P, *data["thought_tokens"].shape[1:])
    tokens_BxTxRxK = jnp.asarray(np.moveaxis(recorded, 1, 2), jnp.int32)

    ours, scores, nll, policy = thinking_step(
        fixture.params,
        batch,
        tokens_BxTxRxK,
        thinker=Thinker(fixture.model, thought),
        config=config,
    )

    picked = np.argmax(data["thought_logits"] + data["gumbel_noise"], -1)
    result.tokens(picked, data["thought_tokens"])  # the recording itself is whole
    beta = float(data["policy_loss_beta"])
    total = dataclasses.replace(config, policy_weight=beta)
    result.loss("loss", ours.total(total), data["loss_total"])
    result.loss("nll", ours.total(dataclasses.replace(config, policy_weight=0.0)), data["loss_nll"])
    result.loss("base loss", ours.base, data["loss_base"])
    result.loss("talk loss", ours.blocks.talk, np.mean(data["loss_talk"]))
    result.loss("policy loss", ours.blocks.policy, data["loss_policy"])
    real = np.repeat(data["attention_mask"].astype(bool), P, axis=0)
    rewarded = real[:, : T - 1 - A]
    flat = (-1, T - 1 - A)
    result.inform(
        "reward",
        ours.blocks.reward_BxRxP[..., : T - 1 - A].reshape(flat),
        data["policy_reward"],
        rewarded,
    )
    clipped = np.maximum(data["advantage"], 0.0)
    result.inform(
        "advantage", ours.blocks.advantage_BxRxP[..., : T - 1 - A].reshape(flat), clipped, rewarded
    )
    loglik = by_row(scores.blocks.thought_BxPxRxK)[:, : T - 1]
    result.inform("action log-likelihood", loglik, data["action_loglik"], real[:, : T - 1, None])
    n = thought.n_ahead
    # Beyond the row's end the published code forces padding and we wrap around; no loss reads there.
    weight = data["mixing_weight_per_pass"][n - 2 :, :, : T - 1 - A]
    ours_weight = jnp.moveaxis(by_row(scores.blocks.mixing_weight_BxPxRxA), -1, 0)[..., : T - 1 - A]
    result.inform("mixing weight", ours_weight, weight, rewarded)
    result.gradients("grad_nll", published.from_tree(nll, fixture.model), data)
    result.gradients("grad_policy", published.from_tree(policy, fixture.model), data)
    return result


@functools.partial(jax.jit, static_argnames=("thinker", "config"))
def thinking_step(
    params: Any,
    batch: batch_lib.Batch,
    thought_BxTxRxK: jax.Array,
    *,
    thinker: Thinker,
    config: QuietStarConfig,
) -> tuple[ThoughtLosses, thoughts.Scores, Any, Any]:
    """Losses and scores, and the gradients of the NLL and of the policy loss apart."""

    def losses(params: Any) -> tuple[ThoughtLosses, thoughts.Scores]:
        scores = thoughts.score_thoughts(
            params, batch["tokens"], thought_BxTxRxK, thinker, batch["mask"]
        )
        target_BxAxU = batch_lib.talk_targets(batch, thinker.thought.n_ahead_talk)
        return thought_losses(scores, target_BxAxU, config), scores

    (ours, scores), pull = jax.vjp(losses, params)
    zero = jax.tree.map(jnp.zeros_like, (ours, scores))

    def gradient(base: float, **parts: float) -> Any:
        seeds = {field: jnp.asarray(value) for field, value in parts.items()}
        blocks = dataclasses.replace(zero[0].blocks, **seeds)
        losses = dataclasses.replace(zero[0], base=jnp.asarray(base), blocks=blocks)
        return pull((losses, zero[1]))[0]

    share = config.base_weight
    return ours, scores, gradient(share, talk=1 - share), gradient(0.0, policy=1.0)


def compare_ntp(fixture: Fixture, name: str, data: Arrays) -> Comparison:
    """The released NTP objective on recorded student samples."""
    result = Comparison(name)
    batch = fixture.batch(data)
    log_teacher = jax.nn.log_softmax(jnp.asarray(data["labels_kl"]))
    teacher = jnp.take_along_axis(log_teacher[:, :-1], batch["tokens"][:, 1:, None], -1)[..., 0]
    action = jnp.asarray(data["sampled_tokens"], jnp.int32)
    config = NTPConfig(
        temperature=float(fixture.config["reinforce_temperature"]), policy_weight=1.0
    )
    result.tokens(np.argmax(data["logits"] + data["gumbel_noise"], -1), data["sampled_tokens"])

    logits, loss, parts, grads = _ntp_step(
        fixture.params, batch, teacher, action[:, :-1], model=fixture.model, config=config
    )
    result.logits("logits", logits, data["logits"])
    result.loss("loss", loss, data["loss_rm"])
    result.loss("total", loss * float(data["policy_loss_beta"]), data["loss_total"])
    result.inform("reward", parts.reward, np.maximum(data["reward"], 0.0))
    result.inform("action log-likelihood", parts.log_pi, data["action_loglik"])
    result.gradients("grad_policy", published.from_tree(grads, fixture.model), data)
    return result


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _ntp_step(
    params: Any,
    batch: batch_lib.Batch,
    teacher_BxU: jax.Array,
    action_BxU: jax.Array,
    *,
    model: ModelConfig,
    config: NTPConfig,
) -> tuple[jax.Array, jax.Array, plain.NTPLosses, Any]:
    """Student logits, and the loss with its parts and gradients."""

    def losses(params: Any) -> tuple[jax.Array, plain.NTPLosses]:
        return plain.ntp_losses(params, batch, teacher_BxU, action_BxU, model, config)

    (loss, parts), grads = jax.value_and_grad(losses, has_aux=True)(params)
    logits = decoder.logits(params["lm"], batch["tokens"], model, batch["mask"])
    return logits, loss, parts, grads


def _relative(ours: Any, theirs: Any, where: Any = True) -> float:
    theirs = np.asarray(theirs)
    return _largest(np.asarray(ours) - theirs, where) / max(_largest(theirs, where), 1e-30)


def _largest(x: Any, where: Any) -> float:
    x = np.asarray(x)
    return float(np.max(np.abs(x), initial=0.0, where=np.broadcast_to(where, x.shape)))


# The comparison and its arrays, by prefix of the file name.
COMPARE = {
    "eval_n": (compare_eval, published.EVAL_ARRAYS),
    "train_n": (compare_train, published.TRAIN_ARRAYS),
    "ntp": (compare_ntp, published.NTP_ARRAYS),
}


def compare_folder(folder: Path) -> list[Comparison]:
    """Compare every recording of a folder.

    Raises:
      UserError: a file is missing, unreadable or does not match its name, or no recording exists.
    """
    fixture = published.load(folder)
    results = []
    for path in sorted(folder.glob("*.npz")):
        for prefix, (compare, axes) in COMPARE.items():
            if path.name.startswith(prefix):
                data = published.load_arrays(path, axes, fixture.model)
                results.append(compare(fixture, path.name, data))
    if not results:
        raise UserError(f"no eval_n*.npz, train_n*.npz or ntp*.npz in {folder}")
    return results


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (Path(arguments[0]) / "config.json").is_file():
        usage = (
            "usage: python -m tests.parity DIR, a folder with config.json and weights.safetensors"
        )
        print(usage, file=sys.stderr)
        return 2
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        results = compare_folder(Path(arguments[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for result in results:
        print(result)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
