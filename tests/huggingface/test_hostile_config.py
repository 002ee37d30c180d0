"""config.json with wrong types, absurd numbers and unsupported kinds of models: one line, at once."""

import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fqs_jax import huggingface
from fqs_jax.runtime.errors import UserError
from tests.checkpoint_folders import LLAMA, MISTRAL, QWEN2, config_of, stored_tensors, write_folder

FULL: dict[str, Any] = {
    **QWEN2,
    "hidden_act": "silu",
    "head_dim": 2,
    "rope_theta": 1e4,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "use_sliding_window": True,
    "max_window_layers": 0,
    "layer_types": ["sliding_attention"] * 3,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
NUMBERS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    "sliding_window",
)
LONG = int("9" * 400)


def refusal(tmp_path: Path, raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        config_of(tmp_path, raw)
    message = str(caught.value)
    assert str(tmp_path / "config.json") in message and "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [True, "8", [8], {"a": 8}, -1, LONG, 1e300, 10**40])
def test_every_number_has_a_type_and_a_range(tmp_path, field, value):
    assert field in refusal(tmp_path, {**MISTRAL, "head_dim": 2, field: value})


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_constants_that_json_lacks_are_no_numbers(tmp_path, field, text):
    raw = json.dumps({**MISTRAL, field: "HERE"}).replace('"HERE"', text)
    (tmp_path / "config.json").write_text(raw)
    with pytest.raises(UserError, match=f"config.json: {field} should be a number"):
        huggingface.read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings should be true or false"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings should be true or false, found 0"),
        ({"use_sliding_window": "no"}, "use_sliding_window should be true or false"),
        ({"mlp_bias": "false"}, "mlp_bias should be true or false"),
        ({"model_type": ["qwen2"]}, r"model_type \['qwen2'\] is none of"),
        ({"model_type": {}}, "model_type {} is none of"),
        ({"hidden_act": ["silu"]}, r"hidden_act \['silu'\]"),
        ({"layer_types": 5}, "layer_types should be a list of 3 names, found 5"),
        ({"layer_types": ["full_attention"]}, "layer_types should be a list of 3 names"),
        ({"layer_types": [5, None, {}]}, "other names than full_attention"),
        (
            {"num_hidden_layers": 2**30, "max_window_layers": 2**29, "layer_types": None},
            "num_hidden_layers 1073741824 is too many for layers of several kinds",
        ),
        ({"sliding_window": True}, "sliding_window should be a number, found True"),
        ({"sliding_window": 0}, "sliding_window should be at least 1"),
        ({"rope_theta": 0}, "rope_theta should be at least"),
        ({"rope_scaling": [1]}, "rope_scaling should be an object or null"),
        ({"rope_scaling": {**FULL["rope_scaling"], "factor": 0}}, "factor should be at least"),
        ({"rope_scaling": {**FULL["rope_scaling"], "factor": -8}}, "factor should be at least"),
        ({"rope_scaling": {**FULL["rope_scaling"], "rope_type": 3}}, "rope_type should be a text"),
        ({"rope_scaling": {**FULL["rope_scaling"], "low_freq_factor": 4}}, "should be above"),
        ({"partial_rotary_factor": "1"}, "partial_rotary_factor should be a number"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"weights \('gptq'\) are"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"weights \('fp8'\) are not"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised weights are not supported"),
        ({"quantization_config": [1]}, "quantised weights are not supported"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder-decoder"),
        ({"model_type": "llava", "vision_config": {}}, "'llava' reads images"),
        ({"model_type": "llama", "vision_config": {"a": 1}}, "'llama' reads images"),
        ({"model_type": "\x1b[2J\u202e" * 99}, r"model_type '\\x1b"),
    ],
)
def test_wrong_kinds_of_values(tmp_path, change, message):
    config_of(tmp_path, FULL)
    with pytest.raises(UserError, match=message):
        config_of(tmp_path, {**FULL, **change})
    assert refusal(tmp_path, {**FULL, **change}).isprintable()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.sampled_from([LONG, -LONG, 10**9, 2**31, 2**63, 10**20])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["llama", "mistral", "qwen2", "silu", "llama3", "default", "false"])
    | st.sampled_from(["qwen3", "smollm3", "olmo2", "olmo3", "gemma3_text", "yarn", "linear"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid config.json with a few fields dropped or set to something else, at any depth."""
    raw: dict[str, Any] = copy.deepcopy(draw(st.sampled_from([FULL, LLAMA, MISTRAL, QWEN2])))
    for _ in range(draw(st.integers(1, 4))):
        inner = raw.get("rope_scaling")
        place = inner if isinstance(inner, dict) and inner and draw(st.booleans()) else raw
        key = draw(
            st.sampled_from(sorted({*place, "rope_parameters", "layer_types", "no_rope_layers"}))
        )
        if draw(st.booleans()):
            place.pop(key, None)
        else:
            place[key] = draw(JSON)
    return raw


@given(mutated())
@settings(max_examples=400, deadline=2000)
def test_any_config_is_read_or_refused_in_one_line(raw):
    limit = sys.get_int_max_str_digits()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(raw))
        try:
            config = huggingface.read_config(folder)
        except UserError as error:
            assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 600
        else:
            assert hash(config) is not None and 0 < config.rope_theta < float("inf")
            with pytest.raises(UserError, match="has neither"):
                huggingface.check_weights(folder, config)
    assert limit == sys.get_int_max_str_digits()


@pytest.mark.parametrize("layers", [4, 10**6, 10**9])
@pytest.mark.parametrize("raw", [LLAMA, QWEN2], ids=["llama", "qwen2"])
def test_layers_are_compared_with_the_weights_first(tmp_path, raw, layers):
    folder = write_folder(
        tmp_path / "hf", {**raw, "num_hidden_layers": layers}, {**stored_tensors(raw)}
    )
    start = time.monotonic()
    config = huggingface.read_config(folder)
    with pytest.raises(UserError, match=f"is missing; config.json has num_hidden_layers {layers}"):
        huggingface.load_params(folder, config)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim"]
)
def test_sizes_are_compared_with_the_weights_first(tmp_path, field):
    raw = {**LLAMA, "head_dim": 2, field: 2**30}
    folder = write_folder(tmp_path / "hf", raw, stored_tensors(LLAMA))
    with pytest.raises(UserError, match="has shape .* config.json implies"):
        huggingface.load_params(folder, huggingface.read_config(folder))


# Folders of other kinds --------------------


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_named(tmp_path, file, with_config, with_weights):
    if with_config:
        write_folder(tmp_path, LLAMA, stored_tensors(LLAMA))
        if not with_weights:
            (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=f"adapter.*{file}.*merge_and_unload"):
        huggingface.read_config(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "pickled weights .*save_pretrained"),
        ("consolidated.00.pth", "pickled weights"),
        ("model.pt", "pickled weights"),
        ("model-Q4_K_M.gguf", "GGUF weights .*--gguf='model-Q4_K_M.gguf'"),
        ("flax_model.msgpack", "Flax weights .*from_flax=True"),
        ("tf_model.h5", "TensorFlow weights .*from_tf=True"),
        ("model.onnx", "ONNX weights"),
        ("weights.npz", "weights in weights.npz"),
    ],
)
def test_other_weights_are_named(tmp_path, file, message):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError, match=f"has no config.json, and only {message}"):
        huggingface.read_config(tmp_path)
    config = config_of(tmp_path, LLAMA)
    with pytest.raises(UserError, match=f"has only {message}") as caught:
        huggingface.load_params(tmp_path, config)
    assert "\n" not in str(caught.value)


def test_safetensors_under_other_names_are_named(tmp_path):
    config = config_of(tmp_path, LLAMA)
    for file in ("consolidated.safetensors", "model-00001-of-00002.safetensors"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError, match="only consolidated.safetensors and 1 more; fetch"):
        huggingface.load_params(tmp_path, config)
