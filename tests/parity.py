"""Compare with the published PyTorch code: `python -m tests.parity DIR`.

DIR holds config.json, weights.safetensors and any of eval_n*.npz, train_n*.npz, ntp*.npz, recorded
from the released Fast Quiet-STaR modeling files run unedited. One line a file; exit 0 iff thought
tokens are equal, logits within 1e-4, losses within 1e-5 relative and every gradient within 1e-4 of
its tensor's largest entry.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from fqs_jax import model as model_lib
from fqs_jax import objectives, thoughts
from fqs_jax.model import ModelConfig
from fqs_jax.objectives import NTPConfig, QuietStarConfig
from fqs_jax.thoughts import ThoughtConfig

LOGIT_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-5, 1e-4
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A folder's model: its architecture, its raw configuration, and its weights in our layout."""

    config: dict[str, Any]
    model: ModelConfig
    params: dict[str, Any]

    def thought(self, data: Arrays, **changes: Any) -> ThoughtConfig:
        fields: dict[str, Any] = {
            "n_ahead": int(data["n_ahead"]),
            "n_ahead_talk": int(data["n_ahead_talk"]),
            "rationales": int(data.get("n_passes", 1)),
            "embedding_scale": self.config["embedding_scale"],
            "reinforce_temperature": float(self.config["reinforce_temperature"]),
            "masked_ids": (self.config["start_thought_id"], self.config["end_thought_id"]),
        }
        return ThoughtConfig(**fields | changes)

    def batch(self, data: Arrays) -> objectives.Batch:
        # As published, a label equal to the padding id is ignored wherever it stands.
        tokens = jnp.asarray(data["input_ids"], jnp.int32)
        mask = jnp.asarray(data["attention_mask"], bool)
        return {
            "tokens": tokens,
            "mask": mask,
            "target": tokens != self.config["pad_token_id_used"],
        }


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
        missing = sorted(set(names) - set(ours))
        if missing or not names:
            self._add(f"{label} without counterpart: {missing or 'all'}", False)
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


def load(folder: Path) -> Fixture:
    """Read a fixture folder's configuration and weights."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    model = ModelConfig(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        tied_embeddings=config["tie_word_embeddings"],
        sliding_window=config.get("sliding_window"),
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in weights,
        remat="none",
    )
    params = jax.tree.map(jnp.asarray, to_tree(weights, model))
    return Fixture(config, model, params)


def to_tree(weights: Arrays, model: ModelConfig) -> dict[str, Any]:
    """Published names, (out, in) matrices -> our tree."""
    c = model
    layers: dict[str, Any] = {}
    for ours, theirs, shape in _layer_rows(c):
        stacked = [
            weights[f"model.layers.{i}.{theirs}"].T.reshape(shape) for i in range(c.num_layers)
        ]
        module, leaf = ours.split("/")
        layers.setdefault(module, {})[leaf] = np.stack(stacked)
    lm = {
        "embed": {"embedding": weights["model.embed_tokens.weight"]},
        "layers": layers,
        "final_norm": {"scale": weights["model.norm.weight"]},
    }
    if not c.tied_embeddings:
        lm["head"] = {"kernel": weights["lm_head.weight"].T}
    head = {
        name: {
            "kernel": weights[f"talk_head.0.{i}.weight"].T,
            "bias": weights[f"talk_head.0.{i}.bias"],
        }
        for name, i in (("hidden_1", 0), ("hidden_2", 2))
    }
    thought = {
        "start": weights["start_embedding"][0],
        "end": weights["end_embedding"][0],
        "talk_head": head | {"out": {"kernel": weights["talk_head.0.4.weight"].T}},
    }
    return {"lm": lm, "thought": thought}


def from_tree(tree: dict[str, Any], model: ModelConfig) -> Arrays:
    """Our tree (of gradients) -> published names and orientation."""
    lm, thought = jax.tree.map(np.asarray, (tree["lm"], tree["thought"]))
    named = {
        "model.embed_tokens.weight": lm["embed"]["embedding"],
        "model.norm.weight": lm["final_norm"]["scale"],
        "talk_head.0.4.weight": thought["talk_head"]["out"]["kernel"].T,
    }
    if "head" in lm:
        named["lm_head.weight"] = lm["head"]["kernel"].T
    for name, i in (("hidden_1", 0), ("hidden_2", 2)):
        named[f"talk_head.0.{i}.weight"] = thought["talk_head"][name]["kernel"].T
        named[f"talk_head.0.{i}.bias"] = thought["talk_head"][name]["bias"]
    for ours, theirs, _ in _layer_rows(model):
        module, leaf = ours.split("/")
        for i, value in enumerate(lm["layers"][module][leaf]):
            rows = (
                1 if leaf != "kernel" else value.shape[0] * (value.shape[1] if module == "o" else 1)
            )
            named[f"model.layers.{i}.{theirs}"] = value.reshape(rows, -1).T.squeeze()
    for mark in ("start", "end"):
        # Row 1 belongs to a reparametrisation that these runs do not use; its gradient is zero.
        named[f"{mark}_embedding"] = np.stack([thought[mark], np.zeros_like(thought[mark])])
    return named


def _layer_rows(c: ModelConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    q, kv = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
    rows: list[tuple[str, str, tuple[int, ...]]] = [
        ("attn_norm/scale", "input_layernorm.weight", (c.width,)),
        ("mlp_norm/scale", "post_attention_layernorm.weight", (c.width,)),
        ("q/kernel", "self_attn.q_proj.weight", (c.width, *q)),
        ("k/kernel", "self_attn.k_proj.weight", (c.width, *kv)),
        ("v/kernel", "self_attn.v_proj.weight", (c.width, *kv)),
        ("o/kernel", "self_attn.o_proj.weight", (*q, c.width)),
        ("gate/kernel", "mlp.gate_proj.weight", (c.width, c.mlp_dim)),
        ("up/kernel", "mlp.up_proj.weight", (c.width, c.mlp_dim)),
        ("down/kernel", "mlp.down_proj.weight", (c.mlp_dim, c.width)),
    ]
    if c.qkv_bias:
        rows += [(f"{n}/bias", f"self_attn.{n}_proj.bias", q if n == "q" else kv) for n in "qkv"]
    return rows


def compare_eval(fixture: Fixture, name: str, data: Arrays) -> Comparison:
    """Greedy thoughts at every position through the cached inference path."""
    result = Comparison(name)
    batch = fixture.batch(data)
    thought = fixture.thought(data, rationales=1, temperature=0.0)
    mixed, base, tokens, weight = thoughts.think(
        fixture.params, batch["tokens"], jax.random.key(0), fixture.model, thought, batch["mask"]
    )
    real = data["attention_mask"].astype(bool)
    result.tokens(np.asarray(tokens)[:, :, 0][real], data["thought_tokens"][real])
    result.logits("base logits", base, data["base_logits"], real[..., None])
    # Log-probabilities are logits up to a constant: compare both as log-probabilities.
    result.logits(
        "mixed logits", mixed[:, :, 0], jax.nn.log_softmax(data["mixed_logits"]), real[..., None]
    )
    result.inform("mixing weight", weight[:, :, 0], data["mixing_weight"], real)
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

    def losses(params: Any) -> tuple[Any, Any]:
        scores = thoughts.score_thoughts(
            params, batch["tokens"], tokens_BxTxRxK, fixture.model, thought, batch["mask"]
        )
        return objectives.thought_losses(scores, batch["target"], config), scores

    @jax.jit
    def with_gradients(params: Any) -> Any:
        (ours, scores), pull = jax.vjp(losses, params)
        zero = jax.tree.map(jnp.zeros_like, (ours, scores))

        def gradient(**seed: float) -> Any:
            seeds = {field: jnp.asarray(value) for field, value in seed.items()}
            return pull((dataclasses.replace(zero[0], **seeds), zero[1]))[0]

        share = config.base_weight
        return ours, scores, gradient(base=share, talk=1 - share), gradient(policy=1.0)

    ours, scores, nll, policy = with_gradients(fixture.params)

    picked = np.argmax(data["thought_logits"] + data["gumbel_noise"], -1)
    result.tokens(picked, data["thought_tokens"])  # the recording itself is whole
    beta = float(data["policy_loss_beta"])
    total = dataclasses.replace(config, policy_weight=beta)
    result.loss("loss", ours.total(total), data["loss_total"])
    result.loss("nll", ours.nll(config), data["loss_nll"])
    result.loss("base loss", ours.base, data["loss_base"])
    result.loss("talk loss", ours.talk, np.mean(data["loss_talk"]))
    result.loss("policy loss", ours.policy, data["loss_policy"])
    real = np.repeat(data["attention_mask"].astype(bool), P, axis=0)
    rewarded = real[:, : T - 1 - A]
    flat = (-1, T - 1 - A)
    result.inform("reward", ours.reward.reshape(flat), data["policy_reward"], rewarded)
    clipped = np.maximum(data["advantage"], 0.0)
    result.inform("advantage", ours.advantage.reshape(flat), clipped, rewarded)
    loglik = by_row(scores.thought_BxPxRxK)[:, : T - 1]
    result.inform("action log-likelihood", loglik, data["action_loglik"], real[:, : T - 1, None])
    n = thought.n_ahead
    # Beyond the row's end the published code forces padding and we wrap around; no loss reads there.
    weight = data["mixing_weight_per_pass"][n - 2 :, :, : T - 1 - A]
    ours_weight = jnp.moveaxis(by_row(scores.mixing_weight_BxPxRxA), -1, 0)[..., : T - 1 - A]
    result.inform("mixing weight", ours_weight, weight, rewarded)
    result.gradients("grad_nll", from_tree(nll, fixture.model), data)
    result.gradients("grad_policy", from_tree(policy, fixture.model), data)
    return result


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

    def losses(params: Any) -> tuple[jax.Array, Any]:
        return objectives.ntp_losses(params, batch, teacher, action[:, :-1], fixture.model, config)

    (loss, parts), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(fixture.params)
    logits = model_lib.logits(fixture.params["lm"], batch["tokens"], fixture.model, batch["mask"])
    result.logits("logits", logits, data["logits"])
    result.loss("loss", loss, data["loss_rm"])
    result.loss("total", loss * float(data["policy_loss_beta"]), data["loss_total"])
    result.inform("reward", parts.reward, np.maximum(data["reward"], 0.0))
    result.inform("action log-likelihood", parts.log_pi, data["action_loglik"])
    result.gradients("grad_policy", from_tree(grads, fixture.model), data)
    return result


def _relative(ours: Any, theirs: Any, where: Any = True) -> float:
    theirs = np.asarray(theirs)
    return _largest(np.asarray(ours) - theirs, where) / max(_largest(theirs, where), 1e-30)


def _largest(x: Any, where: Any) -> float:
    x = np.asarray(x)
    return float(np.max(np.abs(x), initial=0.0, where=np.broadcast_to(where, x.shape)))


COMPARE = {"eval_n": compare_eval, "train_n": compare_train, "ntp": compare_ntp}


def compare_folder(folder: Path) -> list[Comparison]:
    """Compare every fixture file of a folder."""
    fixture = load(folder)
    results = []
    for path in sorted(folder.glob("*.npz")):
        compare = next((f for prefix, f in COMPARE.items() if path.name.startswith(prefix)), None)
        if compare is not None:
            with np.load(path, allow_pickle=False) as data:
                results.append(compare(fixture, path.name, dict(data)))
    return results


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (Path(arguments[0]) / "config.json").is_file():
        print(
            "usage: python -m tests.parity DIR, a folder with config.json and weights.safetensors"
        )
        return 2
    jax.config.update("jax_default_matmul_precision", "highest")
    results = compare_folder(Path(arguments[0]))
    for result in results:
        print(result)
    if not results:
        print(f"no eval_n*.npz, train_n*.npz or ntp*.npz in {arguments[0]}")
    return 0 if results and all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
