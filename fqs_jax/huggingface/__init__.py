"""Hugging Face folder <-> ModelConfig and `lm` parameter tree, for Llama, Mistral and Qwen2.

config.py is the architectures, tensors.py the names and layouts, reading.py and writing.py the two
directions. Nothing but safetensors is ever opened: pickled checkpoints can run code.
"""

from fqs_jax.huggingface.config import read_config, write_config
from fqs_jax.huggingface.reading import (
    iterate_tensors,
    load_params,
    load_thought,
    load_thought_settings,
)
from fqs_jax.huggingface.tensors import tensor_shapes
from fqs_jax.huggingface.writing import carry, export

__all__ = [
    "carry",
    "export",
    "iterate_tensors",
    "load_params",
    "load_thought",
    "load_thought_settings",
    "read_config",
    "tensor_shapes",
    "write_config",
]
