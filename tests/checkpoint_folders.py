"""Small checkpoints for tests; their names and shapes do not come from the package."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from fqs_jax import huggingface
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig, RopeScaling

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "a_key_of_the_future": {"kept": ["as", "it", "is"]},
}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 6}
QWEN2 = {**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 6}
TIED = {**LLAMA, "tie_word_embeddings": True}
SCALING = RopeScaling(8.0, 1.0, 4.0, 16)


def stored_tensors(raw: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a checkpoint, by name."""
    rng = np.random.default_rng(seed)
    width, ffw, heads = raw["hidden_size"], raw["intermediate_size"], raw["num_attention_heads"]
    head_dim = raw.get("head_dim", width // heads)
    query, kv = heads * head_dim, raw["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (raw["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not raw["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (raw["vocab_size"], width)
    for i in range(raw["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (width,)
        shapes[layer + "post_attention_layernorm.weight"] = (width,)
        shapes[layer + "self_attn.q_proj.weight"] = (query, width)
        shapes[layer + "self_attn.k_proj.weight"] = (kv, width)
        shapes[layer + "self_attn.v_proj.weight"] = (kv, width)
        shapes[layer + "self_attn.o_proj.weight"] = (width, query)
        shapes[layer + "mlp.gate_proj.weight"] = (ffw, width)
        shapes[layer + "mlp.up_proj.weight"] = (ffw, width)
        shapes[layer + "mlp.down_proj.weight"] = (width, ffw)
        if raw["model_type"] == "qwen2":
            shapes[layer + "self_attn.q_proj.bias"] = (query,)
            shapes[layer + "self_attn.k_proj.bias"] = (kv,)
            shapes[layer + "self_attn.v_proj.bias"] = (kv,)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_folder(
    folder: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray], shards: int = 1
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[i::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(folder: Path, dtype: str = "float32") -> tuple[ModelConfig, decoder.Params]:
    config = huggingface.read_config(folder)
    return config, huggingface.load_params(folder, config, dtype)


def random_params(config: ModelConfig, seed: int = 0) -> decoder.Params:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32), decoder.abstract_params(config)
    )


def assert_trees_equal(a: decoder.Params, b: decoder.Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)  # raises if the structures differ


def config_of(tmp_path: Path, raw: dict[str, Any]) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return huggingface.read_config(tmp_path)
