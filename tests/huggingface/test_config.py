"""config.json of old and new transformers, read and refused."""

import dataclasses
import math

import pytest

from fqs_jax import huggingface
from fqs_jax.model.config import LinearScaling, ModelConfig, YarnScaling
from fqs_jax.runtime.errors import UserError
from tests.checkpoint_folders import LLAMA, QWEN2, SCALING, config_of


def test_config_fields(tmp_path):
    assert config_of(tmp_path, LLAMA) == ModelConfig(
        vocab_size=11,
        width=8,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=2,
        mlp_dim=12,
        max_seq_len=32,
        rope_theta=10000.0,
        norm_eps=1e-5,
    )


LINEAR = {"rope_type": "linear", "factor": 2.0}
SMOLLM3 = {**LLAMA, "model_type": "smollm3"}
OLMO3 = {**LLAMA, "model_type": "olmo3"}
NO_ROPE = {"layer_types": ("no_rope",), "rope_theta": 2e6}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"rope_theta": 500000}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5}),
        ({"rope_scaling": None, "rope_theta": 7.0}, {"rope_theta": 7.0}),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, {"rope_scaling": SCALING}),
        ({"rope_scaling": {"type": "llama3", **LLAMA3}}, {"rope_scaling": SCALING}),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 9.0, **LLAMA3}},
            {"rope_scaling": SCALING, "rope_theta": 9.0},
        ),
        ({"torch_dtype": None}, {}),
        ({"dtype": "bfloat16"}, {}),
        ({"head_dim": 6}, {"head_dim": 6}),
        ({"head_dim": None}, {"head_dim": 2}),
        ({"num_key_value_heads": None}, {"num_kv_heads": 4}),
        ({"tie_word_embeddings": True}, {"tied_embeddings": True}),
        ({"sliding_window": 6}, {}),  # Llama has none, whatever the file says
        ({"model_type": "mistral", "sliding_window": None}, {}),
        ({"model_type": "mistral", "sliding_window": 6}, {"sliding_window": 6}),
        ({"model_type": "mistral"}, {"sliding_window": 4096}),  # transformers' default
        ({"model_type": "qwen2", "attention_bias": True}, {"qkv_bias": True}),
        ({**QWEN2, "max_window_layers": 0}, {"qkv_bias": True}),
        (
            {**QWEN2, "use_sliding_window": True, "max_window_layers": 0},
            {"qkv_bias": True, "sliding_window": 6},
        ),
        (
            {**QWEN2, "use_sliding_window": True, "max_window_layers": 3},
            {"qkv_bias": True},
        ),
        (
            {**QWEN2, "use_sliding_window": True, "max_window_layers": 2},
            {
                "qkv_bias": True,
                "sliding_window": 6,
                "layer_types": ("full", "full", "sliding"),
            },
        ),
        ({"attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
        ({"rope_scaling": LINEAR}, {"rope_scaling": LinearScaling(2.0)}),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            {"rope_scaling": YarnScaling(4.0, 32, 0.1 * math.log(4) + 1)},
        ),
        (  # missing, the factor is the ratio of the lengths
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "original_max_position_embeddings": 8,
                    "mscale": 1.0,
                    "mscale_all_dim": 0.5,
                    "beta_slow": 2,
                    "truncate": False,
                }
            },
            {
                "rope_scaling": YarnScaling(
                    4.0,
                    8,
                    (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
                    beta_slow=2.0,
                    truncate=False,
                )
            },
        ),
        (
            {"model_type": "qwen3", "head_dim": 2, "use_sliding_window": True},
            {"qk_norm": "head"},  # max_window_layers is 28
        ),
        (SMOLLM3, {"rope_theta": 2e6}),  # three layers have no fourth one
        ({**SMOLLM3, "no_rope_layer_interval": 1}, NO_ROPE),
        ({**SMOLLM3, "no_rope_layers": [0, 0, 0, 1]}, NO_ROPE),
        (
            OLMO3,
            {
                "norms": "after",
                "qk_norm": "projection",
                "rope_theta": 5e5,
                "local_rope_theta": 5e5,
                "sliding_window": 4096,
            },
        ),
        (
            {**QWEN2, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3},
            {"qkv_bias": True, "sliding_window": 6},
        ),
    ],
)
def test_config_variants(tmp_path, change, expected):
    base = config_of(tmp_path, LLAMA)
    assert config_of(tmp_path, {**LLAMA, **change}) == dataclasses.replace(base, **expected)


def test_config_without_optional_keys(tmp_path):
    optional = ("num_key_value_heads", "torch_dtype", "rms_norm_eps", "tie_word_embeddings")
    config = config_of(tmp_path, {key: LLAMA[key] for key in LLAMA if key not in optional})
    assert (config.num_kv_heads, config.norm_eps, config.tied_embeddings) == (4, 1e-6, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is none of llama, mistral, qwen2"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0}}, "beta_fast"),
        ({"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "above 1"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "'factor' is missing"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ by layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"vocab_size": None}, "'vocab_size' is missing"),
        ({"hidden_size": "8"}, "hidden_size should be a number, found '8'"),
        ({"hidden_size": 0}, "hidden_size should be at least 1"),
        ({"hidden_size": 8.5}, "hidden_size should be an integer"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps should be a number"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "does not split"),
        ({"model_type": "mistral", "sliding_window": "6"}, "sliding_window"),
        ({**SMOLLM3, "no_rope_layers": [1, 0]}, "no_rope_layers should be a list of 3"),
        ({**SMOLLM3, "no_rope_layers": [1, 0, "1"]}, "no_rope_layers should be a list of 3"),
        ({**SMOLLM3, "use_sliding_window": True, "sliding_window": 4}, "not supported for smollm3"),
        ({"model_type": "gemma3_text", "hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
        (
            {**OLMO3, "rope_parameters": {"sliding_attention": {"rope_theta": 3.0}}},
            "rope_theta 500000 and 3 differ by layer",
        ),
        (
            {**OLMO3, "rope_parameters": {"sliding_attention": LINEAR}},
            "a scaled rotary embedding of sliding_attention layers",
        ),
        ({**OLMO3, "rope_parameters": LINEAR}, "rope_parameters should have only full_attention"),
    ],
)
def test_config_errors(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        config_of(tmp_path, {**LLAMA, **change})
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_file_errors(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        huggingface.read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no Hugging Face folder: it has no config.json"):
        huggingface.read_config(tmp_path)
    for text in ("{", "", "\xff", "[1]"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="config.json"):
            huggingface.read_config(tmp_path)
