"""Tiny GGUF files for tests, written with llama.cpp's own library; names and order are llama.cpp's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

VOCAB, WIDTH, FFW, LAYERS, HEADS, KV_HEADS, CONTEXT = 300, 64, 96, 2, 4, 2, 128
# Qwen2 has the usual size. transformers knows only this size for Qwen3, whatever a GGUF file says.
HEAD_DIMS = {"llama": 32, "qwen2": WIDTH // HEADS, "qwen3": 128}
# Of the tokenizer: every byte, one merge, two control tokens, and a padding of the table.
BYTES = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))] + [
    chr(256 + i) for i in range(68)
]
TOKENS = [*BYTES, "he", "<|end|>", "<|user|>", *(f"[PAD{i}]" for i in range(259, VOCAB))]
KINDS = [1] * 257 + [3, 3] + [5] * (VOCAB - 259)

Values = dict[str, Any]


def metadata(architecture: str, **changes: Any) -> Values:
    """The metadata of a tiny model.

    Args:
      changes: values by key, with two underscores for each dot, and ARCH for the name of the
        architecture; None removes a key.
    """
    values: Values = {
        "general.architecture": architecture,
        "general.name": "Tiny",
        "ARCH.block_count": LAYERS,
        "ARCH.context_length": CONTEXT,
        "ARCH.embedding_length": WIDTH,
        "ARCH.feed_forward_length": FFW,
        "ARCH.attention.head_count": HEADS,
        "ARCH.attention.head_count_kv": KV_HEADS,
        "ARCH.attention.layer_norm_rms_epsilon": 1e-5,
        "ARCH.attention.key_length": HEAD_DIMS[architecture],
        "ARCH.attention.value_length": HEAD_DIMS[architecture],
        "ARCH.rope.dimension_count": HEAD_DIMS[architecture],
        "ARCH.rope.freq_base": 20000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2" if architecture.startswith("qwen") else "llama-bpe",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}<|end|>",
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    values = {key.replace("ARCH", architecture): v for key, v in values.items() if v is not None}
    return values


def tensors(architecture: str, tied: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a tiny model by their names in GGUF files, float32, rows first."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    if not tied:
        shapes["output.weight"] = (VOCAB, WIDTH)
    head_dim = HEAD_DIMS[architecture]
    query, kv = HEADS * head_dim, KV_HEADS * head_dim
    for i in range(LAYERS):
        of_layer = {
            "attn_norm.weight": (WIDTH,),
            "attn_q.weight": (query, WIDTH),
            "attn_k.weight": (kv, WIDTH),
            "attn_v.weight": (kv, WIDTH),
            "attn_output.weight": (WIDTH, query),
            "ffn_norm.weight": (WIDTH,),
            "ffn_gate.weight": (FFW, WIDTH),
            "ffn_up.weight": (FFW, WIDTH),
            "ffn_down.weight": (WIDTH, FFW),
        }
        if architecture == "qwen2":
            of_layer |= {
                f"attn_{n}.bias": (s,) for n, s in zip("qkv", (query, kv, kv), strict=True)
            }
        if architecture == "qwen3":
            of_layer |= {f"attn_{n}_norm.weight": (head_dim,) for n in "qk"}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in of_layer.items()}
    rng = np.random.default_rng(seed)
    return {name: 0.3 * rng.standard_normal(s, np.float32) for name, s in shapes.items()}


def write(
    path: Path,
    values: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    **options: Any,
) -> Path:
    """Write a GGUF file; matrices get the type `kind`, and vectors stay float32, as in llama.cpp.

    Args:
      options: of the library's writer, such as split_max_tensors.
    """
    writer = GGUFWriter(path, "unused", **options)
    writer.kv_data[0].clear()
    for key, value in values.items():
        writer.add_key_value(key, value, _kind(value), _sub_kind(value))
    for name, array in arrays.items():
        this = kind if array.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(array, this), raw_dtype=this)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _kind(value: Any) -> GGUFValueType:
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, int):
        return GGUFValueType.UINT32 if value >= 0 else GGUFValueType.INT64
    if isinstance(value, float):
        return GGUFValueType.FLOAT32
    return GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.ARRAY


def _sub_kind(value: Any) -> GGUFValueType | None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    return GGUFValueType.INT32 if isinstance(value[0], int) else _kind(value[0])
