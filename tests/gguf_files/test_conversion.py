"""GGUF files as Hugging Face folders, against transformers' own reading of GGUF files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

from fqs_jax import gguf_files, huggingface
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.gguf_files import architectures, header, weights
from fqs_jax.model import decoder
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from tests import gguf_models
from tests.conftest import ONE_DEVICE, REPO

SUPPORTED = ["llama", "qwen2", "qwen3"]
TOKENS_BxT = np.random.default_rng(0).integers(0, gguf_models.VOCAB, (2, 40))


def make(
    folder: Path, architecture: str, kind: Kind = Kind.F32, tied: bool = False, **changes: Any
):
    """A GGUF file of its own folder."""
    folder.mkdir()
    values = gguf_models.metadata(architecture, **changes)
    arrays = gguf_models.tensors(architecture, tied)
    return gguf_models.write(folder / "model.gguf", values, arrays, kind)


def load_theirs(file: Path) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


def their_tensors(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Every tensor bit for bit; a tied head is stored once."""
    assert set(theirs) - set(ours) <= {"lm_head.weight"} and set(ours) <= set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], name)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0])
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_weights_are_those_of_transformers_bit_for_bit(tmp_path, architecture, kind):
    file = make(tmp_path / "in", architecture, kind, tied=kind == Kind.Q8_0)
    gguf_files.convert(file, tmp_path / "out")
    theirs = load_theirs(file)
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), their_tensors(theirs))
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["tie_word_embeddings"] == (kind == Kind.Q8_0)
    expected = theirs.config.to_dict() | {"rms_norm_eps": 1e-5}  # which they have as float32
    for key in ("model_type", "vocab_size", "head_dim", "max_position_embeddings", "rms_norm_eps"):
        assert key not in expected or raw[key] == expected[key], key


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_logits_are_those_of_transformers(tmp_path, architecture):
    torch = pytest.importorskip("torch")
    file = make(tmp_path / "in", architecture, Kind.Q8_0)
    gguf_files.convert(file, tmp_path / "out")
    config = huggingface.read_config(tmp_path / "out")
    params = huggingface.load_params(tmp_path / "out", config)
    ours = np.asarray(decoder.logits(params, jnp.asarray(TOKENS_BxT), config))
    with torch.no_grad():
        theirs = load_theirs(file)(torch.as_tensor(TOKENS_BxT)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_names_and_settings_of_qwen3(tmp_path):
    """The mapping alone, which does not need the rest of the package to know Qwen3."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = header.read(make(tmp_path / "in", "qwen3", Kind.Q4_0, tied=True))
    raw = architectures.make_config(model, None, "float32", {"eos_token_id": 257})
    del raw["architectures"], raw["torch_dtype"]
    ours = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**raw)).eval()
    values = {
        weights.standard_name(name): torch.tensor(weights.read_values(tensor))
        for name, tensor in model.tensors.items()
    }
    assert None not in values and "model.layers.1.self_attn.q_norm.weight" in values
    missing, unexpected = ours.load_state_dict(values, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    with torch.no_grad():
        models = (ours, load_theirs(model.path))
        found, expected = (m(torch.as_tensor(TOKENS_BxT)).logits.numpy() for m in models)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types_are_roundings(tmp_path, dtype):
    file = make(tmp_path / "in", "llama", Kind.Q4_0)
    gguf_files.convert(file, tmp_path / "exact")
    gguf_files.convert(file, tmp_path / "out", dtype=dtype, max_shard_bytes=30_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    rounded = {name: array for shard in shards for name, array in load_file(shard).items()}
    for name, array in load_file(tmp_path / "exact" / "model.safetensors").items():
        np.testing.assert_array_equal(rounded[name], array.astype(jnp.dtype(dtype)), name)


def test_a_window_makes_a_mistral(tmp_path):
    file = make(tmp_path / "in", "llama", ARCH__attention__sliding_window=7)
    gguf_files.convert(file, tmp_path / "out")
    assert huggingface.read_config(tmp_path / "out").sliding_window == 7
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["architectures"] == ["MistralForCausalLM"]


def test_rope_factors_become_llama3_scaling(tmp_path):
    """The factors as llama.cpp's converter makes them, which transformers' reader leaves out."""
    torch = pytest.importorskip("torch")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    llama = pytest.importorskip("transformers").LlamaConfig
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 20000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    config = llama(hidden_size=64, num_attention_heads=4, head_dim=32, rope_parameters=scaling)
    slowed, _ = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 20000.0 ** (torch.arange(0, 32, 2) / 32)
    arrays = gguf_models.tensors("llama")
    arrays["rope_freqs.weight"] = (plain / slowed).numpy().astype(np.float32)
    values = gguf_models.metadata("llama")
    file = gguf_models.write(tmp_path / "model.gguf", values, arrays)
    gguf_files.convert(file, tmp_path / "out")
    found = llama.from_pretrained(tmp_path / "out")
    ours, _ = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](found, torch.device("cpu"))
    torch.testing.assert_close(ours, slowed, rtol=1e-5, atol=0)
    assert found.rope_parameters["factor"] == 8.0


def test_a_model_in_parts_is_that_of_one_file(tmp_path):
    whole = make(tmp_path / "in", "llama", Kind.Q8_0)
    values, arrays = gguf_models.metadata("llama"), gguf_models.tensors("llama")
    first = tmp_path / "it-00001-of-00003.gguf"
    gguf_models.write(tmp_path / "it.gguf", values, arrays, Kind.Q8_0, split_max_tensors=8)
    for file, out in ((whole, "whole"), (first, "parts")):
        gguf_files.convert(file, tmp_path / out)
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == expected

    refused = {
        "it-00002-of-00003.gguf": "is part 2 of 3; give the first, it-00001-of-00003.gguf",
        "renamed.gguf": "does not end in -00001-of-00003.gguf",
    }
    (tmp_path / "renamed.gguf").write_bytes(first.read_bytes())
    for name, expected_line in refused.items():
        with pytest.raises(UserError, match=expected_line):
            gguf_files.convert(tmp_path / name, tmp_path / "no")
    (tmp_path / "it-00003-of-00003.gguf").unlink()
    with pytest.raises(UserError, match="it-00003-of-00003.gguf: no such file"):
        gguf_files.convert(first, tmp_path / "no")


def test_the_files_around_the_weights(tmp_path):
    changes: dict[str, Any] = {
        "tokenizer__ggml__eot_token_id": 258,
        "tokenizer__ggml__padding_token_id": 2**32 - 1,  # -1: there is none
        "tokenizer__chat_template__tool_use": "{{ tools }}",
        "general__license": "apache-2.0",
    }
    file = make(tmp_path / "in", "llama", **changes)
    out = tmp_path / "out"
    gguf_files.convert(file, out)
    assert json.loads((out / "generation_config.json").read_text()) == {
        "bos_token_id": None,
        "eos_token_id": [257, 258],
        "pad_token_id": None,
    }
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 257
    assert (out / "chat_template.jinja").read_text() == "{{ messages[0].content }}<|end|>"
    named = out / "additional_chat_templates" / "tool_use.jinja"
    assert named.read_text() == "{{ tools }}"
    loaded = tokenizer_lib.load(out)
    assert loaded.end_ids == {257, 258} and loaded.opening == []
    assert loaded.encode("he<|end|>") == [256, 257] and loaded.decode([256]) == "he"
    card = (out / "README.md").read_text()
    assert "`model.gguf`" in card and "`apache-2.0`" in card and str(tmp_path) not in card


def test_a_file_in_place_of_a_folder(tmp_path):
    """The programs that take a folder say how to make one."""
    file = make(tmp_path / "in", "llama")
    for reader in (huggingface.read_config, loading.load):
        with pytest.raises(UserError, match=f"--gguf={file} --export=NEW_FOLDER makes one"):
            reader(str(file))


def test_the_program(tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fqs_jax.convert", *arguments],
            cwd=REPO,
            env=os.environ | ONE_DEVICE,
            capture_output=True,
            text=True,
        )

    file, out = make(tmp_path / "in", "qwen2"), tmp_path / "out"
    done = run(f"--gguf={file}", f"--export={out}", "--dtype=bfloat16")
    assert done.stdout == f"model.gguf exported to {out} as bfloat16\n", done.stderr
    file.write_bytes(file.read_bytes()[:-1000])
    refused = run(f"--gguf={file}", f"--export={tmp_path / 'no'}")
    assert refused.returncode == 2 and not refused.stdout
    assert refused.stderr.startswith(f"error: {file}: tensor ")
    assert "it is incomplete, fetch it again" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "no").exists()
    both = run(f"--gguf={file}", f"--export={tmp_path / 'no'}", f"--workdir={tmp_path}")
    assert both.returncode == 2 and "neither --workdir nor --stage" in both.stderr
