"""Hugging Face folder <-> ModelConfig and `lm` parameter tree, for Llama, Mistral and Qwen2.

config.py is the architectures, tensors.py the names and layouts, reading.py and writing.py the two
directions. Nothing but safetensors is ever opened: pickled checkpoints can run code.
"""

from fqs_jax.huggingface.config import read_config
from fqs_jax.huggingface.reading import iterate_tensors, load_params, load_thought
from fqs_jax.huggingface.tensors import tensor_shapes
from fqs_jax.huggingface.writing import export

__all__ = [
    "export",
    "iterate_tensors",
    "load_params",
    "load_thought",
    "read_config",
    "tensor_shapes",
]
