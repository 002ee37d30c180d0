"""Logits and exported folders against transformers, for random and for real checkpoints."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fqs_jax import huggingface
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.model import decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
# Its three frequency bands all occur with these numbers: kept, blended, slowed.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-head-dim": ("Llama", {"head_dim": 16}),
    "mistral-window": ("Mistral", {"sliding_window": 5}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "llama-biases": ("Llama", {"attention_bias": True}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2, "attention_bias": True}),
    "qwen2-llama3-rope": ("Qwen2", {"rope_parameters": LLAMA3}),
}
TOKENS_BxT = np.random.default_rng(0).integers(0, 61, (2, 40))


def random_model(family: str, settings: dict[str, Any]) -> Any:
    """A model of transformers in which no parameter is at its (often trivial) starting value."""
    part = "Text" if family == "Gemma3" else ""  # its other config is that of a larger model
    config = getattr(transformers, f"{family}{part}Config")(**{**TINY, **settings})
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return theirs


def their_logits(theirs: Any, tokens_BxT: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.as_tensor(tokens_BxT)).logits.float().numpy()


def our_logits(folder: Path, tokens_BxT: np.ndarray) -> np.ndarray:
    config = huggingface.read_config(folder)
    params = huggingface.load_params(folder, config)
    return np.asarray(decoder.logits(params, jnp.asarray(tokens_BxT), config))


def load_theirs(folder: Path, **settings: Any) -> Any:
    """transformers' model of a folder, after checking that every key was used and none missed."""
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", **settings
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (problem, info[problem])
    return theirs.eval()


def assert_same_model(a: Any, b: Any) -> None:
    a_tensors, b_tensors = a.state_dict(), b.state_dict()
    assert a_tensors.keys() == b_tensors.keys()
    for name, tensor in a_tensors.items():
        assert torch.equal(tensor, b_tensors[name]), name


@pytest.mark.parametrize("case", CASES)
def test_random_models(tmp_path, case):
    theirs = random_model(*CASES[case])
    source = tmp_path / "source"
    theirs.save_pretrained(source, max_shard_size="20KB" if "untied" in case else "1GB")
    expected = their_logits(theirs, TOKENS_BxT)
    assert expected.std() > 0.5  # neither flat nor dead
    np.testing.assert_allclose(our_logits(source, TOKENS_BxT), expected, rtol=0, atol=1e-4)

    config = huggingface.read_config(source)
    params = huggingface.load_params(source, config)
    huggingface.export(params, config, tmp_path / "out", source, max_shard_bytes=3e4)
    assert_same_model(load_theirs(tmp_path / "out"), theirs)
    # Nothing of theirs is lost, and the spelling of older versions is added.
    read = json.loads((source / "config.json").read_text())
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written.items() >= {**read, "rope_parameters": written["rope_parameters"]}.items()
    assert written["rope_parameters"].items() >= read["rope_parameters"].items()
    assert written["torch_dtype"] == read["dtype"]
    assert written["rope_theta"] == read["rope_parameters"]["rope_theta"]

    # With a config.json of our own, which may name another family.
    huggingface.export(params, config, tmp_path / "fresh", thought={"start": np.zeros(32)})
    fresh = load_theirs(tmp_path / "fresh")
    np.testing.assert_allclose(their_logits(fresh, TOKENS_BxT), expected, rtol=0, atol=1e-5)


def test_window_matters():
    """The window cases above would pass without any window if the sequence were too short."""
    windowed = random_model(*CASES["mistral-window"])
    full = random_model(*CASES["mistral-full"])
    difference = np.abs(their_logits(windowed, TOKENS_BxT) - their_logits(full, TOKENS_BxT))
    assert difference[:, :5].max() == 0 and difference[:, 5:].max() > 1e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_export(tmp_path, dtype):
    theirs = random_model(*CASES["qwen2-tied"])
    theirs.save_pretrained(tmp_path / "source")
    config = huggingface.read_config(tmp_path / "source")
    params = huggingface.load_params(tmp_path / "source", config)
    huggingface.export(params, config, tmp_path / "out", tmp_path / "source", dtype=dtype)
    loaded = load_theirs(tmp_path / "out", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    assert_same_model(loaded, theirs.to(getattr(torch, dtype)))
    # What we read back is those rounded values exactly.
    np.testing.assert_allclose(
        our_logits(tmp_path / "out", TOKENS_BxT),
        their_logits(loaded.float(), TOKENS_BxT),
        rtol=0,
        atol=1e-4,
    )


def test_old_folder_layouts(tmp_path):
    """Both layouts of config.json, and a base model saved without its head."""
    theirs = random_model(*CASES["qwen2-tied"])
    theirs.model.save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert not any(name.startswith("model.") for name in stored)
    ours = our_logits(tmp_path / "base", TOKENS_BxT)
    np.testing.assert_allclose(ours, their_logits(theirs, TOKENS_BxT), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_real_checkpoints(shared, tmp_path, family):
    folder = shared / "real" / "checkpoints" / f"stories260K-{family}"
    theirs = load_theirs(folder)
    tokenizer = tokenizer_lib.load(folder)
    text = (shared / "real" / "text" / "tinystories_valid_794k.txt").read_text()[:1200]
    tokens_1xT = np.array([[tokenizer.bos_id, *tokenizer.encode(text)]])
    expected = their_logits(theirs, tokens_1xT)
    np.testing.assert_allclose(our_logits(folder, tokens_1xT), expected, rtol=0, atol=1e-4)

    config = huggingface.read_config(folder)
    params = huggingface.load_params(folder, config)
    huggingface.export(params, config, tmp_path / "out", folder)
    assert_same_model(load_theirs(tmp_path / "out"), theirs)
