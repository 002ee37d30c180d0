"""The reference rollout against numbers recorded from the published code, and against transformers.

Recorded numbers are folders of config.json, weights.safetensors and any of eval*.npz, train*.npz and
ntp*.npz; one is looked for in tests/data/parity and one in the optional folder of real inputs. The
conversion from Hugging Face names here is separate from the package's, as the reference is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import reference

HERE = Path(__file__).resolve().parent
FOLDERS = [
    HERE / "data" / "parity",
    Path(os.environ.get("FQS_SHARED") or HERE.parents[1] / "shared") / "parity",
]


def recordings(has_array: str) -> Any:
    """Parametrizes a test over every recording that has the named array; skips where there is none."""
    found = []
    for path in (path for folder in FOLDERS for path in sorted(folder.glob("*.npz"))):
        with np.load(path) as arrays:
            if has_array in arrays:
                found.append(pytest.param(path, id=f"{path.parents[1].name}-{path.stem}"))
    reason = f"no recording with {has_array!r} in {' or '.join(map(str, FOLDERS))}"
    missing = pytest.param(None, marks=pytest.mark.skip(reason=reason))
    return pytest.mark.parametrize("path", found or [missing])


def load(path: Path) -> tuple[dict[str, Any], SimpleNamespace, reference.Params]:
    """A recording's arrays, with `real_BxT` added, and the configuration and parameters beside it.

    real_BxT marks the targets that count: the published code ignores the padding *id* as a target,
    whatever the attention mask says.
    """
    with np.load(path) as recorded:
        arrays = dict(recorded)
    stored = json.loads((path.parent / "config.json").read_text())
    config = config_from_hf(stored)
    config.masked_ids = (stored["start_thought_id"], stored["end_thought_id"])
    config.options = {"embedding_scale": stored["embedding_scale"], "masked_ids": config.masked_ids}
    config.reinforce_temperature = stored["reinforce_temperature"]
    pad_id = stored["pad_token_id_used"]
    arrays["real_BxT"] = (arrays["attention_mask"] == 1) & (arrays["input_ids"] != pad_id)
    return arrays, config, params_from_hf(load_file(path.parent / "weights.safetensors"), config)


def config_from_hf(stored: dict[str, Any]) -> SimpleNamespace:
    """What the reference reads of a model's configuration, from a config.json without rope scaling."""
    heads = stored["num_attention_heads"]
    return SimpleNamespace(
        num_layers=stored["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=stored["num_key_value_heads"],
        head_dim=stored.get("head_dim") or stored["hidden_size"] // heads,
        rope_theta=stored["rope_theta"],
        rope_scaling=None,
        norm_eps=stored["rms_norm_eps"],
        sliding_window=stored.get("sliding_window"),
    )


def params_from_hf(tensors: dict[str, Any], config: Any) -> reference.Params:
    """Hugging Face names with [out, in] kernels into the {'lm', 'thought'} tree of [in, out]."""
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim

    def stack(name: str, shape: Callable[[Any], Any]) -> Any:
        layers = [tensors[f"model.layers.{i}.{name}"] for i in range(config.num_layers)]
        return np.stack([shape(np.asarray(layer, np.float64)) for layer in layers])

    def attention(name: str, heads: int) -> dict[str, Any]:
        dense = {"kernel": stack(f"self_attn.{name}.weight", lambda w: split(w.T, heads))}
        if f"model.layers.0.self_attn.{name}.bias" in tensors:
            dense["bias"] = stack(f"self_attn.{name}.bias", lambda bias: split(bias, heads))
        return dense

    def split(w: Any, heads: int) -> Any:
        return w.reshape(*w.shape[:-1], heads, head_dim)

    def output(w: Any) -> Any:
        return w.T.reshape(heads, head_dim, -1)

    def transposed(w: Any) -> Any:
        return w.T

    lm: dict[str, Any] = {
        "embed": {"embedding": tensors["model.embed_tokens.weight"]},
        "layers": {
            "attn_norm": {"scale": stack("input_layernorm.weight", np.asarray)},
            "q": attention("q_proj", heads),
            "k": attention("k_proj", kv_heads),
            "v": attention("v_proj", kv_heads),
            "o": {"kernel": stack("self_attn.o_proj.weight", output)},
            "mlp_norm": {"scale": stack("post_attention_layernorm.weight", np.asarray)},
            "gate": {"kernel": stack("mlp.gate_proj.weight", transposed)},
            "up": {"kernel": stack("mlp.up_proj.weight", transposed)},
            "down": {"kernel": stack("mlp.down_proj.weight", transposed)},
        },
        "final_norm": {"scale": tensors["model.norm.weight"]},
    }
    if "lm_head.weight" in tensors:
        lm["head"] = {"kernel": tensors["lm_head.weight"].T}
    if "start_embedding" not in tensors:
        return reference.float64({"lm": lm})

    def talk_layer(index: int) -> dict[str, Any]:
        dense = {"kernel": tensors[f"talk_head.0.{index}.weight"].T}
        bias = tensors.get(f"talk_head.0.{index}.bias")
        return dense if bias is None else {**dense, "bias": bias}

    # Row 1 of the mark embeddings belongs to a mode that no published run uses.
    thought = {
        "start": tensors["start_embedding"][0],
        "end": tensors["end_embedding"][0],
        "talk_head": dict(
            zip(("hidden_1", "hidden_2", "out"), map(talk_layer, (0, 2, 4)), strict=True)
        ),
    }
    return reference.float64({"lm": lm, "thought": thought})


def close(actual: Any, recorded: Any, tolerance: float, real: Any = ...) -> None:
    """Equal to `tolerance`, relative to the largest recorded entry; compared where `real`."""
    actual, recorded = np.asarray(actual)[real], np.asarray(recorded)[real]
    assert actual.shape == recorded.shape
    assert np.max(np.abs(actual - recorded)) <= tolerance * np.max(np.abs(recorded))


def by_rationale(rows: Any, batch: int) -> Any:
    """[B * R, T, ...] as the published code repeats its rows, to [B, T, R, ...]."""
    return np.moveaxis(rows.reshape(batch, -1, *rows.shape[1:]), 1, 2)


@recordings("mixed_logits")
def test_greedy_thoughts_equal_the_published_ones(path: Path) -> None:
    arrays, config, params = load(path)
    tokens, mask = arrays["input_ids"], arrays["attention_mask"]
    recorded = arrays["thought_tokens"]
    real = mask == 1  # what a thought at a padded position sees differs, and never matters
    key, count = jax.random.key(0), recorded.shape[-1]
    thought = reference.sample(params, config, tokens, mask, key, count, 1, 0.0, **config.options)
    np.testing.assert_array_equal(thought[:, :, 0][real], recorded[real])

    for b, t in np.argwhere(real):
        base_D = reference.text_hidden(params["lm"], config, tokens[b], mask[b])[t]
        out = reference.rollout(
            params, config, tokens[b], mask[b], t, thought[b, t, 0], 1, **config.options
        )
        pairs = (
            (reference.logits(params["lm"], base_D), arrays["base_logits"][b, t]),
            (out.mixed_logits_AxV[0], arrays["mixed_logits"][b, t]),
            (out.mixing_weight_A[0], arrays["mixing_weight"][b, t]),
            (out.thought_logits_KxV, arrays["thought_logits"][b, t]),
        )
        for actual, expected in pairs:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@recordings("policy_reward")
def test_training_step_equals_the_published_one(path: Path) -> None:
    arrays, config, params = load(path)
    tokens, mask, real = arrays["input_ids"], arrays["attention_mask"], arrays["real_BxT"]
    batch, talk = len(tokens), int(arrays["n_ahead_talk"])
    thought = by_rationale(arrays["thought_tokens"], batch)

    # The recorded noise draws the recorded tokens.
    noise = by_rationale(arrays["gumbel_noise"], batch)
    for b, t, r in np.ndindex(thought.shape[:3]):
        if mask[b, t]:
            given = (tokens[b], mask[b], t, thought[b, t, r], talk)
            out = reference.rollout(params, config, *given, **config.options)
            drawn = np.argmax(out.thought_logits_KxV + noise[b, t, r], axis=-1)
            np.testing.assert_array_equal(drawn, thought[b, t, r])

    scores = reference.score(
        params,
        config,
        tokens,
        mask,
        thought,
        talk,
        reinforce_temperature=config.reinforce_temperature,
        **config.options,
    )
    visible = mask == 1
    log_prob = scores["thought_log_prob_BxTxRxK"][:, :-1]
    recorded = by_rationale(arrays["action_loglik"], batch)
    close(log_prob, recorded, 1e-5, visible[:, :-1])
    weight = by_rationale(np.moveaxis(arrays["mixing_weight_per_pass"][-talk:], 0, -1), batch)
    in_row = slice(None, tokens.shape[1] - talk)  # beyond, the published code does not wrap around
    close(scores["mixing_weight_BxTxRxA"][:, in_row], weight[:, in_row], 1e-4, visible[:, in_row])

    out = reference.losses(scores, tokens, real, policy_weight=arrays["policy_loss_beta"])
    rewarded = arrays["policy_reward"].shape
    close(out["reward_BxRxT"].reshape(rewarded), arrays["policy_reward"], 1e-5)
    clipped = np.maximum(arrays["advantage"], 0.0)
    close(out["advantage_BxRxT"].reshape(rewarded), clipped, 1e-5)
    for name in ("base", "talk", "nll", "policy", "total"):
        close(out[name], arrays[f"loss_{name}"], 1e-5)


@recordings("policy_reward")
@pytest.mark.parametrize("loss", ["nll", "policy"])
def test_losses_change_as_the_published_gradients_say(path: Path, loss: str) -> None:
    """The slope along the recorded gradient, thoughts and advantages held fixed."""
    arrays, config, params = load(path)
    tokens, mask, real = arrays["input_ids"], arrays["attention_mask"], arrays["real_BxT"]
    thought = by_rationale(arrays["thought_tokens"], len(tokens))
    prefix = f"grad_{loss}/"
    gradient = {name.removeprefix(prefix): arrays[name] for name in arrays if prefix in name}
    norm = np.sqrt(sum(np.sum(np.square(part, dtype=np.float64)) for part in gradient.values()))
    direction = params_from_hf(gradient, config)
    advantage = np.maximum(arrays["advantage"], 0.0).reshape(
        len(tokens), -1, *arrays["advantage"].shape[1:]
    )

    def value(step: float) -> float:
        moved = jax.tree.map(lambda x, d: x + step / norm * d, params, direction)
        scores = reference.score(
            moved, config, tokens, mask, thought, int(arrays["n_ahead_talk"]), **config.options
        )
        if loss == "nll":
            return reference.losses(scores, tokens, real)["nll"]
        log_prob = np.moveaxis(scores["thought_log_prob_BxTxRxK"].mean(-1), 2, 1)
        return -np.mean(advantage * log_prob[..., : advantage.shape[-1]])

    step = 1e-4
    slope = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(slope, norm, rtol=1e-4)


@recordings("labels_kl")
def test_ntp_loss_equals_the_published_one(path: Path) -> None:
    arrays, config, params = load(path)
    tokens, mask, real = arrays["input_ids"], arrays["attention_mask"], arrays["real_BxT"]
    rows = [
        reference.text_hidden(params["lm"], config, tokens[b], mask[b]) for b in range(len(tokens))
    ]
    student = reference.logits(params["lm"], np.stack(rows))
    np.testing.assert_allclose(student, arrays["logits"], rtol=0, atol=1e-4)
    teacher = np.take_along_axis(
        reference.log_softmax(arrays["labels_kl"][:, :-1].astype(np.float64)),
        tokens[:, 1:, None],
        axis=-1,
    )[..., 0]
    close(-teacher * real[:, 1:], arrays["teacher_nll"], 1e-5)
    out = reference.ntp_loss(
        student, teacher, tokens, real, "sampled", arrays["sampled_tokens"], clip=False
    )
    close(out["reward_BxS"], arrays["reward"], 1e-5)
    close(out["action_log_prob_BxS"], arrays["action_loglik"], 1e-5)
    out = reference.ntp_loss(student, teacher, tokens, real, "sampled", arrays["sampled_tokens"])
    close(out["policy"], arrays["loss_rm"], 1e-5)
    close(out["total"], arrays["loss_total"], 1e-5)
