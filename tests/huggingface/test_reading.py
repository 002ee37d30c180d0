"""Tensors of a checkpoint and where they land in the parameter tree."""

import dataclasses
import json
import tracemalloc
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax import huggingface
from fqs_jax.huggingface import tensors
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError
from tests.checkpoint_folders import (
    LLAMA,
    MISTRAL,
    QWEN2,
    TIED,
    assert_trees_equal,
    config_of,
    load,
    stored_tensors,
    write_folder,
)


@pytest.mark.parametrize(
    ("name", "num_tensors", "num_bytes"),
    [
        ("Mistral-7B-v0.1", 291, 14483464192),
        ("Qwen2.5-7B-Instruct", 339, 15231233024),
        ("Qwen2.5-0.5B-Instruct", 290, None),
    ],
)
def test_names_and_shapes_of_real_checkpoints(shared, name, num_tensors, num_bytes):
    folder = shared / "real" / "configs" / name
    config = huggingface.read_config(folder)
    ours = huggingface.tensor_shapes(config)
    theirs = json.loads((folder / "tensor_shapes.json").read_text())
    assert ours == {name: tuple(shape) for name, shape in theirs.items()}
    assert len(ours) == num_tensors
    num_params = sum(int(np.prod(shape)) for shape in ours.values())
    assert num_bytes in (None, 2 * num_params)
    assert decoder.num_params(decoder.abstract_params(config)) == num_params
    if (index := folder / "model.safetensors.index.json").exists():
        assert set(json.loads(index.read_text())["weight_map"]) == set(ours)


@given(qkv_bias=st.booleans(), tied=st.booleans(), layers=st.integers(1, 3))
def test_leaf_shapes_are_the_models(qkv_bias, tied, layers):
    config = ModelConfig(11, 8, layers, 4, 2, 6, 12, qkv_bias=qkv_bias, tied_embeddings=tied)
    shapes = tensors.leaf_shapes(config)
    abstract = decoder.abstract_params(config)
    paths = {
        tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(abstract)
    }
    assert shapes == {path: leaf.shape for path, leaf in paths.items()}


@pytest.mark.parametrize(
    "raw", [LLAMA, MISTRAL, {**QWEN2, "head_dim": 6}], ids=lambda r: r["model_type"]
)
def test_every_element_lands_where_it_should(tmp_path, raw):
    stored = stored_tensors(raw)
    config, params = load(write_folder(tmp_path / "hf", raw, stored))
    np.testing.assert_array_equal(params["embed"]["embedding"], stored["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["head"]["kernel"], stored["lm_head.weight"].T)
    np.testing.assert_array_equal(params["final_norm"]["scale"], stored["model.norm.weight"])
    for i in range(config.num_layers):
        ours = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        theirs = {
            name.removeprefix(f"model.layers.{i}."): array
            for name, array in stored.items()
            if name.startswith(f"model.layers.{i}.")
        }
        for name, heads in (("q", config.num_heads), ("k", 2), ("v", 2)):
            weight = theirs[f"self_attn.{name}_proj.weight"]
            for head in range(heads):
                rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
                np.testing.assert_array_equal(ours[name]["kernel"][:, head], weight[rows].T)
                if config.qkv_bias:
                    bias = theirs[f"self_attn.{name}_proj.bias"]
                    np.testing.assert_array_equal(ours[name]["bias"][head], bias[rows])
        for head in range(config.num_heads):
            columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
            weight = theirs["self_attn.o_proj.weight"]
            np.testing.assert_array_equal(ours["o"]["kernel"][head], weight[:, columns].T)
        for name in ("gate", "up", "down"):
            weight = theirs[f"mlp.{name}_proj.weight"]
            np.testing.assert_array_equal(ours[name]["kernel"], weight.T)
        np.testing.assert_array_equal(ours["attn_norm"]["scale"], theirs["input_layernorm.weight"])
        np.testing.assert_array_equal(
            ours["mlp_norm"]["scale"], theirs["post_attention_layernorm.weight"]
        )


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("shards", [1, 3])
def test_types_and_shards(tmp_path, dtype, shards):
    stored = {name: array.astype(dtype) for name, array in stored_tensors(LLAMA).items()}
    _, params = load(write_folder(tmp_path / "hf", LLAMA, stored, shards))
    exact = {name: array.astype(np.float32) for name, array in stored.items()}
    _, expected = load(write_folder(tmp_path / "exact", LLAMA, exact))
    assert_trees_equal(params, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    _, half = load(tmp_path / "hf", "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(ml_dtypes.bfloat16)}


def test_names_without_prefix_and_old_buffers(tmp_path):
    stored = stored_tensors(LLAMA)
    _, expected = load(write_folder(tmp_path / "hf", LLAMA, stored))
    bare = {name.removeprefix("model."): array for name, array in stored.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    _, params = load(write_folder(tmp_path / "bare", LLAMA, bare))
    assert_trees_equal(params, expected)


@pytest.mark.parametrize("names", [["embed"], ["head"], ["embed", "head"]], ids="+".join)
@pytest.mark.parametrize("shards", [1, 2])
def test_tied_matrix_under_either_name(tmp_path, names, shards):
    stored = stored_tensors(TIED)
    embedding = stored.pop("model.embed_tokens.weight")
    full = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight"}
    stored |= {full[name]: embedding.copy() for name in names}
    config, params = load(write_folder(tmp_path / "hf", TIED, stored, shards))
    assert config.tied_embeddings and "head" not in params
    np.testing.assert_array_equal(params["embed"]["embedding"], embedding)


def test_tied_but_different(tmp_path):
    stored = stored_tensors(TIED)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"] + 1
    folder = write_folder(tmp_path / "hf", TIED, stored)
    with pytest.raises(UserError, match="lm_head.weight differs .*tie_word_embeddings"):
        load(folder)


def test_iterate_yields_each_tensor_once_and_checks_first(tmp_path):
    folder = write_folder(tmp_path / "hf", QWEN2, stored_tensors(QWEN2), shards=2)
    config = huggingface.read_config(folder)
    seen = [(path, layer) for path, layer, _ in huggingface.iterate_tensors(folder, config)]
    assert len(seen) == len(set(seen)) == len(stored_tensors(QWEN2))
    wrong = dataclasses.replace(config, mlp_dim=13)
    with pytest.raises(UserError, match="has shape"):
        huggingface.iterate_tensors(folder, wrong)  # without taking a single tensor


def test_no_copy_in_the_memory_of_the_host(tmp_path):
    raw = {**LLAMA, "num_hidden_layers": 16, "hidden_size": 64, "intermediate_size": 256}
    folder = write_folder(tmp_path / "hf", raw, stored_tensors(raw))
    config = huggingface.read_config(folder)
    tracemalloc.start()
    params = huggingface.load_params(folder, config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert peak < size / 3  # a few tensors at a time, of 16 layers


def broken(change: Any) -> dict[str, np.ndarray]:
    stored = stored_tensors(LLAMA)
    change(stored)
    return stored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"model.norm.weight of shape \(8,\) is missing"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight of shape"),
        (lambda t: t.clear(), r"model.embed_tokens.weight of shape \(11, 8\) \(and 29 more\)"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(8, np.float32)}),
            "model.safetensors: tensor model.layers.0.self_attn.q_proj.bias is not one of",
        ),
        (
            lambda t: t.update(
                {"model.layers.3.mlp.up_proj.weight": np.zeros((12, 8), np.float32)}
            ),
            "model.layers.3.mlp.up_proj.weight is not one of",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros((8, 1), np.float32)}),
            r"model.norm.weight has shape \(8, 1\), config.json implies \(8,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(8, np.int8)}),
            "model.norm.weight has type I8",
        ),
        (
            lambda t: t.update({"norm.weight": np.zeros(8, np.float32)}),
            "model.norm.weight is also in model.safetensors",
        ),
    ],
)
def test_tensor_errors(tmp_path, change, message):
    folder = write_folder(tmp_path / "hf", LLAMA, broken(change))
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 200, 3000])
def test_truncated_file(tmp_path, keep):
    folder = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    file = folder / "model.safetensors"
    assert file.stat().st_size > 3000
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors is damaged or incomplete") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_text_in_place_of_weights(tmp_path):
    folder = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="damaged or incomplete"):
        load(folder)


def test_shard_errors(tmp_path):
    folder = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is missing"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    for weight_map, message in [
        ({"a": "../x.safetensors"}, "not a file name"),
        ({}, "no weight_map"),
        (None, "no weight_map"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=message):
            load(folder)
    index.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load(folder)


def test_pickled_or_no_weights(tmp_path):
    config = config_of(tmp_path, LLAMA)
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        huggingface.load_params(tmp_path, config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="only safetensors is read; convert it with"):
        huggingface.load_params(tmp_path, config)
