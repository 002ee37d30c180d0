"""Language models within larger models, and layers in which a thought block cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fqs_jax import huggingface
from fqs_jax.runtime.errors import UserError
from tests.checkpoint_folders import (
    LLAMA,
    assert_trees_equal,
    config_of,
    stored_tensors,
    write_folder,
)

MOE = "model_type 'x' is a mixture of experts "
RECURRENT = "model_type 'x' has recurrent or linear-attention layers "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 128}, MOE + r"\(num_experts 128\)"),
        ({"num_local_experts": 8}, MOE + r"\(num_local_experts 8\)"),
        ({"n_routed_experts": 256, "kv_lora_rank": 512}, MOE),
        ({"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"linear_num_key_heads": 16}, RECURRENT),
        ({"layer_types": ["linear_attention", "full_attention", 5]}, RECURRENT),
        ({"state_size": 16}, RECURRENT),
        ({"attention_chunk_size": 8192}, "attends within chunks"),
        ({"layer_types": ["chunked_attention"] * 3}, "attends within chunks"),
        ({"num_experts": 1}, "model_type 'x' is none of"),
        ({"text_config": {"model_type": "y", "num_experts": 8}}, "'y' is a mixture of experts"),
        (
            {"text_config": {"model_type": "y"}, "vision_config": {}},
            "'x' with a language model of model_type 'y' reads images",
        ),
        (
            {"text_config": {**LLAMA, "tie_word_embeddings": False}, "tie_word_embeddings": True},
            "tie_word_embeddings is True, but False in text_config",
        ),
    ],
)
def test_layers_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config_of(tmp_path, {**LLAMA, "model_type": "x", **change})
    assert "\n" not in str(caught.value)


def test_tensors_of_other_parts_are_left_out(tmp_path: Path) -> None:
    """In both layouts of names; the exported folder is the language model's own."""
    tensors = stored_tensors(LLAMA)
    inner = {key: value for key, value in LLAMA.items() if key not in ("torch_dtype",)}
    raw = {
        "model_type": "llava",
        "text_config": inner,
        "vision_config": {"hidden_size": 4},
        "torch_dtype": "float32",
        "eos_token_id": 2,
    }
    plain = huggingface.load_params(
        write_folder(tmp_path / "plain", LLAMA, tensors),
        huggingface.read_config(tmp_path / "plain"),
    )
    eye = np.eye(4, dtype=np.float32)
    for layout, prefix in (("old", "language_model."), ("new", "model.language_model.")):
        stored = {"vision_tower.weight": eye, "multi_modal_projector.weight": eye}
        for name, tensor in tensors.items():
            head = layout == "new" and name.startswith("lm_head")
            short = name.removeprefix("model.") if layout == "new" else name
            stored[name if head else prefix + short] = tensor
        folder = write_folder(tmp_path / layout, raw, stored)
        config = huggingface.read_config(folder)
        params = huggingface.load_params(folder, config)
        assert_trees_equal(params, plain)
        huggingface.export(params, config, tmp_path / f"{layout}-out", folder)
        written = load_file(tmp_path / f"{layout}-out" / "model.safetensors")
        assert written.keys() == tensors.keys()
        out = json.loads((tmp_path / f"{layout}-out" / "config.json").read_text())
        assert out == inner | {"torch_dtype": "float32", "eos_token_id": 2}
    del stored["model.language_model.norm.weight"]
    save_file(stored, tmp_path / "new" / "model.safetensors")
    with pytest.raises(UserError, match="tensor model.norm.weight of shape"):
        huggingface.load_params(tmp_path / "new", config)


def test_the_language_model_of_gemma_3(tmp_path: Path) -> None:
    """transformers computes the same with the whole model and with the exported folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.huggingface.test_transformers_parity import load_theirs, our_logits

    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "head_dim": 8,
        "vocab_size": 29,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 3,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 8,
        "pad_token_id": None,
        "max_position_embeddings": 64,
    }
    vision: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision |= {"image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"}
    whole = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=28,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForConditionalGeneration(whole).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        tokens = torch.arange(24).reshape(2, 12)
        expected = theirs(tokens).logits.numpy()
    theirs.save_pretrained(tmp_path / "whole")
    ours = our_logits(tmp_path / "whole", tokens.numpy())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)

    config = huggingface.read_config(tmp_path / "whole")
    params = huggingface.load_params(tmp_path / "whole", config)
    huggingface.export(params, config, tmp_path / "out", tmp_path / "whole")
    alone = load_theirs(tmp_path / "out")
    assert type(alone) is transformers.Gemma3ForCausalLM
    with torch.no_grad():
        np.testing.assert_allclose(alone(tokens).logits.numpy(), expected, rtol=0, atol=1e-5)
