"""Architectures that are refused, tensors that do not fit, and rotary scaling by its factors."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax import gguf_files
from fqs_jax.gguf_files import rope
from fqs_jax.runtime.errors import UserError
from tests import gguf_models


def refusal(
    folder: Path, arrays: dict[str, np.ndarray], dtype: str = "float32", **changes: Any
) -> str:
    """The one line about a tiny Llama with changes, after which nothing was written."""
    values = gguf_models.metadata("llama", **changes)
    file = gguf_models.write(folder / "model.gguf", values, arrays)
    with pytest.raises(UserError) as caught:
        gguf_files.convert(file, folder / "out", dtype)
    line = str(caught.value)
    assert line.startswith(f"{file}: ") and "\n" not in line
    assert [path.name for path in folder.iterdir()] == ["model.gguf"]
    return line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"general__architecture": "gemma3"}, "'gemma3' is none of llama, qwen2, qwen3"),
        ({"general__architecture": 4}, "general.architecture should be a text"),
        ({"ARCH__block_count": None}, "'llama.block_count' is missing"),
        ({"ARCH__block_count": "two"}, "llama.block_count should be a number, found 'two'"),
        ({"ARCH__block_count": 10**9}, r"tensor blk.2.attn_norm.weight .*\(and 8999999981 more\)"),
        ({"ARCH__block_count": 1}, "tensor blk.1.attn_norm.weight is not one of this architecture"),
        ({"ARCH__embedding_length": 0}, "llama.embedding_length should be at least 1"),
        (
            {"ARCH__embedding_length": 32},
            r"has shape \(300, 64\), the metadata implies \(300, 32\)",
        ),
        ({"ARCH__attention__head_count": [4, 4]}, "head_count should be a number, found array"),
        ({"ARCH__attention__head_count_kv": 3}, "4 is no multiple of num_key_value_heads 3"),
        ({"ARCH__attention__value_length": 16}, "value_length 16 is not the size of a head, 32"),
        ({"ARCH__rope__dimension_count": 8}, "dimension_count 8 is not the size of a head"),
        ({"ARCH__attention__layer_norm_rms_epsilon": float("nan")}, "epsilon should be a number"),
        ({"ARCH__rope__freq_base": -1.0}, "llama.rope.freq_base should be at least"),
        ({"ARCH__rope__scaling__type": "longrope"}, "rope type 'longrope' is not supported"),
        ({"ARCH__expert_count": 8}, "llama.expert_count 8 is not supported"),
        ({"ARCH__attention__causal": False}, "llama.attention.causal False is not supported"),
        ({"ARCH__vocab_size": 512}, "llama.vocab_size is 512, but token_embd.weight has 300 rows"),
    ],
)
def test_metadata_that_cannot_be(tmp_path, changes, expected):
    line = refusal(tmp_path, gguf_models.tensors("llama"), **changes)
    assert re.search(expected, line), line


def test_tensors_that_do_not_fit(tmp_path):
    arrays = gguf_models.tensors("llama")
    changes: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
        "missing": (
            {"blk.1.ffn_up.weight": None},
            r"blk.1.ffn_up.weight of shape \(96, 64\) is missing",
        ),
        "table": ({"token_embd.weight": None}, "tensor token_embd.weight is missing"),
        "bias": ({"blk.0.attn_q.bias": np.zeros(4, np.float32)}, "attn_q.bias is not one of this"),
        "more": ({"mtp.0.weight": np.zeros(4, np.float32)}, "mtp.0.weight is not one of this"),
        "zeros": (
            {"blk.00.ffn_up.weight": np.zeros(4, np.float32)},
            "blk.00.ffn_up.weight is not one",
        ),
        "factors": ({"rope_freqs.weight": np.ones(4, np.float32)}, r"shape \(4,\), not 16"),
        "bumps": ({"rope_freqs.weight": np.arange(1, 17, dtype=np.float32)}, "other factors than"),
        "holes": (
            {"rope_freqs.weight": np.full(16, np.nan, np.float32)},
            "rope_freqs.weight has 16 NaN",
        ),
    }
    for name, (change, expected) in changes.items():
        folder = tmp_path / name
        folder.mkdir()
        changed = {**arrays, **change}
        line = refusal(folder, {key: value for key, value in changed.items() if value is not None})
        assert re.search(expected, line), line


def test_a_vocabulary_larger_than_the_table(tmp_path):
    arrays = gguf_models.tensors("llama")
    arrays |= {name: arrays[name][:250] for name in ("token_embd.weight", "output.weight")}
    line = refusal(tmp_path, arrays)
    assert "the tokenizer has 259 tokens, but the model's embedding table ends at id 249" in line


def test_weights_that_are_no_numbers(tmp_path):
    arrays = gguf_models.tensors("llama")
    for name, value, dtype in (("nan", np.nan, "float32"), ("large", 1e5, "float16")):
        folder = tmp_path / name
        folder.mkdir()
        arrays["blk.1.attn_k.weight"][3, 4] = value
        line = refusal(folder, arrays, dtype)
        expected = {
            "nan": r"has 1 NaN .* first at \[3, 4\]",
            "large": "100000, which is infinite in",
        }
        assert re.search(
            f"tensor blk.1.attn_k.weight {expected[name]}".replace(" 100", ".* 100"), line
        )


def test_keys_that_are_not_known_are_noted(tmp_path, capfd):
    values = gguf_models.metadata("llama", ARCH__future__switch=3)
    arrays = gguf_models.tensors("llama")
    file = gguf_models.write(tmp_path / "model.gguf", values, arrays, Kind.Q8_0)
    gguf_files.convert(file, tmp_path / "out")
    assert "model.gguf: not used: llama.future.switch" in capfd.readouterr().err


@given(
    factor=st.floats(1.5, 64),
    high=st.floats(1.5, 16),
    original=st.integers(512, 40_000),
    half=st.sampled_from([16, 32, 64, 128]),
    theta=st.sampled_from([1e4, 5e5, 1e6]),
)
def test_scaling_that_makes_the_same_factors(factor, high, original, half, theta):
    """Most numbers are found again, and what is found always makes the same factors."""
    wavelengths = 2 * np.pi * theta ** (np.arange(half) / half)
    factors = rope.make_factors(wavelengths, round(factor, 3), high, original)
    stored = factors.astype(np.float32)
    blended = ((stored > 1.01) & (stored < 0.99 * stored.max())).sum()
    try:
        found = rope.scaling(stored, theta)
    except UserError:
        assert blended < 3 or wavelengths[-1] < original
        return
    if found is None:
        assert stored.max() < 1.001
        return
    numbers = found["factor"], found["high_freq_factor"], found["original_max_position_embeddings"]
    np.testing.assert_allclose(rope.make_factors(wavelengths, *numbers), factors, rtol=2e-4)
    if blended > 4 and wavelengths[-1] > original:
        assert found["original_max_position_embeddings"] == pytest.approx(original, rel=2e-3)


def test_scaling_of_llama_3(tmp_path):
    """The published numbers of Llama 3.1 and 3.2, from factors as float32."""
    wavelengths = 2 * np.pi * 5e5 ** (np.arange(64) / 64)
    for factor in (8.0, 32.0):
        found = rope.scaling(
            rope.make_factors(wavelengths, factor, 4.0, 8192).astype(np.float32), 5e5
        )
        assert found == {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    assert rope.scaling(np.ones(64, np.float32), 5e5) is None
