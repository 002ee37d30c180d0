"""Hugging Face folders to ModelConfig and `lm` parameter tree, and back.

architectures.py has the table of architectures, tensors.py the names and layouts of tensors, reading.py
and writing.py the two directions, adapters.py adapters in PEFT's format, thoughts.py the thought
parameters beside the weights. Weights are read only from safetensors: pickled checkpoints can run code.
"""

from fqs_jax.huggingface.adapters import export_adapters
from fqs_jax.huggingface.carrying import carry, check_carried
from fqs_jax.huggingface.config import read_config
from fqs_jax.huggingface.config_writing import write_config
from fqs_jax.huggingface.reading import check_weights, iterate_tensors, load_params
from fqs_jax.huggingface.tensors import tensor_shapes
from fqs_jax.huggingface.thoughts import load_thought, load_thought_settings
from fqs_jax.huggingface.writing import export

__all__ = [
    "carry",
    "check_carried",
    "check_weights",
    "export",
    "export_adapters",
    "iterate_tensors",
    "load_params",
    "load_thought",
    "load_thought_settings",
    "read_config",
    "tensor_shapes",
    "write_config",
]
