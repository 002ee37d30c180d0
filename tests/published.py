"""Recordings of the published PyTorch code: their layout, and their weights in ours and back.

A folder holds config.json, weights.safetensors (published names, (out, in) matrices) and .npz files,
recorded from the released Fast Quiet-STaR modeling files run unedited. Separate from the package's
own reader of checkpoints on purpose.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fqs_jax.model.config import ModelConfig
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig

Arrays = dict[str, np.ndarray]

# What json, numpy and safetensors raise on damaged files.
UNREADABLE = (
    *(OSError, EOFError, TypeError, ValueError),
    *(SafetensorError, zipfile.BadZipFile, zlib.error),
)

CONFIG_FIELDS = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "rope_theta", "rms_norm_eps"),
    *("tie_word_embeddings", "start_thought_id", "end_thought_id", "pad_token_id_used"),
    *("embedding_scale", "reinforce_temperature", "original_loss_weight"),
}

# What a file must hold, with axes: B rows, S positions, P rationales, R = B * P, K sampled tokens,
# A talk steps, V vocabulary, U = S - 1, T = S - 1 - A rewarded positions, N passes after the text.
_TEXT = {"input_ids": "BS", "attention_mask": "BS"}
_THOUGHTS = _TEXT | {"n_ahead": "", "n_ahead_talk": ""}
EVAL_ARRAYS = _THOUGHTS | {
    "thought_tokens": "BSK",
    "base_logits": "BSV",
    "mixed_logits": "BSV",
    "mixing_weight": "BS",
}
TRAIN_ARRAYS = _THOUGHTS | {
    "n_passes": "",
    "thought_tokens": "RSK",
    "thought_logits": "RSKV",
    "gumbel_noise": "RSKV",
    "action_loglik": "RUK",
    "policy_reward": "RT",
    "advantage": "RT",
    "mixing_weight_per_pass": "NRS",
    "loss_talk": "A",
    **dict.fromkeys(("loss_total", "loss_nll", "loss_base", "loss_policy", "policy_loss_beta"), ""),
}
NTP_ARRAYS = _TEXT | {
    "labels_kl": "BSV",
    "logits": "BSV",
    "gumbel_noise": "BSV",
    "sampled_tokens": "BS",
    "reward": "BU",
    "action_loglik": "BU",
    **dict.fromkeys(("loss_rm", "loss_total", "policy_loss_beta"), ""),
}


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

    def batch(self, data: Arrays) -> batch_lib.Batch:
        # As published, a label equal to the padding id is ignored at every position.
        tokens = jnp.asarray(data["input_ids"], jnp.int32)
        mask = jnp.asarray(data["attention_mask"], bool)
        return {
            "tokens": tokens,
            "mask": mask,
            "target": tokens != self.config["pad_token_id_used"],
        }


def load(folder: Path) -> Fixture:
    """Read the configuration and weights of a folder; UserError names a missing or unreadable part."""
    config = _read(folder / "config.json", lambda path: dict(json.loads(path.read_text())))
    weights = _read(folder / "weights.safetensors", load_file)
    if missing := sorted(CONFIG_FIELDS - config.keys()):
        raise UserError(f"{folder / 'config.json'} lacks {', '.join(missing)}")
    try:
        model = ModelConfig(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim")
            or config["hidden_size"] // config["num_attention_heads"],
            mlp_dim=config["intermediate_size"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
            tied_embeddings=config["tie_word_embeddings"],
            sliding_window=config.get("sliding_window"),
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in weights,
            remat="none",
        )
        params = jax.tree.map(jnp.asarray, to_tree(weights, model))
    except KeyError as error:
        raise UserError(f"{folder / 'weights.safetensors'} lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder}: config.json and weights do not fit: {error}") from error
    return Fixture(config, model, params)


def load_arrays(path: Path, axes: dict[str, str], model: ModelConfig) -> Arrays:
    """Read a recording; UserError if an array of `axes` is missing or has the wrong shape."""
    data = _read(path, _load_npz)
    if missing := sorted(axes.keys() - data.keys()):
        raise UserError(f"{path} lacks {', '.join(missing)}")
    for name in ("input_ids", "n_ahead", "n_ahead_talk", "n_passes"):
        if name in axes and data[name].ndim != len(axes[name]):
            raise UserError(f"{path}: {name} has {data[name].ndim} axes, not {len(axes[name])}")
    B, S = data["input_ids"].shape
    n, A, P = (int(data.get(name, 1)) for name in ("n_ahead", "n_ahead_talk", "n_passes"))
    if "n_ahead" in axes and n < 4:
        raise UserError(f"{path}: n_ahead is {n}; a thought with a token has at least 4")
    sizes = {"B": B, "S": S, "R": B * P, "K": n - 3, "A": A, "V": model.vocab_size}
    sizes |= {"U": S - 1, "T": S - 1 - A, "N": n + A - 2}
    for name, letters in axes.items():
        if data[name].shape != (expected := tuple(sizes[letter] for letter in letters)):
            raise UserError(f"{path}: {name} has shape {data[name].shape}, not {expected}")
    return data


def _load_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as data:
        return dict(data)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from error


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
